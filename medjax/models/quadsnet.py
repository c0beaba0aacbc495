"""QuadSNet: four streams of plain and separable convolutions, concatenated (Ali et al. 2021).

The paper fixes the streams, four blocks each, what a block holds, and the number of parameters,
5,235,944. Widths, convolutions a block and the head were recovered from that number.
"""

from __future__ import annotations

from collections.abc import Callable

from flax import linen as nn
import jax
import jax.numpy as jnp

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

# Stream: side of its kernels, whether they are separable.
STREAMS = {"cs3": (3, False), "cs5": (5, False), "ss3": (3, True), "ss5": (5, True)}

POOLS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "2x2": lambda x: ops.adaptive_avg_pool(x, 2),
  "gap": lambda x: ops.adaptive_avg_pool(x, 1),
  "avg2": lambda x: ops.avg_pool(x, 2),
}


class Block(nn.Module):
  """(Convolution, ReLU) several times, batch norm, 2x2 max-pool, dropout.

  With `bn="conv"` each convolution's ReLU is followed by a batch norm of its own instead.
  """

  cfg: settings.QuadSNet
  features: int
  size: int
  separable: bool

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H // 2, W // 2, features]."""
    cfg = self.cfg
    layer = blocks.SeparableConv if self.separable else blocks.Conv
    for i in range(cfg.sep_convs_per_block if self.separable else cfg.convs_per_block):
      x = layer(self.features, self.size, use_bias=cfg.use_bias, name=f"conv{i + 1}")(x, mode)
      x = jax.nn.relu(x)
      if cfg.bn == "conv":
        x = blocks.BatchNorm(cfg.bn_epsilon, name=f"bn{i + 1}")(x, mode)
    if cfg.bn == "block":
      x = blocks.BatchNorm(cfg.bn_epsilon, name="bn")(x, mode)
    return blocks.Dropout(cfg.dropout, name="dropout")(ops.max_pool(x), mode)


class Stream(nn.Module):
  """One block a width, kernels of one size and kind."""

  cfg: settings.QuadSNet
  size: int
  separable: bool

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H // 16, W // 16, 256] with the paper's four blocks."""
    block = blocks.recomputed(Block, mode)
    for i, width in enumerate(self.cfg.widths):
      x = block(self.cfg, width, self.size, self.separable, name=f"block{i + 1}")(x, mode)
    return x


class Encoder(nn.Module):
  """All streams on the same image, concatenated, pooled, dropout, flattened."""

  cfg: settings.QuadSNet
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, D], D = 4,096 by default."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    maps = [Stream(cfg, *STREAMS[name], name=name)(x, mode) for name in cfg.streams]
    x = jnp.concatenate(maps, axis=-1)  # [b, h, w, 4 * 256], 14 x 14 at 224 pixels
    x = mode.endpoint(self, "fusion", x)
    if cfg.bn == "fusion":
      x = blocks.BatchNorm(cfg.bn_epsilon, name="bn")(x, mode)
    x = blocks.Dropout(cfg.dropout, name="dropout")(POOLS[cfg.pool](x), mode)
    return x.reshape(x.shape[0], -1)


def build(cfg: settings.QuadSNet, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for streams that do not exist, repeat, or are none at all, and for images that the
      blocks would pool away.
  """
  if not cfg.streams or len(set(cfg.streams)) < len(cfg.streams) or set(cfg.streams) - set(STREAMS):
    raise ValueError(f"model.streams={cfg.streams}: take some of {', '.join(STREAMS)}, each once")
  least = 2 ** len(cfg.widths) * (2 if cfg.pool == "avg2" else 1)
  if min(info.image_shape[:2]) < least:
    raise ValueError(
      f"images of {info.image_shape[:2]} pixels are too small for {len(cfg.widths)} pooled blocks: "
      f"set data.image_size to {least} or more, or give model.widths fewer entries"
    )
  # The fused map's dropout comes before the classifier; there is none inside it.
  head = heads.Classifier(len(info.classes), (cfg.hidden,) * bool(cfg.hidden), 0.0)
  stages = [f"*/block{i + 1}" for i in range(len(cfg.widths))]  # of all streams
  fusion = ["bn"] if cfg.bn == "fusion" else []
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, (*stages, *fusion))
