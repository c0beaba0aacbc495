"""Classification from labels."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from medjax import augment, contract, imbalance, losses, optim, settings
from medjax.augment import mixing
from medjax.models import net as net_lib
from medjax.objectives import base

# (logits [b, K], labels [b] or [b, K], class weights [K]) -> [b]; logits [b, K] -> probabilities of
# the classes [b, K], which add up to 1 unless an image may have several
Loss = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
Scores = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Supervised:
  """Minimises a loss between logits and labels; an `Objective`.

  Attributes:
    net: with logits [b, K] as its output.
    optimizer: how parameters move.
    augmenter: of the training images. mixer: mixes them with each other, or None.
    loss: between logits and labels.
    scores: class probabilities, as the loss understands the logits.
    weights: of the classes.
    weights_from: step at which they begin to apply; all are 1 before.
    auxiliary: factor of the losses of the head's parts.
    image_shape: (height, width, channels).
  """

  net: net_lib.Net
  optimizer: optim.Optimizer
  augmenter: augment.Augmenter
  mixer: mixing.Mixer | None
  loss: Loss
  scores: Scores
  weights: tuple[float, ...]
  weights_from: int
  auxiliary: float
  image_shape: tuple[int, int, int]

  def init(self, key: jax.Array) -> base.TrainState:
    """See `Objective`."""
    return base.initial_state(self.net, self.optimizer, self.image_shape, key)

  def step(
    self, state: base.TrainState, batch: contract.Batch, key: jax.Array, lr: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """See `Objective`; the metrics are loss, accuracy and grad_norm.

    Of mixed images loss and accuracy are those for both labels, by their shares. Where an image may
    have several labels, accuracy is the share of right decisions about a label.
    """
    weights = jnp.where(state.step >= self.weights_from, jnp.asarray(self.weights), 1)

    def fn(params, batch):
      batch = self._augmented(batch, base.named(key, "augment"))
      batch, share = self._mixed(batch, base.named(key, "mixing"))
      dropout = base.named(key, "dropout")
      result, stats = self.net.apply(params, state.stats, batch, train=True, key=dropout)
      scores, labels = self.scores(result.output), batch[contract.LABEL]
      hits = mixing.over_labels(lambda labels: _hits(scores, labels), labels, share)
      found = mixing.over_labels(lambda labels: self._loss(result, labels, weights), labels, share)
      return found, ({"accuracy": hits}, stats)

    grads, metrics, stats = base.reduced_gradients(fn, self.optimizer, state.params, batch)
    return base.updated(state, self.optimizer, grads, stats, lr), metrics

  def _loss(self, result: net_lib.Result, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """[b]: that of the logits, and a share of those of the head's parts."""
    found = self.loss(result.output, labels, weights)
    if result.auxiliary is None:
      return found
    parts = jax.vmap(lambda logits: self.loss(logits, labels, weights))(result.auxiliary)
    return found + self.auxiliary * parts.sum(0)

  def _augmented(self, batch: contract.Batch, key: jax.Array) -> contract.Batch:
    batch = base.with_floats(batch)
    images = self.augmenter(key, batch[contract.IMAGE], batch[contract.SLOT])
    return {**batch, contract.IMAGE: images}

  def _mixed(
    self, batch: contract.Batch, key: jax.Array
  ) -> tuple[contract.Batch, jax.Array | None]:
    """The batch and the share [b] of itself that each image keeps; None where all are whole."""
    return self.mixer(key, batch) if self.mixer else (batch, None)

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
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> Supervised:
  """Builds the objective, with class weights from the training part's counts.

  Raises:
    KeyError: for a loss that `LOSSES` does not list, and for weights of an unknown class.
    ValueError: for weights of a class without images, for losses that contradict each other, and
      for what does not go with several labels an image.
  """
  if type(cfg.loss) not in LOSSES:
    names = ", ".join(known.__name__ for known in LOSSES)
    raise KeyError(f"no loss for {type(cfg.loss).__name__}: choose one of {names}")
  if info.multi_label:
    _check_multi_label(cfg, info)
  loss, scores = LOSSES[type(cfg.loss)](cfg.loss, info)
  weights = imbalance.class_weights(cfg.class_weights, info.class_counts, info.classes)
  start = round(cfg.defer_weights * optimizer.total)
  return Supervised(
    net,
    optimizer,
    augmenter,
    mixing.make(cfg.mixup, cfg.cutmix),
    loss,
    scores,
    tuple(weights.tolist()),
    start,
    cfg.auxiliary,
    info.image_shape,
  )


def _check_multi_label(cfg: settings.Supervised, info: contract.DataInfo) -> None:
  if not isinstance(cfg.loss, ONE_VS_REST):
    raise ValueError(
      f"objective.loss={cfg.loss.name} takes one class an image, and these images may have several:"
      " set objective.loss to sigmoid_bce, weighted_bce or sigmoid_focal"
    )
  if cfg.class_weights in settings.BY_COUNTS:
    raise ValueError(
      f"objective.class_weights={cfg.class_weights} shares out images among classes, and these "
      "images may have several: set it to none; objective.loss=weighted_bce balances the presence "
      "and absence of each class"
    )
  if strange := [name for name in info.classes if contract.BETWEEN in name]:
    raise ValueError(
      f"the class {strange[0]!r} holds {contract.BETWEEN!r}, which stands between the classes of an"
      " image in tables of predictions: give it another name"
    )


def _hits(scores: jax.Array, labels: jax.Array) -> jax.Array:
  """[b] 1 where the likeliest class is the label; with labels [b, K], the share that is right."""
  if labels.ndim == 1:
    return (scores.argmax(axis=-1) == labels).astype(scores.dtype)
  return ((scores >= contract.THRESHOLD) == (labels > 0)).mean(axis=-1, dtype=scores.dtype)


def _softmax_ce(cfg: settings.SoftmaxCE, info: contract.DataInfo) -> tuple[Loss, Scores]:
  def loss(logits, labels, weights):
    return losses.softmax_ce(logits, labels, label_smoothing=cfg.label_smoothing, weights=weights)

  return loss, jax.nn.softmax


def _margin(cfg: settings.Margin, info: contract.DataInfo) -> tuple[Loss, Scores]:
  if cfg.mix and cfg.score == "capsule":
    raise ValueError(
      "objective.loss.mix adds cross-entropy of a softmax, objective.loss.score=capsule reads the "
      "logits as lengths: set mix=0, or score to prob_sq or prob"
    )
  margin = functools.partial(
    losses.margin,
    score=cfg.score,
    exponent=cfg.exponent,
    positive=cfg.positive,
    negative=cfg.negative,
    down_weight=cfg.down_weight,
  )

  def loss(logits, labels, weights):
    found = margin(logits, labels, weights=weights)
    if not cfg.mix:
      return found
    return (1 - cfg.mix) * found + cfg.mix * losses.softmax_ce(logits, labels, weights=weights)

  return loss, _capsule_scores if cfg.score == "capsule" else jax.nn.softmax


def _sigmoid_bce(cfg: settings.SigmoidBCE, info: contract.DataInfo) -> tuple[Loss, Scores]:
  bce = losses.sigmoid_bce
  if cfg.balanced:
    positive, negative = imbalance.balanced_bce_weights(info.class_counts, info.train_size)
    bce = functools.partial(bce, positive=positive, negative=negative)
  scores = _sigmoid_scores(info)
  return lambda logits, labels, weights: bce(logits, labels, weights=weights), scores


def _focal(cfg: settings.Focal, info: contract.DataInfo) -> tuple[Loss, Scores]:
  def loss(logits, labels, weights):
    return losses.focal(logits, labels, gamma=cfg.gamma, weights=weights)

  return loss, jax.nn.softmax


def _sigmoid_focal(cfg: settings.SigmoidFocal, info: contract.DataInfo) -> tuple[Loss, Scores]:
  def loss(logits, labels, weights):
    return losses.sigmoid_focal(logits, labels, gamma=cfg.gamma, alpha=cfg.alpha, weights=weights)

  return loss, _sigmoid_scores(info)


def _ldam(cfg: settings.LDAM, info: contract.DataInfo) -> tuple[Loss, Scores]:
  margins = imbalance.ldam_margins(info.class_counts, cfg.largest)

  def loss(logits, labels, weights):
    return losses.ldam(logits, labels, margins=margins, scale=cfg.scale, weights=weights)

  return loss, lambda cosines: jax.nn.softmax(cfg.scale * cosines)


def _shares(values: jax.Array) -> jax.Array:
  """Non-negative [b, K] as shares of their sum; even where all are 0."""
  values = values + jnp.finfo(values.dtype).eps
  return values / values.sum(axis=-1, keepdims=True)


def _capsule_scores(logits: jax.Array) -> jax.Array:
  return _shares(losses.capsule_lengths(logits))


def _sigmoid_scores(info: contract.DataInfo) -> Scores:
  """One probability a class; of a single class an image, as shares of their sum."""
  if info.multi_label:
    return jax.nn.sigmoid
  return lambda logits: _shares(jax.nn.sigmoid(logits))


# Settings -> builder of a loss and its class probabilities from them and what the data are.
LOSSES: dict[type[settings.Loss], Callable[[Any, contract.DataInfo], tuple[Loss, Scores]]] = {
  settings.SoftmaxCE: _softmax_ce,
  settings.Margin: _margin,
  settings.SigmoidBCE: _sigmoid_bce,
  settings.Focal: _focal,
  settings.SigmoidFocal: _sigmoid_focal,
  settings.LDAM: _ldam,
}
ONE_VS_REST = (settings.SigmoidBCE, settings.SigmoidFocal)  # decide about each class by itself
