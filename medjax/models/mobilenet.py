"""MobileNet V1 (Howard et al. 2017), V2 (Sandler et al. 2018) and V3 (Howard et al. 2019).

The three differ in their units and in a table of those: a `Plan`. Layers, paddings and widths are
those of Keras's applications, whose names the end points have; a stage ends before each stride.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

from flax import linen as nn
import jax

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

MobileNet = settings.MobileNetV1 | settings.MobileNetV2 | settings.MobileNetV3


class Activation(NamedTuple):
  """A function, and what end points behind it are called."""

  name: str
  apply: Callable[[jax.Array], jax.Array]


RELU = Activation("relu", jax.nn.relu)
RELU6 = Activation("relu", jax.nn.relu6)
HARD_SWISH = Activation("hard_swish", jax.nn.hard_swish)


class Row(NamedTuple):
  """A unit: one line of a network's table.

  Attributes:
    name: of the unit. features: channels that it ends with.
    expanded: channels between its 1x1 convolutions; 0 leaves the first of them out.
    size: side of the depthwise kernel. squeeze: whether squeeze-and-excitation follows it.
  """

  name: str
  features: int
  stride: int
  expanded: int = 0
  size: int = 3
  squeeze: bool = False
  activation: Activation = RELU6


class ConvBN(nn.Module):
  """Convolution without bias, batch norm, activation."""

  features: int
  size: int
  stride: int
  epsilon: float
  activation: Activation

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / stride, W / stride, features]."""
    x = blocks.Conv(self.features, self.size, self.stride, name="conv")(x, mode)
    return self.activation.apply(blocks.BatchNorm(self.epsilon, name="bn")(x, mode))


class SeparableUnit(nn.Module):
  """V1: depthwise, then 1x1, each with batch norm and ReLU6."""

  cfg: settings.MobileNetV1
  row: Row

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / stride, W / stride, features]."""
    row, epsilon, number = self.row, self.cfg.bn_epsilon, _number(self.row.name)
    # Keras pads below and to the right whatever the map's size; SAME would not, on odd maps.
    padding: blocks.Padding = "SAME" if row.stride == 1 else ((0, 1), (0, 1))
    x = blocks.Conv(x.shape[-1], 3, row.stride, padding, depthwise=True, name="dw")(x, mode)
    x = row.activation.apply(blocks.BatchNorm(epsilon, name="dw_bn")(x, mode))
    x = mode.endpoint(self, f"conv_dw_{number}_relu", x)
    x = blocks.Conv(row.features, 1, name="pw")(x, mode)
    x = row.activation.apply(blocks.BatchNorm(epsilon, name="pw_bn")(x, mode))
    return mode.endpoint(self, f"conv_pw_{number}_relu", x)


class SqueezeExcite(nn.Module):
  """Weighs channels by what the whole map holds (Hu et al. 2018), with a hard sigmoid."""

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to the same."""
    channels = x.shape[-1]
    weights = x.mean((1, 2), keepdims=True)
    weights = blocks.Conv(divisible(channels / 4), 1, use_bias=True, name="conv")(weights, mode)
    weights = blocks.Conv(channels, 1, use_bias=True, name="conv_1")(jax.nn.relu(weights), mode)
    return x * jax.nn.hard_sigmoid(weights)


class InvertedResidual(nn.Module):
  """V2 and V3: 1x1 to more channels, depthwise, 1x1 to few; plus the input where shapes agree."""

  cfg: settings.MobileNetV2 | settings.MobileNetV3
  row: Row

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / stride, W / stride, features]."""
    row, epsilon, short = self.row, self.cfg.bn_epsilon, x
    if row.expanded:
      x = blocks.Conv(row.expanded, 1, name="expand")(x, mode)
      x = self._activated(blocks.BatchNorm(epsilon, name="expand_bn")(x, mode), "expand", mode)
    x = blocks.Conv(x.shape[-1], row.size, row.stride, depthwise=True, name="depthwise")(x, mode)
    x = mode.endpoint(self, f"{row.name}_depthwise", x)
    x = self._activated(blocks.BatchNorm(epsilon, name="depthwise_bn")(x, mode), "depthwise", mode)
    if row.squeeze:
      x = SqueezeExcite(name="squeeze_excite")(x, mode)
    x = blocks.Conv(row.features, 1, name="project")(x, mode)
    x = blocks.BatchNorm(epsilon, name="project_bn")(x, mode)
    if row.stride == 1 and x.shape == short.shape:
      return mode.endpoint(self, f"{row.name}_add", x + short)
    return mode.endpoint(self, f"{row.name}_project_bn", x)

  def _activated(self, x: jax.Array, layer: str, mode: net.Mode) -> jax.Array:
    row = self.row
    return mode.endpoint(self, f"{row.name}_{layer}_{row.activation.name}", row.activation.apply(x))


class Stage(nn.Module):
  """Units between two strides."""

  cfg: MobileNet
  unit: type[nn.Module]
  rows: tuple[Row, ...]

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to the map of its last unit."""
    unit = blocks.recomputed(self.unit, mode)
    for row in self.rows:
      x = unit(self.cfg, row, name=row.name)(x, mode)
    return x


@dataclasses.dataclass(frozen=True)
class Plan:
  """All of a network between preprocessing and global pooling.

  Attributes:
    stem, top: channels of the first convolution and of the last 1x1; 0 leaves the latter out.
    activation: of both. ends: names of the end points behind them.
    unit: of the rows. stages: rows, one tuple a stage.
  """

  stem: int
  top: int
  activation: Activation
  ends: tuple[str, str]
  unit: type[nn.Module]
  rows: tuple[Row, ...]

  @property
  def stages(self) -> dict[str, tuple[Row, ...]]:
    """Name -> rows; each stage but the first begins with a stride."""
    starts = [i for i, row in enumerate(self.rows) if i == 0 or row.stride > 1]
    ends = [*starts[1:], len(self.rows)]
    parts = [self.rows[start:end] for start, end in zip(starts, ends, strict=True)]
    return {f"stage{number}": part for number, part in enumerate(parts, 1)}


class Encoder(nn.Module):
  """Stem, stages, 1x1 convolution, global average pooling."""

  cfg: MobileNet
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, D]."""
    cfg, info, plan = self.cfg, self.info, plan_of(self.cfg)
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    stride = 1 if cfg.stem == "small" else 2
    x = ConvBN(plan.stem, 3, stride, cfg.bn_epsilon, plan.activation, name="stem")(x, mode)
    x = mode.endpoint(self, plan.ends[0], x)
    for name, rows in plan.stages.items():
      x = mode.endpoint(self, name, Stage(cfg, plan.unit, rows, name=name)(x, mode))
    if plan.top:
      x = ConvBN(plan.top, 1, 1, cfg.bn_epsilon, plan.activation, name="top")(x, mode)
      x = mode.endpoint(self, plan.ends[1], x)
    return ops.global_avg_pool(x)


def divisible(width: float) -> int:
  """The multiple of 8 nearest to a width, but no more than a tenth below it, and 8 at least."""
  rounded = max(8, int(width + 4) // 8 * 8)
  return rounded + 8 if rounded < 0.9 * width else rounded


# Features and stride (Howard et al. 2017, table 1).
_V1 = (
  (64, 1),
  (128, 2),
  (128, 1),
  (256, 2),
  (256, 1),
  (512, 2),
  *[(512, 1)] * 5,
  (1024, 2),
  (1024, 1),
)
# Features, stride of the first unit, units; all widen six times but the first (Sandler et al. 2018,
# table 2).
_V2 = ((16, 1, 1), (24, 2, 2), (32, 2, 3), (64, 2, 4), (96, 1, 3), (160, 2, 3), (320, 1, 1))
# Features, stride, expanded, size, squeeze, activation (Howard et al. 2019, tables 1 and 2).
_V3_LARGE = (
  (16, 1, 0, 3, False, RELU),
  (24, 2, 64, 3, False, RELU),
  (24, 1, 72, 3, False, RELU),
  (40, 2, 72, 5, True, RELU),
  (40, 1, 120, 5, True, RELU),
  (40, 1, 120, 5, True, RELU),
  (80, 2, 240, 3, False, HARD_SWISH),
  (80, 1, 200, 3, False, HARD_SWISH),
  (80, 1, 184, 3, False, HARD_SWISH),
  (80, 1, 184, 3, False, HARD_SWISH),
  (112, 1, 480, 3, True, HARD_SWISH),
  (112, 1, 672, 3, True, HARD_SWISH),
  (160, 2, 672, 5, True, HARD_SWISH),
  (160, 1, 960, 5, True, HARD_SWISH),
  (160, 1, 960, 5, True, HARD_SWISH),
)
_V3_SMALL = (
  (16, 2, 0, 3, True, RELU),
  (24, 2, 72, 3, False, RELU),
  (24, 1, 88, 3, False, RELU),
  (40, 2, 96, 5, True, HARD_SWISH),
  (40, 1, 240, 5, True, HARD_SWISH),
  (40, 1, 240, 5, True, HARD_SWISH),
  (48, 1, 120, 5, True, HARD_SWISH),
  (48, 1, 144, 5, True, HARD_SWISH),
  (96, 2, 288, 5, True, HARD_SWISH),
  (96, 1, 576, 5, True, HARD_SWISH),
  (96, 1, 576, 5, True, HARD_SWISH),
)


def _plan_v1(cfg: settings.MobileNetV1) -> Plan:
  rows = [
    Row(f"unit_{number}", int(features * cfg.width), stride)
    for number, (features, stride) in enumerate(_V1, 1)
  ]
  return Plan(int(32 * cfg.width), 0, RELU6, ("conv1_relu", ""), SeparableUnit, tuple(rows))


def _plan_v2(cfg: settings.MobileNetV2) -> Plan:
  stem = before = divisible(32 * cfg.width)
  rows: list[Row] = []
  for width, first_stride, units in _V2:
    features = divisible(int(width * cfg.width))
    for stride in (first_stride, *[1] * (units - 1)):
      name = f"block_{len(rows)}" if rows else "expanded_conv"
      rows.append(Row(name, features, stride, 6 * before if rows else 0))
      before = features
  top = divisible(1280 * max(cfg.width, 1))  # never narrower (section 6.1)
  return Plan(stem, top, RELU6, ("Conv1_relu", "out_relu"), InvertedResidual, tuple(rows))


def _plan_v3(cfg: settings.MobileNetV3) -> Plan:
  rows = [
    Row(f"expanded_conv_{number}" if number else "expanded_conv", *row)
    for number, row in enumerate(_V3_SMALL if cfg.small else _V3_LARGE)
  ]
  ends = ("conv_hard_swish", "conv_1_hard_swish")
  return Plan(16, 6 * rows[-1].features, HARD_SWISH, ends, InvertedResidual, tuple(rows))


_PLANS: dict[type[settings.Model], Callable] = {
  settings.MobileNetV1: _plan_v1,
  settings.MobileNetV2: _plan_v2,
  settings.MobileNetV3: _plan_v3,
}


def plan_of(cfg: MobileNet) -> Plan:
  """What the network is made of."""
  return _PLANS[type(cfg)](cfg)


def build(cfg: MobileNet, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for images of which the strides of V1 leave nothing.
  """
  least = 16 if cfg.stem == "small" else 31
  if isinstance(cfg, settings.MobileNetV1) and min(info.image_shape[:2]) < least:
    rows, columns = info.image_shape[:2]
    raise ValueError(
      f"images of {rows}x{columns} are too small for {cfg.name}: set data.image_size to {least} or "
      "more, or model.stem='small'"
    )
  hidden: tuple[int, ...] = ()
  activation = RELU
  if isinstance(cfg, settings.MobileNetV3):
    hidden, activation = (1024 if cfg.small else 1280,), HARD_SWISH
  head = heads.Classifier(len(info.classes), hidden, cfg.dropout, activation.apply)
  plan = plan_of(cfg)
  stages = ("stem", *plan.stages, *(["top"] if plan.top else []))
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, stages)


# Modules outside the stages -> Keras's layers.
_KERAS: dict[type[settings.Model], dict[str, str]] = {
  settings.MobileNetV1: {
    "encoder/stem/conv": "conv1",
    "encoder/stem/bn": "conv1_bn",
    "head/classes": "conv_preds",
  },
  settings.MobileNetV2: {
    "encoder/stem/conv": "Conv1",
    "encoder/stem/bn": "bn_Conv1",
    "encoder/top/conv": "Conv_1",
    "encoder/top/bn": "Conv_1_bn",
    "head/classes": "predictions",
  },
  settings.MobileNetV3: {
    "encoder/stem/conv": "conv",
    "encoder/stem/bn": "conv_bn",
    "encoder/top/conv": "conv_1",
    "encoder/top/bn": "conv_1_bn",
    "head/hidden": "conv_2",
    "head/classes": "logits",
  },
}


def keras_layer(path: str, cfg: MobileNet) -> str:
  """The name of Keras's layer that is our module at this path, such as `encoder/stem/conv`."""
  if path in _KERAS[type(cfg)]:
    return _KERAS[type(cfg)][path]
  unit, *layers = path.split("/")[2:]
  if isinstance(cfg, settings.MobileNetV1):
    part, *bn = layers[0].split("_")
    return "_".join(("conv", part, _number(unit), *bn))
  name = "_".join((unit, *layers))
  return name.replace("_bn", "_BN") if isinstance(cfg, settings.MobileNetV2) else name


def _number(unit: str) -> str:
  """The number at the end of a unit's name."""
  return unit.rpartition("_")[2]
