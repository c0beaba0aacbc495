"""Convolutions channel by channel, in the `cpu` form: shifted, multiplied and added."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import math
import operator

import jax
from jax import lax
import jax.numpy as jnp

from medjax.ops import schedule, transposed, walk

_SMALL = 2**20  # values of a batch of maps; larger ones are not cut
_CACHED = 2**15  # values of a map that stay in a core's cache


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  """The `cpu` form: [b, H, W, C] with [kh, kw, 1, C]."""
  return _weighted_sum(walk.padded(x, geometry.pads), kernel, geometry.strides, geometry.dilation)


def _forward(x, kernel, geometry):
  return conv(x, kernel, geometry), (x, kernel)


def _backward(geometry, saved, g):
  x, kernel = saved
  x_bar = transposed.input_gradient(_turned, x, kernel, g, geometry)
  kernel_bar = _kernel_gradient(walk.padded(x, geometry.pads), g, kernel.shape[:2], geometry)
  return x_bar, kernel_bar.astype(kernel.dtype)


def _turned(g: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  return conv(g, jnp.flip(kernel, (0, 1)), geometry)


conv.defvjp(_forward, _backward)


# Traced and translated once for all layers of the same shapes.
@functools.partial(jax.jit, static_argnames=("strides", "dilation"))
def _weighted_sum(
  x: jax.Array, kernel: jax.Array, strides: walk.Pair, dilation: walk.Pair
) -> jax.Array:
  """Depthwise convolution of a padded map: the sum over taps of shifted map times weight."""
  # Without the barrier XLA reads the middle tap from before the padding, and computes whatever
  # made that map a second time; in a chain of such layers, all of it.
  x = lax.optimization_barrier(x)
  wide = jnp.promote_types(x.dtype, jnp.float32)
  shifted = walk.shifted(x, kernel.shape[:2], strides, dilation)
  weights = (kernel[*tap, 0] for tap in walk.taps(kernel.shape[:2]))
  terms = (part.astype(wide) * weight for part, weight in zip(shifted, weights, strict=True))
  result = functools.reduce(operator.add, terms).astype(x.dtype)
  return schedule.apart(lambda result: result, kernel[0, 0, 0, 0], result)


def _kernel_gradient(x, g, size: Sequence[int], geometry: walk.Geometry) -> jax.Array:
  """The depthwise kernel's gradient: for each tap, the sum of shifted map times output gradient.

  Small maps go through it some rows at a time, so that these stay in the cache for all taps; large
  ones as a whole, where that was found slower.

  Args:
    x: [b, H, W, C], padded. g: [b, h, w, C]. size: (kh, kw). geometry: of the forward pass.

  Returns:
    [kh, kw, 1, C], in at least float32.
  """
  if g.size <= _SMALL:
    x, g = _in_rows(x, g, size[0], geometry)
  else:
    x, g = x[None], g[None]

  def add(sums, part):
    x, g = part
    return sums + _tap_sums(x, g, size, geometry), None

  columns, channels = g.shape[3:]
  wide = jnp.promote_types(x.dtype, jnp.float32)
  start = jnp.zeros((math.prod(size), columns * channels), wide)
  sums, _ = lax.scan(add, start, (x, g))
  return sums.reshape(*size, 1, columns, channels).sum(3)


def _in_rows(x, g, size: int, geometry: walk.Geometry) -> tuple[jax.Array, jax.Array]:
  """`x` and `g` in parts of some rows of an example: [n, 1, rows, w, C] each, `x` with overlap."""
  b, height, *line = g.shape
  fitting = max(1, min(height, _CACHED // math.prod(line)))
  rows = next(n for n in range(fitting, 0, -1) if height % n == 0)
  step = geometry.strides[0]
  tall = (rows - 1) * step + (size - 1) * geometry.dilation[0] + 1
  parts = [x[:, top * step : top * step + tall] for top in range(0, height, rows)]
  return (
    jnp.stack(parts, 1).reshape(-1, 1, tall, *x.shape[2:]),
    g.reshape(b * height // rows, 1, rows, *line),
  )


def _tap_sums(x, g, size: Sequence[int], geometry: walk.Geometry) -> jax.Array:
  """For each tap the sum over examples and rows of shifted map times `g`: [taps, w * C].

  The taps are a loop, not an unrolled list, which a compiler takes several times as long for.
  """
  b, rows, columns, channels = g.shape
  strides = geometry.strides
  wide = jnp.promote_types(x.dtype, jnp.float32)
  span = [(n - 1) * step + 1 for n, step in zip((rows, columns), strides, strict=True)]
  lines = x.reshape(*x.shape[:2], -1)  # [b, H, W * C]: whole lines are copied faster

  def tap_sum(tap):
    row, column = tap * jnp.array(geometry.dilation)
    part = lax.dynamic_slice(lines, (0, row, column * channels), (b, span[0], span[1] * channels))
    part = part.reshape(b, *span, channels)[:, :: strides[0], :: strides[1]]
    return (part.astype(wide) * g).reshape(b, rows, -1).sum((0, 1))

  return lax.map(tap_sum, jnp.array(list(walk.taps(size))))
