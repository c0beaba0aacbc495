"""Color-MedNet fine-tuned on BreakHis, the first of its five folds, patients as groups.

  python -m medjax.main --config=configs/mednet/breakhis.py \
    --config.data.root=FOLDER --config.init_from=runs/pretrain_color/pretrain \
    --workdir=runs/breakhis

The pool of `pretrain_color` are skin lesions; one of histology suits better. Not run on the real
files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.mednet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data, augment = dict(name="breakhis", fold=1), dict(name="ham_aug")
  return paper.target(arg, "Color-MedNet on BreakHis", "color", data, augment)
