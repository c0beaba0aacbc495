"""DenseNet: every unit of a block sees the maps of all units before it (Huang et al. 2017).

Parts are named as Keras names its layers, in which `conv2` to `conv5` are the blocks, `pool2` to
`pool4` the transitions between them, and `bn` the last batch norm. CheXNet (Rajpurkar et al. 2017)
is DenseNet-121 on the labels of its data.
"""

from __future__ import annotations

import dataclasses

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from medjax import contract, ops, settings
from medjax.models import blocks, groups, heads, initial, net

STEM_WIDTH = 64
BOTTLENECK = 4  # channels between a unit's convolutions, in multiples of its growth
REDUCTION = 2  # factor by which a transition reduces channels

Moments = tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class Map:
  """A map with its batch statistics, where those who normalise it share them.

  Attributes:
    values: [b, H, W, C].
    moments: mean and variance, each [G, C]; None where everyone takes their own.
  """

  values: jax.Array
  moments: Moments | None


@flax.struct.dataclass
class _Measured(groups.Groups):
  """The mode's groups, whose moments of the map at hand are known."""

  known: Moments

  def moments(self, x: jax.Array) -> Moments:
    del x
    return self.known


def _measured(cfg: settings.DenseNet, x: jax.Array, mode: net.Mode) -> Map:
  if not cfg.shared or mode.groups is None:
    return Map(x, None)
  return Map(x, mode.groups.moments(x))


def _joined(first: Map, second: Map) -> Map:
  """Concatenates channels; the statistics of the whole are those of its parts."""
  return jax.tree.map(lambda one, other: jnp.concatenate([one, other], axis=-1), first, second)


def _activated(norm: blocks.BatchNorm, x: Map, mode: net.Mode) -> jax.Array:
  """ReLU of the normalised map: [b, H, W, C]."""
  if mode.groups is not None and x.moments is not None:
    shared = mode.groups
    known = _Measured(shared.mask, shared.count, shared.axis, shared.sharing, x.moments)
    mode = dataclasses.replace(mode, groups=known)
  return jax.nn.relu(norm(x.values, mode))


class Unit(nn.Module):
  """A dense layer: 1x1 convolution to a few channels, then 3x3; norm and ReLU before each.

  Attributes:
    label: what its end point's name begins with.
  """

  cfg: settings.DenseNet
  label: str

  @nn.compact
  def __call__(self, x: Map, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to the [b, H, W, growth] that it adds."""
    cfg = self.cfg
    y = _activated(blocks.BatchNorm(cfg.bn_epsilon, name="0_bn"), x, mode)
    y = blocks.Conv(BOTTLENECK * cfg.growth, 1, name="1_conv")(y, mode)
    y = jax.nn.relu(blocks.BatchNorm(cfg.bn_epsilon, name="1_bn")(y, mode))
    y = mode.endpoint(self, f"{self.label}_1_relu", y)
    return blocks.Conv(cfg.growth, 3, name="2_conv")(y, mode)


class Block(nn.Module):
  """Units, each of which adds its channels to the map."""

  cfg: settings.DenseNet
  units: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> Map:
    """[b, H, W, C] to [b, H, W, C + units * growth]."""
    dense, unit = _measured(self.cfg, x, mode), blocks.recomputed(Unit, mode)
    for number in range(1, self.units + 1):
      label = f"{self.name}_block{number}"
      added = unit(self.cfg, label, name=f"block{number}")(dense, mode)
      dense = _joined(dense, _measured(self.cfg, added, mode))
      dense = self._named(f"{label}_concat", dense, mode)
    return dense

  def _named(self, name: str, x: Map, mode: net.Mode) -> Map:
    values = mode.endpoint(self, name, x.values)
    if name in mode.offsets:  # which the statistics depend on
      return _measured(self.cfg, values, mode)
    return dataclasses.replace(x, values=values)


class Transition(nn.Module):
  """Norm, ReLU, 1x1 convolution to half the channels, pooling to half the sides."""

  cfg: settings.DenseNet

  @nn.compact
  def __call__(self, x: Map, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / 2, W / 2, C / 2]."""
    y = _activated(blocks.BatchNorm(self.cfg.bn_epsilon, name="bn"), x, mode)
    y = mode.endpoint(self, f"{self.name}_relu", y)
    y = blocks.Conv(y.shape[-1] // REDUCTION, 1, name="conv")(y, mode)
    return mode.endpoint(self, f"{self.name}_pool", ops.avg_pool(y))


class Stem(nn.Module):
  """7x7 convolution and pooling to a quarter of the sides; or a 3x3 that keeps them."""

  cfg: settings.DenseNet

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / 4, W / 4, 64], or [b, H, W, 64]."""
    small = self.cfg.stem == "small"
    conv = (
      blocks.Conv(STEM_WIDTH, 3, name="conv")
      if small
      else blocks.Conv(STEM_WIDTH, 7, 2, ((3, 3), (3, 3)), name="conv")
    )
    y = blocks.BatchNorm(self.cfg.bn_epsilon, name="bn")(conv(x, mode), mode)
    y = mode.endpoint(self, "conv1_relu", jax.nn.relu(y))
    if small:
      return y
    return mode.endpoint(self, "pool1", ops.max_pool(y, 3, 2, ((1, 1), (1, 1))))


class Encoder(nn.Module):
  """Stem, blocks with transitions between them, norm, ReLU, global average pooling."""

  cfg: settings.DenseNet
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, D], D the channels of the last block."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    x = Stem(cfg, name="conv1")(x, mode)
    for number, units in enumerate(cfg.units[:-1], start=2):
      dense = Block(cfg, units, name=f"conv{number}")(x, mode)
      x = Transition(cfg, name=f"pool{number}")(dense, mode)
    dense = Block(cfg, cfg.units[-1], name=f"conv{len(cfg.units) + 1}")(x, mode)
    x = _activated(blocks.BatchNorm(cfg.bn_epsilon, name="bn"), dense, mode)
    return ops.global_avg_pool(mode.endpoint(self, "relu", x))


def build(cfg: settings.DenseNet, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for a network without blocks.
  """
  if not cfg.units:
    raise ValueError("model.units=(): give the units of one block or more, such as (6, 12, 24, 16)")
  between = [name for i in range(2, len(cfg.units) + 1) for name in (f"conv{i}", f"pool{i}")]
  stages = ("conv1", *between, f"conv{len(cfg.units) + 1}", "bn")
  head = heads.Classifier(len(info.classes), (), cfg.dropout)
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, stages)


def keras_layer(path: str, cfg: settings.DenseNet) -> str:
  """Keras's name of a module, such as `conv2_block1_0_bn` of `encoder/conv2/block1/0_bn`."""
  del cfg
  part, _, inner = path.partition("/")
  return "predictions" if part == "head" else inner.replace("/", "_")
