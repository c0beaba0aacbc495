"""Darknet-53, and a classifier that predicts at three of its scales (Redmon & Farhadi 2018).

The body is the paper's table 1. With `pyramid` its necks follow, as before the detector's outputs
(section 2.3): from the coarsest scale, each goes up to the next; every scale has a dense layer on
its pooled map in place of boxes, and the logits are their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

from flax import linen as nn
import jax
import jax.numpy as jnp

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

SLOPE = 0.1  # of the leaky ReLU below zero
STEM_WIDTH = 32
UNITS = (1, 2, 8, 8, 4)  # residual blocks of each stage
SCALES = (32, 16, 8)  # strides of the maps that the pyramid predicts at, coarsest first
WIDTHS = tuple(STEM_WIDTH * scale for scale in SCALES)  # of a scale's last map


class ConvBN(nn.Module):
  """Convolution without bias, batch norm, leaky ReLU; zeros on both sides of the map."""

  cfg: settings.Darknet
  features: int
  size: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / stride, W / stride, features]."""
    around = self.size // 2, self.size // 2
    conv = blocks.Conv(self.features, self.size, self.stride, (around, around), name="conv")
    x = blocks.BatchNorm(self.cfg.bn_epsilon, name="bn")(conv(x, mode), mode)
    return jax.nn.leaky_relu(x, SLOPE)


class Unit(nn.Module):
  """1x1 to half of the channels, 3x3 back, plus what came in."""

  cfg: settings.Darknet

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to the same shape."""
    channels = x.shape[-1]
    y = ConvBN(self.cfg, channels // 2, 1, name="reduce")(x, mode)
    return x + ConvBN(self.cfg, channels, 3, name="expand")(y, mode)


class Stage(nn.Module):
  """3x3 convolution with stride 2, then residual blocks."""

  cfg: settings.Darknet
  units: int
  features: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / 2, W / 2, features]."""
    x = ConvBN(self.cfg, self.features, 3, 2, name="down")(x, mode)
    unit = blocks.recomputed(Unit, mode)
    for number in range(1, self.units + 1):
      x = unit(self.cfg, name=f"block{number}")(x, mode)
      x = mode.endpoint(self, f"{self.name}_block{number}", x)
    return x


class Scale(nn.Module):
  """Five convolutions, 1x1 and 3x3 by turns, and a last 3x3."""

  cfg: settings.Darknet
  features: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> tuple[jax.Array, jax.Array]:
    """[b, h, w, C] to what the next scale takes, [b, h, w, features / 2], and the last map."""
    for number in range(1, 6):
      features, size = (self.features // 2, 1) if number % 2 else (self.features, 3)
      x = ConvBN(self.cfg, features, size, name=f"conv{number}")(x, mode)
    return x, ConvBN(self.cfg, self.features, 3, name="conv6")(x, mode)


class Neck(nn.Module):
  """The pyramid: a `Scale` a map, each after a 1x1 convolution of the coarser one, made larger."""

  cfg: settings.Darknet

  @nn.compact
  def __call__(self, maps: Sequence[jax.Array], mode: net.Mode) -> jax.Array:
    """Maps [b, h, w, C] of `SCALES` to their pooled features, [b, 1024 + 512 + 256]."""
    scale_layer = blocks.recomputed(Scale, mode)
    coarser, pooled = None, []
    for scale, features, x in zip(SCALES, WIDTHS, maps, strict=True):
      if coarser is not None:
        up = ConvBN(self.cfg, features // 2, 1, name=f"up{scale}")(coarser, mode)
        x = jnp.concatenate([_doubled(up), x], axis=-1)
      coarser, last = scale_layer(self.cfg, features, name=f"scale{scale}")(x, mode)
      pooled.append(ops.global_avg_pool(mode.endpoint(self, f"scale{scale}", last)))
    return jnp.concatenate(pooled, axis=-1)


def _doubled(x: jax.Array) -> jax.Array:
  """Each pixel of [b, h, w, C] four times."""
  return x.repeat(2, axis=1).repeat(2, axis=2)


class Encoder(nn.Module):
  """Stem and five stages, pooled; or the pooled maps of the pyramid."""

  cfg: settings.Darknet
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, 1024], or [b, 1024 + 512 + 256] with a pyramid."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    x = mode.endpoint(self, "stem", ConvBN(cfg, STEM_WIDTH, 3, name="stem")(x, mode))
    maps = []
    for number, units in enumerate(UNITS, 1):
      x = Stage(cfg, units, STEM_WIDTH * 2**number, name=f"stage{number}")(x, mode)
      maps.append(x)
    if not cfg.pyramid:
      return ops.global_avg_pool(x)
    return Neck(cfg, name="neck")(maps[: -len(SCALES) - 1 : -1], mode)


class PyramidClassifier(nn.Module):
  """A dense layer for each scale's part of the embedding; the logits are their mean.

  Those of each scale are auxiliary: they have a share in the loss.

  Attributes:
    classes: K.
    dropout: rate before the dense layers.
    cosine: as in `heads.Classifier`, and refused: a mean of cosines has no class vectors.

  Raises:
    ValueError: where cosines are asked for.
  """

  classes: int
  dropout: float
  cosine: bool = False

  def __post_init__(self):
    super().__post_init__()
    if self.cosine:
      raise ValueError(
        "model.pyramid averages the logits of three scales, and a loss on cosines needs one set of "
        "class vectors: take another objective.loss, or the network without its pyramid"
      )

  @nn.compact
  def __call__(self, embedding: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, 1024 + 512 + 256] to logits [b, K]."""
    x = blocks.Dropout(self.dropout, name="dropout")(embedding, mode)
    parts = jnp.split(x, (WIDTHS[0], WIDTHS[0] + WIDTHS[1]), axis=-1)
    logits = [
      blocks.Dense(self.classes, name=f"classes{scale}")(part, mode)
      for scale, part in zip(SCALES, parts, strict=True)
    ]
    mode.auxiliary(self, logits)
    return jnp.stack(logits).mean(0)


def build(cfg: settings.Darknet, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for images below 32 pixels, and with a pyramid for those whose maps would not be
      half of each other.
  """
  height, width = info.image_shape[:2]
  coarsest = SCALES[0]
  if min(height, width) < coarsest:
    raise ValueError(
      f"images of {height}x{width} pixels are too small for {cfg.name}: set data.image_size to "
      f"{coarsest} or more"
    )
  if cfg.pyramid and (height % coarsest or width % coarsest):
    raise ValueError(
      f"images of {height}x{width} pixels do not fit model.pyramid, whose maps must be halves of "
      f"each other: set data.image_size to a multiple of {coarsest}"
    )
  stages = ("stem", *(f"stage{number}" for number in range(1, len(UNITS) + 1)))
  head: nn.Module = heads.Classifier(len(info.classes), (), cfg.dropout)
  if cfg.pyramid:
    stages, head = (*stages, "neck"), PyramidClassifier(len(info.classes), cfg.dropout)
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, stages)


def keras_layer(path: str, cfg: settings.Darknet) -> str:
  """The name that a layer of the same network in Keras would have: `stage1_block1_reduce_conv`."""
  del cfg
  return "_".join(path.split("/")[1:])
