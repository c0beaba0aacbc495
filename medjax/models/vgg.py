"""VGG: blocks of 3x3 convolutions with biases, each block pooled (Simonyan & Zisserman 2015).

Configurations D and E of the paper's table 1, without its dropout, as Keras has them.
"""

from __future__ import annotations

from flax import linen as nn
import jax

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

WIDTHS = (64, 128, 256, 512, 512)  # of the blocks


class Block(nn.Module):
  """Convolutions with ReLU, then 2x2 max-pooling.

  Attributes:
    convs: how many. features: filters of each. pooled: whether the pooling is there.
  """

  convs: int
  features: int
  pooled: bool

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / 2, W / 2, features], or [b, H, W, features]."""
    for number in range(1, self.convs + 1):
      conv = blocks.Conv(self.features, 3, use_bias=True, name=f"conv{number}")
      x = mode.endpoint(self, f"{self.name}_conv{number}", jax.nn.relu(conv(x, mode)))
    return mode.endpoint(self, f"{self.name}_pool", ops.max_pool(x)) if self.pooled else x


class Encoder(nn.Module):
  """Blocks, flattened or pooled. The first is not pooled where the stem is for small images."""

  cfg: settings.VGG
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, D]; of a flat map D is rows x columns x channels."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    block = blocks.recomputed(Block, mode)
    for number, (convs, width) in enumerate(zip(cfg.convs, WIDTHS, strict=True), start=1):
      name, pooled = f"block{number}", number > 1 or cfg.stem == "imagenet"
      x = block(convs, width, pooled, name=name)(x, mode)
    return ops.global_avg_pool(x) if cfg.pool == "gap" else x.reshape(x.shape[0], -1)


def build(cfg: settings.VGG, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for another number of blocks than there are widths.
  """
  if len(cfg.convs) != len(WIDTHS):
    raise ValueError(f"model.convs={cfg.convs}: give the convolutions of {len(WIDTHS)} blocks")
  head = heads.Classifier(len(info.classes), cfg.hidden, cfg.dropout)
  stages = tuple(f"block{number}" for number in range(1, len(WIDTHS) + 1))
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, stages)


def keras_layer(path: str, cfg: settings.VGG) -> str:
  """Keras's name of a module, such as `block1_conv1` of `encoder/block1/conv1`."""
  del cfg
  part, _, inner = path.partition("/")
  dense = {"hidden": "fc1", "hidden2": "fc2", "classes": "predictions"}
  return dense[inner] if part == "head" else inner.replace("/", "_")
