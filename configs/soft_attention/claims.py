"""What do soft attention, metadata and class weights each add? All eight ways to have them or not.

  python -m medjax.main --config=configs/soft_attention/claims.py \
    --config.data.root=FOLDER --workdir=runs/claims

MobileNet-V3 Small from random weights on HAM10000 at 64 px, dealt by lesion, three epochs of AdamW:
the claims of Nguyen et al. 2022 (section 4) at a size at which two cores can test them. Every arm
is scored on the same lesions; `study_summary.csv` in the workdir has the paired differences to the
plain network. Balanced accuracy of the plain one: 0.209 (0.193 to 0.225). Attention adds 0.020
(+0.004 to +0.037), metadata 0.067 (+0.042 to +0.093), weights 0.101 (+0.059 to +0.144), metadata
and weights 0.245 (+0.190 to +0.296), all three 0.150 (+0.101 to +0.196). Variant `:smoke`.
"""

import functools
import itertools

from ml_collections import ConfigDict

from configs import common
from configs.soft_attention import paper

PARTS = dict(  # of an arm: what changes where it is there
  attention=dict(model=dict(attention="paper")),
  metadata=dict(model=dict(metadata="dense")),
  weights=dict(objective=dict(class_weights="balanced")),
)
PLAIN = dict(model=dict(attention="none", metadata="none"), objective=dict(class_weights="none"))


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variant `:smoke`."""
  config = paper.experiment(arg, "mobilenet_v3_small", size=64)
  config.title = "What attention, metadata and weights add, HAM10000"
  config.optimizer = dict(name="adamw", lr=1e-3)
  config.data.split = dict(test=0.2, val=0.1)
  config.eval.select = "balanced_accuracy"
  config.eval.recalibrate = 1024  # Keras's running statistics follow too slowly for three epochs
  if not arg:
    config.train = dict(batch_size=32, length="3 epochs")
  config.study = dict(columns=("arm",), baseline="plain")
  config.stages = tuple(_arm(chosen) for chosen in _subsets())
  return config


def _subsets() -> list[tuple[str, ...]]:
  return [c for n in range(len(PARTS) + 1) for c in itertools.combinations(PARTS, n)]


def _arm(chosen: tuple[str, ...]) -> dict:
  name = "_".join(chosen) or "plain"
  changed = functools.reduce(common.merged, (PARTS[part] for part in chosen), PLAIN)
  return changed | dict(name=name, cell=(name,))
