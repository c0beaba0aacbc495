"""Color-MedNet fine-tuned on HAM10000, dealt by lesion.

  python -m medjax.main --config=configs/mednet/ham10000.py \
    --config.data.root=FOLDER --config.init_from=runs/pretrain_color/pretrain \
    --workdir=runs/ham10000

Not run to its end on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.mednet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data, augment = dict(name="ham10000"), dict(name="ham_aug")
  return paper.target(arg, "Color-MedNet on HAM10000", "color", data, augment)
