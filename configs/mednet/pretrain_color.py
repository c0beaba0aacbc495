"""Color-MedNet pretrained by SimCLR on the training lesions of HAM10000, without their labels.

  python -m medjax.main --config=configs/mednet/pretrain_color.py \
    --config.data.root=FOLDER --workdir=runs/pretrain_color

The split is that of `ham10000.py`, so that no lesion of its val and test is among these. Not run to
its end on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs import common
from configs.mednet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data = dict(name="ham10000", root=f"{common.DATA}/ham10000")
  augment = dict(name="simclr_color", rotation=180)  # dermoscopy has no right way up
  title, watchers = "Color-MedNet, SimCLR on HAM10000", ("ham10000",)
  return paper.pretraining(arg, title, data, augment, watchers)
