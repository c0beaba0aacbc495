"""Rates of confusion matrices and of rankings, in NumPy and float64, over any leading axes.

Where a denominator is zero the value is 0 and a flag says so; NaN never appears. `medjax.metrics`
applies these to tables of predictions and their bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import statistics
from typing import NamedTuple

import numpy as np

BINS = 15  # of confidence
Z95 = statistics.NormalDist().inv_cdf(0.975)  # half a 95 % interval, in standard errors


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


class Order(NamedTuple):
  """Positives and negatives from the highest score down, and how they lie among each other.

  Attributes:
    positives, negatives: [P], [N] rows of the images.
    higher: [P] negatives that score higher than each positive. level: as high or higher.
    reach: [P] positives that score as high or higher, itself among them.
  """

  positives: np.ndarray
  negatives: np.ndarray
  higher: np.ndarray
  level: np.ndarray
  reach: np.ndarray


class Ranking(NamedTuple):
  """What lies at or above each distinct score, [T], from the highest score down."""

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
  k = matrix.shape[-1]
  own = np.eye(k, dtype=bool)
  errors = np.where(own, 0, matrix)
  # Only sums, no differences: what is not there is 0, also where images count a fraction.
  apart = ~own[:, None] & ~own[None]  # [K, K, K], cells outside the row and the column of a class
  tn = matrix.reshape(*matrix.shape[:-2], k * k) @ apart.reshape(k * k, k)
  tp = np.diagonal(matrix, axis1=-2, axis2=-1)
  return Counts(tp, errors.sum(-2), errors.sum(-1), tn)


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


# Of each class, by the name of a column. Of these, the macro average of sensitivity is the balanced
# accuracy, and its average by support the accuracy.
PER_CLASS: dict[str, Callable[[np.ndarray], Rate]] = {
  "sensitivity": sensitivity,
  "specificity": specificity,
  "ppv": ppv,
  "npv": npv,
  "f0.5": functools.partial(f_beta, beta=0.5),
  "f1": f_beta,
  "f2": functools.partial(f_beta, beta=2.0),
  "f5": functools.partial(f_beta, beta=5.0),
}


def ovr_accuracy(matrix: np.ndarray) -> Rate:
  """(TP + TN) / all of each class. Never the accuracy of more than two classes."""
  c = counts(matrix)
  return ratio(c.tp + c.tn, c.tp + c.fp + c.fn + c.tn)


def accuracy(matrix: np.ndarray) -> Rate:
  """Trace / total, [...]."""
  matrix = np.asarray(matrix)
  return ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum((-2, -1)))


def misclassification(matrix: np.ndarray) -> Rate:
  """1 - accuracy, [...]."""
  right = accuracy(matrix)
  return Rate(np.where(right.defined, 1 - right.value, 0.0), right.defined)


def kappa(matrix: np.ndarray, power: int = 0) -> Rate:
  """Cohen's kappa [...], by how far apart the places of truth and prediction are.

  Args:
    matrix: of classes in their order. power: of the distance: 2 is the quadratic kappa of ordered
      classes (Cohen 1968), 0 counts all errors alike (Cohen 1960).
  """
  matrix = np.asarray(matrix, float)
  place = np.arange(matrix.shape[-1])
  cost = (place[:, None] != place) * np.abs(place[:, None] - place) ** power
  by_chance = support(matrix)[..., :, None] * matrix.sum(-2)[..., None, :]
  observed = (cost * matrix).sum((-2, -1)) * matrix.sum((-2, -1))
  disagreement = ratio(observed, (cost * by_chance).sum((-2, -1)))
  value = np.where(disagreement.defined, 1 - disagreement.value, 0.0)
  return Rate(value, disagreement.defined)


def matthews(matrix: np.ndarray) -> Rate:
  """Correlation of truth and prediction [...] (Matthews 1975; of K classes, Gorodkin 2004)."""
  matrix = np.asarray(matrix, float)
  true, guessed, total = support(matrix), matrix.sum(-2), matrix.sum((-2, -1))
  together = np.trace(matrix, axis1=-2, axis2=-1) * total - (true * guessed).sum(-1)
  spread = (total**2 - (true**2).sum(-1)) * (total**2 - (guessed**2).sum(-1))
  return ratio(together, np.sqrt(spread))


def at_prevalence(matrix: np.ndarray, shares: np.ndarray) -> np.ndarray:
  """The table [..., K, K] as it would be where classes have other shares of all images.

  Sensitivity and specificity of two classes stay as they are; PPV, NPV and accuracy follow.

  Args:
    matrix: counts. shares: [..., K] of the classes, which add up to 1.
  """
  return ratio(matrix, support(matrix)[..., None]).value * shares[..., None]


def wilson(hits: np.ndarray, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """95 % bounds [...] of a share, hits / total, of independent images (Wilson 1927).

  Unlike those of a bootstrap they do not fall together where every image is a hit. Nothing is known
  where the total is 0: the bounds are 0 and 1 there.
  """
  hits, total = np.broadcast_arrays(np.asarray(hits, float), np.asarray(total, float))
  middle = hits + Z95**2 / 2
  reach = Z95 * np.sqrt(ratio(hits * (total - hits), total).value + Z95**2 / 4)
  low, high = ((middle + side) / (total + Z95**2) for side in (-reach, reach))
  return np.maximum(low, 0.0), np.minimum(high, 1.0)


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


def order(positive: np.ndarray, scores: np.ndarray) -> Order:
  """Sorts once what `areas` then weighs many times.

  Args:
    positive: [n] bool. scores: [n], larger means more positive.
  """
  positive, falling = np.asarray(positive, bool), -np.asarray(scores)
  rows = [np.flatnonzero(side) for side in (positive, ~positive)]
  positives, negatives = (each[np.argsort(falling[each], kind="stable")] for each in rows)
  ranked, others = falling[positives], falling[negatives]
  return Order(
    positives,
    negatives,
    np.searchsorted(others, ranked, "left"),
    np.searchsorted(others, ranked, "right"),
    np.searchsorted(ranked, ranked, "right"),
  )


def areas(
  ranked: Order, positives: np.ndarray | None = None, negatives: np.ndarray | None = None
) -> tuple[Rate, Rate]:
  """Areas under the ROC curve and under the curve of precision and recall, [...] each.

  The first says how often a positive outranks a negative, ties counting half. The second is the
  average precision, the sum of (R_i - R_(i-1)) P_i, a step curve without interpolation.

  Args:
    ranked: from `order`. positives, negatives: [..., P] and [..., N] times that the images
      `ranked.positives` and `ranked.negatives` count; by default once.
  """
  positives = np.ones(len(ranked.positives)) if positives is None else positives
  negatives = np.ones(len(ranked.negatives)) if negatives is None else negatives
  above, among = _cumulative(negatives), _cumulative(positives)
  level = above[..., ranked.level]
  beaten = above[..., -1:] - (above[..., ranked.higher] + level) / 2
  roc = ratio((positives * beaten).sum(-1), among[..., -1] * above[..., -1])
  reached = among[..., ranked.reach]
  precision = ratio(reached, reached + level).value
  return roc, ratio((positives * precision).sum(-1), among[..., -1])


def _cumulative(weights: np.ndarray) -> np.ndarray:
  """[..., m + 1] sums of the first 0 to m of the last axis."""
  sums = np.zeros((*weights.shape[:-1], weights.shape[-1] + 1))
  np.cumsum(weights, axis=-1, out=sums[..., 1:])
  return sums


def ranking(positive: np.ndarray, scores: np.ndarray) -> Ranking:
  """Counts of positives and negatives at or above each distinct score; ties share a place.

  Args:
    positive: [n] bool. scores: [n], larger means more positive.
  """
  positive, scores = np.asarray(positive, bool), np.asarray(scores)
  falling = np.argsort(scores)[::-1]
  ranked = scores[falling]
  last = np.flatnonzero(np.concatenate([ranked[1:] != ranked[:-1], [True]]))
  tp = positive[falling].cumsum()[last].astype(float)
  return Ranking(ranked[last], tp, last + 1 - tp)


def roc_curve(r: Ranking) -> tuple[np.ndarray, np.ndarray]:
  """False and true positive rates [T + 1] from (0, 0) to (1, 1)."""
  rates = [ratio(c, c[-1:]).value for c in (r.fp, r.tp)]
  return np.insert(rates[0], 0, 0.0), np.insert(rates[1], 0, 0.0)


def pr_curve(r: Ranking) -> tuple[np.ndarray, np.ndarray]:
  """Recall and precision [T] at each threshold, recall rising."""
  return ratio(r.tp, r.tp[-1:]).value, ratio(r.tp, r.tp + r.fp).value


# From calibration.


def calibration_error(r: Reliability) -> Rate:
  """Mean over decisions of |share that is right - confidence| of their bin (Guo et al. 2017)."""
  return ratio((r.images * np.abs(r.accuracy - r.confidence)).sum(-1), r.images.sum(-1))
