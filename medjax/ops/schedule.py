"""What XLA computes at once, and what apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp


def apart(compute: Callable, weight: jax.Array, *arrays: jax.Array) -> Any:
  """`compute(*arrays)` on its own: made once, and fused with nothing before or after it.

  XLA's CPU compiler takes additions, multiplications and transpositions to be cheap, however many
  they are, and repeats them in everything that reads the result. Across a branch it does not, and
  barriers are gone by then. The other branch spreads a `weight` that is no number to all results.
  """

  def lost(*arrays: jax.Array) -> Any:
    likes = jax.eval_shape(compute, *arrays)
    return jax.tree.map(lambda like: jnp.full(like.shape, weight, like.dtype), likes)

  return lax.cond(weight == weight, compute, lost, *arrays)


def in_parts(compute: Callable, size: int, *arrays: jax.Array) -> jax.Array:
  """The sum of `compute` over parts of so many examples."""
  parts = [each.reshape(-1, size, *each.shape[1:]) for each in arrays]
  like = jax.eval_shape(compute, *(part[0] for part in parts))
  wide = jnp.promote_types(like.dtype, jnp.float32)

  def add(sums: jax.Array, part: Sequence[jax.Array]) -> tuple[jax.Array, None]:
    return sums + compute(*part), None

  return lax.scan(add, jnp.zeros(like.shape, wide), parts)[0].astype(like.dtype)


def mapped(compute: Callable, size: int, x: jax.Array) -> jax.Array:
  """`compute` of so many examples at a time."""
  parts = lax.map(compute, x.reshape(-1, size, *x.shape[1:]))
  return parts.reshape(len(x), *parts.shape[2:])
