"""QuadSNet on the paper's set Θ5, retinal OCT in four classes (Ali et al. 2021, table I).

  python -m medjax.main --config=configs/quadsnet/theta5.py \
    --config.data.root=FOLDER --workdir=runs/theta5

84,484 images are Kermany's 83,484 for training and 1,000 for test. Patients stand in both parts, so
that the default deals anew by patient; `:paper` takes the official parts. Not run on the real
files. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs import common
from configs.quadsnet import paper

OFFICIAL = common.merged(paper.PAPER, dict(data=dict(split=dict(mode="official"))))


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  data = dict(name="oct_kermany", split=dict(mode="grouped"))
  augment = dict(name="cxr_safe", hflip=True)
  return paper.experiment(arg, "QuadSNet on retinal OCT", data, augment, "2 epochs", OFFICIAL)
