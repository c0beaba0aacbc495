"""Settings of losses, optimizers, the loop and evaluation."""

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
class SigmoidBCE(Loss):
  """Binary cross-entropy, each class against the rest.

  Attributes:
    balanced: positives and negatives of a class count alike in sum (CheXNet, Rajpurkar et al. 2017,
      section 2.1).
  """

  name: str = "sigmoid_bce"
  balanced: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Focal(Loss):
  """Focal loss of a softmax (Lin et al. 2017): confident examples count less by `gamma`."""

  name: str = "focal"
  gamma: float = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidFocal(Loss):
  """Focal loss, each class against the rest; `alpha` is the weight of the positives."""

  name: str = "sigmoid_focal"
  gamma: float = 2.0
  alpha: float = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class LDAM(Loss):
  """Label-distribution-aware margins (Cao et al. 2019), on a cosine classifier.

  Attributes:
    scale: s, of the cosines. largest: margin of the rarest class.
  """

  name: str = "ldam"
  scale: float = 30.0
  largest: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patience:
  """What is watched on the val part, and for how long it may stay without improvement.

  Attributes:
    monitor: a metric of the val part, see `metrics.names`; empty for `eval.select`.
    patience: evaluations without improvement; 0 never acts. min_delta: by more than which the best
      value must be beaten.
  """

  monitor: str = ""
  patience: int = 0
  min_delta: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plateau(Patience):
  """Keras's ReduceLROnPlateau.

  Attributes:
    factor: by which the learning rate is multiplied. min_lr: below which the peak does not fall.
  """

  min_delta: float = 1e-4
  factor: float = 0.2
  min_lr: float = 1e-7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
  """What turns gradients into updates.

  Attributes:
    lr: peak learning rate. schedule: after warm-up, `constant` or `cosine` to 0.
    warmup: linear, from 0. clip: largest global norm of the gradient; 0 clips nothing.
    plateau: lowers the learning rate of either schedule further.
    accumulate: micro-batches that a batch is cut into, one after the other, to save memory; their
      gradients add up to the batch's. Batch-norm groups lie inside a micro-batch.
    ema: decay of the moving average of weights and statistics that is evaluated; 0 evaluates the
      weights themselves.
    freeze: parameters that do not learn: beginnings of paths such as `encoder/block1`, or patterns
      such as `*/bias`. Batch norm's statistics move all the same, unless `train.freeze_stats`.
    layer_decay: factor of the learning rate from each stage of the network to the one before it;
      the head has `lr` itself.
  """

  name: str
  lr: float = 1e-3
  schedule: Literal["constant", "cosine"] = "cosine"
  warmup: Duration = Duration(5, "percent")
  clip: float = 1.0
  plateau: Plateau = Plateau()
  accumulate: int = 1
  ema: float = 0.0
  freeze: tuple[str, ...] = ()
  layer_decay: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
  """Adam."""

  name: str = "adam"
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class KerasAdam(Adam):
  """Adam as Keras has it: eps is added before the second moment's bias is corrected."""

  name: str = "keras_adam"
  eps: float = 1e-7


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
class LARS(Optimizer):
  """Layer-wise adaptive rates (You et al. 2017), for large batches.

  Attributes:
    trust: share of a kernel's norm that the norm of its update has; the update is gradient and
      decay together, where the paper adds the norms of both. All else moves as under SGD.
  """

  name: str = "lars"
  lr: float = 1.0
  momentum: float = 0.9
  weight_decay: float = 1e-6
  trust: float = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """The loop.

  Attributes:
    batch_size: of the global batch, whatever the number of devices.
    sizes: multi-scale training: pixels that images are brought to on the device, one size drawn
      every `sizes_every`; each is compiled once. Empty for `data.image_size`, at which evaluation
      scores in any case, and beyond which images only become smoother.
    length: of training. steps_per_dispatch: K steps run in one call; every interval is rounded up
      to a multiple of it.
    log_every, checkpoint_every: intervals.
    snapshots: how many of the last checkpoints stay, for `python -m medjax.ensemble --weights`;
      at least two do, since a disk may damage one.
    log_images: whether `images.jsonl` tells which images every step was given.
    stop: ends the stage early.
    precision: of computation; parameters, statistics and losses stay float32.
    bn_group: examples that share batch-norm statistics; 0 means the global batch, or where
      gradients are accumulated, the global micro-batch.
    freeze_stats: batch norm normalises by the running statistics of `init_from`, in training too,
      and keeps them to the bit.
    ops: form of convolutions: `cpu`, `plain`, or `auto`: cpu on CPU, said at the start.
    remat: saves memory: networks of many units compute their inner maps twice.
    memory_gb: of a device that a step may take; more `optimizer.accumulate` and `remat` are taken
      by themselves where it needs more as configured. 0 for what the device says it has, less a
      tenth; a CPU says nothing.
    profile: the first step of which a trace is written to the stage's `profile/`, and the one after
      the last, such as `100,110`; empty for none.
  """

  batch_size: int = 32
  sizes: tuple[int, ...] = ()
  sizes_every: Duration = Duration(10, "steps")
  length: Duration = Duration(50, "epochs")
  steps_per_dispatch: int = 4
  log_every: Duration = Duration(20, "steps")
  checkpoint_every: Duration = Duration(1, "epochs")
  snapshots: int = 1
  log_images: bool = False
  stop: Patience = Patience()
  precision: Literal["float32", "bfloat16"] = "float32"
  bn_group: int = 0
  freeze_stats: bool = False
  ops: Literal["auto", "cpu", "plain"] = "auto"
  remat: bool = False
  memory_gb: float = 0.0
  profile: tuple[int, ...] = ()

  def __post_init__(self):
    if self.snapshots < 1:
      raise ValueError(f"train.snapshots={self.snapshots}: the last checkpoint stays in any case")
    if self.profile and not (len(self.profile) == 2 and 0 <= self.profile[0] < self.profile[1]):
      raise ValueError(
        f"train.profile={self.profile}: give the first step of the trace and the one after the last"
        " of it, such as 100,110"
      )
