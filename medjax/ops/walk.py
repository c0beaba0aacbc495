"""Where a kernel meets a map: padding, taps, and the rows that a stride leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import math
from typing import Literal, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

Pair = tuple[int, int]
Padding = Literal["SAME", "VALID"]


class Geometry(NamedTuple):
  """How a kernel walks over a map: everything static but the sizes, (rows, columns) each."""

  strides: Pair
  pads: tuple[Pair, Pair]  # (before, after), resolved to numbers
  dilation: Pair


def resolved(
  size: Sequence[int], window: Sequence[int], strides: Pair, padding: Padding | Sequence[Pair]
) -> list[Pair]:
  """`padding` as numbers: (before, after) of rows and of columns."""
  if not isinstance(padding, str):
    return list(padding)
  return [(low, high) for low, high in lax.padtype_to_pads(size, window, strides, padding)]


def trimmed(
  size: Sequence[int], kernel: jax.Array, geometry: Geometry
) -> tuple[jax.Array, Geometry]:
  """Kernel and geometry without the outer taps that on a map of this size meet but padding."""
  strides, pads, dilation = geometry
  (rows, above), (columns, beside) = (
    _met_taps(size[axis], kernel.shape[axis], strides[axis], pads[axis], dilation[axis])
    for axis in (0, 1)
  )
  return kernel[slice(*rows), slice(*columns)], geometry._replace(pads=(above, beside))


def _met_taps(size: int, taps: int, stride: int, pads: Pair, dilation: int) -> tuple[Pair, Pair]:
  """Range of the taps in one direction that meet the map somewhere, and the padding they need."""
  before, after = pads
  span = size + before + after - (taps - 1) * dilation  # of the places where a kernel may start

  def meets(tap: int) -> bool:
    start = tap * dilation - before
    return any(0 <= at < size for at in range(start, start + span, stride))

  met = [tap for tap in range(taps) if meets(tap)] or [*range(taps)]
  low, high = met[0], met[-1] + 1
  return (low, high), (before - low * dilation, after - (taps - high) * dilation)


class Phase(NamedTuple):
  """What meets the rows (or columns) of a map that lie a stride apart, from a first one on."""

  taps: slice
  pads: Pair  # of the output gradient
  dilation: int


def phases(
  size: int, out: int, taps: int, stride: int, before: int, dilation: int
) -> Iterator[Phase]:
  """The phase of each of the first `stride` rows.

  Args:
    size: rows of the map. out: of the output gradient. taps: of the kernel.
    stride, before, dilation: of the forward pass; `before` are its rows of padding.
  """
  shared, rows = math.gcd(stride, dilation), -(-size // stride)
  for start in range(before, before + stride):
    met = [tap for tap in range(taps) if (start - tap * dilation) % stride == 0]
    if not met:
      yield Phase(slice(0), (0, 0), 1)
      continue
    ahead, step = (start - met[0] * dilation) // stride, dilation // shared
    pads = ((len(met) - 1) * step - ahead, rows + ahead - out)
    yield Phase(slice(met[0], None, stride // shared), pads, step)


def kernel_pads(x, kernel, g, geometry: Geometry) -> tuple[Pair, Pair]:
  """Pads of `x` at which the spread output gradient fits into it once a kernel position."""

  def pads(axis: int) -> Pair:
    reach = (kernel.shape[axis] - 1) * geometry.dilation[axis]
    spread = (g.shape[1 + axis] - 1) * geometry.strides[axis] + 1
    before = geometry.pads[axis][0]
    return before, reach + spread - x.shape[1 + axis] - before

  return pads(0), pads(1)


def padded(x: jax.Array, pads: Sequence[Pair], filling: float = 0) -> jax.Array:
  """`x` with `filling` around it; cut, where a pad is negative."""
  around = [(*pad, 0) for pad in pads]
  return lax.pad(x, jnp.asarray(filling, x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


def taps(size: Sequence[int]) -> Iterator[Pair]:
  """Positions in a kernel, row by row."""
  return ((row, column) for row in range(size[0]) for column in range(size[1]))


def shifted(
  x: jax.Array, size: Sequence[int], strides: Pair, dilation: Pair = (1, 1)
) -> Iterator[jax.Array]:
  """For each tap of a kernel of this size the part of a padded map that it meets: [b, h, w, C]."""
  b, rows, columns, channels = x.shape
  height, width = ((n - 1) * step for n, step in zip(size, dilation, strict=True))
  for row, column in taps(size):
    top, left = row * dilation[0], column * dilation[1]
    end = (b, rows - height + top, columns - width + left, channels)
    yield lax.slice(x, (0, top, left, 0), end, (1, *strides, 1))
