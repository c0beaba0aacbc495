"""Convolution and pooling: the one door through which models reach them.

A convolution comes in two forms with the same values and gradients. `plain` is XLA's own, right for
GPU and for export. `cpu` goes around what XLA's CPU compiler does badly:

* The gradients of a convolution are convolutions with permuted dimensions. Only at the top level of
  a program are they brought back to the layout of the fast kernel; inside a `lax.scan` they fall to
  a naive loop. The `cpu` form writes both gradients as forward convolutions in that layout.
* Towards the input of a strided convolution every product of a pixel and a kernel gets a place in
  memory before it is added up. The `cpu` form computes pixels that meet the same taps together.
* The gradient towards a kernel reads one place of a map in all examples on end, for which those of
  large batches lie too far apart. The `cpu` form adds it up over parts of a batch.
* A convolution whose kernel has more positions than its map swaps the two, which no fast kernel
  knows. The `cpu` form pads the map beforehand.
* A depthwise convolution runs channel by channel. The `cpu` form shifts, multiplies and adds.
* Rows and columns of a kernel that only ever meet padding are left out: on a map of 2x2 a 7x7
  kernel is one of 3x3.
* A 1x1 convolution is a matrix product and is written as one.

Which form runs is an argument, never a guess from the machine: the same program can be exported.
All arrays are NHWC, all kernels HWIO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import functools
import math
import operator
from typing import Any, Literal, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

Form = Literal["cpu", "plain"]
Pair = tuple[int, int]
Padding = Literal["SAME", "VALID"]

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SMALL = 2**20  # values of a batch of maps; the kernel gradients of larger ones are made otherwise
_TOGETHER = range(32, 7, -1)  # examples that a kernel's gradient is made of at once, most first
_CACHED = 2**15  # values of a map that stay in a core's cache


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
  if form == "cpu":
    kernel, geometry = _met(x.shape[1:3], kernel, geometry)
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


def _met(
  size: Sequence[int], kernel: jax.Array, geometry: _Geometry
) -> tuple[jax.Array, _Geometry]:
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


def _plain(x: jax.Array, kernel: jax.Array, geometry: _Geometry, groups: int = 1) -> jax.Array:
  """XLA's convolution."""
  strides, pads, dilation = geometry
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    pads,
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


def _unswapped(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
  """`_plain`, on a map that is padded beforehand where it has fewer positions than the kernel."""
  if math.prod(kernel.shape[:2]) <= math.prod(x.shape[1:3]):
    return _plain(x, kernel, geometry)
  x = lax.optimization_barrier(_padded(x, geometry.pads))
  return _plain(x, kernel, geometry._replace(pads=((0, 0), (0, 0))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dense(x: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
  return _unswapped(x, kernel, geometry)


def _dense_forward(x, kernel, geometry):
  return _dense(x, kernel, geometry), (x, kernel)


def _dense_backward(geometry, saved, g):
  x, kernel = saved
  x_bar = _input_gradient(_turned, x, kernel, g, geometry)
  towards_kernel = _Geometry(
    geometry.dilation, _kernel_pads(x, kernel, g, geometry), geometry.strides
  )
  kernel_bar = functools.partial(_dense_kernel_gradient, towards_kernel)
  if len(x) > _TOGETHER[0] and (size := next((n for n in _TOGETHER if len(x) % n == 0), 0)):
    return x_bar, _in_parts(kernel_bar, size, x, g)
  if x.size > _SMALL:  # found slower apart, where nothing else runs beside it
    return x_bar, kernel_bar(x, g)
  return x_bar, _apart(kernel_bar, kernel[0, 0, 0, 0], x, g)


def _turned(g: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
  """Convolves by a kernel [kh, kw, C, F] from its end to its beginning, from F channels to C."""
  kernel = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  return _product(g, kernel) if _is_product(kernel, geometry) else _unswapped(g, kernel, geometry)


def _dense_kernel_gradient(geometry: _Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
  """Convolves `x` with `g`: channels take the place of examples, and examples that of channels."""
  channels, grads = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)  # [C, H, W, b], [h, w, b, F]
  return _plain(channels, grads, geometry).transpose(1, 2, 0, 3)


def _in_parts(compute: Callable, size: int, *arrays: jax.Array) -> jax.Array:
  """The sum of `compute` over parts of so many examples."""
  parts = [each.reshape(-1, size, *each.shape[1:]) for each in arrays]
  like = jax.eval_shape(compute, *(part[0] for part in parts))
  wide = jnp.promote_types(like.dtype, jnp.float32)

  def add(sums: jax.Array, part: Sequence[jax.Array]) -> tuple[jax.Array, None]:
    return sums + compute(*part), None

  return lax.scan(add, jnp.zeros(like.shape, wide), parts)[0].astype(like.dtype)


_dense.defvjp(_dense_forward, _dense_backward)


class _Phase(NamedTuple):
  """What meets the rows (or columns) of a map that lie a stride apart, from a first one on."""

  taps: slice
  pads: Pair  # of the output gradient
  dilation: int


def _phases(size: int, out: int, taps: int, stride: int, before: int, dilation: int):
  """The phase of each of the first `stride` rows.

  Args:
    size: rows of the map. out: of the output gradient. taps: of the kernel.
    stride, before, dilation: of the forward pass; `before` are its rows of padding.
  """
  shared, rows = math.gcd(stride, dilation), -(-size // stride)
  for start in range(before, before + stride):
    met = [tap for tap in range(taps) if (start - tap * dilation) % stride == 0]
    if not met:
      yield _Phase(slice(0), (0, 0), 1)
      continue
    ahead, step = (start - met[0] * dilation) // stride, dilation // shared
    pads = ((len(met) - 1) * step - ahead, rows + ahead - out)
    yield _Phase(slice(met[0], None, stride // shared), pads, step)


def _input_gradient(convolve: Callable, x, kernel, g, geometry: _Geometry) -> jax.Array:
  """Gradient towards `x` of a convolution, by convolutions of `g` without strides.

  Args:
    convolve: as the forward pass, by a kernel that is turned. x, kernel, g: of the forward pass.
  """
  strides, pads, dilation = geometry
  rows, columns = (
    list(_phases(*sizes, strides[axis], pads[axis][0], dilation[axis]))
    for axis, sizes in enumerate(zip(x.shape[1:3], g.shape[1:3], kernel.shape[:2], strict=True))
  )
  shape = (len(x), *(-(-n // step) for n, step in zip(x.shape[1:3], strides, strict=True)))

  def phase(row: _Phase, column: _Phase) -> jax.Array:
    met = kernel[row.taps, column.taps]
    if not met.size:
      return jnp.zeros((*shape, x.shape[3]), g.dtype)
    inside = _Geometry((1, 1), (row.pads, column.pads), (row.dilation, column.dilation))
    return convolve(g, met, inside)

  if strides == (1, 1):
    return phase(*rows, *columns)
  lines = [jnp.stack([phase(row, column) for column in columns], 3) for row in rows]
  b, height, width = shape
  whole = jnp.stack(lines, 2).reshape(b, height * strides[0], width * strides[1], -1)
  return whole[:, : x.shape[1], : x.shape[2]]


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
  return _weighted_sum(_padded(x, geometry.pads), kernel, geometry.strides, geometry.dilation)


def _depthwise_forward(x, kernel, geometry):
  return _depthwise(x, kernel, geometry), (x, kernel)


def _depthwise_backward(geometry, saved, g):
  x, kernel = saved
  x_bar = _input_gradient(_turned_depthwise, x, kernel, g, geometry)
  kernel_bar = _kernel_gradient(_padded(x, geometry.pads), g, kernel.shape[:2], geometry)
  return x_bar, kernel_bar.astype(kernel.dtype)


def _turned_depthwise(g: jax.Array, kernel: jax.Array, geometry: _Geometry) -> jax.Array:
  return _weighted_sum(
    _padded(g, geometry.pads), jnp.flip(kernel, (0, 1)), (1, 1), geometry.dilation
  )


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _padded(x: jax.Array, pads: Sequence[Pair], filling: float = 0) -> jax.Array:
  """`x` with `filling` around it; cut, where a pad is negative."""
  around = [(*pad, 0) for pad in pads]
  return lax.pad(x, jnp.asarray(filling, x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


# Traced and translated once for all layers of the same shapes.
@functools.partial(jax.jit, static_argnames=("strides", "dilation"))
def _weighted_sum(x: jax.Array, kernel: jax.Array, strides: Pair, dilation: Pair) -> jax.Array:
  """Depthwise convolution of a padded map: the sum over taps of shifted map times weight."""
  # Without the barrier XLA reads the middle tap from before the padding, and computes whatever
  # made that map a second time; in a chain of such layers, all of it.
  x = lax.optimization_barrier(x)
  wide = jnp.promote_types(x.dtype, jnp.float32)
  shifted = _shifted(x, kernel.shape[:2], strides, dilation)
  weights = (kernel[*tap, 0] for tap in _taps(kernel.shape[:2]))
  terms = (part.astype(wide) * weight for part, weight in zip(shifted, weights, strict=True))
  result = functools.reduce(operator.add, terms).astype(x.dtype)
  return _apart(lambda result: result, kernel[0, 0, 0, 0], result)


def _apart(compute: Callable, weight: jax.Array, *arrays: jax.Array) -> Any:
  """`compute(*arrays)` on its own: made once, and fused with nothing before or after it.

  XLA's CPU compiler takes additions, multiplications and transpositions to be cheap, however many
  they are, and repeats them in everything that reads the result. Across a branch it does not, and
  barriers are gone by then. The other branch spreads a `weight` that is no number to all results.
  """

  def lost(*arrays: jax.Array) -> Any:
    likes = jax.eval_shape(compute, *arrays)
    return jax.tree.map(lambda like: jnp.full(like.shape, weight, like.dtype), likes)

  return lax.cond(weight == weight, compute, lost, *arrays)


def _taps(size: Sequence[int]) -> Iterator[Pair]:
  """Positions in a kernel, row by row."""
  return ((row, column) for row in range(size[0]) for column in range(size[1]))


def _shifted(
  x: jax.Array, size: Sequence[int], strides: Pair, dilation: Pair = (1, 1)
) -> Iterator[jax.Array]:
  """For each tap of a kernel of this size the part of a padded map that it meets: [b, h, w, C]."""
  b, rows, columns, channels = x.shape
  height, width = ((n - 1) * step for n, step in zip(size, dilation, strict=True))
  for row, column in _taps(size):
    top, left = row * dilation[0], column * dilation[1]
    end = (b, rows - height + top, columns - width + left, channels)
    yield lax.slice(x, (0, top, left, 0), end, (1, *strides, 1))


def _kernel_gradient(x, g, size: Sequence[int], geometry: _Geometry) -> jax.Array:
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


def _in_rows(x, g, size: int, geometry: _Geometry) -> tuple[jax.Array, jax.Array]:
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


def _tap_sums(x, g, size: Sequence[int], geometry: _Geometry) -> jax.Array:
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

  return lax.map(tap_sum, jnp.array(list(_taps(size))))


def max_pool(
  x: jax.Array,
  window: int = 2,
  strides: int | None = None,
  padding: Padding | Sequence[Pair] = "VALID",
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
  x = functools.reduce(jnp.maximum, _shifted(x, (window, 1), (strides, 1)))
  return functools.reduce(jnp.maximum, _shifted(x, (1, window), (1, strides)))


def avg_pool(
  x: jax.Array,
  window: int = 2,
  strides: int | None = None,
  padding: Padding | Sequence[Pair] = "VALID",
) -> jax.Array:
  """Mean of each `window` x `window` square; arguments and errors are those of `max_pool`.

  What `SAME` adds is no part of the mean; the zeros of a padding in numbers are.
  """
  strides = strides or window
  wide = jnp.promote_types(x.dtype, jnp.float32)

  def sums(x):
    x = _pool_padded(x, window, strides, padding, 0)
    return functools.reduce(
      operator.add, _shifted(x.astype(wide), (window, window), (strides,) * 2)
    )

  inside = sums(jnp.ones((1, *x.shape[1:3], 1), wide)) if padding == "SAME" else window**2
  return (sums(x) / inside).astype(x.dtype)


def _pool_padded(
  x: jax.Array, window: int, strides: int, padding: Padding | Sequence[Pair], filling: float
) -> jax.Array:
  pads = _pads(x.shape[1:3], (window, window), (strides, strides), padding)
  padded = _padded(x, pads, filling)
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


def _bins(size: int, out: int) -> list[Pair]:
  return [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]


def global_avg_pool(x: jax.Array) -> jax.Array:
  """Mean over rows and columns: [b, H, W, C] to [b, C]."""
  return x.mean((1, 2))
