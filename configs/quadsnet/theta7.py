"""QuadSNet on the paper's set Θ7, digits (Ali et al. 2021, table I).

  python -m medjax.main --config=configs/quadsnet/theta7.py \
    --config.data.root=FOLDER --workdir=runs/theta7

Not run to its end on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.quadsnet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data, augment = dict(name="mnist"), dict(name="cxr_safe")
  return paper.experiment(arg, "QuadSNet on digits", data, augment, "2 epochs")
