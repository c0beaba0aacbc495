"""Does pretraining on unlabelled images help on a small, imbalanced set? On synthetic images.

  ./launch/local.sh --config=configs/quickstart.py --workdir=runs/quickstart

A narrow Gray-MedNet learns by SimCLR from unlabelled phantoms, is fine-tuned on a few hundred
labelled ones with a rare class, and is trained on the same from scratch; both are scored on one
test part, with a paired interval over patients.

On two CPU cores with nothing compiled before: 1 min 35 s, twice, and 1 min 36 s, after a minute for
the environment. Macro F1 is 0.336 (0.219 to 0.460) after pretraining and 0.429 (0.284 to 0.571)
from scratch, difference -0.093 (-0.242 to +0.054); with --config.seed=1 to 4 the difference is
-0.107 (-0.262 to +0.067), +0.177 (+0.007 to +0.333), +0.170 (+0.024 to +0.320) and +0.119 (+0.006
to +0.244). So few patients and steps bear no more than that.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; `:smoke` is a few steps of it."""
  config = ConfigDict(
    dict(
      title="Quickstart: does pretraining help on a small imbalanced set?",
      data=dict(name="phantom", image_size=64),
      model=dict(name="mednet", width=8, dropout=0.2),
      compare=("finetune", "scratch"),
    )
  )
  target = dict(
    data=dict(patients=220, seed=0),
    augment="cxr_safe",
    objective=dict(name="supervised", loss="softmax_ce", class_weights="balanced"),
    optimizer=dict(name="adamw", lr=3e-3),
    train=dict(batch_size=32, length="336 steps"),
    eval=dict(every="2 epochs"),
  )
  pretrain = dict(
    name="pretrain",
    data=dict(patients=1000, labelled=False, seed=1),
    augment="simclr_gray",
    objective="simclr",
    optimizer=dict(name="adamw", lr=2e-3),
    train=dict(batch_size=128, length="72 steps", log_every="8 steps"),
  )
  config.stages = (
    pretrain,
    target | dict(name="finetune", init_from="pretrain"),
    target | dict(name="scratch", init_from=""),
  )
  return common.choose(arg, **{"": config, "smoke": common.smoke(config)})
