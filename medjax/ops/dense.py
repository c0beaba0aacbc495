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
_TOGETHER = range(32, 7, -1)  # examples that a kernel's gradient is made of at once, most first


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


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """A 1x1 convolution: [b, H, W, C] with [1, 1, C, F]."""
  return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))


def _unswapped(x: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  """`plain`, on a map that is padded beforehand where it has fewer positions than the kernel."""
  if math.prod(kernel.shape[:2]) <= math.prod(x.shape[1:3]):
    return plain(x, kernel, geometry)
  x = lax.optimization_barrier(walk.padded(x, geometry.pads))
  return plain(x, kernel, geometry._replace(pads=((0, 0), (0, 0))))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _windowed(x: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  return _unswapped(x, kernel, geometry)


def _forward(x, kernel, geometry):
  return _windowed(x, kernel, geometry), (x, kernel)


def _backward(geometry, saved, g):
  x, kernel = saved
  x_bar = transposed.input_gradient(_turned, x, kernel, g, geometry)
  towards_kernel = walk.Geometry(
    geometry.dilation, walk.kernel_pads(x, kernel, g, geometry), geometry.strides
  )
  kernel_bar = functools.partial(_kernel_gradient, towards_kernel)
  if len(x) > _TOGETHER[0] and (size := next((n for n in _TOGETHER if len(x) % n == 0), 0)):
    return x_bar, schedule.in_parts(kernel_bar, size, x, g)
  if x.size > _SMALL:  # found slower apart, where nothing else runs beside it
    return x_bar, kernel_bar(x, g)
  return x_bar, schedule.apart(kernel_bar, kernel[0, 0, 0, 0], x, g)


def _turned(g: jax.Array, kernel: jax.Array, geometry: walk.Geometry) -> jax.Array:
  """Convolves by a kernel [kh, kw, C, F] from its end to its beginning, from F channels to C."""
  return conv(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), geometry)


def _kernel_gradient(geometry: walk.Geometry, x: jax.Array, g: jax.Array) -> jax.Array:
  """Convolves `x` with `g`: channels take the place of examples, and examples that of channels."""
  channels, grads = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)  # [C, H, W, b], [h, w, b, F]
  return plain(channels, grads, geometry).transpose(1, 2, 0, 3)


_windowed.defvjp(_forward, _backward)
