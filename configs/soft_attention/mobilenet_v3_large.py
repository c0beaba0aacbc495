"""MobileNet-V3 Large with soft attention and metadata on HAM10000 (Nguyen et al. 2022, section 4).

  python -m medjax.main --config=configs/soft_attention/mobilenet_v3_large.py \
    --config.data.root=FOLDER --workdir=runs/mobilenet_v3_large

The notebooks cut this network at two places, `:code` and `:code34`; the published accuracy of 0.86
is of the latter, those of single classes of the former. Not run to its end on the real files.
Variants: `paper.py`.
"""

from ml_collections import ConfigDict

from configs import common
from configs.soft_attention import paper


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants as in `paper`."""
  earlier = common.merged(paper.CODE, dict(model=dict(cut="code34")))
  return paper.experiment(arg, "mobilenet_v3_large", code34=earlier)
