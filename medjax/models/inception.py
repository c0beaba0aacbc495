"""Inception-V3 as in Keras (Szegedy et al. 2016, sections 3 to 6), and the parts of its kind.

A block runs branches of convolutions side by side and concatenates them. Blocks are tables: each
branch lists its convolutions in the order in which Keras creates, and therefore numbers, them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import dataclasses
import functools
from typing import Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net


class Unit(NamedTuple):
  """A convolution that batch norm and ReLU follow; `size` is a side or (rows, columns)."""

  features: int
  size: int | ops.Pair
  stride: int = 1
  padding: ops.Padding = "SAME"


@dataclasses.dataclass(frozen=True)
class Branch:
  """A way from a block's input to its concatenation.

  Attributes:
    units: one after the other. pool: 3x3 before them, average at stride 1 or largest at stride 2.
    fork: the last two units take the same map and are concatenated.
  """

  units: tuple[Unit, ...] = ()
  pool: Literal["", "avg", "max"] = ""
  fork: bool = False

  def named(self, name: str) -> dict[str, Unit]:
    """The units by name: that of the branch, numbered from 1 where there are several."""
    if len(self.units) == 1:
      return {name: self.units[0]}
    return {f"{name}_{number}": unit for number, unit in enumerate(self.units, 1)}


Branches = Mapping[str, Branch]  # name -> branch, in the order of the concatenation


def branch(*rows: tuple, pool: Literal["", "avg", "max"] = "", fork: bool = False) -> Branch:
  """A branch of which each row is a `Unit`."""
  return Branch(tuple(Unit(*row) for row in rows), pool, fork)


# The two networks have the same stem; a 3x3 pool at stride 2 follows each of its parts.
STEM = {
  "conv1": Unit(32, 3, 2, "VALID"),
  "conv2": Unit(32, 3, 1, "VALID"),
  "conv3": Unit(64, 3),
  "conv4": Unit(80, 1),
  "conv5": Unit(192, 3, 1, "VALID"),
}
POOLED = {"conv3": "stem_pool1", "conv5": "stem_pool2"}  # unit -> end point of the pool after it
SMALL_STEM = {"conv": Unit(192, 3)}  # as wide as the other: all that follows keeps its shapes

# Least side of an image: each map that a 3x3 kernel halves must have three rows left.
LEAST_SIZES = {"imagenet": 75, "small": 7}


def _wide(pooled: int) -> Branches:
  return {
    "branch1x1": branch((64, 1)),
    "branch5x5": branch((48, 1), (64, 5)),
    "branch3x3dbl": branch((64, 1), (96, 3), (96, 3)),
    "branch_pool": branch((pooled, 1), pool="avg"),
  }


def _factorised(inner: int) -> Branches:
  """7x7 kernels as 1x7 and 7x1 (section 3.2)."""
  row, column = (1, 7), (7, 1)
  steps = [(inner, column), (inner, row), (inner, column)]
  return {
    "branch1x1": branch((192, 1)),
    "branch7x7": branch((inner, 1), (inner, row), (192, column)),
    "branch7x7dbl": branch((inner, 1), *steps, (192, row)),
    "branch_pool": branch((192, 1), pool="avg"),
  }


_EXPANDED = {
  "branch1x1": branch((320, 1)),
  "branch3x3": branch((384, 1), (384, (1, 3)), (384, (3, 1)), fork=True),
  "branch3x3dbl": branch((448, 1), (384, 3), (384, (1, 3)), (384, (3, 1)), fork=True),
  "branch_pool": branch((192, 1), pool="avg"),
}
_REDUCTION_6 = {
  "branch3x3": branch((384, 3, 2, "VALID")),
  "branch3x3dbl": branch((64, 1), (96, 3), (96, 3, 2, "VALID")),
  "branch_pool": branch(pool="max"),
}
_REDUCTION_7 = {
  "branch3x3": branch((192, 1), (320, 3, 2, "VALID")),
  "branch7x7x3": branch((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, "VALID")),
  "branch_pool": branch(pool="max"),
}

# Stage -> its blocks; 35, 17 and 8 rows at 299 pixels.
STAGES: dict[str, dict[str, Branches]] = {
  "stage5": {"mixed0": _wide(32), "mixed1": _wide(64), "mixed2": _wide(64)},
  "stage6": {
    "mixed3": _REDUCTION_6,
    "mixed4": _factorised(128),
    "mixed5": _factorised(160),
    "mixed6": _factorised(160),
    "mixed7": _factorised(192),
  },
  "stage7": {"mixed8": _REDUCTION_7, "mixed9": _EXPANDED, "mixed10": _EXPANDED},
}


class ConvBN(nn.Module):
  """Convolution without bias, batch norm without scale, no ReLU."""

  epsilon: float
  unit: Unit

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H', W', features]."""
    features, size, stride, padding = self.unit
    x = blocks.Conv(features, size, stride, padding, name="conv")(x, mode)
    return blocks.BatchNorm(self.epsilon, use_scale=False, name="bn")(x, mode)


class Mixed(nn.Module):
  """Branches side by side, concatenated."""

  epsilon: float
  branches: Branches

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H', W', features of all branches]."""
    return mode.endpoint(self, f"{self.name}", self.concatenated(x, mode))

  def concatenated(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """What the branches make of x, in their order."""
    return jnp.concatenate([self._passed(name, x, mode) for name in self.branches], axis=-1)

  def _passed(self, name: str, x: jax.Array, mode: net.Mode) -> jax.Array:
    """The map after one branch."""
    path = self.branches[name]
    if path.pool:
      x = ops.avg_pool(x, 3, 1, "SAME") if path.pool == "avg" else ops.max_pool(x, 3, 2)
    units = list(path.named(name).items())
    line, side_by_side = (units[:-2], units[-2:]) if path.fork else (units, [])
    for title, unit in line:
      x = self._convolved(title, unit, x, mode)
    if not side_by_side:
      return x
    return jnp.concatenate([self._convolved(*unit, x, mode) for unit in side_by_side], axis=-1)

  def _convolved(self, title: str, unit: Unit, x: jax.Array, mode: net.Mode) -> jax.Array:
    x = ConvBN(self.epsilon, unit, name=title)(x, mode)
    return jax.nn.relu(mode.endpoint(self, f"{self.name}_{title}_bn", x))


class Stem(nn.Module):
  """The convolutions before the first block, and their pools."""

  epsilon: float
  units: Mapping[str, Unit]

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, h, w, 192], 35 x 35 at 299 pixels."""
    for name, unit in self.units.items():
      x = jax.nn.relu(ConvBN(self.epsilon, unit, name=name)(x, mode))
      if name in POOLED:
        x = mode.endpoint(self, POOLED[name], ops.max_pool(x, 3, 2))
    return x


class Stage(nn.Module):
  """Blocks one after the other."""

  epsilon: float
  table: Mapping[str, Branches]

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to the last block's map."""
    mixed = blocks.recomputed(Mixed, mode)
    for name, branches in self.table.items():
      x = mixed(self.epsilon, branches, name=name)(x, mode)
    return x


class Encoder(nn.Module):
  """Stem, three stages, global average pooling."""

  cfg: settings.InceptionV3
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, 2048]."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    x = Stem(cfg.bn_epsilon, stem_units(cfg), name="stem")(x, mode)
    for name, table in STAGES.items():
      x = Stage(cfg.bn_epsilon, table, name=name)(x, mode)
    return ops.global_avg_pool(x)


def stem_units(cfg: settings.Backbone) -> Mapping[str, Unit]:
  """The stem that the settings name."""
  return SMALL_STEM if cfg.stem == "small" else STEM


def check_size(cfg: settings.Backbone, info: contract.DataInfo) -> None:
  """Refuses images that the strides would use up.

  Raises:
    ValueError: for images with a side below `LEAST_SIZES`.
  """
  least = LEAST_SIZES[cfg.stem]
  if min(info.image_shape[:2]) < least:
    advice = ", or model.stem='small'" if cfg.stem == "imagenet" else ""
    raise ValueError(
      f"images of {info.image_shape[:2]} pixels are too small for {cfg.name}: "
      f"set data.image_size to {least} or more{advice}"
    )


def build(cfg: settings.InceptionV3, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for images that the strides would use up.
  """
  check_size(cfg, info)
  head = heads.Classifier(len(info.classes), (), cfg.dropout)
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, ("stem", *STAGES))


def unit_paths(stages: Mapping[str, Mapping[str, Branches]]) -> Iterator[str]:
  """Paths below the encoder of the stem's and the branches' units, as Keras numbers them."""
  yield from (f"stem/{name}" for name in STEM)
  for stage, table in stages.items():
    for block, branches in table.items():
      for name, path in branches.items():
        yield from (f"{stage}/{block}/{title}" for title in path.named(name))


@functools.cache
def _numbers() -> dict[str, int]:
  return {path: number for number, path in enumerate(unit_paths(STAGES))}


def keras_layer(path: str, cfg: settings.InceptionV3) -> str:
  """Keras's layer of a module, counted from the first layer of its type in the network.

  Args:
    path: of the module, such as `encoder/stage5/mixed0/branch1x1/conv` or `head/classes`.
    cfg: of its network.

  Raises:
    KeyError: for a module that Keras does not have: those of the small stem.
  """
  del cfg
  if path == "head/classes":
    return "predictions"
  unit, _, kind = path.removeprefix("encoder/").rpartition("/")
  return numbered(kind, _numbers()[unit])


def numbered(kind: str, number: int) -> str:
  """Keras's own name of its convolution or batch norm number `number`, from 0."""
  name = {"conv": "conv2d", "bn": "batch_normalization"}[kind]
  return f"{name}_{number}" if number else name
