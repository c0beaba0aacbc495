"""Pooling, written so that its gradients need no search."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import operator

import jax
import jax.numpy as jnp

from medjax.ops import walk


def max_pool(
  x: jax.Array,
  window: int = 2,
  strides: int | None = None,
  padding: walk.Padding | Sequence[walk.Pair] = "VALID",
) -> jax.Array:
  """Largest value of each `window` x `window` square.

  Written as element-wise maxima, whose gradient needs no search; equal values share it.

  Args:
    x: [b, H, W, C].
    window: side of the squares. strides: their distance; default: `window`.
    padding: `VALID`; or `SAME`, with which a map never vanishes; or numbers of zeros, (before,
      after) for rows and columns, that compete like pixels: Keras's ZeroPadding2D and then VALID.

  Raises:
    ValueError: where no square fits.
  """
  strides = strides or window
  outside = -jnp.inf if padding == "SAME" else 0
  x = _pool_padded(x, window, strides, padding, outside)
  if strides == window:
    x = _squares(x, window)
    x = functools.reduce(jnp.maximum, (x[:, :, row] for row in range(window)))
    return functools.reduce(jnp.maximum, (x[:, :, :, column] for column in range(window)))
  x = functools.reduce(jnp.maximum, walk.shifted(x, (window, 1), (strides, 1)))
  return functools.reduce(jnp.maximum, walk.shifted(x, (1, window), (1, strides)))


def avg_pool(
  x: jax.Array,
  window: int = 2,
  strides: int | None = None,
  padding: walk.Padding | Sequence[walk.Pair] = "VALID",
) -> jax.Array:
  """Mean of each `window` x `window` square; arguments and errors are those of `max_pool`.

  What `SAME` adds is no part of the mean; the zeros of a padding in numbers are.
  """
  strides = strides or window
  wide = jnp.promote_types(x.dtype, jnp.float32)

  def sums(x):
    x = _pool_padded(x, window, strides, padding, 0)
    return functools.reduce(
      operator.add, walk.shifted(x.astype(wide), (window, window), (strides,) * 2)
    )

  inside = sums(jnp.ones((1, *x.shape[1:3], 1), wide)) if padding == "SAME" else window**2
  return (sums(x) / inside).astype(x.dtype)


def _pool_padded(
  x: jax.Array,
  window: int,
  strides: int,
  padding: walk.Padding | Sequence[walk.Pair],
  filling: float,
) -> jax.Array:
  pads = walk.resolved(x.shape[1:3], (window, window), (strides, strides), padding)
  padded = walk.padded(x, pads, filling)
  if min(padded.shape[1:3]) < window:
    raise ValueError(
      f"a map of {x.shape[1]}x{x.shape[2]} is too small for {window}x{window} pooling: "
      "use larger images (data.image_size) or a network with fewer pooled blocks"
    )
  return padded


def _squares(x: jax.Array, window: int) -> jax.Array:
  """[b, H, W, C] as [b, rows of squares, window, columns of squares, window, C], the rest cut."""
  b, height, width, channels = x.shape
  rows, columns = height // window, width // window
  x = x[:, : rows * window, : columns * window]
  return x.reshape(b, rows, window, columns, window, channels)


def adaptive_avg_pool(x: jax.Array, out: int) -> jax.Array:
  """Averages [b, H, W, C] into [b, out, out, C], whatever the map's size.

  Bin i covers rows floor(i H / out) to ceil((i + 1) H / out) - 1, and columns likewise: bins of a
  map that `out` does not divide share a row, and those of a smaller map repeat it.
  """
  x = jnp.stack([x[:, low:high].mean(1) for low, high in _bins(x.shape[1], out)], 1)
  return jnp.stack([x[:, :, low:high].mean(2) for low, high in _bins(x.shape[2], out)], 2)


def _bins(size: int, out: int) -> list[walk.Pair]:
  return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def global_avg_pool(x: jax.Array) -> jax.Array:
  """Mean over rows and columns: [b, H, W, C] to [b, C]."""
  return x.mean((1, 2))
