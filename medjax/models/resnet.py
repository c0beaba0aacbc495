"""ResNet v1: 18 and 34 of basic blocks, 50 and 152 of bottlenecks (He et al. 2016, table 1).

Bottlenecks are those of Keras, with the stride in the first 1x1 convolution and biases, or those of
torchvision and timm ("v1.5"), with the stride in the 3x3. Basic blocks are those of torchvision: no
biases, rows of zeros on both sides.
"""

from __future__ import annotations

from flax import linen as nn
import jax

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

STEM_WIDTH = 64
EXPANSION = 4  # of a bottleneck's channels at its end
# Least side of an image: the strides of the stem and of four stages, multiplied.
LEAST = {"imagenet": 32, "small": 8}
_BOTH_SIDES = ((1, 1), (1, 1))


def _conv_bn(
  cfg: settings.ResNet,
  name: str,
  x: jax.Array,
  mode: net.Mode,
  features: int,
  size: int = 1,
  stride: int = 1,
) -> jax.Array:
  """Convolution `{name}conv` and batch norm `{name}bn`, zeros on both sides of the map."""
  around = size // 2, size // 2
  conv = blocks.Conv(
    features, size, stride, (around, around), use_bias=cfg.use_bias, name=f"{name}conv"
  )
  return blocks.BatchNorm(cfg.bn_epsilon, name=f"{name}bn")(conv(x, mode), mode)


class Stem(nn.Module):
  """7x7 convolution and 3x3 max-pool, stride 2 both; or one 3x3 convolution for small images."""

  cfg: settings.ResNet

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / 4, W / 4, 64], or [b, H, W, 64]."""
    small = self.cfg.stem == "small"
    size, stride = (3, 1) if small else (7, 2)
    x = jax.nn.relu(_conv_bn(self.cfg, "", x, mode, STEM_WIDTH, size, stride))
    x = mode.endpoint(self, "conv1_relu", x)
    if small:
      return x
    return mode.endpoint(self, "pool1_pool", ops.max_pool(x, 3, 2, _BOTH_SIDES))


class Bottleneck(nn.Module):
  """1x1, 3x3, 1x1 to four times the width; the shortcut is a convolution where sizes differ."""

  cfg: settings.ResNet
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / stride, W / stride, 4 * width]."""
    shortcut = _shortcut(self.cfg, x, mode, EXPANSION * self.width, self.stride)
    strides = (self.stride, 1) if self.cfg.stride_in == "1x1" else (1, self.stride)
    x = jax.nn.relu(_conv_bn(self.cfg, "1_", x, mode, self.width, 1, strides[0]))
    x = jax.nn.relu(_conv_bn(self.cfg, "2_", x, mode, self.width, 3, strides[1]))
    x = _conv_bn(self.cfg, "3_", x, mode, EXPANSION * self.width)
    return jax.nn.relu(shortcut + x)


class Basic(nn.Module):
  """3x3, 3x3; the shortcut is a convolution where sizes differ."""

  cfg: settings.ResNet
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / stride, W / stride, width]."""
    shortcut = _shortcut(self.cfg, x, mode, self.width, self.stride)
    x = jax.nn.relu(_conv_bn(self.cfg, "1_", x, mode, self.width, 3, self.stride))
    x = _conv_bn(self.cfg, "2_", x, mode, self.width, 3)
    return jax.nn.relu(shortcut + x)


def _shortcut(
  cfg: settings.ResNet, x: jax.Array, mode: net.Mode, features: int, stride: int
) -> jax.Array:
  if x.shape[-1] == features and stride == 1:
    return x
  return _conv_bn(cfg, "0_", x, mode, features, 1, stride)


class Stage(nn.Module):
  """Residual blocks of one width; the first has the stride."""

  cfg: settings.ResNet
  units: int
  width: int
  stride: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / stride, W / stride, C']."""
    unit = blocks.recomputed(Bottleneck if self.cfg.bottleneck else Basic, mode)
    for number in range(1, self.units + 1):
      stride = self.stride if number == 1 else 1
      x = unit(self.cfg, self.width, stride, name=f"block{number}")(x, mode)
      x = mode.endpoint(self, f"{self.name}_block{number}_out", x)
    return x


class Encoder(nn.Module):
  """Stem, stages that double the channels and halve the map, global average pooling."""

  cfg: settings.ResNet
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, 2048] of bottlenecks, [b, 512] of basic blocks."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    x = Stem(cfg, name="conv1")(x, mode)
    for number, units in enumerate(cfg.units):
      width, stride = STEM_WIDTH * 2**number, 2 if number else 1
      x = Stage(cfg, units, width, stride, name=f"conv{number + 2}")(x, mode)
    return ops.global_avg_pool(x)


def build(cfg: settings.ResNet, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for images that the strides would leave nothing of.
  """
  least = LEAST[cfg.stem]
  if min(info.image_shape[:2]) < least:
    raise ValueError(
      f"images of {info.image_shape[:2]} pixels are too small for {cfg.name} with "
      f"model.stem={cfg.stem!r}: set data.image_size to {least} or more, or model.stem to 'small'"
    )
  stages = tuple(f"conv{number + 1}" for number in range(len(cfg.units) + 1))
  head = heads.Classifier(len(info.classes), (), cfg.dropout)
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, stages)


def keras_layer(path: str, cfg: settings.ResNet) -> str:
  """The layer of Keras's network that a module is: `encoder/conv2/block1/1_bn` by its path."""
  del cfg
  part, *names = path.split("/")
  return "predictions" if part == "head" else "_".join(names)
