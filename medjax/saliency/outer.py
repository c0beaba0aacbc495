"""Methods that change pixels, or differentiate by them."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import get_args

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from medjax.saliency import view as view_lib

AT_ONCE = 8  # changed copies of a batch that are on the device together


@dataclasses.dataclass(frozen=True)
class IntegratedGradients:
  """Gradients on the way from an empty image to this one (Sundararajan et al. 2017, section 3).

  A map adds up to the evidence in the image less that in the empty one, but for the steps.

  Attributes:
    baseline: what an empty image is. steps: on the way, at their middles.
  """

  baseline: view_lib.Baseline = "black"
  steps: int = 64

  def __post_init__(self):
    _check_baseline(self.baseline)
    _check_least(1, steps=self.steps)

  def __call__(self, view: view_lib.View, images: jax.Array, targets: jax.Array) -> jax.Array:
    """[b, H, W], above 0 for the class and below 0 against it; the sum over channels."""
    start = view.filled(images, self.baseline)

    def gradient(step: jax.Array) -> jax.Array:
      share = (step + 0.5) / self.steps
      return view.gradient(start + share * (images - start), targets)

    return ((images - start) * _mean(gradient, self.steps)).sum(-1)


@dataclasses.dataclass(frozen=True)
class SmoothGrad:
  """The mean gradient over noisy copies of the image (Smilkov et al. 2017, section 3).

  All images get the same noises, each times its own range.

  Attributes:
    samples: noisy copies. noise: standard deviation, as a share of the image's range. seed: of it.
  """

  samples: int = 32
  noise: float = 0.15
  seed: int = 0

  def __post_init__(self):
    _check_least(1, samples=self.samples)
    _check_least(0, noise=self.noise, seed=self.seed)

  def __call__(self, view: view_lib.View, images: jax.Array, targets: jax.Array) -> jax.Array:
    """[b, H, W], at least 0: the largest absolute value over channels."""
    spread = images.max((1, 2, 3), keepdims=True) - images.min((1, 2, 3), keepdims=True)
    key = jax.random.key(self.seed)

    def gradient(sample: jax.Array) -> jax.Array:
      drawn = jax.random.normal(jax.random.fold_in(key, sample), images.shape[1:], images.dtype)
      return view.gradient(images + self.noise * spread * drawn, targets)

    return jnp.abs(_mean(gradient, self.samples)).max(-1)


@dataclasses.dataclass(frozen=True)
class Occlusion:
  """What the evidence loses when a patch is covered (Zeiler and Fergus 2014, section 4.2).

  A pixel has the mean over all patches that cover it.

  Attributes:
    patch: its side in pixels; 0 for an eighth of the image's shorter side.
    stride: pixels between patches; 0 for half a patch. The last ones end at the image's edges.
    baseline: what the patch is filled with.
  """

  patch: int = 0
  stride: int = 0
  baseline: view_lib.Baseline = "mean"

  def __post_init__(self):
    _check_baseline(self.baseline)
    _check_least(0, patch=self.patch, stride=self.stride)

  def __call__(self, view: view_lib.View, images: jax.Array, targets: jax.Array) -> jax.Array:
    """[b, H, W], above 0 where the image speaks for the class, below 0 against it."""
    height, width = images.shape[1:3]
    side = self.patch or max(1, min(height, width) // 8)
    stride = self.stride or max(1, side // 2)
    if not stride <= side <= min(height, width):
      raise ValueError(
        f"patch={side}, stride={stride} on images of {height} x {width} pixels: give a patch that "
        "fits, and a stride that leaves no pixel between two of them"
      )
    rows, columns = _windows(height, side, stride), _windows(width, side, stride)
    whole, fill = view.score(images, targets), view.filled(images, self.baseline)

    def loss(number: jax.Array) -> jax.Array:
      row, column = number // len(columns), number % len(columns)
      inside = jnp.asarray(rows)[row][:, None] & jnp.asarray(columns)[column]
      covered = jnp.where(inside[..., None], fill, images)
      return (whole - view.score(covered, targets))[:, None, None] * inside

    patches = len(rows) * len(columns)
    often = np.outer(rows.sum(0), columns.sum(0))  # a pixel is covered
    return _mean(loss, patches) * patches / often.astype(images.dtype)


def _check_baseline(baseline: str) -> None:
  if baseline not in get_args(view_lib.Baseline):
    raise ValueError(f"baseline={baseline!r}: choose {' or '.join(get_args(view_lib.Baseline))}")


def _check_least(least: int, **values: float) -> None:
  for name, value in values.items():
    if value < least:
      raise ValueError(f"{name}={value}: give {least} or more")


def _windows(length: int, side: int, stride: int) -> np.ndarray:
  """[n, length] bool: which places along an axis each window covers."""
  starts = np.unique([*range(0, length - side, stride), length - side])
  places = np.arange(length)
  return (places >= starts[:, None]) & (places < starts[:, None] + side)


def _mean(term: Callable[[jax.Array], jax.Array], count: int) -> jax.Array:
  """Mean of `term(0)` to `term(count - 1)`, of which no more than `AT_ONCE` are held together."""
  side_by_side = min(AT_ONCE, count)
  numbers = jnp.arange(-(-count // side_by_side) * side_by_side).reshape(-1, side_by_side)
  shape = jax.eval_shape(term, numbers[0, 0])

  def add(total: jax.Array, chunk: jax.Array) -> tuple[jax.Array, None]:
    values = jax.vmap(term)(jnp.minimum(chunk, count - 1))
    return total + jnp.tensordot((chunk < count).astype(values.dtype), values, 1), None

  return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), numbers)[0] / count
