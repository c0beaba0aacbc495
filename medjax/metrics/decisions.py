"""Metrics of images that may have several classes, or none: each class is a decision of its own.

What `medjax.metrics.choices` computes for images of one class each. A class is given to an image
from `contract.THRESHOLD` on.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import numpy as np
from scipy import sparse

from medjax.metrics import rates, tables


class Table(tables.Table):
  """A table of images with several classes."""

  @functools.cached_property
  def cells(self) -> sparse.csr_array:
    """[units, K * 4] images in each cell of each class's confusion matrix."""
    k = self.scores.shape[1]
    cell = 4 * np.arange(k) + 2 * self.members + self.predicted
    return self.counted(cell, 4 * k)

  @functools.cached_property
  def agreement(self) -> sparse.csr_array:
    """[units, 2] images whose classes are all right, and shares of classes that are right."""
    right = self.predicted == self.members
    return self.added(np.stack([right.all(1), right.mean(1)], 1))

  @functools.cached_property
  def log_loss(self) -> sparse.csr_array:
    """Mean over all decisions of -log p of the truth, with p at least 1e-7, as Keras has it."""
    p = np.where(self.members, self.scores, 1 - self.scores)
    return self.added(-np.log(np.maximum(p, 1e-7)).mean(1, keepdims=True))

  @functools.cached_property
  def brier(self) -> sparse.csr_array:
    """Squared distance of scores from the truth, a mean over the classes."""
    return self.added(((self.scores - self.members) ** 2).mean(1, keepdims=True))

  @functools.cached_property
  def calibration(self) -> list[sparse.csr_array]:
    """Every class's score against how often the class is there; see `tables.Table.binned`."""
    return self.binned(self.scores, self.members)


class Weighted(tables.Weighted):
  """A `Table` whose units count several times."""

  table: Table

  @functools.cached_property
  def matrix(self) -> np.ndarray:
    """Confusion matrices [R, K, 2, 2] of each class against its absence."""
    k = self.table.scores.shape[1]
    return self.total(self.table.cells).reshape(-1, k, 2, 2)

  def of_classes(self, rating: tables.Rating) -> rates.Rate:
    """[R, K] a rate of each class."""
    return rates.of_class(rating(self.matrix), 1)

  @property
  def counts(self) -> rates.Counts:
    """[R, K] each, of every class against the others."""
    return rates.Counts(*(each[..., 1] for each in rates.counts(self.matrix)))

  @functools.cached_property
  def support(self) -> np.ndarray:
    """[R, K] images of each class."""
    return rates.support(self.matrix)[..., 1]

  def present(self, each: rates.Rate) -> rates.Rate:
    """[R] mean of a rate [R, K] over the classes of which there is an image."""
    return rates.average(each, self.support > 0)

  def area(self, which: int) -> rates.Rate:
    """AUC (0) or AP (1) [R], a mean over the classes that some images have and others have not."""
    return rates.average(self.areas[which], self.areas[0].defined)

  def weighted_area(self, which: int) -> rates.Rate:
    """The same by the images of each class."""
    return rates.average(self.areas[which], self.areas[0].defined * self.support)


Metric = Callable[[Weighted], rates.Rate]


def _macro(rating: tables.Rating) -> Metric:
  return lambda t: t.present(t.of_classes(rating))


def _weighted(rating: tables.Rating) -> Metric:
  return lambda t: rates.average(t.of_classes(rating), t.support)


def _agreeing(which: int) -> Metric:
  return lambda t: t.mean(t.table.agreement[:, [which]])


METRICS: dict[str, Metric] = {
  "exact_match": _agreeing(0),
  "label_accuracy": _agreeing(1),
  "ovr_balanced": lambda t: t.present(rates.balanced_accuracy(t.matrix)),
  **{f"macro_{name}": _macro(rating) for name, rating in rates.PER_CLASS.items()},
  **{f"weighted_{name}": _weighted(rating) for name, rating in rates.PER_CLASS.items()},
  "macro_kappa": lambda t: t.present(rates.kappa(t.matrix)),
  "macro_mcc": lambda t: t.present(rates.matthews(t.matrix)),
  "auc": lambda t: t.area(0),
  "ap": lambda t: t.area(1),
  "weighted_auc": lambda t: t.weighted_area(0),
  "weighted_ap": lambda t: t.weighted_area(1),
  "ece": lambda t: rates.calibration_error(t.reliability(t.table.calibration)),
  "log_loss": lambda t: t.mean(t.table.log_loss),
  "brier": lambda t: t.mean(t.table.brier),
}
