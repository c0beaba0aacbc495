"""Layers that several networks use.

Every layer takes a `net.Mode` as its last argument and nothing else that depends on how the net is
run. Parameters have JAX's default float type; a layer computes in `mode.dtype` of input and those.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any
import zlib

from flax import linen as nn
import flax.struct
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from medjax import ops, pixels
from medjax.models import net

Padding = ops.Padding | tuple[ops.Pair, ops.Pair]

_ZEROS = nn.initializers.zeros
_ONES = nn.initializers.ones
_DRAWN_LATER = nn.initializers.zeros  # by `initial.with_kernels`, all kernels of a net at once


class Input(nn.Module):
  """The net's first layer: preprocessing, with its constants kept beside the running statistics.

  Attributes:
    preprocess: mode of `pixels.normalise`.
    mean, std: [C] of the training part's pixels, on [0, 1].
  """

  preprocess: str
  mean: tuple[float, ...]
  std: tuple[float, ...]

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """Normalises [b, H, W, C] floats in [0, 1]."""
    mean = self.variable("batch_stats", "mean", lambda: jnp.array(self.mean))
    std = self.variable("batch_stats", "std", lambda: jnp.array(self.std))
    x = pixels.normalise(self.preprocess, images, mean.value, std.value)
    return x.astype(mode.dtype(x))


class Conv(nn.Module):
  """A convolution.

  Attributes:
    features: filters. size: side of the kernel, or (rows, columns). stride: in both directions.
    padding: `SAME`, `VALID`, or numbers, see `ops.conv`.
    depthwise: one filter a channel; `features` must be the number of channels.
  """

  features: int
  size: int | ops.Pair
  stride: int = 1
  padding: Padding = "SAME"
  depthwise: bool = False
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H', W', features]."""
    groups = x.shape[-1] if self.depthwise else 1
    window = (self.size, self.size) if isinstance(self.size, int) else tuple(self.size)
    shape = (*window, x.shape[-1] // groups, self.features)
    kernel = self.weights(shape, mode)
    dtype = mode.dtype(x, kernel)
    y = ops.conv(
      x.astype(dtype),
      kernel.astype(dtype),
      strides=(self.stride, self.stride),
      padding=self.padding,
      groups=groups,
      form=mode.execution.form,
    )
    if not self.use_bias:
      return y
    return y + self.param("bias", _ZEROS, (self.features,)).astype(dtype)

  def weights(self, shape: tuple[int, ...], mode: net.Mode) -> jax.Array:
    """The kernel that the convolution takes, [rows, columns, in, out]."""
    del mode
    return self.param("kernel", _DRAWN_LATER, shape)


class SeparableConv(nn.Module):
  """Keras's SeparableConv2D: depthwise, then 1x1, nothing between, one bias at the end."""

  features: int
  size: int
  stride: int = 1
  padding: Padding = "SAME"
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H', W', features]."""
    channels = x.shape[-1]
    depthwise = Conv(
      channels, self.size, self.stride, self.padding, depthwise=True, name="depthwise"
    )
    pointwise = Conv(self.features, 1, use_bias=self.use_bias, name="pointwise")
    return pointwise(depthwise(x, mode), mode)


class Dense(nn.Module):
  """A matrix product and a bias."""

  features: int
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, D] to [b, features]."""
    kernel = self.weights((x.shape[-1], self.features), mode)
    dtype = mode.dtype(x, kernel)
    y = x.astype(dtype) @ kernel.astype(dtype)
    if not self.use_bias:
      return y
    return y + self.param("bias", _ZEROS, (self.features,)).astype(dtype)

  def weights(self, shape: tuple[int, ...], mode: net.Mode) -> jax.Array:
    """The kernel that the product takes, [in, out]."""
    del mode
    return self.param("kernel", _DRAWN_LATER, shape)


class BatchNorm(nn.Module):
  """Batch normalisation over the groups of `mode.groups` (Ioffe & Szegedy 2015).

  With groups it normalises by their statistics, and leaves the mean of those over this device's
  groups in the collection `net.BATCH_MOMENTS`, from which the seam moves the running ones; without
  groups it normalises by the running ones. Statistics are in at least float32.

  Attributes:
    epsilon: added to the variance. use_scale, use_bias: whether a learnt factor, and a learnt
      offset, follow.
  """

  epsilon: float
  use_scale: bool = True
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """Normalises [b, ..., C]."""
    channels = x.shape[-1]
    scale = self.param("scale", _ONES, (channels,)) if self.use_scale else jnp.ones(channels)
    bias = self.param("bias", _ZEROS, (channels,)) if self.use_bias else jnp.zeros(channels)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
    running_var = self.variable("batch_stats", "var", jnp.ones, channels)
    if mode.groups is None:
      return self._affine(x, running_mean.value, running_var.value, scale, bias, mode)
    mean, var = mode.groups.moments(x)  # [G, C]
    self.put_variable(net.BATCH_MOMENTS, "mean", mode.groups.over_groups(mean))
    self.put_variable(net.BATCH_MOMENTS, "var", mode.groups.over_groups(var))
    middle = [1] * (x.ndim - 1)
    mean, var = (m.reshape(-1, *middle, channels) for m in (mean, var))  # [G, 1, ..., 1, C]
    return self._affine(mode.groups.split(x), mean, var, scale, bias, mode).reshape(x.shape)

  def _affine(self, x, mean, var, scale, bias, mode: net.Mode) -> jax.Array:
    # One factor and one offset a channel: the gradient then needs two sums over the map, not three.
    factor = lax.rsqrt(var + self.epsilon) * scale
    return (x * factor + (bias - mean * factor)).astype(mode.dtype(x, scale))


@flax.struct.dataclass
class _Ended:
  """What a recomputed layer returns in place of raising `net.Reached`."""

  value: jax.Array


def recomputed(layer: type[nn.Module], mode: net.Mode) -> type[nn.Module]:
  """`layer`, whose inner maps are computed again for the gradient where the mode says so."""
  return _recomputed(layer) if mode.execution.remat else layer  # type: ignore[arg-type]


@functools.cache
def _recomputed(layer: Any) -> type[nn.Module]:
  # An exception that left the recomputed part would carry out a value that is known only in there.
  class Ending(layer):
    def __call__(self, *inputs: Any) -> Any:
      try:
        return super().__call__(*inputs)
      except net.Reached as reached:
        return _Ended(reached.value)

  class Recomputed(nn.remat(Ending)):  # type: ignore[misc]
    def __call__(self, *inputs: Any) -> Any:
      result = super().__call__(*inputs)
      if isinstance(result, _Ended):
        raise net.Reached(result.value)
      return result

  return Recomputed


class Cut(nn.Module):
  """An encoder that ends at one of its end points: what comes after has no parameters either.

  Attributes:
    encoder: whose pass is cut. endpoint: its name; the encoder computes what leads there first.
  """

  encoder: nn.Module
  endpoint: str

  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to the end point's map."""
    try:
      self.encoder(images, dataclasses.replace(mode, cut=self.endpoint))
    except net.Reached as reached:
      return reached.value
    raise ValueError(f"this network has no end point {self.endpoint!r} to be cut at")


class Dropout(nn.Module):
  """Zeroes each value with probability `rate` and scales the rest up, in training.

  What falls away depends on the example's key and the layer's name, never on the device.
  """

  rate: float

  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """Drops values of [b, ...]."""
    if mode.keys is None or self.rate == 0:
      return x
    name = np.uint32(zlib.crc32("/".join(self.path).encode()))
    bits = _bits(_mixed(mode.keys ^ name), math.prod(x.shape[1:]))
    kept = bits.reshape(x.shape) >= np.uint32(self.rate * 2**32)
    return jnp.where(kept, x / (1 - self.rate), 0)


def _bits(keys: jax.Array, count: int) -> jax.Array:
  """[b, count] uint32 from [b, 2] words, for dropout alone.

  A hash of the value's number under the example's key. JAX's own generator is compiled anew for
  every layer, which was more than half of the compilation of a QuadSNet's step on CPU.
  """
  number = jnp.arange(count, dtype=jnp.uint32)
  return _mixed(_mixed(number + keys[:, :1]) ^ keys[:, 1:])


def _mixed(x: jax.Array) -> jax.Array:
  """A hash of 32 bits in which every bit of x flips each bit of the result about half of the time.

  Two rounds of xor-shift and multiplication, with constants of C. Wellons's hash-prospector.
  """
  x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
  x = (x ^ (x >> 15)) * np.uint32(0x735A2D97)
  return x ^ (x >> 15)
