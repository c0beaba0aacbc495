"""QuadSNet on the paper's set Θ4, diabetic retinopathy (Ali et al. 2021, table I).

  python -m medjax.main --config=configs/quadsnet/theta4.py \
    --config.data.root=FOLDER --workdir=runs/theta4

18,632 images are the 9,316 with retinopathy and as many without. Not run on the real files.
Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.quadsnet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data, augment = dict(name="eyepacs", task="balanced"), dict(name="ham_aug")
  return paper.experiment(arg, "QuadSNet on diabetic retinopathy", data, augment, "4 epochs")
