"""QuadSNet on the paper's set Θ6, malaria in red blood cells (Ali et al. 2021, table I).

  python -m medjax.main --config=configs/quadsnet/theta6.py \
    --config.data.root=FOLDER --workdir=runs/theta6

The table rounds 27,558 to 27,500. Not run on the real files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs.quadsnet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data, augment = dict(name="malaria_cells"), dict(name="ham_aug")
  return paper.experiment(arg, "QuadSNet on malaria in red blood cells", data, augment, "4 epochs")
