"""MedNet's pretraining and its targets (Alzubaidi et al.).

"MedNet: Pre-trained Convolutional Neural Network Model for the Medical Imaging Tasks" proposes a
network and a way, and names no width, no training, no targets and no figures: they are our choice.
Configs of pretraining have these variants:

  (none)    width 16 on 64 px, 4 epochs: for a CPU
  :paper    width 64 on 224 px, 100 epochs of batches of 1,024 by LARS: for accelerators
  :watched  neighbours and a linear probe on labelled sets tell on the way what it is worth
  :smoke    a few steps

and take any objective, `--config.objective.name=byol` and so on. Configs of targets train the head
on the frozen encoder, then all layers, each stage of the network slower than the one above it; then
the same network from random weights, and tell the difference with a paired interval:

  (none)    from `runs/pretrain_gray/pretrain` or `runs/pretrain_color/pretrain`; from elsewhere,
            as from a related target's `runs/kermany_cxr/finetune`, by `--config.init_from=FOLDER`
  :paper    width 64 on 224 px
  :smoke    a few steps, from random weights unless `init_from` is given
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import common

FULL = dict(data=dict(image_size=224), model=dict(name="mednet", width=64))
BATCH = 1024
PRETRAINING = dict(
  data=dict(image_size=64),
  model=dict(name="mednet", width=16),
  objective="simclr",
  optimizer=dict(name="adamw", lr=1e-3),
  train=dict(batch_size=256, length="4 epochs"),
  stages=(dict(name="pretrain"),),
)
PRETRAINING_IN_FULL = FULL | dict(
  optimizer=dict(name="lars", lr=0.3 * BATCH / 256, weight_decay=1e-6, warmup="10 %", clip=0.0),
  train=dict(batch_size=BATCH, length="100 epochs", precision="bfloat16"),
)

ALL_LAYERS = dict(
  optimizer=dict(name="adamw", lr=3e-4, weight_decay=0.05, layer_decay=0.75),
  train=dict(length="50 epochs", stop=dict(patience=10)),
)
HEAD = dict(
  name="head",
  optimizer=dict(name="adamw", lr=1e-3, freeze=("encoder",)),
  train=dict(length="5 epochs"),
)
FINETUNE = dict(name="finetune", init_from="head", **ALL_LAYERS)
SCRATCH = common.merged(
  ALL_LAYERS, dict(name="scratch", init_from="", optimizer=dict(lr=1e-3, layer_decay=1.0))
)


def pretraining(
  arg: str, title: str, data: Mapping[str, Any], augment: Mapping[str, Any], watchers: Sequence[str]
) -> ConfigDict:
  """SimCLR on a pool of images.

  Args:
    arg: the variants. title: of the report. data: the pool. augment: how views are drawn.
    watchers: names of the sets of `:watched`, whose folders are those of their names.
  """
  own = dict(title=title, data=data, augment=augment)
  monitors = tuple(dict(name=name, root=f"{common.DATA}/{name}") for name in watchers)
  watched = dict(eval=dict(monitors=monitors))
  base = common.merged(PRETRAINING, own)
  return common.vary(arg, base, watched=watched, paper=PRETRAINING_IN_FULL)


def target(
  arg: str, title: str, pool: str, data: Mapping[str, Any], augment: Mapping[str, Any]
) -> ConfigDict:
  """A pretrained network on a labelled set.

  Args:
    arg: the variants. title: of the report. pool: `gray` or `color`, where its weights are from.
    data: the set; its folder is that of its name below `common.DATA`. augment: of its images.
  """
  config = dict(
    title=title,
    data=dict(root=f"{common.DATA}/{data['name']}", image_size=64) | data,
    augment=augment,
    model=dict(name="mednet", width=16),
    objective=dict(name="supervised", loss="softmax_ce", class_weights="balanced"),
    train=dict(batch_size=32),
    init_from="" if "smoke" in arg else f"runs/pretrain_{pool}/pretrain",
    stages=(HEAD, FINETUNE, SCRATCH),
    compare=("finetune", "scratch"),
  )
  return common.vary(arg, config, paper=FULL)
