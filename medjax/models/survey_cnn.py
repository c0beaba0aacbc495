"""The plain network of a survey: convolutions, pooling, activation, dense layers.

Ning ("Medical Image Classification based on Deep Learning") names these parts, batch norm, and ReLU
or leaky ReLU, but no sizes. The squeeze-and-excitation is that of Hu et al. 2018, section 3.
"""

from __future__ import annotations

from flax import linen as nn
import jax

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

SLOPE = 0.1  # of the leaky ReLU below zero


class Block(nn.Module):
  """3x3 convolution, batch norm, activation, 2x2 max-pool, squeeze-and-excitation where asked."""

  cfg: settings.SurveyCNN
  features: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H // 2, W // 2, features]."""
    cfg = self.cfg
    x = blocks.Conv(self.features, 3, name="conv")(x, mode)
    x = blocks.BatchNorm(cfg.bn_epsilon, name="bn")(x, mode)
    x = jax.nn.leaky_relu(x, SLOPE) if cfg.leaky else jax.nn.relu(x)
    x = ops.max_pool(x)
    return Squeeze(cfg.squeeze, name="se")(x, mode) if cfg.squeeze else x


class Squeeze(nn.Module):
  """Weighs channels by their means: dense to C // ratio, ReLU, dense to C, sigmoid."""

  ratio: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to the same shape."""
    channels = x.shape[-1]
    weights = blocks.Dense(channels // self.ratio, name="reduce")(ops.global_avg_pool(x), mode)
    weights = blocks.Dense(channels, name="expand")(jax.nn.relu(weights), mode)
    return x * jax.nn.sigmoid(weights)[:, None, None]


class Encoder(nn.Module):
  """Blocks, then global average pooling."""

  cfg: settings.SurveyCNN
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, 256] with the default widths."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    block = blocks.recomputed(Block, mode)
    for number, width in enumerate(cfg.widths, 1):
      x = block(cfg, width, name=f"block{number}")(x, mode)
      x = mode.endpoint(self, f"block{number}", x)
    return ops.global_avg_pool(x)


def build(cfg: settings.SurveyCNN, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for a squeeze that leaves no channel, and for images that the blocks pool away.
  """
  if cfg.squeeze and not 0 < cfg.squeeze <= min(cfg.widths):
    raise ValueError(
      f"model.squeeze={cfg.squeeze} leaves nothing of a block's {min(cfg.widths)} channels: "
      f"take 0 (none) or 1 to {min(cfg.widths)}"
    )
  least = 2 ** len(cfg.widths)
  if min(info.image_shape[:2]) < least:
    raise ValueError(
      f"images of {info.image_shape[:2]} pixels are too small for {len(cfg.widths)} pooled blocks: "
      f"set data.image_size to {least} or more, or give model.widths fewer entries"
    )
  stages = tuple(f"block{number}" for number in range(1, len(cfg.widths) + 1))
  head = heads.Classifier(len(info.classes), (cfg.hidden,) * bool(cfg.hidden), cfg.dropout)
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, stages)


def keras_layer(path: str, cfg: settings.SurveyCNN) -> str:
  """The name that a layer of the same network in Keras would have, such as `block1_conv`."""
  del cfg
  return "_".join(path.split("/")[1:])
