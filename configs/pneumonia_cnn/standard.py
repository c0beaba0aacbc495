"""The standard network of Go & Bissaliyeva on Kermany's chest films (their first experiment).

  python -m medjax.main --config=configs/pneumonia_cnn/standard.py \
    --config.data.root=FOLDER --workdir=runs/standard

At 100 px see README, Studies. Not run at 200 px on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.pneumonia_cnn import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  return paper.experiment(arg, "pneumonia_cnn")
