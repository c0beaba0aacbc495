"""QuadSNet on the paper's set Θ2, COVID-19 in CT (Ali et al. 2021, table I).

  python -m medjax.main --config=configs/quadsnet/theta2.py \
    --config.data.root=FOLDER --workdir=runs/theta2

The default is that of `covid_ct_grouped.py`, where its figures stand; `:paper` takes the official
split, which cuts published figures, and was not run. Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs import common
from configs.quadsnet import paper

OFFICIAL = common.merged(paper.PAPER, dict(data=dict(split=dict(mode="official"))))


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  split = dict(mode="grouped", val=0.17, test=0.27)
  data, augment = dict(name="covid_ct", split=split), dict(name="cxr_safe", hflip=True)
  return paper.experiment(arg, "QuadSNet on COVID-CT", data, augment, "16 epochs", OFFICIAL)
