"""The same with its second convolution separable, which the paper leaves to future work.

  python -m medjax.main --config=configs/pneumonia_cnn/sep_mid.py \
    --config.data.root=FOLDER --workdir=runs/sep_mid

Not run to its end on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.pneumonia_cnn import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  return paper.experiment(arg, "pneumonia_sep_mid")
