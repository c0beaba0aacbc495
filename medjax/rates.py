"""Rates of confusion matrices and of rankings, in NumPy and float64, over any leading axes.

Where a denominator is zero the value is 0 and a flag says so; NaN never appears. `medjax.metrics`
applies these to tables of predictions and their bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

BINS = 15  # of confidence


class Rate(NamedTuple):
  """Values, and where they exist: `defined` is False, and the value 0, on a zero denominator."""

  value: np.ndarray
  defined: np.ndarray


class Counts(NamedTuple):
  """One-vs-rest counts of each class, [..., K]."""

  tp: np.ndarray
  fp: np.ndarray
  fn: np.ndarray
  tn: np.ndarray


class Ranking(NamedTuple):
  """What lies at or above each distinct score, [..., T], from the highest score down."""

  thresholds: np.ndarray
  tp: np.ndarray
  fp: np.ndarray


class Reliability(NamedTuple):
  """Decisions, mean confidence and share that is right of each confidence bin, [..., bins]."""

  images: np.ndarray
  confidence: np.ndarray
  accuracy: np.ndarray


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> Rate:
  """Numerator / denominator, 0 and not defined where the denominator is 0."""
  numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), denominator)
  defined = denominator != 0
  value = np.divide(numerator, denominator, out=np.zeros(defined.shape), where=defined)
  return Rate(value, defined)


def of_class(rate: Rate, index: int) -> Rate:
  """One class out of [..., K]."""
  return Rate(rate.value[..., index], rate.defined[..., index])


def subtract(a: Rate, b: Rate) -> Rate:
  """The difference, which exists where both do."""
  return Rate(a.value - b.value, a.defined & b.defined)


def mean(each: Sequence[Rate]) -> Rate:
  """The mean of several rates alike in shape, which exists where all of them do."""
  values, defined = zip(*each, strict=True)
  return Rate(np.mean(values, axis=0), np.all(defined, axis=0))


def stack(each: Sequence[Rate]) -> Rate:
  """Rates [...] of several classes as one, [..., K]."""
  return Rate(np.stack([r.value for r in each], -1), np.stack([r.defined for r in each], -1))


def concatenate(each: Sequence[Rate]) -> Rate:
  """Rates [r] of several blocks as one, [R]."""
  return Rate(np.concatenate([r.value for r in each]), np.concatenate([r.defined for r in each]))


# From a confusion matrix [..., K, K], rows truth, columns prediction.


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
  """Counts [K, K] of images by truth (rows) and prediction (columns)."""
  cell = np.asarray(labels, np.int64) * classes + predicted
  return np.bincount(cell, minlength=classes**2).reshape(classes, classes)


def counts(matrix: np.ndarray) -> Counts:
  """One-vs-rest TP, FP, FN, TN of each class."""
  matrix = np.asarray(matrix)
  tp = np.diagonal(matrix, axis1=-2, axis2=-1)
  fp, fn = matrix.sum(-2) - tp, matrix.sum(-1) - tp
  return Counts(tp, fp, fn, matrix.sum((-2, -1))[..., None] - tp - fp - fn)


def support(matrix: np.ndarray) -> np.ndarray:
  """Images of each class, [..., K]."""
  return np.asarray(matrix).sum(-1)


def sensitivity(matrix: np.ndarray) -> Rate:
  """TP / (TP + FN) of each class, its recall."""
  c = counts(matrix)
  return ratio(c.tp, c.tp + c.fn)


def specificity(matrix: np.ndarray) -> Rate:
  """TN / (TN + FP) of each class."""
  c = counts(matrix)
  return ratio(c.tn, c.tn + c.fp)


def ppv(matrix: np.ndarray) -> Rate:
  """TP / (TP + FP) of each class, its precision at the prevalence of this table."""
  c = counts(matrix)
  return ratio(c.tp, c.tp + c.fp)


def npv(matrix: np.ndarray) -> Rate:
  """TN / (TN + FN) of each class at the prevalence of this table."""
  c = counts(matrix)
  return ratio(c.tn, c.tn + c.fn)


def f_beta(matrix: np.ndarray, beta: float = 1.0) -> Rate:
  """(1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP) of each class."""
  c = counts(matrix)
  hit = (1 + beta**2) * c.tp
  return ratio(hit, hit + beta**2 * c.fn + c.fp)


def ovr_accuracy(matrix: np.ndarray) -> Rate:
  """(TP + TN) / all of each class. Never the accuracy of more than two classes."""
  c = counts(matrix)
  return ratio(c.tp + c.tn, c.tp + c.fp + c.fn + c.tn)


def accuracy(matrix: np.ndarray) -> Rate:
  """Trace / total, [...]."""
  matrix = np.asarray(matrix)
  return ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def average(rate: Rate, weight: np.ndarray) -> Rate:
  """Mean over classes by `weight` [..., K]: 0 or 1 for a macro average, or the support.

  A class of no weight is left out; one whose rate does not exist counts with its 0.
  """
  mean = ratio((rate.value * weight).sum(-1), np.sum(weight, -1))
  return Rate(mean.value, mean.defined & (rate.defined & (weight > 0)).any(-1))


def macro(rate: Rate, matrix: np.ndarray) -> Rate:
  """Mean over the classes that the table holds images of."""
  return average(rate, support(matrix) > 0)


def balanced_accuracy(matrix: np.ndarray) -> Rate:
  """Mean of the classes' sensitivities."""
  return macro(sensitivity(matrix), matrix)


def ovr_balanced(matrix: np.ndarray) -> Rate:
  """Mean over classes of (sensitivity + specificity) / 2: above the macro recall when K > 2."""
  sens, spec = sensitivity(matrix), specificity(matrix)
  both = Rate((sens.value + spec.value) / 2, sens.defined & spec.defined)
  return macro(both, matrix)


def decisions(members: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Confusion matrices [..., K, 2, 2] of classes that are told one by one, absence before presence.

  Args:
    members, predicted: [n, K] bool. weights: [..., n] times that each image counts.
  """
  truth, guess = (~members, members), (~predicted, predicted)
  matrix = np.array([[weights @ (t & g).astype(float) for g in guess] for t in truth])
  return np.moveaxis(matrix, (0, 1), (-2, -1))


# From scores [n] and what is positive, bool [n].


def ranking(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> Ranking:
  """Cumulative counts of positives and negatives over the distinct scores; ties share a place.

  Args:
    positive: [n] bool.
    scores: [n], larger means more positive.
    weights: [..., n] times that each image counts; by default once.
  """
  positive, scores = np.asarray(positive, bool), np.asarray(scores)
  weights = np.ones(scores.shape) if weights is None else np.asarray(weights, float)
  order = np.argsort(scores)[::-1]
  ranked = scores[order]
  starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
  here = np.add.reduceat((weights * positive)[..., order], starts, axis=-1)  # [..., T]
  every = np.add.reduceat(weights[..., order], starts, axis=-1)
  return Ranking(ranked[starts], here.cumsum(-1), (every - here).cumsum(-1))


def _rises(cumulative: np.ndarray) -> np.ndarray:
  return np.diff(cumulative, axis=-1, prepend=0)


def roc_auc(r: Ranking) -> Rate:
  """Area under the ROC curve: how often a positive outranks a negative, ties counting half."""
  area = (_rises(r.fp) * (r.tp - _rises(r.tp) / 2)).sum(-1)
  return ratio(area, r.tp[..., -1] * r.fp[..., -1])


def average_precision(r: Ranking) -> Rate:
  """Sum of (R_i - R_(i-1)) P_i over the thresholds, a step curve without interpolation."""
  precision = ratio(r.tp, r.tp + r.fp).value
  return ratio((_rises(r.tp) * precision).sum(-1), r.tp[..., -1])


def roc_curve(r: Ranking) -> tuple[np.ndarray, np.ndarray]:
  """False and true positive rates [T + 1] from (0, 0) to (1, 1)."""
  rates = [ratio(c, c[-1:]).value for c in (r.fp, r.tp)]
  return np.insert(rates[0], 0, 0.0), np.insert(rates[1], 0, 0.0)


def pr_curve(r: Ranking) -> tuple[np.ndarray, np.ndarray]:
  """Recall and precision [T] at each threshold, recall rising."""
  return ratio(r.tp, r.tp[-1:]).value, ratio(r.tp, r.tp + r.fp).value


# From confidences [n, D] and what of them is right, bool [n, D]: D decisions about each image.


def reliability(
  confidence: np.ndarray, right: np.ndarray, weights: np.ndarray, bins: int
) -> Reliability:
  """Confidence against how often it is right, in equal bins (low, high] of [0, 1].

  Args:
    confidence, right: [n, D]. weights: [..., n] times that each image counts.
  """
  own = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  spread = np.eye(bins)[own]  # [n, D, bins]
  count = weights @ spread.sum(1)
  mean, share = (
    ratio(weights @ (spread * values[..., None]).sum(1), count).value
    for values in (confidence, right)
  )
  return Reliability(count, mean, share)


def calibration_error(r: Reliability) -> Rate:
  """Mean over decisions of |share that is right - confidence| of their bin (Guo et al. 2017)."""
  return ratio((r.images * np.abs(r.accuracy - r.confidence)).sum(-1), r.images.sum(-1))
