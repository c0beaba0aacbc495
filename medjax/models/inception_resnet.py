"""Inception-ResNet-V2 as in Keras (Szegedy et al. 2017, section 3.2, figures 15 to 19).

Blocks of `medjax.models.inception` whose branches, brought to the input's width by a 1x1
convolution and scaled down, are added to the input.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools

from flax import linen as nn
import jax

from medjax import contract, ops, settings
from medjax.models import blocks, heads, inception, initial, net

branch = inception.branch


@dataclasses.dataclass(frozen=True)
class Residuals:
  """A run of equal residual blocks.

  Attributes:
    count: of blocks. scale: of what is added (section 3.3). branches: of each block.
    bare_end: a block more, with scale 1 and without the ReLU.
  """

  count: int
  scale: float
  branches: inception.Branches
  bare_end: bool = False

  def scales(self) -> list[float]:
    """Of each block in turn."""
    return [self.scale] * self.count + [1.0] * self.bare_end


_MIXED_5B = {
  "branch1x1": branch((96, 1)),
  "branch5x5": branch((48, 1), (64, 5)),
  "branch3x3dbl": branch((64, 1), (96, 3), (96, 3)),
  "branch_pool": branch((64, 1), pool="avg"),
}
_MIXED_6A = {
  "branch3x3": branch((384, 3, 2, "VALID")),
  "branch3x3dbl": branch((256, 1), (256, 3), (384, 3, 2, "VALID")),
  "branch_pool": branch(pool="max"),
}
_MIXED_7A = {
  "branch3x3a": branch((256, 1), (384, 3, 2, "VALID")),
  "branch3x3b": branch((256, 1), (288, 3, 2, "VALID")),
  "branch3x3dbl": branch((256, 1), (288, 3), (320, 3, 2, "VALID")),
  "branch_pool": branch(pool="max"),
}
_BLOCK35 = {
  "branch1x1": branch((32, 1)),
  "branch3x3": branch((32, 1), (32, 3)),
  "branch3x3dbl": branch((32, 1), (48, 3), (64, 3)),
}
_BLOCK17 = {
  "branch1x1": branch((192, 1)),
  "branch7x7": branch((128, 1), (160, (1, 7)), (192, (7, 1))),
}
_BLOCK8 = {
  "branch1x1": branch((192, 1)),
  "branch3x3": branch((192, 1), (224, (1, 3)), (256, (3, 1))),
}

# Stage -> its first block and the residual blocks after it; 35, 17 and 8 rows at 299 pixels.
STAGES: dict[str, tuple[tuple[str, inception.Branches], tuple[str, Residuals]]] = {
  "stage5": (("mixed_5b", _MIXED_5B), ("block35", Residuals(10, 0.17, _BLOCK35))),
  "stage6": (("mixed_6a", _MIXED_6A), ("block17", Residuals(20, 0.1, _BLOCK17))),
  "stage7": (("mixed_7a", _MIXED_7A), ("block8", Residuals(9, 0.2, _BLOCK8, bare_end=True))),
}
LAST = "conv_7b"


class Residual(inception.Mixed):
  """Branches, concatenated, a 1x1 convolution with bias, scaled and added to the input."""

  scale: float = 1.0
  relu: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to the same shape."""
    mixed = mode.endpoint(self, f"{self.name}_mixed", self.concatenated(x, mode))
    added = blocks.Conv(x.shape[-1], 1, use_bias=True, name="conv")(mixed, mode)
    x = x + self.scale * added
    if not self.relu:
      return mode.endpoint(self, f"{self.name}", x)
    return mode.endpoint(self, f"{self.name}_ac", jax.nn.relu(x))


class Stage(nn.Module):
  """A block that changes the map's size or width, then residual blocks."""

  epsilon: float
  first: tuple[str, inception.Branches]
  residuals: tuple[str, Residuals]

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H', W', features of the first block]."""
    name, branches = self.first
    mixed, block = (blocks.recomputed(kind, mode) for kind in (inception.Mixed, Residual))
    x = mixed(self.epsilon, branches, name=name)(x, mode)
    kind, run = self.residuals
    for number, scale in enumerate(run.scales(), 1):
      unit = block(self.epsilon, run.branches, scale, number <= run.count, name=f"{kind}_{number}")
      x = unit(x, mode)
    return x


class Encoder(nn.Module):
  """The stem of Inception-V3, three stages, a 1x1 convolution, global average pooling."""

  cfg: settings.InceptionResNetV2
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, 1536]."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    x = inception.Stem(cfg.bn_epsilon, inception.stem_units(cfg), name="stem")(x, mode)
    for name, parts in STAGES.items():
      x = Stage(cfg.bn_epsilon, *parts, name=name)(x, mode)
    x = inception.ConvBN(cfg.bn_epsilon, inception.Unit(1536, 1), name=LAST)(x, mode)
    return ops.global_avg_pool(mode.endpoint(self, f"{LAST}_ac", jax.nn.relu(x)))


def build(cfg: settings.InceptionResNetV2, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier.

  Raises:
    ValueError: for images that the strides would use up.
  """
  inception.check_size(cfg, info)
  head = heads.Classifier(len(info.classes), (), cfg.dropout)
  return net.Parts(Encoder(cfg, info), head, initial.GLOROT_UNIFORM, ("stem", *STAGES, LAST))


def _tables() -> dict[str, Mapping[str, inception.Branches]]:
  """Stage -> block -> branches, in the order in which Keras creates them."""
  return {
    stage: {first: branches} | {f"{kind}_{i + 1}": run.branches for i in range(len(run.scales()))}
    for stage, ((first, branches), (kind, run)) in STAGES.items()
  }


@functools.cache
def _numbers() -> dict[str, int]:
  return {path: number for number, path in enumerate(inception.unit_paths(_tables()))}


def keras_layer(path: str, cfg: settings.InceptionResNetV2) -> str:
  """Keras's layer of a module; its numbers count from the first layer of a type in the network.

  Args:
    path: of the module, such as `encoder/stage5/block35_1/conv` or `head/classes`.
    cfg: of its network.

  Raises:
    KeyError: for a module that Keras does not have: those of the small stem.
  """
  del cfg
  if path == "head/classes":
    return "predictions"
  unit, _, kind = path.removeprefix("encoder/").rpartition("/")
  if unit == LAST:
    return LAST if kind == "conv" else f"{LAST}_{kind}"
  if unit.count("/") == 1 and not unit.startswith("stem/"):  # a block's own convolution
    return f"{unit.rpartition('/')[2]}_{kind}"
  return inception.numbered(kind, _numbers()[unit])
