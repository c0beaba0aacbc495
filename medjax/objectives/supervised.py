"""Classification from labels."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medjax import augment, contract, losses, settings
from medjax.models import net as net_lib
from medjax.objectives import base


@dataclasses.dataclass(frozen=True)
class Supervised:
  """Minimises a loss between logits and labels; an `Objective`.

  Attributes:
    net: with logits [b, K] as its output.
    tx: the optimiser.
    augmenter: of the training images.
    loss: (logits [b, K], labels [b]) -> [b], class weights inside.
    scores: logits [b, K] -> class probabilities [b, K], as the loss understands the logits.
    image_shape: (height, width, channels).
  """

  net: net_lib.Net
  tx: optax.GradientTransformation
  augmenter: augment.Augmenter
  loss: Callable[[jax.Array, jax.Array], jax.Array]
  scores: Callable[[jax.Array], jax.Array]
  image_shape: tuple[int, int, int]

  def init(self, key: jax.Array) -> base.TrainState:
    """See `Objective`."""
    return base.initial_state(self.net, self.tx, self.image_shape, key)

  def step(
    self, state: base.TrainState, batch: contract.Batch, key: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """See `Objective`; the metrics are loss, accuracy and grad_norm."""
    batch = base.with_floats(batch)
    images, slots, labels = (
      batch[name] for name in (contract.IMAGE, contract.SLOT, contract.LABEL)
    )
    batch[contract.IMAGE] = self.augmenter(base.named(key, "augment"), images, slots)

    def fn(params):
      dropout = base.named(key, "dropout")
      result, stats = self.net.apply(params, state.stats, batch, train=True, key=dropout)
      logits = result.output
      hits = self.scores(logits).argmax(axis=-1) == labels
      return self.loss(logits, labels), ({"accuracy": hits.astype(logits.dtype)}, stats)

    grads, metrics, stats = base.reduced_gradients(fn, state.params, batch[contract.MASK])
    return base.updated(state, self.tx, grads, stats), metrics

  def forward(self, state: base.TrainState, batch: contract.Batch) -> contract.Outputs:
    """See `Objective`; scores are probabilities."""
    result, _ = self.net.apply(state.params, state.stats, base.with_floats(batch), train=False)
    return contract.Outputs(self.scores(result.output), result.embedding)

  def recalibrate(self, state: base.TrainState, batch: contract.Batch) -> contract.Tree:
    """See `Objective`."""
    return base.batch_statistics(self.net, state, batch)


def make(
  cfg: settings.Supervised,
  net: net_lib.Net,
  tx: optax.GradientTransformation,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> Supervised:
  """Builds the objective, with class weights from the training part's counts.

  Raises:
    KeyError: for a loss that `LOSSES` does not list.
    ValueError: for weights of a class without images, and for losses that contradict each other.
  """
  if type(cfg.loss) not in LOSSES:
    names = ", ".join(known.__name__ for known in LOSSES)
    raise KeyError(f"no loss for {type(cfg.loss).__name__}: choose one of {names}")
  weights = losses.class_weights(cfg.class_weights, info.class_counts)
  loss, scores = LOSSES[type(cfg.loss)](cfg.loss, weights)
  return Supervised(net, tx, augmenter, loss, scores, info.image_shape)


def _softmax_ce(cfg: settings.SoftmaxCE, weights: np.ndarray) -> tuple[Callable, Callable]:
  loss = functools.partial(losses.softmax_ce, label_smoothing=cfg.label_smoothing, weights=weights)
  return loss, jax.nn.softmax


def _margin(cfg: settings.Margin, weights: np.ndarray) -> tuple[Callable, Callable]:
  margin = functools.partial(
    losses.margin,
    score=cfg.score,
    exponent=cfg.exponent,
    positive=cfg.positive,
    negative=cfg.negative,
    down_weight=cfg.down_weight,
    weights=weights,
  )
  scores = _capsule_scores if cfg.score == "capsule" else jax.nn.softmax
  if not cfg.mix:
    return margin, scores
  if cfg.score == "capsule":
    raise ValueError(
      "objective.loss.mix adds cross-entropy of a softmax, objective.loss.score=capsule reads the "
      "logits as lengths: set mix=0, or score to prob_sq or prob"
    )

  def mixed(logits: jax.Array, labels: jax.Array) -> jax.Array:
    entropy = losses.softmax_ce(logits, labels, weights=weights)
    return (1 - cfg.mix) * margin(logits, labels) + cfg.mix * entropy

  return mixed, scores


def _capsule_scores(logits: jax.Array) -> jax.Array:
  """Capsule lengths as shares of their sum; even where all are 0."""
  lengths = losses.capsule_lengths(logits) + jnp.finfo(logits.dtype).eps
  return lengths / lengths.sum(axis=-1, keepdims=True)


# Settings -> builder of (per-example loss, class probabilities) from them and the class weights.
LOSSES: dict[type[settings.Loss], Callable] = {
  settings.SoftmaxCE: _softmax_ce,
  settings.Margin: _margin,
}
