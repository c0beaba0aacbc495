"""NASNet-A, Mobile and Large (Zoph et al. 2018, figure 4), layer by layer as in Keras.

A cell takes the outputs of the two cells before it, the newer `x` and the older `p`, and returns
sums of two branches each, side by side. Its name ends with its number, as do those of Keras's
layers and of our end points.
"""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

# Least side of an image: each of four reductions must make the map smaller.
LEAST = {"imagenet": 19, "small": 9}
STACKS = ("stack1", "stack2", "stack3")
WIDTHS = 24  # of the first stack's cells in the last map: four times as wide, six side by side


class Separable(nn.Module):
  """ReLU, separable convolution, batch norm, twice; only the first has the stride."""

  cfg: settings.NASNet
  features: int
  size: int
  stride: int
  label: str  # of end points

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / stride, W / stride, features]."""
    epsilon = self.cfg.bn_epsilon
    first = blocks.SeparableConv(self.features, self.size, self.stride, name="separable_conv_1")
    x = blocks.BatchNorm(epsilon, name="separable_conv_1_bn")(first(jax.nn.relu(x), mode), mode)
    x = mode.endpoint(self, f"separable_conv_1_relu_{self.label}", jax.nn.relu(x))
    second = blocks.SeparableConv(self.features, self.size, name="separable_conv_2")
    return blocks.BatchNorm(epsilon, name="separable_conv_2_bn")(second(x, mode), mode)


class Adjusted(nn.Module):
  """The older of a cell's inputs with the size of the newer and the cell's width.

  A map twice as large is halved by two 1x1 convolutions with stride 2, the second of which looks at
  the pixels one further down and right.
  """

  cfg: settings.NASNet
  features: int

  @nn.compact
  def __call__(self, p: jax.Array, x: jax.Array, mode: net.Mode) -> jax.Array:
    """`p`, [b, H, W, C] or twice as large as `x`, to [b, H, W, features]."""
    if p.shape[1:3] != x.shape[1:3]:
      halves = self.features // 2
      p = jax.nn.relu(p)
      shifted = jnp.pad(p[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
      p1 = blocks.Conv(halves, 1, name="conv_1")(p[:, ::2, ::2], mode)
      p2 = blocks.Conv(halves, 1, name="conv_2")(shifted[:, ::2, ::2], mode)
      return blocks.BatchNorm(self.cfg.bn_epsilon, name="bn")(jnp.concatenate([p1, p2], -1), mode)
    if p.shape[-1] != self.features:
      p = blocks.Conv(self.features, 1, name="conv_projection")(jax.nn.relu(p), mode)
      return blocks.BatchNorm(self.cfg.bn_epsilon, name="bn")(p, mode)
    return p


class Cell(nn.Module):
  """What both kinds of cell begin with; the name is `{kind}_{number}`."""

  cfg: settings.NASNet
  features: int

  def squeezed(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """The newer input with the cell's width: ReLU, 1x1 convolution, batch norm."""
    x = blocks.Conv(self.features, 1, name="conv_1")(jax.nn.relu(x), mode)
    return blocks.BatchNorm(self.cfg.bn_epsilon, name="bn_1")(x, mode)

  def adjusted(self, p: jax.Array | None, x: jax.Array, mode: net.Mode) -> jax.Array:
    """The older input, or the newer where there is none."""
    return x if p is None else Adjusted(self.cfg, self.features, name="adjust")(p, x, mode)

  def separable(
    self, branch: str, x: jax.Array, mode: net.Mode, size: int = 3, stride: int = 1
  ) -> jax.Array:
    """A branch with parameters."""
    label = self.label(branch)
    return Separable(self.cfg, self.features, size, stride, label, name=branch)(x, mode)

  def label(self, part: str) -> str:
    """The name of a part of this cell: `normal_{part}_3`."""
    kind, _, number = (self.name or "").partition("_")
    return f"{kind}_{part}_{number}"

  def concatenated(self, maps: list[jax.Array], mode: net.Mode) -> jax.Array:
    """Maps side by side, an end point."""
    return mode.endpoint(self, self.label("concat"), jnp.concatenate(maps, -1))


class Normal(Cell):
  """A cell that keeps the map's size."""

  @nn.compact
  def __call__(self, x: jax.Array, p: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H, W, 6 * features]."""
    h = self.squeezed(x, mode)
    # First, so that an encoder that is cut inside it has no parameters of the other branches.
    y5 = self.separable("left5", h, mode) + h
    p = self.adjusted(p, x, mode)
    y1 = self.separable("left1", h, mode, 5) + self.separable("right1", p, mode)
    y2 = self.separable("left2", p, mode, 5) + self.separable("right2", p, mode)
    y3 = ops.avg_pool(h, 3, 1, "SAME") + p
    y4 = 2 * ops.avg_pool(p, 3, 1, "SAME")  # both branches are the same pooling
    return self.concatenated([p, y1, y2, y3, y4, y5], mode)


class Reduction(Cell):
  """A cell that halves the map."""

  @nn.compact
  def __call__(self, x: jax.Array, p: jax.Array | None, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / 2, W / 2, 4 * features]."""
    h, p = self.squeezed(x, mode), self.adjusted(p, x, mode)
    # Zeros in numbers: they compete for the maximum and count in the mean.
    around = [(side % 2, 1) for side in h.shape[1:3]]
    largest, mean = ops.max_pool(h, 3, 2, around), ops.avg_pool(h, 3, 2, around)
    y1 = self.separable("left1", h, mode, 5, 2) + self.separable("right1", p, mode, 7, 2)
    y2 = largest + self.separable("right2", p, mode, 7, 2)
    y3 = mean + self.separable("right3", p, mode, 5, 2)
    y4 = ops.avg_pool(y1, 3, 1, "SAME") + y2
    y5 = self.separable("left4", y1, mode) + largest
    return self.concatenated([y2, y3, y4, y5], mode)


class Stem(nn.Module):
  """3x3 convolution, batch norm, two reductions."""

  cfg: settings.NASNet

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> tuple[jax.Array, jax.Array]:
    """[b, H, W, C] to the outputs of the two cells, the newer first."""
    cfg, reduction = self.cfg, blocks.recomputed(Reduction, mode)
    small = cfg.stem == "small"
    padding: blocks.Padding = "SAME" if small else "VALID"
    x = blocks.Conv(cfg.stem_filters, 3, 1 if small else 2, padding, name="conv1")(x, mode)
    x = mode.endpoint(self, "stem_bn1", blocks.BatchNorm(cfg.bn_epsilon, name="bn1")(x, mode))
    width = cfg.filters // WIDTHS
    p = reduction(cfg, width // 4, name="reduction_stem_1")(x, None, mode)
    return reduction(cfg, width // 2, name="reduction_stem_2")(p, x, mode), p


class Stack(nn.Module):
  """Normal cells; before them a reduction, but in the first stack."""

  cfg: settings.NASNet
  number: int  # from 0

  @nn.compact
  def __call__(self, x: jax.Array, p: jax.Array, mode: net.Mode) -> tuple[jax.Array, jax.Array]:
    """The outputs of the two cells before to those of the last two, the newer first."""
    cfg, number = self.cfg, self.number * self.cfg.repeats
    width = cfg.filters // WIDTHS * 2**self.number
    if self.number:
      reduction = blocks.recomputed(Reduction, mode)(cfg, width, name=f"reduction_reduce_{number}")
      x, p = reduction(x, p, mode), p if cfg.skip_reduction else x
      number += 1
    normal = blocks.recomputed(Normal, mode)
    for cell in range(number, number + cfg.repeats):
      x, p = normal(cfg, width, name=f"normal_{cell}")(x, p, mode), x
    return x, p


class Encoder(nn.Module):
  """Stem, three stacks, ReLU, global average pooling."""

  cfg: settings.NASNet
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, filters]."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    x, p = Stem(cfg, name="stem")(x, mode)
    x = mode.endpoint(self, "stem", x)
    for number, name in enumerate(STACKS):
      x, p = Stack(cfg, number, name=name)(x, p, mode)
      x = mode.endpoint(self, name, x)
    return ops.global_avg_pool(mode.endpoint(self, "relu", jax.nn.relu(x)))


def build(cfg: settings.NASNet, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for a number of filters that the cells cannot share, and for too small images.
  """
  if cfg.filters % (4 * WIDTHS):
    raise ValueError(f"model.filters={cfg.filters}: take a multiple of {4 * WIDTHS}")
  least, (rows, columns) = LEAST[cfg.stem], info.image_shape[:2]
  if min(rows, columns) < least:
    raise ValueError(
      f"images of {rows}x{columns} are too small for {cfg.name}: set data.image_size to {least} or "
      "more"
    )
  head = heads.Classifier(len(info.classes), (), cfg.dropout)
  return net.Parts(Encoder(cfg, info), head, initial.HE_NORMAL, ("stem", *STACKS))


_OUTSIDE_CELLS = {
  "encoder/stem/conv1": "stem_conv1",
  "encoder/stem/bn1": "stem_bn1",
  "head/classes": "predictions",
}


def keras_layer(path: str, cfg: settings.NASNet) -> str:
  """The name of Keras's layer that is our module at this path, such as `encoder/stem/conv1`."""
  del cfg
  if path in _OUTSIDE_CELLS:
    return _OUTSIDE_CELLS[path]
  cell, *inside = path.split("/")[2:]
  kind, _, number = cell.partition("_")
  match inside:
    case ["adjust", layer]:
      return f"adjust_{layer}_{number}"
    case [layer]:
      return f"{kind}_{layer}_{number}"
    case _:  # the last part is `depthwise` or `pointwise` where Keras has one layer for both
      return f"{inside[1]}_{kind}_{inside[0]}_{number}"
