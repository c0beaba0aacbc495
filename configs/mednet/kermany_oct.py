"""Gray-MedNet fine-tuned on some 5,000 images of Kermany's retinal OCT, dealt by patient.

  python -m medjax.main --config=configs/mednet/kermany_oct.py \
    --config.data.root=FOLDER --config.init_from=runs/pretrain_gray/pretrain \
    --workdir=runs/kermany_oct

The share counts patients, of whom some have hundreds of images; val and test are whole. Not run on
the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.mednet import paper

SHARE = 5_000 / 58_000  # of the training part


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  split = dict(mode="grouped", fraction=SHARE)
  data = dict(name="oct_kermany", channels=1, split=split)
  augment = dict(name="cxr_safe", hflip=True)
  return paper.target(arg, "Gray-MedNet on retinal OCT", "gray", data, augment)
