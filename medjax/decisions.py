"""Metrics of images that may have several classes, or none: each class is a decision of its own.

What `medjax.metrics` computes for a table of one class an image, this computes for a table of
`contract.Predictions.labels` [n, K]. A class is given to an image from `contract.THRESHOLD` on.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import numpy as np

from medjax import contract, rates


class Weighted:
  """A table whose images count `weights` [R, n] times; what several metrics share is kept."""

  def __init__(self, predictions: contract.Predictions, weights: np.ndarray):
    self.members = predictions.members
    self.predicted = predictions.predicted
    self.scores = np.asarray(predictions.scores, float)
    self.weights = weights
    self.total = weights.sum(-1)

  @functools.cached_property
  def matrix(self) -> np.ndarray:
    """Confusion matrices [R, K, 2, 2] of each class against its absence."""
    return rates.decisions(self.members, self.predicted, self.weights)

  @functools.cached_property
  def ranked(self) -> tuple[rates.Rate, rates.Rate]:
    """AUC and AP [R], means over the classes that some images have and others have not."""
    columns = range(self.scores.shape[1])
    rankings = [rates.ranking(self.members[:, c], self.scores[:, c], self.weights) for c in columns]
    auc, ap = (
      rates.stack([rate(r) for r in rankings]) for rate in (rates.roc_auc, rates.average_precision)
    )
    both = auc.defined
    return rates.average(auc, both), rates.average(ap, both)

  def of_presence(self, rate: Callable[[np.ndarray], rates.Rate]) -> rates.Rate:
    """[R] mean of a rate over the classes of which there is an image."""
    return rates.average(
      rates.of_class(rate(self.matrix), 1), rates.support(self.matrix)[..., 1] > 0
    )

  def balanced(self) -> rates.Rate:
    """[R] mean of (sensitivity + specificity) / 2 over the classes of which there is an image."""
    both = rates.balanced_accuracy(self.matrix)
    return rates.average(both, rates.support(self.matrix)[..., 1] > 0)

  def mean(self, values: np.ndarray) -> rates.Rate:
    """[R] mean over images of values [n]."""
    return rates.ratio(self.weights @ values, self.total)

  def log_loss(self) -> rates.Rate:
    """Mean over all decisions of -log p of the truth, with p at least 1e-7, as Keras has it."""
    p = np.where(self.members, self.scores, 1 - self.scores)
    return self.mean(-np.log(np.maximum(p, 1e-7)).mean(1))

  def reliability(self, bins: int) -> rates.Reliability:
    """Every class's score against how often the class is there."""
    return rates.reliability(self.scores, self.members, self.weights, bins)


METRICS: dict[str, Callable[[Weighted], rates.Rate]] = {
  "exact_match": lambda t: t.mean((t.predicted == t.members).all(1)),
  "label_accuracy": lambda t: t.mean((t.predicted == t.members).mean(1)),
  "ovr_balanced": Weighted.balanced,
  "macro_f1": lambda t: t.of_presence(rates.f_beta),
  "macro_sensitivity": lambda t: t.of_presence(rates.sensitivity),
  "macro_specificity": lambda t: t.of_presence(rates.specificity),
  "macro_ppv": lambda t: t.of_presence(rates.ppv),
  "macro_npv": lambda t: t.of_presence(rates.npv),
  "auc": lambda t: t.ranked[0],
  "ap": lambda t: t.ranked[1],
  "ece": lambda t: rates.calibration_error(t.reliability(rates.BINS)),
  "log_loss": Weighted.log_loss,
  "brier": lambda t: t.mean(((t.scores - t.members) ** 2).mean(1)),
}
