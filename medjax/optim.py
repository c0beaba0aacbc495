"""From gradients to updates: optimisers, what learns, how fast, and when it is enough.

The learning rate of every step is computed on the host, as a function of the step and of how often
the plateau rule lowered it, and travels to the devices with the step's batch. So the log knows it
without asking a device, and lowering it neither compiles anything nor touches the state.

What treats all numbers alike works on one vector of them (`optax.flatten`): a few kernels to
compile and to start in every step, where a tree takes some for each leaf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from medjax import contract, metrics, settings, trees

Schedule = Callable[[int], float]  # number of the update -> learning rate


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """How parameters move; made by `make`.

  Attributes:
    rule: from gradients to updates of the parameters that learn; `update(..., lr=)`.
    schedule: the learning rate before any plateau lowers it.
    total: updates of the whole training.
    accumulate: micro-batches of a batch.
    ema: decay of the moving average of parameters and statistics; 0 for none.
    freeze: patterns of the paths that do not learn.
  """

  rule: optax.GradientTransformationExtraArgs
  schedule: Schedule
  total: int
  accumulate: int = 1
  ema: float = 0.0
  freeze: tuple[str, ...] = ()

  def split(self, params: contract.Tree) -> tuple[contract.Tree, contract.Tree]:
    """Parameters that learn, and those that do not: `trees.merge` joins them.

    Raises:
      ValueError: a pattern of `freeze` fits no parameter, or nothing is left to learn.
    """
    paths = trees.flatten(params)
    for pattern in self.freeze:
      if not any(trees.lies_in(path, pattern) for path in paths):
        raise ValueError(
          f"optimizer.freeze: {pattern!r} fits no parameter; paths begin with "
          + ", ".join(sorted({"/".join(path.split("/")[:2]) for path in paths}))
        )
    learns = {path: not any(trees.lies_in(path, p) for p in self.freeze) for path in paths}
    if not any(learns.values()):
      raise ValueError(f"optimizer.freeze={self.freeze} leaves no parameter to learn")
    return trees.split(params, learns.__getitem__)

  def init(self, params: contract.Tree) -> Any:
    """State of the rule at update 0."""
    return self.rule.init(self.split(params)[0])

  def apply(
    self, grads: contract.Tree, state: Any, params: contract.Tree, lr: jax.Array
  ) -> tuple[contract.Tree, Any]:
    """All parameters one update later, and the rule's state.

    Args:
      grads: of the parameters that learn. state: from `init`. params: all. lr: learning rate.
    """
    learning, fixed = self.split(params)
    updates, state = self.rule.update(grads, state, learning, lr=lr)
    return trees.merge(optax.apply_updates(learning, updates), fixed), state

  def averaged(self, average: contract.Tree, values: contract.Tree, update: Any) -> contract.Tree:
    """A moving average one update later.

    The decay grows with the updates so far, min(ema, (1 + n) / (10 + n)) as in TensorFlow's
    ExponentialMovingAverage: a fixed one would keep a short training at its random start.
    """
    count = jnp.asarray(update, float)
    decay = jnp.minimum(self.ema, (1 + count) / (10 + count))
    return jax.tree.map(lambda a, v: v + (a - v) * decay.astype(v.dtype), average, values)


def make(
  cfg: settings.Optimizer, total_steps: int, warmup_steps: int, stages: Sequence[str] = ()
) -> Optimizer:
  """Builds the optimiser of a training of known length.

  Gradients are clipped by their global norm first, so that what weight decay adds is not clipped.

  Args:
    cfg: one of the optimiser settings.
    total_steps: updates of the whole training, the warm-up's among them.
    warmup_steps: updates over which the learning rate grows from 0.
    stages: of the network, see `net.Net`; needed where `cfg.layer_decay` is not 1.

  Raises:
    KeyError: for settings that `RULES` does not list.
    ValueError: for a warm-up that does not end before the training does.
  """
  if type(cfg) not in RULES:
    names = ", ".join(known.__name__ for known in RULES)
    raise KeyError(f"no optimizer for {type(cfg).__name__}: choose one of {names}")
  clip = [optax.flatten(optax.clip_by_global_norm(cfg.clip))] if cfg.clip else []
  slower = [_by_stage(cfg.layer_decay, stages)] if cfg.layer_decay != 1 else []
  rule = optax.chain(*clip, *RULES[type(cfg)](cfg), *slower)
  schedule = make_schedule(cfg, total_steps, warmup_steps)
  return Optimizer(rule, schedule, total_steps, cfg.accumulate, cfg.ema, cfg.freeze)


def make_schedule(cfg: settings.Optimizer, total_steps: int, warmup_steps: int) -> Schedule:
  """A learning rate that grows linearly from 0 to `cfg.lr`, then stays or falls by a half cosine.

  The first update has number 0, hence no effect if there is a warm-up; the cosine reaches 0 at
  update `total_steps`, one after the last.
  """
  left = total_steps - warmup_steps
  if left <= 0:
    raise ValueError(
      f"a warm-up of {warmup_steps} steps does not fit in a training of {total_steps}: "
      "shorten optimizer.warmup or lengthen train.length"
    )

  def schedule(update: int) -> float:
    if update < warmup_steps:
      return cfg.lr * update / warmup_steps
    if cfg.schedule == "constant":
      return cfg.lr
    return cfg.lr * (1 + math.cos(math.pi * min(1.0, (update - warmup_steps) / left))) / 2

  return schedule


def is_kernel(params: contract.Tree) -> contract.Tree:
  """Marks what weight decay applies to: kernels, never biases or batch norm's scales."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _by_rate() -> optax.GradientTransformationExtraArgs:
  """Multiplies by minus the learning rate that `update` is given."""

  def update(updates, state, params=None, *, lr, **unused):
    del params, unused
    return jax.tree.map(lambda u: -lr.astype(u.dtype) * u, updates), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _by_stage(decay: float, stages: Sequence[str]) -> optax.GradientTransformation:
  """Multiplies by `decay` once for every stage that lies between a parameter and the output.

  It comes last, so it acts as a learning rate of the stage's own, on weight decay too (Howard &
  Ruder 2018, ULMFiT, section 3.2).
  """

  def factor(path: tuple, _: Any) -> float:
    name = "/".join(part.key for part in path)
    places = [place for place, stage in enumerate(stages) if trees.lies_in(name, stage)]
    if not places:
      raise ValueError(
        f"optimizer.layer_decay={decay:g}: {name} lies in no stage of a network"
        f" ({', '.join(stages)}): set it to 1"
      )
    return decay ** (len(stages) - 1 - places[0])

  def init(params: contract.Tree) -> optax.EmptyState:
    jax.tree_util.tree_map_with_path(factor, params)  # raises now what would raise later
    return optax.EmptyState()

  def update(updates, state, params=None):
    del params
    factors = jax.tree_util.tree_map_with_path(factor, updates)
    return jax.tree.map(lambda u, f: u * f, updates, factors), state

  return optax.GradientTransformation(init, update)


def _by_keras_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
  """sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps).

  Adam's own form adds eps after v was divided by 1 - b2^t. With a large eps the two differ for
  thousands of steps.
  """

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

  def update(grads, state, params=None):
    del params
    count = state.count + 1
    m = jax.tree.map(lambda m, g: m + (g - m) * (1 - b1), state.mu, grads)
    v = jax.tree.map(lambda v, g: v + (g * g - v) * (1 - b2), state.nu, grads)

    def step(m, v):
      power = count.astype(m.dtype)
      return m * (jnp.sqrt(1 - b2**power) / (1 - b1**power)) / (jnp.sqrt(v) + eps)

    return jax.tree.map(step, m, v), optax.ScaleByAdamState(count, m, v)

  return optax.GradientTransformation(init, update)


def _adam(cfg: settings.Adam) -> tuple:
  return optax.flatten(optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)), _by_rate()


def _keras_adam(cfg: settings.KerasAdam) -> tuple:
  return optax.flatten(_by_keras_adam(cfg.b1, cfg.b2, cfg.eps)), _by_rate()


def _adamw(cfg: settings.AdamW) -> tuple:
  adam = optax.flatten(optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps))
  return adam, optax.add_decayed_weights(cfg.weight_decay, is_kernel), _by_rate()


def _sgd(cfg: settings.SGD) -> tuple:
  decay = optax.add_decayed_weights(cfg.weight_decay, is_kernel)
  return decay, optax.trace(cfg.momentum, cfg.nesterov), _by_rate()


def _lars(cfg: settings.LARS) -> tuple:
  trust = optax.scale_by_trust_ratio(trust_coefficient=cfg.trust)
  return (
    optax.add_decayed_weights(cfg.weight_decay, is_kernel),
    optax.masked(trust, is_kernel),
    _by_rate(),  # before the momentum, as the paper has it
    optax.trace(cfg.momentum),
  )


RULES: dict[type[settings.Optimizer], Callable[[Any], tuple]] = {
  settings.Adam: _adam,
  settings.KerasAdam: _keras_adam,
  settings.AdamW: _adamw,
  settings.SGD: _sgd,
  settings.LARS: _lars,
}


@dataclasses.dataclass(frozen=True)
class Best:
  """The best value of a metric so far.

  Attributes:
    value: larger is better: the caller turns the sign of a loss. None, worse than any number,
      before the first evaluation.
    step: at which it was reached.
    wait: evaluations since.
  """

  value: float | None = None
  step: int = 0
  wait: int = 0

  def track(self, value: float, step: int, min_delta: float = 0.0) -> Best:
    """The best after one more evaluation, which must beat it by more than `min_delta`.

    NaN never improves, not even on None.
    """
    before = float("-inf") if self.value is None else self.value
    if value - min_delta > before:
      return Best(value, step)
    return dataclasses.replace(self, wait=self.wait + 1)

  def exhausts(self, patience: int) -> bool:
    """Whether `patience` evaluations went by without improvement; a patience of 0 never ends."""
    return 0 < patience <= self.wait


@dataclasses.dataclass(frozen=True)
class Standing:
  """Where a training stands after its evaluations; saved in the checkpoint as JSON.

  Attributes:
    chosen: by `eval.select`: at its step lies the best checkpoint.
    stop: of early stopping. plateau: of the plateau rule.
    scale: by which that rule has multiplied the learning rate.
  """

  chosen: Best = Best()
  stop: Best = Best()
  plateau: Best = Best()
  scale: float = 1.0

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> Standing:
    """Reads what `dataclasses.asdict` wrote; empty is the beginning."""
    bests = {name: Best(**best) for name, best in values.items() if name != "scale"}
    return cls(**bests, scale=values.get("scale", 1.0))

  def after(
    self,
    found: Mapping[str, float],
    step: int,
    select: str,
    stop: settings.Patience,
    optimizer: settings.Optimizer,
  ) -> Standing:
    """The standing after one more evaluation (Keras's EarlyStopping and ReduceLROnPlateau).

    Args:
      found: metrics of the val part. step: at which they were found.
      select: name of the metric that chooses the best checkpoint.
      stop, optimizer: of the stage.
    """

    def value(name: str) -> float:
      name = name or select
      return -found[name] if name in metrics.LOWER_IS_BETTER else found[name]

    rule = optimizer.plateau
    after = Standing(
      self.chosen.track(value(select), step),
      self.stop.track(value(stop.monitor), step, stop.min_delta),
      self.plateau.track(value(rule.monitor), step, rule.min_delta),
      self.scale,
    )
    if not after.plateau.exhausts(rule.patience):
      return after
    least = rule.min_lr / optimizer.lr if optimizer.lr else 1.0
    if self.scale <= least:
      return after
    lowered = max(self.scale * rule.factor, least)
    return dataclasses.replace(
      after, plateau=dataclasses.replace(after.plateau, wait=0), scale=lowered
    )
