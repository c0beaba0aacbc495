"""DeLong's variance of areas under ROC curves, of independent images and of groups of images.

DeLong, DeLong and Clarke-Pearson (1988) take every image as a patient of its own; Obuchowski (1997)
adds up the images of a patient first, and gives the same where each patient has one. The
placements that both rest on come from sorting, as in Sun and Xu (2014), not from all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from medjax import contract, metrics
from medjax.metrics import rates


class Areas(NamedTuple):
  """Areas under the ROC curves of S scores of the same images.

  Attributes:
    value: [S]. covariance: [S, S].
    defined: False, and the covariance 0, unless at least two groups hold positives and two
      negatives; without any of them the areas are 0 too.
  """

  value: np.ndarray
  covariance: np.ndarray
  defined: bool


def areas(positive: np.ndarray, scores: np.ndarray, groups: np.ndarray) -> Areas:
  """Areas under ROC curves and how they vary from one draw of groups to another.

  Args:
    positive: [n] bool. scores: [n, S], larger means more positive. groups: [n].
  """
  positive = np.asarray(positive, bool)
  _, group = np.unique(groups, return_inverse=True)
  pairs = [_placements(positive, column) for column in np.asarray(scores).T]
  both = positive.any() and not positive.all()
  value = np.array([ours.mean() if both else 0.0 for ours, _ in pairs])
  sides = [
    _deviations(group, rows, side, value)
    for rows, side in zip((positive, ~positive), zip(*pairs, strict=True), strict=True)
  ]
  if min(side.groups for side in sides) < 2:
    return Areas(value, np.zeros((len(value), len(value))), False)
  return Areas(value, _covariance(*sides), True)


class _Side(NamedTuple):
  """Positives or negatives: deviations [G, S] summed by group, how many, and in how many groups."""

  deviations: np.ndarray
  images: int
  groups: int


def _deviations(
  group: np.ndarray, rows: np.ndarray, placements: Sequence[np.ndarray], value: np.ndarray
) -> _Side:
  """Placements less the area, added up by group.

  Args:
    group: [n] index. rows: [n] bool, of this side. placements: S of [m]. value: [S].
  """
  own, every = group[rows], int(group.max()) + 1
  members = np.bincount(own, minlength=every)
  sums = np.stack([np.bincount(own, each, every) for each in placements], axis=1)
  return _Side(sums - members[:, None] * value, len(own), int((members > 0).sum()))


def _placements(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Share of negatives below each positive, and of positives above each negative; ties half."""
  ours, theirs = scores[positive], scores[~positive]
  return _beaten(ours, theirs), 1 - _beaten(theirs, ours)


def _beaten(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
  """Share of theirs below each of ours, ties counting half; 0 where there are none."""
  ranked = np.sort(theirs)
  below = np.searchsorted(ranked, ours, "left") + np.searchsorted(ranked, ours, "right")
  return below / (2 * max(1, len(theirs)))


def _covariance(positives: _Side, negatives: _Side) -> np.ndarray:
  """Obuchowski's S10 / M + S01 / N + (S11 + its transpose) / (M N), [S, S]."""
  found = np.zeros((positives.deviations.shape[1],) * 2)
  for side in (positives, negatives):
    scale = side.groups / ((side.groups - 1) * side.images**2)
    found += scale * side.deviations.T @ side.deviations
  groups = len(positives.deviations)
  scale = groups / ((groups - 1) * positives.images * negatives.images)
  mixed = scale * positives.deviations.T @ negatives.deviations
  return found + mixed + mixed.T


def intervals(predictions: contract.Predictions) -> dict[str, metrics.Interval]:
  """AUC of each class against the others, with 95 % bounds inside [0, 1].

  Where the AUC is 1 the bounds have no width: no resample of these images ranks them otherwise.

  Returns:
    The name of a class -> its interval; of two classes that exclude each other the second's only.
  """
  return {predictions.classes[c]: _interval(predictions, c) for c in _classes(predictions)}


def paired(a: contract.Predictions, b: contract.Predictions) -> dict[str, metrics.Difference]:
  """Differences of AUC, a - b, on the same images, with 95 % bounds and a two-sided p-value.

  Returns:
    As of `intervals`.

  Raises:
    ValueError: the tables differ in images, labels, groups or classes.
  """
  a, b = metrics.aligned([a, b])
  return {a.classes[c]: _difference(a, b, c) for c in _classes(a)}


def _classes(predictions: contract.Predictions) -> list[int]:
  alone = len(predictions.classes) == 2 and not predictions.multi_label
  return [1] if alone else list(range(len(predictions.classes)))


def _interval(predictions: contract.Predictions, c: int) -> metrics.Interval:
  metrics.check(predictions)
  found = areas(predictions.members[:, c], predictions.scores[:, [c]], predictions.groups)
  value, error = float(found.value[0]), math.sqrt(found.covariance[0, 0])
  if not found.defined:
    return metrics.Interval(value, 0.0, 0.0, 0.0)
  low, high = np.clip(_bounds(value, error), 0, 1).tolist()
  return metrics.Interval(value, low, high, 1.0)


def _difference(a: contract.Predictions, b: contract.Predictions, c: int) -> metrics.Difference:
  scores = np.stack([a.scores[:, c], b.scores[:, c]], axis=1)
  found, contrast = areas(a.members[:, c], scores, a.groups), np.array([1.0, -1.0])
  value = float(contrast @ found.value)
  if not found.defined:
    return metrics.Difference(value, 0.0, 0.0, 0.0, 1.0)
  error = math.sqrt(max(0.0, contrast @ found.covariance @ contrast))
  return metrics.Difference(value, *_bounds(value, error), 1.0, _p(value, error))


def _bounds(value: float, error: float) -> tuple[float, float]:
  return value - rates.Z95 * error, value + rates.Z95 * error


def _p(value: float, error: float) -> float:
  """Two-sided, of a value that is normal about 0."""
  if error == 0:
    return float(value == 0)
  return math.erfc(abs(value) / error / math.sqrt(2))
