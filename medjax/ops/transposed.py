"""The gradient of a convolution towards its input, for dense and depthwise ones alike."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from medjax.ops import walk


def input_gradient(convolve: Callable, x, kernel, g, geometry: walk.Geometry) -> jax.Array:
  """Gradient towards `x` of a convolution, by convolutions of `g` without strides.

  Rows that lie a stride apart meet the same taps of the kernel, and columns likewise: of such
  pixels, each kind is convolved by itself, and the results are put between each other.

  Args:
    convolve: (g, kernel, geometry) -> by the kernel turned. x, kernel, geometry: of the forward
      pass. g: its output gradient.
  """
  strides, pads, dilation = geometry
  rows, columns = (
    list(walk.phases(*sizes, strides[axis], pads[axis][0], dilation[axis]))
    for axis, sizes in enumerate(zip(x.shape[1:3], g.shape[1:3], kernel.shape[:2], strict=True))
  )
  shape = (len(x), *(-(-n // step) for n, step in zip(x.shape[1:3], strides, strict=True)))

  def phase(row: walk.Phase, column: walk.Phase) -> jax.Array:
    met = kernel[row.taps, column.taps]
    if not met.size:
      return jnp.zeros((*shape, x.shape[3]), g.dtype)
    inside = walk.Geometry((1, 1), (row.pads, column.pads), (row.dilation, column.dilation))
    return convolve(g, met, inside)

  if strides == (1, 1):
    return phase(*rows, *columns)
  lines = [jnp.stack([phase(row, column) for column in columns], 3) for row in rows]
  b, height, width = shape
  whole = jnp.stack(lines, 2).reshape(b, height * strides[0], width * strides[1], -1)
  return whole[:, : x.shape[1], : x.shape[2]]
