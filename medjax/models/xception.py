"""Xception as in Keras (Chollet 2017, figure 5): separable convolutions with residual connections.

Batch norm follows each convolution; depthwise and pointwise parts have nothing between them.
"""

from __future__ import annotations

from flax import linen as nn
import jax

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

# Stage -> block -> features of its separable convolutions.
FLOWS: dict[str, dict[str, tuple[int, ...]]] = {
  "entry": {"block2": (128, 128), "block3": (256, 256), "block4": (728, 728)},
  "middle": {f"block{number}": (728, 728, 728) for number in range(5, 13)},
  "exit": {"block13": (728, 1024)},
}
STRIDED = ("block2", "block3", "block4", "block13")  # halve the map, and project the input too
END = {"sepconv1": 1536, "sepconv2": 2048}  # of block 14, which nothing goes around

# Name in block 1 -> features, stride, padding.
STEM: dict[str, tuple[int, int, ops.Padding]] = {
  "conv1": (32, 2, "VALID"),
  "conv2": (64, 1, "VALID"),
}
SMALL_STEM: dict[str, tuple[int, int, ops.Padding]] = {"conv": (64, 1, "SAME")}
LEAST_SIZES = {"imagenet": 7, "small": 1}  # sides of images: unlike the stem, blocks pad


class Stem(nn.Module):
  """Block 1: convolutions with batch norm and ReLU."""

  cfg: settings.Xception

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, h, w, 64], 147 x 147 at 299 pixels."""
    table = SMALL_STEM if self.cfg.stem == "small" else STEM
    for name, (features, stride, padding) in table.items():
      x = blocks.Conv(features, 3, stride, padding, name=name)(x, mode)
      x = jax.nn.relu(blocks.BatchNorm(self.cfg.bn_epsilon, name=f"{name}_bn")(x, mode))
      x = mode.endpoint(self, f"block1_{name}_act", x)
    return x


class Block(nn.Module):
  """Separable convolutions, each after a ReLU, around which the input goes."""

  cfg: settings.Xception
  features: tuple[int, ...]

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H, W, C], or with stride to [b, ceil(H / 2), ceil(W / 2), F]."""
    start = x
    for number, features in enumerate(self.features, 1):
      x = jax.nn.relu(x)  # which changes nothing at the start of block 2, after the stem's
      x = _separable(self.cfg, f"sepconv{number}", features, x, mode)
    if self.name in STRIDED:
      x = ops.max_pool(x, 3, 2, "SAME")
      start = self._projected(start, mode)
    return x + start

  def _projected(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    x = blocks.Conv(self.features[-1], 1, 2, name="shortcut")(x, mode)
    return blocks.BatchNorm(self.cfg.bn_epsilon, name="shortcut_bn")(x, mode)


class End(nn.Module):
  """Block 14: separable convolutions, each before a ReLU."""

  cfg: settings.Xception

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H, W, 2048]."""
    for name, features in END.items():
      x = jax.nn.relu(_separable(self.cfg, name, features, x, mode))
      x = mode.endpoint(self, f"block14_{name}_act", x)
    return x


def _separable(
  cfg: settings.Xception, name: str, features: int, x: jax.Array, mode: net.Mode
) -> jax.Array:
  """A 3x3 separable convolution and batch norm, in the module whose pass calls this."""
  x = blocks.SeparableConv(features, 3, name=name)(x, mode)
  return blocks.BatchNorm(cfg.bn_epsilon, name=f"{name}_bn")(x, mode)


class Flow(nn.Module):
  """A stage: residual blocks, at the start the stem before them, at the end block 14 after."""

  cfg: settings.Xception
  table: dict[str, tuple[int, ...]]

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to the last block's map."""
    if self.name == "entry":
      x = Stem(self.cfg, name="block1")(x, mode)
    for name, features in self.table.items():
      x = blocks.recomputed(Block, mode)(self.cfg, features, name=name)(x, mode)
      x = mode.endpoint(self, f"{name}_out", x)
    return End(self.cfg, name="block14")(x, mode) if self.name == "exit" else x


class Encoder(nn.Module):
  """Entry, middle and exit flow, global average pooling."""

  cfg: settings.Xception
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, 2048]."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    for name, table in FLOWS.items():
      x = Flow(cfg, table, name=name)(x, mode)
    return ops.global_avg_pool(x)


def build(cfg: settings.Xception, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for images that the stem would use up.
  """
  least = LEAST_SIZES[cfg.stem]
  if min(info.image_shape[:2]) < least:
    raise ValueError(
      f"images of {info.image_shape[:2]} pixels are too small for {cfg.name}: "
      f"set data.image_size to {least} or more, or model.stem='small'"
    )
  head = heads.Classifier(len(info.classes), (), cfg.dropout)
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, tuple(FLOWS))


def keras_layer(path: str, cfg: settings.Xception) -> str:
  """Keras's layer of a module; its numbers count from the first layer of a type in the network.

  Args:
    path: of the module, such as `encoder/entry/block2/sepconv1/depthwise` or `head/classes`.
    cfg: of its network.
  """
  del cfg
  if path == "head/classes":
    return "predictions"
  block, layer = path.split("/")[2:4]  # a separable convolution's two parts are one layer
  if not layer.startswith("shortcut"):
    return f"{block}_{layer}"
  name = "conv2d" if layer == "shortcut" else "batch_normalization"
  number = STRIDED.index(block)
  return f"{name}_{number}" if number else name
