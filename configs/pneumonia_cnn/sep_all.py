"""The same with all convolutions separable, which the paper leaves to future work.

  python -m medjax.main --config=configs/pneumonia_cnn/sep_all.py \
    --config.data.root=FOLDER --workdir=runs/sep_all

At 100 px see README, Studies. Not run at 200 px on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.pneumonia_cnn import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  return paper.experiment(arg, "pneumonia_sep_all")
