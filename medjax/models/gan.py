"""Generator and discriminator: residual networks between numbers and images.

The blocks are those of Miyato et al. 2018 ("Spectral Normalization for GANs", appendix B, and
"cGANs with Projection Discriminator", figure 14). From 4 x 4 maps every block of the generator
doubles the map, and every block of the discriminator but the last halves it.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

End = Literal["real", "projection", "classes"]

SEED = 4  # side of the smallest maps
_WIDEST = 16  # times the width of the largest maps
_LEAST = 1e-12  # norm that a kernel is divided by


@dataclasses.dataclass(frozen=True)
class Pair:
  """A generator and its discriminator.

  Attributes:
    generator: from latents [b, latent], in the batch as `contract.IMAGE`, to images [b, H, W, C] in
      [0, 1] as output; with an embedding that is the last map.
    discriminator: from such images to logits: [b, 1] of being real, or [b, K] of the classes.
    latent: numbers that an image is generated from.
    classes: K, of what both are told in `contract.CONDITION`; 0 where they are told nothing.
    stages: no order of stages runs through both.
  """

  generator: net.Net
  discriminator: net.Net
  latent: int
  classes: int
  stages: tuple[str, ...] = ()


class Doubling(nn.Module):
  """Batch norm, ReLU, doubling, convolution, batch norm, ReLU, convolution; and a short way."""

  cfg: settings.GAN
  features: int
  classes: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, 2 H, 2 W, features]."""
    first, second = (_norm(self.cfg, self.classes, f"bn{i}") for i in (1, 2))
    y = doubled(jax.nn.relu(first(x, mode)))
    y = blocks.Conv(self.features, 3, use_bias=True, name="conv1")(y, mode)
    y = jax.nn.relu(second(y, mode))
    y = blocks.Conv(self.features, 3, use_bias=True, name="conv2")(y, mode)
    # A 1x1 convolution and the doubling can change places, and it costs a quarter before.
    short = blocks.Conv(self.features, 1, use_bias=True, name="short")(x, mode)
    return y + doubled(short)


class Generator(nn.Module):
  """A dense layer to 4 x 4 maps, and blocks that double them."""

  cfg: settings.GAN
  size: int
  classes: int

  @nn.compact
  def __call__(self, latents: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, latent] to [b, size, size, width]."""
    first, *others = reversed(_widths(self.cfg, self.size))
    x = blocks.Dense(SEED * SEED * first, name="seed")(latents, mode)
    x = x.reshape(len(x), SEED, SEED, first)
    block = blocks.recomputed(Doubling, mode)
    for number, width in enumerate(others, 1):
      x = block(self.cfg, width, self.classes, name=f"block{number}")(x, mode)
    return x


class Pixels(nn.Module):
  """Batch norm, ReLU, and a convolution to pixels."""

  cfg: settings.GAN
  channels: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, width] to images [b, H, W, channels] in [0, 1]."""
    x = jax.nn.relu(blocks.BatchNorm(self.cfg.bn_epsilon, name="bn")(x, mode))
    x = blocks.Conv(self.channels, 3, use_bias=True, name="conv")(x, mode)
    return (jnp.tanh(x) + 1) / 2


class ConditionalBatchNorm(nn.Module):
  """Batch norm with a factor and an offset for each class (Dumoulin et al. 2017)."""

  epsilon: float
  classes: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """Normalises [b, H, W, C]; over all classes together."""
    shape = (self.classes, x.shape[-1])
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    norm = blocks.BatchNorm(self.epsilon, use_scale=False, use_bias=False, name="bn")
    own = (table[_condition(mode)][:, None, None] for table in (scale, bias))
    factor, offset = own
    return (norm(x, mode) * factor + offset).astype(mode.dtype(x, scale))


def _norm(cfg: settings.GAN, classes: int, name: str) -> nn.Module:
  if classes:
    return ConditionalBatchNorm(cfg.bn_epsilon, classes, name=name)
  return blocks.BatchNorm(cfg.bn_epsilon, name=name)


def _condition(mode: net.Mode) -> jax.Array:
  if mode.condition is None:
    raise ValueError(f"a conditional network needs classes: batch[{contract.CONDITION!r}]")
  return mode.condition


def normalised(layer: nn.Module, kernel: jax.Array, mode: net.Mode) -> jax.Array:
  """A kernel divided by its largest singular value (Miyato et al. 2018, algorithm 1).

  The value is that along a direction `u`, kept in the statistics of the layer: every pass in
  training moves `u` by one step of power iteration towards the kernel's own. So it lags behind the
  kernel, and it has the gradient of a direction that stands still.

  Args:
    layer: in whose compact method this is called.
    kernel: [..., out].
    mode: with groups, `u` moves.
  """
  matrix = kernel.reshape(-1, kernel.shape[-1])
  outputs = matrix.shape[-1]
  kept = layer.variable("batch_stats", "u", lambda: jnp.full(outputs, outputs**-0.5))
  u, v = _turned(lax.stop_gradient(matrix), kept.value)
  if mode.groups is not None:
    layer.put_variable(net.ITERATES, "u", u)
  return kernel / jnp.maximum(_exact(v, _exact(matrix, u)), _LEAST)


def _turned(matrix: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One step of power iteration: both directions, of length 1."""
  v = _unit(_exact(matrix, u))
  return _unit(_exact(v, matrix)), v


def _unit(x: jax.Array) -> jax.Array:
  return x * lax.rsqrt(jnp.maximum((x * x).sum(), 1e-24))


def _exact(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


class SpectralConv(blocks.Conv):
  """A convolution whose kernel, read as a matrix [.., out], has the spectral norm 1."""

  use_bias: bool = True

  def weights(self, shape: tuple[int, ...], mode: net.Mode) -> jax.Array:
    """The kernel, normalised."""
    return normalised(self, super().weights(shape, mode), mode)


class SpectralDense(blocks.Dense):
  """A matrix of spectral norm 1, and a bias."""

  def weights(self, shape: tuple[int, ...], mode: net.Mode) -> jax.Array:
    """The matrix, normalised."""
    return normalised(self, super().weights(shape, mode), mode)


class Halving(nn.Module):
  """Twice ReLU and convolution, and a short way; both are pooled, but not in the last block.

  Attributes:
    features: channels of the result. first: the block that sees pixels, which no ReLU precedes.
    pooled: whether the map is halved.
  """

  features: int
  first: bool
  pooled: bool

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] to [b, H / 2, W / 2, features] where pooled."""
    hidden = self.features if self.first else x.shape[-1]
    y = x if self.first else jax.nn.relu(x)
    y = jax.nn.relu(SpectralConv(hidden, 3, name="conv1")(y, mode))
    y = SpectralConv(self.features, 3, name="conv2")(y, mode)
    if self.pooled:
      x, y = ops.avg_pool(x), ops.avg_pool(y)  # a 1x1 convolution of means costs a quarter
    return y + SpectralConv(self.features, 1, name="short")(x, mode)


class Discriminator(nn.Module):
  """Blocks down to 4 x 4 maps, and the sums of what is above zero there."""

  cfg: settings.GAN
  info: contract.DataInfo

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, D], D = 16 * width from 64 pixels on."""
    cfg, info = self.cfg, self.info
    x = blocks.Input(cfg.preprocess, info.mean, info.std, name="input")(images, mode)
    widths = _widths(cfg, info.image_shape[0])
    block = blocks.recomputed(Halving, mode)
    for number, width in enumerate(widths, 1):
      x = block(width, number == 1, number < len(widths), name=f"block{number}")(x, mode)
      x = mode.endpoint(self, f"block{number}", x)
    return jax.nn.relu(x).sum((1, 2))


class Verdict(nn.Module):
  """The logit of being real; with classes, of being a real image of the class that is told.

  The class has its share in it by the product of its own vector and the features (Miyato & Koyama
  2018, equation 5).
  """

  classes: int

  @nn.compact
  def __call__(self, embedding: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, D] to [b, 1]."""
    real = SpectralDense(1, name="real")(embedding, mode)
    if not self.classes:
      return real
    vectors = Vectors(self.classes, name="projection")(embedding.shape[-1], mode)
    own = vectors[_condition(mode)].astype(embedding.dtype)
    return real + (own * embedding).sum(-1, keepdims=True)


class Vectors(nn.Module):
  """A vector for each class, the matrix of all of spectral norm 1."""

  classes: int

  @nn.compact
  def __call__(self, width: int, mode: net.Mode) -> jax.Array:
    """[classes, width]."""
    kernel = self.param("kernel", nn.initializers.zeros, (self.classes, width))
    return normalised(self, kernel, mode)


class Classes(nn.Module):
  """Logits of K classes, beside the 0 of "generated" that stands for itself."""

  classes: int

  @nn.compact
  def __call__(self, embedding: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, D] to [b, K]."""
    return SpectralDense(self.classes, name="classes")(embedding, mode)


def doubled(x: jax.Array) -> jax.Array:
  """Each pixel of [b, h, w, C] four times."""
  return x.repeat(2, axis=1).repeat(2, axis=2)


def _widths(cfg: settings.GAN, size: int) -> list[int]:
  """Channels of the maps from the largest to the smallest."""
  halvings = int(math.log2(size // SEED))
  return [cfg.width * min(_WIDEST, 2**number) for number in range(halvings + 1)]


def _check(info: contract.DataInfo) -> None:
  height, width = info.image_shape[:2]
  if height != width or height not in (8, 16, 32, 64, 128):
    raise ValueError(
      f"images of {height} x {width} pixels do not fit the network 'gan', whose maps double from "
      "4 x 4: set data.image_size to 8, 16, 32, 64 or 128"
    )


def build(cfg: settings.GAN, info: contract.DataInfo) -> net.Parts:
  """The discriminator's body with a classifier, to be trained as any other network.

  Raises:
    ValueError: for images whose side is no power of 2 from 8 to 128.
  """
  _check(info)
  head = heads.Classifier(len(info.classes), (), cfg.dropout)
  return net.Parts(Discriminator(cfg, info), head, initial.GLOROT_UNIFORM, _blocks(cfg, info))


def _blocks(cfg: settings.GAN, info: contract.DataInfo) -> tuple[str, ...]:
  return tuple(f"block{i + 1}" for i in range(len(_widths(cfg, info.image_shape[0]))))


def make(cfg: settings.Model, info: contract.DataInfo, execution: net.Execution, end: End) -> Pair:
  """A generator and a discriminator for these data.

  Args:
    cfg: `settings.GAN`. info: what the images are. execution: how to run them.
    end: of the discriminator: the logit of being `real`, the same given a class (`projection`; the
      generator is then told the class too), or logits of the `classes`.

  Raises:
    ValueError: for another network, data without classes where classes are needed, images with
      several of them, and images of other sizes.
  """
  if not isinstance(cfg, settings.GAN):
    raise ValueError(f"model.name={cfg.name!r} is no pair of networks: set model.name=gan")
  if end != "real" and (not info.classes or info.multi_label):
    raise ValueError("this GAN learns from classes, one an image, and these data have none or many")
  _check(info)
  classes = len(info.classes) if end == "projection" else 0
  size, channels = info.image_shape[1:]
  made = _wrapped(Generator(cfg, size, classes), Pixels(cfg, channels), cfg, execution)
  judge: nn.Module = Classes(len(info.classes)) if end == "classes" else Verdict(classes)
  told_apart = _wrapped(Discriminator(cfg, info), judge, cfg, execution)
  return Pair(made, told_apart, cfg.latent, classes)


def _wrapped(
  encoder: nn.Module, head: nn.Module, cfg: settings.GAN, execution: net.Execution
) -> net.Net:
  return net.wrap(encoder, head, initial.GLOROT_UNIFORM, execution, cfg.bn_momentum)
