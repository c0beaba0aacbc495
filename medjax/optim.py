"""From gradients to updates: optimisers, learning-rate schedules, and the rule that stops early."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
import optax

from medjax import contract, settings

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]  # update number -> learning rate


def make(
  cfg: settings.Optimizer, total_steps: int, warmup_steps: int
) -> tuple[optax.GradientTransformation, Schedule]:
  """Builds the optimiser of a training of known length.

  Gradients are clipped by their global norm first, so that what weight decay adds is not clipped.

  Args:
    cfg: one of the optimiser settings.
    total_steps: updates of the whole training, the warm-up's among them.
    warmup_steps: updates over which the learning rate grows from 0.

  Returns:
    The transformation, and its schedule for the log.

  Raises:
    KeyError: for settings that `OPTIMIZERS` does not list.
    ValueError: for a warm-up that does not end before the training does.
  """
  if type(cfg) not in OPTIMIZERS:
    names = ", ".join(known.__name__ for known in OPTIMIZERS)
    raise KeyError(f"no optimizer for {type(cfg).__name__}: choose one of {names}")
  schedule = make_schedule(cfg, total_steps, warmup_steps)
  clip = [optax.clip_by_global_norm(cfg.clip)] if cfg.clip else []
  return optax.chain(*clip, OPTIMIZERS[type(cfg)](cfg, schedule)), schedule


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
  after = {
    "constant": optax.constant_schedule(cfg.lr),
    "cosine": optax.cosine_decay_schedule(cfg.lr, left),
  }[cfg.schedule]
  if not warmup_steps:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, cfg.lr, warmup_steps), after], [warmup_steps]
  )


def is_kernel(params: contract.Tree) -> contract.Tree:
  """Marks what weight decay applies to: kernels, never biases or batch norm's scales."""
  return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)


def _adam(cfg: settings.Adam, schedule: Schedule) -> optax.GradientTransformation:
  return optax.adam(schedule, cfg.b1, cfg.b2, cfg.eps)


def _adamw(cfg: settings.AdamW, schedule: Schedule) -> optax.GradientTransformation:
  return optax.adamw(
    schedule, cfg.b1, cfg.b2, cfg.eps, weight_decay=cfg.weight_decay, mask=is_kernel
  )


def _sgd(cfg: settings.SGD, schedule: Schedule) -> optax.GradientTransformation:
  return optax.chain(
    optax.add_decayed_weights(cfg.weight_decay, is_kernel),
    optax.sgd(schedule, cfg.momentum, cfg.nesterov),
  )


OPTIMIZERS: dict[type[settings.Optimizer], Callable] = {
  settings.Adam: _adam,
  settings.AdamW: _adamw,
  settings.SGD: _sgd,
}


@dataclasses.dataclass(frozen=True)
class Best:
  """The best evaluation so far (Keras EarlyStopping semantics); saved in the checkpoint as JSON.

  Attributes:
    value: of the watched metric, larger is better: the caller turns the sign of a loss. None, worse
      than any number, before the first evaluation.
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
    if value - before > min_delta:
      return Best(value, step)
    return dataclasses.replace(self, wait=self.wait + 1)

  def exhausts(self, patience: int) -> bool:
    """Whether `patience` evaluations went by without improvement; a patience of 0 never ends."""
    return 0 < patience <= self.wait
