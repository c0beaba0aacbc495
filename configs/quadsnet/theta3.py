"""QuadSNet on the paper's set Θ3, malignant skin lesions (Ali et al. 2021, table I).

  python -m medjax.main --config=configs/quadsnet/theta3.py \
    --config.data.root=FOLDER --workdir=runs/theta3

The paper links ISIC 2019 and cites HAM10000, but its 3,297 images and the 660 of its test are those
of this set. No lesions are published, so that no split is known to be clean. Not run on the real
files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.quadsnet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data, augment = dict(name="isic_malignant_benign"), dict(name="ham_aug")
  return paper.experiment(arg, "QuadSNet on malignant skin lesions", data, augment, "16 epochs")
