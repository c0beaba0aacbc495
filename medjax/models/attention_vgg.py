"""The network like VGG-16 with soft attention inside, of the code of Nguyen et al. 2022.

Each convolution is followed by ReLU and then batch norm, the last one of a block is 1x1, and the
attention stands where the fourth pooling was.
"""

from __future__ import annotations

from flax import linen as nn
import jax

from medjax import contract, ops, settings
from medjax.models import blocks, initial, net, soft_attention, vgg

ATTENTION_AFTER = 4  # blocks


class Block(nn.Module):
  """Convolutions with ReLU and batch norm, no pooling."""

  convs: int
  features: int
  bn_epsilon: float

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H, W, features]."""
    for number in range(1, self.convs + 1):
      size = 3 if number < self.convs else 1
      conv = blocks.Conv(self.features, size, use_bias=True, name=f"conv{number}")
      norm = blocks.BatchNorm(self.bn_epsilon, name=f"bn{number}")
      x = norm(jax.nn.relu(conv(x, mode)), mode)
    return x


class Encoder(nn.Module):
  """Five blocks with the attention after the fourth, 4x4 pooling, dense layers."""

  cfg: settings.SoftAttention
  backbone: settings.VGG
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, D], D of the last dense layer."""
    cfg, backbone, info = self.cfg, self.backbone, self.info
    block = blocks.recomputed(Block, mode)
    x = blocks.Input(backbone.preprocess, info.mean, info.std, name="input")(images, mode)
    for number, (convs, width) in enumerate(zip(backbone.convs, vgg.WIDTHS, strict=True), 1):
      x = block(convs, width, backbone.bn_epsilon, name=f"block{number}")(x, mode)
      x = self._reduced(mode.endpoint(self, f"block{number}", x), number, mode)
    x = soft_attention.as_vector(cfg, x)
    for number, width in enumerate(backbone.hidden, 1):
      x = jax.nn.relu(blocks.Dense(width, name=f"fc{number}")(x, mode))
    return x

  def _reduced(self, x: jax.Array, number: int, mode: net.Mode) -> jax.Array:
    """What comes between a block and the next."""
    if number == ATTENTION_AFTER:
      relu_before = soft_attention.relu_before(self.cfg)
      return soft_attention.TwoPaths(self.cfg, relu_before, name="attention")(x, mode)
    if number == len(vgg.WIDTHS):
      return ops.max_pool(x, 4, padding="SAME")
    if number == 1 and self.backbone.stem == "small":
      return x
    return ops.max_pool(x, padding="SAME")


def build(cfg: settings.SoftAttention, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for another backbone than a VGG of five blocks, for a cut that is neither `paper`
      nor `code`, for the backbone's own `pool`, and see `soft_attention.parts`.
  """
  backbone = cfg.backbone
  assert isinstance(backbone, settings.VGG)
  if len(backbone.convs) != len(vgg.WIDTHS):
    raise ValueError(
      f"model.backbone.convs={backbone.convs}: give the convolutions of {len(vgg.WIDTHS)} blocks"
    )
  if cfg.cut not in ("paper", "code"):
    raise ValueError(
      f"model.cut={cfg.cut!r}: the attention stands inside {cfg.name}, which is not cut: "
      "set 'paper', or 'code' for no ReLU before it"
    )
  if backbone.pool != settings.VGG.pool:
    raise ValueError(f"model.backbone.pool={backbone.pool!r}: here the last map is model.pool's")
  numbers = range(1, len(vgg.WIDTHS) + 1)
  stages = [f"block{number}" for number in numbers]
  stages.insert(ATTENTION_AFTER, "attention")
  stages += [f"fc{number + 1}" for number in range(len(backbone.hidden))]
  dense = tuple((f"encoder/fc{i + 1}", initial.GLOROT_UNIFORM) for i in range(len(backbone.hidden)))
  kernel_init = initial.KernelInit(initial.HE_NORMAL.draw, initial.HE_NORMAL.variance, dense)
  return soft_attention.parts(cfg, info, Encoder(cfg, backbone, info), kernel_init, tuple(stages))
