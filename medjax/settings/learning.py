"""Settings of losses, objectives, optimizers, the loop and evaluation."""

from __future__ import annotations

import dataclasses
from typing import Literal

from medjax.settings.durations import Duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """A loss of each example; they are averaged over the batch."""

  name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxCE(Loss):
  """Softmax cross-entropy."""

  name: str = "softmax_ce"
  label_smoothing: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Margin(Loss):
  """QuadSNet's margin loss (Ali et al. 2021); `mix` is the share of cross-entropy mixed in."""

  name: str = "margin"
  score: Literal["prob_sq", "prob", "capsule"] = "prob_sq"
  exponent: int = 1
  positive: float = 0.9
  negative: float = 0.1
  down_weight: float = 0.5
  mix: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What a training step minimises."""

  name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(Objective):
  """Labels, a loss and class weights computed from the training part."""

  name: str = "supervised"
  loss: Loss = SoftmaxCE()
  class_weights: Literal["none", "balanced", "inv_norm"] = "balanced"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(Objective):
  """Two views of each image against all others (SimCLR, Chen et al. 2020).

  Attributes:
    temperature: of NT-Xent. projector: widths of its hidden and output layers.
  """

  name: str = "simclr"
  temperature: float = 0.1
  projector: tuple[int, int] = (512, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """What turns gradients into updates.

  Attributes:
    lr: peak learning rate. schedule: after warm-up, `constant` or `cosine` to 0.
    warmup: linear, from 0. clip: largest global norm of the gradient; 0 clips nothing.
  """

  name: str
  lr: float = 1e-3
  schedule: Literal["constant", "cosine"] = "cosine"
  warmup: Duration = Duration(5, "percent")
  clip: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
  """Adam."""

  name: str = "adam"
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
  """Adam with decoupled weight decay on kernels only, never on biases or batch-norm."""

  name: str = "adamw"
  weight_decay: float = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
  """Stochastic gradient descent with momentum; weight decay on kernels only."""

  name: str = "sgd"
  lr: float = 0.1
  momentum: float = 0.9
  nesterov: bool = False
  weight_decay: float = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """The loop.

  Attributes:
    batch_size: of the global batch, whatever the number of devices.
    length: of training. steps_per_dispatch: K steps run in one call; every interval is rounded up
      to a multiple of it.
    log_every, checkpoint_every: intervals.
    patience: evaluations without improvement by `min_delta` before the stage stops early; 0 never.
    precision: of computation; parameters, statistics and losses stay float32.
    bn_group: examples that share batch-norm statistics; 0 means the global batch.
    ops: form of convolutions: `cpu`, `plain`, or `auto`: cpu on CPU, said at the start.
  """

  batch_size: int = 32
  length: Duration = Duration(50, "epochs")
  steps_per_dispatch: int = 4
  log_every: Duration = Duration(20, "steps")
  checkpoint_every: Duration = Duration(1, "epochs")
  patience: int = 0
  min_delta: float = 0.0
  precision: Literal["float32", "bfloat16"] = "float32"
  bn_group: int = 0
  ops: Literal["auto", "cpu", "plain"] = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
  """Evaluation.

  Attributes:
    every: how often the val part is scored. batch_size: of evaluation.
    select: metric of the val part that chooses the best checkpoint, see `metrics.names`.
    recalibrate: training images over which batch-norm statistics are estimated anew before
      evaluation; 0 keeps the running ones.
    bootstrap: resamples behind the intervals.
  """

  every: Duration = Duration(1, "epochs")
  batch_size: int = 64
  select: str = "macro_f1"
  recalibrate: int = 0
  bootstrap: int = 10_000
