"""What sits on an embedding: a classifier, or the projector and the predictor of pretraining."""

from __future__ import annotations

from collections.abc import Callable

from flax import linen as nn
import jax

from medjax import losses
from medjax.models import blocks, net

PROJECTION = "projection"  # end point of what a predictor predicts from


class Classifier(nn.Module):
  """Dense layers with an activation and dropout, and a dense layer to the classes.

  Attributes:
    classes: K.
    hidden: widths of the dense layers before.
    dropout: rate after each of them; before the classes where there is none.
    activation: of the hidden layers.
    cosine: logits are cosines between features and class vectors (Cao et al. 2019, LDAM).
  """

  classes: int
  hidden: tuple[int, ...]
  dropout: float
  activation: Callable[[jax.Array], jax.Array] = jax.nn.relu
  cosine: bool = False

  @nn.compact
  def __call__(self, embedding: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, D] to logits [b, K]."""
    x = embedding
    for number, width in enumerate(self.hidden):
      suffix = number + 1 if number else ""
      x = self.activation(blocks.Dense(width, name=f"hidden{suffix}")(x, mode))
      x = blocks.Dropout(self.dropout, name=f"dropout{suffix}")(x, mode)
    if not self.hidden:
      x = blocks.Dropout(self.dropout, name="dropout")(x, mode)
    if self.cosine:
      return Cosine(self.classes, name="classes")(x, mode)
    return blocks.Dense(self.classes, name="classes")(x, mode)


class Cosine(nn.Module):
  """Cosines between features and one vector a class."""

  classes: int

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, D] to cosines [b, classes]."""
    kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.classes))
    return losses.unit_length(x) @ losses.unit_length(kernel.T).T


class Projector(nn.Module):
  """Dense, batch norm, ReLU, dense (Chen et al. 2020, SimCLR, section 4.2).

  The result is not scaled to unit length: the loss does that. The hidden layer has no bias, which
  the batch norm after it would cancel.
  """

  hidden: int
  out: int
  bn_epsilon: float

  @nn.compact
  def __call__(self, embedding: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, D] to [b, out]."""
    x = blocks.Dense(self.hidden, use_bias=False, name="hidden")(embedding, mode)
    x = blocks.BatchNorm(self.bn_epsilon, name="bn")(x, mode)
    return blocks.Dense(self.out, name="out")(jax.nn.relu(x), mode)


class Predicting(nn.Module):
  """A projector and, from its result to what it predicts, a second one (Grill et al. 2020, BYOL).

  Attributes:
    projector: (hidden, out) widths. predictor: likewise; () gives out the projections themselves.
  """

  projector: tuple[int, int]
  predictor: tuple[int, ...]
  bn_epsilon: float

  @nn.compact
  def __call__(self, embedding: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, D] to predictions [b, out]; the projections are the end point `PROJECTION`."""
    x = Projector(*self.projector, self.bn_epsilon, name="projector")(embedding, mode)
    x = mode.endpoint(self, PROJECTION, x)
    if not self.predictor:
      return x
    hidden, out = self.predictor
    return Projector(hidden, out, self.bn_epsilon, name="predictor")(x, mode)
