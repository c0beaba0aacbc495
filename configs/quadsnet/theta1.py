"""QuadSNet on the paper's set Θ1, pneumonia in chest films of children (Ali et al. 2021, table I).

  python -m medjax.main --config=configs/quadsnet/theta1.py \
    --config.data.root=FOLDER --workdir=runs/theta1

The table counts 10,855 images; the set has 5,856. Not run to its end on the real files. Variants:
`paper.py`.
"""

from ml_collections import ConfigDict

from configs.quadsnet import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data, augment = dict(name="chest_xray_kermany"), dict(name="cxr_safe")
  return paper.experiment(arg, "QuadSNet on children's chest films", data, augment, "5 epochs")
