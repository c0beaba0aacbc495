"""What sits on an embedding: a classifier, or the projector of contrastive learning."""

from __future__ import annotations

from flax import linen as nn
import jax

from medjax.models import blocks, net


class Classifier(nn.Module):
  """[dense, ReLU, dropout] and a dense layer to the classes.

  Attributes:
    classes: K.
    hidden: width of the first dense layer; 0 leaves it, its ReLU and the dropout out.
    dropout: rate between the two.
  """

  classes: int
  hidden: int
  dropout: float

  @nn.compact
  def __call__(self, embedding: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, D] to logits [b, K]."""
    x = embedding
    if self.hidden:
      x = blocks.Dense(self.hidden, name="hidden")(x, mode)
      x = blocks.Dropout(self.dropout, name="dropout")(jax.nn.relu(x), mode)
    return blocks.Dense(self.classes, name="classes")(x, mode)


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
