"""The pneumonia network of 19 layers and its depthwise separable twins.

Go & Bissaliyeva ("Using neural network to classify pneumonia in chest radiographs") took the
network from a public notebook, whose layers and sizes are these, and made its first convolution
separable; the later ones are what they leave to future work. The notebook normalises by image rows
(`axis=1` of a channels-last batch norm), which `bn_axis="row"` repeats.
"""

from __future__ import annotations

from flax import linen as nn
import jax

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

WIDTHS = (256, 64, 16)
HIDDEN = 64


class Block(nn.Module):
  """3x3 convolution, ReLU, 2x2 max-pool, batch norm."""

  cfg: settings.PneumoniaCNN
  features: int
  separable: bool

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, ceil(H / 2), ceil(W / 2), features]."""
    layer = blocks.SeparableConv if self.separable else blocks.Conv
    x = jax.nn.relu(layer(self.features, 3, use_bias=True, name="conv")(x, mode))
    x = ops.max_pool(x, padding="SAME")
    bn = blocks.BatchNorm(self.cfg.bn_epsilon, name="bn")
    if self.cfg.bn_axis == "channel":
      return bn(x, mode)
    return bn(x.swapaxes(1, 3), mode).swapaxes(1, 3)  # rows in the channels' place


class Encoder(nn.Module):
  """Three blocks, flattened or pooled, dropout."""

  cfg: settings.PneumoniaCNN
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, D]; D = 10,000 of 200x200 pixels, 16 with `gap`."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    block = blocks.recomputed(Block, mode)
    for number, width in enumerate(WIDTHS, 1):
      x = block(cfg, width, number in cfg.separable, name=f"block{number}")(x, mode)
      x = mode.endpoint(self, f"block{number}", x)
    x = ops.global_avg_pool(x) if cfg.pool == "gap" else x.reshape(x.shape[0], -1)
    return blocks.Dropout(cfg.dropout, name="dropout")(x, mode)


def build(cfg: settings.PneumoniaCNN, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier; the published one has a single class, and so a single sigmoid.

  Raises:
    ValueError: for separable convolutions that do not exist or repeat.
  """
  numbers = range(1, len(WIDTHS) + 1)
  if set(cfg.separable) - set(numbers) or len(set(cfg.separable)) < len(cfg.separable):
    raise ValueError(
      f"model.separable={cfg.separable}: take numbers of convolutions from 1 to {len(WIDTHS)}, "
      "each once"
    )
  head = heads.Classifier(len(info.classes), (HIDDEN,), cfg.dropout)
  stages = tuple(f"block{number}" for number in numbers)
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, stages)


def keras_layer(path: str, cfg: settings.PneumoniaCNN) -> str:
  """The name that a layer of the same network in Keras would have, such as `block1_conv`."""
  del cfg
  names = path.split("/")[1:]
  # Keras's SeparableConv2D is one layer.
  return "_".join(name for name in names if name not in ("depthwise", "pointwise"))
