"""Metrics of images that have one class each: the one with the highest score is chosen.

What `medjax.metrics.decisions` computes for images that may have several classes.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import numpy as np
from scipy import sparse

from medjax.metrics import rates, tables


class Table(tables.Table):
  """A table of one class an image."""

  @functools.cached_property
  def right(self) -> np.ndarray:
    """[n] bool, which image was given its class."""
    return self.predicted == self.predictions.labels

  @functools.cached_property
  def cells(self) -> sparse.csr_array:
    """[units, K * K] images in each cell of the confusion matrix."""
    k = self.scores.shape[1]
    cell = self.predictions.labels.astype(int) * k + self.predicted
    return self.counted(cell[:, None], k * k)

  @functools.cached_property
  def brier(self) -> sparse.csr_array:
    """Squared distance of scores from the truth; two classes: (p - y)^2 of one of them."""
    distance = ((self.scores - self.members) ** 2).sum(1, keepdims=True)
    return self.added(distance / (2 if self.scores.shape[1] == 2 else 1))

  @functools.cached_property
  def log_loss(self) -> sparse.csr_array:
    """-log p of the true class, with p at least 1e-7, as Keras has it."""
    own = np.take_along_axis(self.scores, self.predictions.labels[:, None], axis=1)
    return self.added(-np.log(np.maximum(own, 1e-7)))

  @functools.cached_property
  def recognition(self) -> sparse.csr_array:
    """[units, 2] shares of their group that images are, those of images that are right first."""
    _, group, size = np.unique(self.predictions.groups, return_inverse=True, return_counts=True)
    share = 1 / size[group]
    return self.added(np.stack([share * self.right, share], 1))

  @functools.cached_property
  def calibration(self) -> list[sparse.csr_array]:
    """The highest score against how often it is right; see `tables.Table.binned`."""
    return self.binned(self.scores.max(1, keepdims=True), self.right[:, None])


class Weighted(tables.Weighted):
  """A `Table` whose units count several times."""

  table: Table

  @functools.cached_property
  def matrix(self) -> np.ndarray:
    """Confusion matrices [R, K, K]."""
    k = self.table.scores.shape[1]
    return self.total(self.table.cells).reshape(-1, k, k)

  def of_classes(self, rating: tables.Rating) -> rates.Rate:
    """[R, K] a rate of each class."""
    return rating(self.matrix)

  @property
  def counts(self) -> rates.Counts:
    """[R, K] each, of every class against the others."""
    return rates.counts(self.matrix)

  @functools.cached_property
  def support(self) -> np.ndarray:
    """[R, K] images of each class."""
    return rates.support(self.matrix)

  def area(self, which: int) -> rates.Rate:
    """AUC (0) or AP (1) [R]: of class 1 of two, else the mean over one-vs-rest problems."""
    if self.table.scores.shape[1] == 2:
      return self.ranked(1)[which]
    return rates.average(self.areas[which], self.areas[0].defined)

  def weighted_area(self, which: int) -> rates.Rate:
    """The same, of more classes, by their images."""
    return rates.average(self.areas[which], self.areas[0].defined * self.support)

  def recognition(self) -> rates.Rate:
    """[R] mean over groups of the share of their images that is right (Spanhol et al. 2016)."""
    right, every = self.total(self.table.recognition).T
    return rates.ratio(right, every)


Metric = Callable[[Weighted], rates.Rate]


def _macro(rating: tables.Rating) -> Metric:
  return lambda t: rates.average(t.of_classes(rating), t.support > 0)


def _weighted(rating: tables.Rating) -> Metric:
  return lambda t: rates.average(t.of_classes(rating), t.support)


def _of_second(rating: tables.Rating) -> Metric:
  return lambda t: rates.of_class(t.of_classes(rating), 1)


# The macro sensitivity is the balanced accuracy, the weighted one the accuracy.
_AVERAGED = {name: rating for name, rating in rates.PER_CLASS.items() if name != "sensitivity"}

METRICS: dict[str, Metric] = {
  "accuracy": lambda t: rates.accuracy(t.matrix),
  "misclassification": lambda t: rates.misclassification(t.matrix),
  "balanced_accuracy": lambda t: rates.balanced_accuracy(t.matrix),
  "ovr_balanced": lambda t: rates.ovr_balanced(t.matrix),
  **{f"macro_{name}": _macro(rating) for name, rating in _AVERAGED.items()},
  **{f"weighted_{name}": _weighted(rating) for name, rating in _AVERAGED.items()},
  "kappa": lambda t: rates.kappa(t.matrix),
  "quadratic_kappa": lambda t: rates.kappa(t.matrix, power=2),
  "mcc": lambda t: rates.matthews(t.matrix),
  "auc": lambda t: t.area(0),
  "ap": lambda t: t.area(1),
  "group_recognition": Weighted.recognition,
  "ece": lambda t: rates.calibration_error(t.reliability(t.table.calibration)),
  "log_loss": lambda t: t.mean(t.table.log_loss),
  "brier": lambda t: t.mean(t.table.brier),
}
BINARY: dict[str, Metric] = {  # of class 1
  name: _of_second(rating) for name, rating in rates.PER_CLASS.items()
}
SEVERAL: dict[str, Metric] = {  # of more than two classes
  "weighted_auc": lambda t: t.weighted_area(0),
  "weighted_ap": lambda t: t.weighted_area(1),
}
