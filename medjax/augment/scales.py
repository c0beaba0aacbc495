"""Multi-scale training: every so many steps images come in another size (Redmon & Farhadi 2018).

The size of a step depends on the seed and the step alone, so a resumed run goes on with the same
ones. Each size is a program of its own, compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax import contract

_STREAM = 0x5CA1E5  # of the seed's draws, away from those of the data's order
Take = Callable[[contract.Tree, Any], contract.Batch]  # of a feed


@dataclasses.dataclass(frozen=True)
class Course:
  """Which size the images of a step have.

  Attributes:
    sizes: to draw from, each as likely as any other. every: steps that have one size.
    seed: of the draws.
  """

  sizes: tuple[int, ...]
  every: int
  seed: int

  def at(self, step: int) -> int:
    """The size of a step."""
    return self._of(step // self.every)

  @functools.lru_cache(maxsize=4)  # noqa: B019 (a course lives as long as its run)
  def _of(self, run: int) -> int:
    rng = np.random.default_rng([self.seed, _STREAM, run])
    return self.sizes[rng.integers(len(self.sizes))]

  def calls(self, step: int, total: int, per_dispatch: int) -> dict[int, set[int]]:
    """Size -> the different numbers of steps of its calls, of all calls from `step` to `total`.

    A call has `per_dispatch` steps, the last one what is left.
    """
    found: dict[int, set[int]] = {}
    for start in range(step, total, per_dispatch):
      found.setdefault(self.at(start), set()).add(min(per_dispatch, total - start))
    return found


def resized(take: Take, size: int) -> Take:
  """A feed's `take` that brings its square images to `size` pixels, of the same integer type."""

  def taken(resident: contract.Tree, ticket: Any) -> contract.Batch:
    batch = take(resident, ticket)
    return {**batch, contract.IMAGE: _brought(batch[contract.IMAGE], size)}

  return taken


def _brought(images: jax.Array, size: int) -> jax.Array:
  """[b, S, S, C] to [b, size, size, C]: bilinear, antialiased where they shrink, rounded."""
  if images.shape[1:3] == (size, size):
    return images
  shape = (len(images), size, size, images.shape[-1])
  wide = jax.image.resize(images.astype(jnp.float32), shape, "linear")
  return jnp.round(wide).astype(images.dtype)
