"""Convolutions in which every channel meets every filter, in the `cpu` form and XLA's own."""

from __future__ import annotations

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp

from medjax.ops import schedule, transposed, walk

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_SMALL = 2**20  # values of a batch of maps; the kernel gradients of larger ones are made otherwise
_WHOLE = 16  # examples; the kernel gradients of larger batches are made of parts
_TOGETHER = range(8, 3, -1)  # examples of a part, most first
_PATCHES = 2**24  # values; strided maps with more patches in a batch are taken by pieces
_PIECE = 2**21  # values of patches in a piece
_FEW = 32  # channels or filters; with fewer, parts of the processor's vectors stay empty


def plain(x: jax.Array, kernel: jax.Array, geometry: walk.Geometry, groups: int = 1) -> jax.Array:
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


def conv(x: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  """The `cpu` form: [b, H, W, C] with [kh, kw, C, F]."""
  return _product(x, kernel) if _is_product(kernel, geometry) else _windowed(x, kernel, geometry)


def _is_product(kernel: jax.Array, geometry: walk.Geometry) -> bool:
  nothing_around = geometry.strides == (1, 1) and geometry.pads == ((0, 0), (0, 0))
  return kernel.shape[:2] == (1, 1) and nothing_around


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 1x1 convolution: [b, H, W, C] with [1, 1, C, F]."""
  return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


def _product_forward(x, kernel):
  return _product(x, kernel), (x, kernel)


def _product_backward(saved, g):
  x, kernel = saved
  x_bar = lax.dot_general(g, kernel[0, 0], (((3,), (1,)), ((), ())))
  return x_bar, _product_of_pixels(x, g)[None, None]


def _product_of_pixels(x: jax.Array, g: jax.Array) -> jax.Array:
  """[b, H, W, C] times [b, H, W, F] over all pixels: [C, F].

  XLA writes the first of the two anew, pixels last. Where the other is smaller, it is made the
  first; without the barrier XLA would turn that product around again.
  """
  channels, filters, dims = x.shape[3], g.shape[3], (((0, 1, 2), (0, 1, 2)), ((), ()))
  if x.size <= g.size + channels * filters:
    return lax.dot_general(x, g, dims)
  return lax.optimization_barrier(lax.dot_general(g, x, dims)).T


_product.defvjp(_product_forward, _product_backward)


def _unswapped(x: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  """`plain`, on a map that is padded beforehand where it has fewer positions than the kernel."""
  if math.prod(kernel.shape[:2]) <= math.prod(x.shape[1:3]):
    return plain(x, kernel, geometry)
  x = lax.optimization_barrier(walk.padded(x, geometry.pads))
  return plain(x, kernel, geometry._replace(pads=((0, 0), (0, 0))))


def _in_pieces(x: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  """`_unswapped`, of few examples at a time where a stride lets XLA write out all patches."""
  pixels = math.prod(x.shape[1:3]) // math.prod(geometry.strides)
  patches = pixels * math.prod(kernel.shape[:3])
  small = kernel.shape[2] < _FEW or len(x) * patches <= _PATCHES
  if small or geometry.strides == (1, 1):
    return _unswapped(x, kernel, geometry)
  size = next(n for n in range(max(1, _PIECE // patches), 0, -1) if len(x) % n == 0)
  return schedule.mapped(lambda piece: _unswapped(piece, kernel, geometry), size, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _windowed(x: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  return _in_pieces(x, kernel, geometry)


def _forward(x, kernel, geometry):
  return _windowed(x, kernel, geometry), (x, kernel)


def _backward(geometry, saved, g):
  x, kernel = saved
  x_bar = transposed.input_gradient(_turned, x, kernel, g, geometry)
  towards_kernel = walk.Geometry(
    geometry.dilation, walk.kernel_pads(x, kernel, g, geometry), geometry.strides
  )
  kernel_bar = functools.partial(_kernel_gradient, towards_kernel)
  if len(x) > _WHOLE and (size := next((n for n in _TOGETHER if len(x) % n == 0), 0)):
    return x_bar, schedule.in_parts(kernel_bar, size, x, g)
  if x.size > _SMALL:  # found slower apart, where nothing else runs beside it
    return x_bar, kernel_bar(x, g)
  return x_bar, schedule.apart(kernel_bar, kernel[0, 0, 0, 0], x, g)


def _turned(g: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  """Convolves by a kernel [kh, kw, C, F] from its end to its beginning, from F channels to C."""
  return conv(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), geometry)


def _kernel_gradient(geometry: walk.Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
  """Convolves `x` with `g`: channels take the place of examples, and examples that of channels.

  Where `g` has but few channels and those of `x` are more, it is `g` that is convolved with `x`.
  """
  if g.shape[3] < min(_FEW, x.shape[3]) and geometry.dilation == (1, 1):
    return _kernel_turned(geometry, x, g)[::-1, ::-1]
  channels, grads = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)  # [C, H, W, b], [h, w, b, F]
  return plain(channels, grads, geometry).transpose(1, 2, 0, 3)


def _kernel_turned(geometry: walk.Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
  """`_kernel_gradient` from its end to its beginning, as `g` walks over `x` the other way."""
  channels, maps = g.transpose(3, 1, 2, 0), x.transpose(1, 2, 0, 3)  # [F, h, w, b], [H, W, b, C]
  sizes = zip(x.shape[1:3], g.shape[1:3], geometry.pads, strict=True)
  rows, columns = (
    (size - out + after, size - out + before) for size, out, (before, after) in sizes
  )
  turned = geometry._replace(pads=(rows, columns))
  return _unswapped(channels, maps, turned).transpose(1, 2, 3, 0)


_windowed.defvjp(_forward, _backward)
