"""Convolution and pooling: the one door through which models reach them.

A convolution comes in two forms with the same values and gradients. `plain` is XLA's own, right for
GPU and for export. `cpu` goes around what XLA's CPU compiler does badly:

* The gradients of a convolution are convolutions with permuted dimensions. Only at the top level of
  a program are they brought back to the layout of the fast kernel; inside a `lax.scan` they fall to
  a naive loop. The `cpu` form writes both gradients as forward convolutions in that layout.
* A depthwise convolution runs channel by channel. The `cpu` form shifts, multiplies and adds.
* A 1x1 convolution is a matrix product and is written as one.

Which form runs is an argument, never a guess from the machine: the same program can be exported.
All arrays are NHWC, all kernels HWIO.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import functools
import operator
from typing import Literal, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

Form = Literal["cpu", "plain"]
Pair = tuple[int, int]
Padding = Literal["SAME", "VALID"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class _Geometry(NamedTuple):
  """How a kernel walks over a map: everything static but the sizes, (rows, columns) each."""

  strides: Pair
  pads: tuple[Pair, Pair]  # (before, after), resolved to numbers
  dilation: Pair


def conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  strides: Pair = (1, 1),
  padding: Padding | Sequence[Pair] = "SAME",
  dilation: Pair = (1, 1),
  groups: int = 1,
  form: Form,
) -> jax.Array:
  """Convolves as `lax.conv_general_dilated` does.

  Args:
    x: [b, H, W, C].
    kernel: [kh, kw, C / groups, F], of the dtype of `x`, which the result has too.
    strides, dilation: (rows, columns).
    padding: `SAME` puts the odd row and column at the bottom and right; or `VALID`; or numbers.
    groups: parts that channels are cut into; C makes it depthwise.
    form: `plain` or `cpu`, see the module. Neither differs where `cpu` has no cure: groups of more
      than one channel, and depthwise kernels with more filters than channels.

  Returns:
    [b, H', W', F]. With `cpu`, only reverse-mode derivatives exist.

  Raises:
    ValueError: for another form.
  """
  if form not in ("cpu", "plain"):
    raise ValueError(f"no form {form!r} of a convolution: take 'cpu' or 'plain'")
  window = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:2], dilation, strict=True)]
  rows, columns = _pads(x.shape[1:3], window, strides, padding)
  geometry = _Geometry(strides, (rows, columns), dilation)
  if form == "cpu" and groups == 1:
    return _product(x, kernel) if _is_product(kernel, geometry) else _dense(x, kernel, geometry)
  if form == "cpu" and groups == x.shape[-1] == kernel.shape[-1]:
    return _depthwise(x, kernel, geometry)
  return _plain(x, kernel, geometry, groups=groups)


def _pads(
  size: Sequence[int], window: Sequence[int], strides: Pair, padding: Padding | Sequence[Pair]
) -> list[Pair]:
  """`padding` as numbers: (before, after) of rows and of columns."""
  if not isinstance(padding, str):
    return list(padding)
  return [(low, high) for low, high in lax.padtype_to_pads(size, window, strides, padding)]


def _plain(
  x: jax.Array,
  kernel: jax.Array,
  geometry: _Geometry,
  spread: Pair = (1, 1),
  groups: int = 1,
) -> jax.Array:
  """XLA's convolution; `spread` puts zeros between the rows and columns of `x`."""
  strides, pads, dilation = geometry
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    pads,
    lhs_dilation=spread,
    rhs_dilation=dilation,
    dimension_numbers=_LAYOUT,
    feature_group_count=groups,
  )


def _is_product(kernel: jax.Array, geometry: _Geometry) -> bool:
  nothing_around = geometry.strides == (1, 1) and geometry.pads == ((0, 0), (0, 0))
  return kernel.shape[:2] == (1, 1) and nothing_around


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 1x1 convolution: [b, H, W, C] with [1, 1, C, F]."""
  return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
  return _plain(x, kernel, geometry)


def _dense_forward(x, kernel, geometry):
  return _plain(x, kernel, geometry), (x, kernel)


def _dense_backward(geometry, saved, g):
  x, kernel = saved
  turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)  # [kh, kw, F, C]
  towards_x = _Geometry((1, 1), _input_pads(x, kernel, g, geometry), geometry.dilation)
  x_bar = _plain(g, turned, towards_x, spread=geometry.strides)
  # Channels take the place of examples, and examples that of channels.
  towards_kernel = _Geometry(
    geometry.dilation, _kernel_pads(x, kernel, g, geometry), geometry.strides
  )
  channels, grads = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)  # [C, H, W, b], [h, w, b, F]
  kernel_bar = _plain(channels, grads, towards_kernel).transpose(1, 2, 0, 3)
  return x_bar, kernel_bar


_dense.defvjp(_dense_forward, _dense_backward)


def _input_pads(x, kernel, g, geometry: _Geometry) -> tuple[Pair, Pair]:
  """Pads of the spread output gradient that make its full convolution as large as `x`."""

  def pads(axis: int) -> Pair:
    reach = (kernel.shape[axis] - 1) * geometry.dilation[axis]
    spread = (g.shape[1 + axis] - 1) * geometry.strides[axis] + 1
    before = reach - geometry.pads[axis][0]
    return before, x.shape[1 + axis] + reach - spread - before

  return pads(0), pads(1)


def _kernel_pads(x, kernel, g, geometry: _Geometry) -> tuple[Pair, Pair]:
  """Pads of `x` at which the spread output gradient fits into it once a kernel position."""

  def pads(axis: int) -> Pair:
    reach = (kernel.shape[axis] - 1) * geometry.dilation[axis]
    spread = (g.shape[1 + axis] - 1) * geometry.strides[axis] + 1
    before = geometry.pads[axis][0]
    return before, reach + spread - x.shape[1 + axis] - before

  return pads(0), pads(1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
  return _shifted_sum(_padded(x, geometry.pads), kernel, geometry.strides, geometry.dilation)


def _depthwise_forward(x, kernel, geometry):
  return _depthwise(x, kernel, geometry), (x, kernel)


def _depthwise_backward(geometry, saved, g):
  x, kernel = saved
  spread = _padded(g, _input_pads(x, kernel, g, geometry), geometry.strides)
  x_bar = _shifted_sum(spread, jnp.flip(kernel, (0, 1)), (1, 1), geometry.dilation)
  kernel_bar = _tap_sums(_padded(x, geometry.pads), g, kernel.shape[:2], geometry)
  return x_bar, kernel_bar.astype(kernel.dtype)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _padded(x: jax.Array, pads: tuple[Pair, Pair], spread: Pair = (1, 1)) -> jax.Array:
  """`x` with zeros around it (or cut, where a pad is negative) and between its rows and columns."""
  inner = [(*pad, step - 1) for pad, step in zip(pads, spread, strict=True)]
  return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])


def _shifted_sum(x: jax.Array, kernel: jax.Array, strides: Pair, dilation: Pair) -> jax.Array:
  """Depthwise convolution of a padded map: the sum over taps of shifted map times weight."""
  b, _, _, channels = x.shape
  reach = [(size - 1) * step for size, step in zip(kernel.shape[:2], dilation, strict=True)]
  stop = [x.shape[1 + axis] - reach[axis] for axis in (0, 1)]
  wide = jnp.promote_types(x.dtype, jnp.float32)

  def term(tap: Pair) -> jax.Array:
    top, left = (position * step for position, step in zip(tap, dilation, strict=True))
    end = (b, top + stop[0], left + stop[1], channels)
    shifted = lax.slice(x, (0, top, left, 0), end, (1, *strides, 1))
    return shifted.astype(wide) * kernel[*tap, 0].astype(wide)

  return functools.reduce(operator.add, map(term, _taps(kernel.shape[:2]))).astype(x.dtype)


def _taps(size: Sequence[int]) -> Iterator[Pair]:
  """Positions in a kernel, row by row."""
  return ((row, column) for row in range(size[0]) for column in range(size[1]))


def _tap_sums(x: jax.Array, g: jax.Array, size: Sequence[int], geometry: _Geometry) -> jax.Array:
  """The depthwise kernel's gradient: for each tap, the sum of shifted map times output gradient.

  An example at a time, so that map and gradient stay in the cache for all taps, with sums kept a
  column, so that the additions run along channels. XLA's fusion of the obvious form does neither.
  The taps are a loop, not an unrolled list, which a compiler takes several times as long for.

  Args:
    x: [b, H, W, C], padded. g: [b, h, w, C]. size: (kh, kw). geometry: of the forward pass.

  Returns:
    [kh, kw, 1, C], in at least float32.
  """
  _, rows, columns, channels = g.shape
  wide = jnp.promote_types(x.dtype, jnp.float32)
  span = [(n - 1) * step + 1 for n, step in zip((rows, columns), geometry.strides, strict=True)]
  offsets = jnp.array(list(_taps(size))) * jnp.array(geometry.dilation)

  def add_example(sums, example):
    image, grad = example

    def column_sums(offset):
      shifted = lax.dynamic_slice(image, (offset[0], offset[1], 0), (*span, channels))
      shifted = shifted[:: geometry.strides[0], :: geometry.strides[1]]
      return (shifted.astype(wide) * grad).sum(0)  # [w, C]

    return sums + lax.map(column_sums, offsets), None

  start = jnp.zeros((len(offsets), columns, channels), wide)
  sums, _ = lax.scan(add_example, start, (x, g))
  return sums.sum(1).reshape(*size, 1, channels)


def max_pool(x: jax.Array, window: int = 2, padding: Padding = "VALID") -> jax.Array:
  """Largest value of each `window` x `window` square; the squares do not overlap.

  Written as a reshape and element-wise maxima, whose gradient needs no search; equal values share
  it. A map that the window does not divide is cut (`VALID`) or completed (`SAME`) first, so with
  `SAME` a map never vanishes.

  Args:
    x: [b, H, W, C]. window: side of the squares. padding: `VALID` or `SAME`.

  Raises:
    ValueError: where `VALID` would leave an empty map.
  """
  if padding == "VALID" and min(x.shape[1:3]) < window:
    raise ValueError(
      f"a map of {x.shape[1]}x{x.shape[2]} is too small for {window}x{window} max-pooling: "
      "use larger images (data.image_size) or a network with fewer pooled blocks"
    )
  x = _squares(x, window, padding, -jnp.inf)
  x = functools.reduce(jnp.maximum, (x[:, :, row] for row in range(window)))
  return functools.reduce(jnp.maximum, (x[:, :, :, column] for column in range(window)))


def avg_pool(x: jax.Array, window: int = 2) -> jax.Array:
  """Mean of each whole `window` x `window` square of [b, H, W, C]; the rest is cut (`VALID`)."""
  return _squares(x, window, "VALID", 0.0).mean((2, 4))


def _squares(x: jax.Array, window: int, padding: Padding, filling: float) -> jax.Array:
  """[b, H, W, C] as [b, rows of squares, window, columns of squares, window, C]."""
  size = x.shape[1:3]
  # VALID pads nothing but leaves a remainder, which is cut.
  cut = [(0, -(n % window)) for n in size]
  pads = cut if padding == "VALID" else _pads(size, (window, window), (window, window), padding)
  inner = [(*pad, 0) for pad in pads]
  x = lax.pad(x, jnp.asarray(filling, x.dtype), [(0, 0, 0), *inner, (0, 0, 0)])
  b, rows, columns, channels = x.shape
  return x.reshape(b, rows // window, window, columns // window, window, channels)


def adaptive_avg_pool(x: jax.Array, out: int) -> jax.Array:
  """Averages [b, H, W, C] into [b, out, out, C], whatever the map's size.

  Bin i covers rows floor(i H / out) to ceil((i + 1) H / out) - 1, and columns likewise: bins of a
  map that `out` does not divide share a row, and those of a smaller map repeat it.
  """
  x = jnp.stack([x[:, low:high].mean(1) for low, high in _bins(x.shape[1], out)], 1)
  return jnp.stack([x[:, :, low:high].mean(2) for low, high in _bins(x.shape[2], out)], 2)


def _bins(size: int, out: int) -> list[Pair]:
  return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def global_avg_pool(x: jax.Array) -> jax.Array:
  """Mean over rows and columns: [b, H, W, C] to [b, C]."""
  return x.mean((1, 2))
