"""Tables of predictions that are looked at many times, their images counting more or less.

A unit is what a resample draws: a group with all its images, or an image. What does not depend on
how often units are drawn is sorted and added up once, so that a resample costs a multiplication a
unit, and for areas under curves a sum over the images in their order.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import numpy as np
from scipy import sparse

from medjax import contract
from medjax.metrics import rates


class Table:
  """A table of predictions, and what is the same in all its resamples.

  Attributes:
    predictions: the table. unit: [n] index of the unit of each image, from 0.
  """

  def __init__(self, predictions: contract.Predictions, unit: np.ndarray):
    self.predictions = predictions
    self.members = predictions.members  # [n, K]
    self.predicted = predictions.predicted  # [n], or [n, K] of images with several classes
    self.scores = np.asarray(predictions.scores, float)
    self.unit = unit
    self._units = _spread(unit[:, None], int(unit.max()) + 1).T.tocsr()  # [units, n]
    self._orders: dict[int, tuple[rates.Order, np.ndarray, np.ndarray]] = {}

  def added(self, values: np.ndarray) -> sparse.csr_array:
    """Values [n, m] of images added up by unit, [units, m]."""
    return self._units @ sparse.csr_array(np.asarray(values, float))

  def counted(self, cell: np.ndarray, cells: int) -> sparse.csr_array:
    """How often the images of each unit are in each of `cells`, [units, cells].

    Args:
      cell: [n, D] int, D cells an image.
    """
    return self._units @ _spread(cell, cells)

  def binned(self, confidence: np.ndarray, right: np.ndarray) -> list[sparse.csr_array]:
    """Decisions, confidence, and what is right, added up in equal bins (low, high] of [0, 1].

    Args:
      confidence, right: [n, D], of D decisions about each image.

    Returns:
      Three times [units, BINS].
    """
    own = np.clip(np.ceil(confidence * rates.BINS).astype(int) - 1, 0, rates.BINS - 1)
    spread = (_spread(own, rates.BINS, values) for values in (None, confidence, right))
    return [self._units @ each for each in spread]

  @functools.cached_property
  def sizes(self) -> sparse.csr_array:
    """[units, 1] images of each unit."""
    return self.added(np.ones((len(self.unit), 1)))

  def order(self, index: int) -> tuple[rates.Order, np.ndarray, np.ndarray]:
    """The order of a class's images among the others, and the units of both."""
    if index not in self._orders:
      order = rates.order(self.members[:, index], self.scores[:, index])
      self._orders[index] = (order, self.unit[order.positives], self.unit[order.negatives])
    return self._orders[index]


def _spread(cell: np.ndarray, cells: int, values: np.ndarray | None = None) -> sparse.csr_array:
  """[n, cells] with values [n, D], by default ones, in the cells [n, D] of each row."""
  n, each = cell.shape
  filled = np.ones(cell.size) if values is None else np.asarray(values, float).ravel()
  return sparse.csr_array((filled, cell.ravel(), np.arange(n + 1) * each), shape=(n, cells))


class Weighted:
  """A `Table` whose units count `times` [R, units]; what several metrics share is kept."""

  def __init__(self, table: Table, times: np.ndarray):
    self.table = table
    self.times = times
    self._ranked: dict[int, tuple[rates.Rate, rates.Rate]] = {}

  def total(self, sums: sparse.csr_array) -> np.ndarray:
    """[R, m] from sums of each unit [units, m]."""
    return self.times @ sums

  def mean(self, sums: sparse.csr_array) -> rates.Rate:
    """[R] mean over images of a value of which [units, 1] are the sums."""
    return rates.ratio(self.total(sums)[:, 0], self.total(self.table.sizes)[:, 0])

  def reliability(self, binned: list[sparse.csr_array]) -> rates.Reliability:
    """Calibration [R, BINS] from what `Table.binned` gave."""
    count, confidence, right = (self.total(each) for each in binned)
    mean, share = (rates.ratio(each, count).value for each in (confidence, right))
    return rates.Reliability(count, mean, share)

  def ranked(self, index: int) -> tuple[rates.Rate, rates.Rate]:
    """AUC and AP [R] of a class against the others."""
    if index not in self._ranked:
      order, *units = self.table.order(index)
      drawn = (np.take(self.times, each, axis=1) for each in units)
      self._ranked[index] = rates.areas(order, *drawn)
    return self._ranked[index]

  @functools.cached_property
  def areas(self) -> tuple[rates.Rate, rates.Rate]:
    """AUC and AP [R, K] of each class against the others."""
    pairs = [self.ranked(c) for c in range(self.table.scores.shape[1])]
    auc, ap = (rates.stack(each) for each in zip(*pairs, strict=True))
    return auc, ap


Rating = Callable[[np.ndarray], rates.Rate]  # of confusion matrices
