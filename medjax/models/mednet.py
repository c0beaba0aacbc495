"""MedNet: blocks of parallel 1x1, 3x3, 5x5 and 7x7 convolutions with twelve connections.

After the proposal of Alzubaidi et al. ("MedNet: Pre-trained Convolutional Neural Network Model for
the Medical Imaging Tasks"), which gives 8 blocks, 12 connections and 44 convolutions but no widths:
one short connection a block with a convolution, and four long ones of which two have one, is the
wiring that fits all three figures (2 + 8 * 4 + 8 + 2 = 44). Gray and Color differ in the images'
channels alone.
"""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

STEM_WIDTH = 64
BRANCHES = (1, 3, 5, 7)  # sides of a block's kernels
STEM = "stem"


class ConvBN(nn.Module):
  """Convolution without bias, batch norm, no ReLU."""

  cfg: settings.MedNet
  features: int
  size: int
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / stride, W / stride, features]."""
    conv = blocks.Conv(self.features, self.size, self.stride, name="conv")
    return blocks.BatchNorm(self.cfg.bn_epsilon, name="bn")(conv(x, mode), mode)


class Block(nn.Module):
  """Four parallel convolutions, concatenated, plus the short connection.

  One batch norm over all five maps is what one over each would be, channel by channel, at a fifth
  of the operations.
  """

  cfg: settings.MedNet

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H, W, 4 * width], before the ReLU that follows all connections."""
    width, features = self.cfg.width, len(BRANCHES) * self.cfg.width
    maps = [blocks.Conv(width, size, name=f"conv{size}")(x, mode) for size in BRANCHES]
    maps.append(blocks.Conv(features, 1, name="short")(x, mode))
    norm = blocks.BatchNorm(self.cfg.bn_epsilon, name="bn")
    branches, short = jnp.split(norm(jnp.concatenate(maps, axis=-1), mode), 2, axis=-1)
    return jax.nn.relu(branches) + short


class Encoder(nn.Module):
  """Stem, blocks with their long connections, global average pooling."""

  cfg: settings.MedNet
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, 4 * width]."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    x = jax.nn.relu(ConvBN(cfg, STEM_WIDTH, 3, stride=2, name="stem1")(x, mode))
    x = jax.nn.relu(ConvBN(cfg, STEM_WIDTH, 5, stride=2, name="stem2")(x, mode))
    outputs = [mode.endpoint(self, STEM, x)]  # of the stem and of each block
    block = blocks.recomputed(Block, mode)
    for number in range(1, cfg.blocks + 1):
      x = block(cfg, name=f"b{number}")(_pooled(cfg, outputs[-1], number - 1, number), mode)
      for connection in cfg.connections:
        if _position(connection[1]) == number:
          x = x + self._connect(connection, outputs, mode)
      outputs.append(mode.endpoint(self, f"b{number}", jax.nn.relu(x)))
    return ops.global_avg_pool(outputs[-1])

  def _connect(
    self, connection: settings.Connection, outputs: list[jax.Array], mode: net.Mode
  ) -> jax.Array:
    """What a long connection adds to its block's output."""
    source, target, kind = connection
    start = _position(source)
    x = _pooled(self.cfg, outputs[start], start, _position(target))
    if kind == "identity":
      return x
    features = len(BRANCHES) * self.cfg.width
    return ConvBN(self.cfg, features, 1, name=f"{source}_{target}")(x, mode)


def _position(name: str) -> int:
  """0 for the stem, i for block i."""
  return 0 if name == STEM else int(name[1:])


def _pooled(cfg: settings.MedNet, x: jax.Array, start: int, end: int) -> jax.Array:
  """The map of output `start` at the size of block `end`: pooled as often as the trunk between.

  SAME, so that odd maps of trunk and connections keep equal sizes and none vanishes.
  """
  for _ in [block for block in cfg.pooled if start < block <= end]:
    x = ops.max_pool(x, padding="SAME")
  return x


def build(cfg: settings.MedNet, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for connections that name unknown ends or kinds, run backwards, repeat, or do not
      fit, and for pooled blocks that do not exist.
  """
  if set(cfg.pooled) - set(range(1, cfg.blocks + 1)) or len(set(cfg.pooled)) < len(cfg.pooled):
    raise ValueError(
      f"model.pooled={cfg.pooled}: take block numbers from 1 to {cfg.blocks}, each once"
    )
  for connection in cfg.connections:
    _check(connection, cfg)
  if len({connection[:2] for connection in cfg.connections}) < len(cfg.connections):
    raise ValueError(f"model.connections={cfg.connections}: two of them have the same ends")
  head = heads.Classifier(len(info.classes), (cfg.hidden,) * bool(cfg.hidden), cfg.dropout)
  return net.Parts(Encoder(cfg, info), head, initial.HE_NORMAL, _stages(cfg))


def _stages(cfg: settings.MedNet) -> tuple[str, ...]:
  """The stem, then each block with the long connections that end there."""
  stages = ["stem1", "stem2"]
  for number in range(1, cfg.blocks + 1):
    ending = [(s, t) for s, t, kind in cfg.connections if t == f"b{number}" and kind == "conv"]
    stages += [f"{source}_{target}" for source, target in ending] + [f"b{number}"]
  return tuple(stages)


def _check(connection: settings.Connection, cfg: settings.MedNet) -> None:
  source, target, kind = connection
  places = [STEM, *(f"b{number}" for number in range(1, cfg.blocks + 1))]
  if source not in places or target not in places[1:]:
    reason = f"ends are {', '.join(places)}, and nothing ends at {STEM}"
  elif places.index(source) >= places.index(target):
    reason = "it must run forwards"
  elif kind not in ("conv", "identity"):
    reason = "its kind is 'conv' or 'identity'"
  elif kind == "identity" and source == STEM and len(BRANCHES) * cfg.width != STEM_WIDTH:
    reason = f"the stem's {STEM_WIDTH} channels do not fit a block's {len(BRANCHES) * cfg.width}"
  else:
    return
  raise ValueError(f"model.connections: {connection} is impossible: {reason}")
