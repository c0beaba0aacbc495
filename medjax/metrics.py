"""Metrics of a whole table of predictions, with bootstrap intervals and paired differences.

Everything is computed under a weight for each image, [R, n]: one row of ones gives the value, the
counts of bootstrap resamples give those of the resamples, so that a block of them is one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import Any, NamedTuple

import numpy as np

from medjax import contract, decisions, rates

BINS = rates.BINS
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "ece"})
_BLOCK = 1 << 20  # resamples x images that are looked at together: a few arrays of 8 MB


class Interval(NamedTuple):
  """A value and its 95 % percentile bounds.

  Attributes:
    value: of the table itself.
    low, high: of the resamples in which the metric exists.
    defined: share of those resamples; 0 where the table itself has no such metric.
  """

  value: float
  low: float
  high: float
  defined: float


class Difference(NamedTuple):
  """An `Interval` of a difference between two tables, and its two-sided bootstrap p-value."""

  value: float
  low: float
  high: float
  defined: float
  p: float


def _check(predictions: contract.Predictions) -> None:
  """Raises ValueError where a table cannot be scored."""
  n, k = len(predictions.ids), len(predictions.classes)
  if n == 0 or k < 2:
    raise ValueError(f"{n} images of {k} classes cannot be scored: at least 1 and 2 are needed")
  if predictions.scores.shape != (n, k):
    raise ValueError(f"scores are {predictions.scores.shape}; {n} images, {k} classes need {n, k}")
  outside = np.flatnonzero(_strange(predictions))
  if outside.size:
    raise ValueError(
      f"{outside.size} of {n} images have no label out of {predictions.classes}, first"
      f" {str(predictions.ids[outside[0]])!r}: score labelled images only"
    )
  broken = np.flatnonzero(~np.isfinite(predictions.scores).all(1))
  if broken.size:
    raise ValueError(
      f"{broken.size} of {n} images have scores that are not finite, first"
      f" {str(predictions.ids[broken[0]])!r}: the network diverged, or its weights are damaged"
    )


def _strange(predictions: contract.Predictions) -> np.ndarray:
  """[n] bool, whether an image's labels are not what labels can be."""
  labels = predictions.labels
  if predictions.multi_label:
    return ((labels != 0) & (labels != 1)).any(axis=1)
  return (labels < 0) | (labels >= len(predictions.classes))


def absent_classes(predictions: contract.Predictions) -> tuple[str, ...]:
  """Names of the classes without an image here, which every average leaves out."""
  absent = np.flatnonzero(~predictions.members.any(axis=0))
  return tuple(predictions.classes[c] for c in absent)


class _Weighted:
  """A table whose images count `weights` [R, n] times; what several metrics share is kept."""

  def __init__(self, predictions: contract.Predictions, weights: np.ndarray):
    self.labels = predictions.labels
    self.scores = np.asarray(predictions.scores, float)
    self.predicted = predictions.predicted
    self.groups = predictions.groups
    self.weights = weights
    self.total = weights.sum(-1)

  @functools.cached_property
  def matrix(self) -> np.ndarray:
    """Confusion matrices [R, K, K]: the weights summed over the images of each cell."""
    k = self.scores.shape[1]
    cell = self.labels * k + self.predicted
    order = np.argsort(cell, kind="stable")
    present, starts = np.unique(cell[order], return_index=True)
    matrix = np.zeros((len(self.weights), k * k))
    matrix[:, present] = np.add.reduceat(self.weights[:, order], starts, axis=-1)
    return matrix.reshape(-1, k, k)

  @functools.cached_property
  def ranked(self) -> tuple[rates.Rate, rates.Rate]:
    """AUC and AP, [R]: of class 1 where there are two, else the mean over one-vs-rest classes."""
    k = self.scores.shape[1]
    classes = range(k) if k > 2 else [1]
    rankings = (rates.ranking(self.labels == c, self.scores[:, c], self.weights) for c in classes)
    pairs = [(rates.roc_auc(r), rates.average_precision(r)) for r in rankings]
    auc, ap = (rates.stack(each) for each in zip(*pairs, strict=True))
    return rates.average(auc, auc.defined), rates.average(ap, ap.defined)

  def brier(self) -> rates.Rate:
    """Mean squared distance of the scores from the truth; two classes: (p - y)^2 of one of them."""
    n, k = self.scores.shape
    distance = self.scores.copy()
    distance[np.arange(n), self.labels] -= 1
    per_image = (distance**2).sum(1) / (2 if k == 2 else 1)
    return rates.ratio(self.weights @ per_image, self.total)

  def log_loss(self) -> rates.Rate:
    """Mean of -log p of the true class, with p at least 1e-7, as Keras has it."""
    p = np.maximum(self.scores[np.arange(len(self.labels)), self.labels], 1e-7)
    return rates.ratio(self.weights @ -np.log(p), self.total)

  def reliability(self, bins: int) -> rates.Reliability:
    """The highest score against how often it is right."""
    right = self.predicted == self.labels
    return rates.reliability(self.scores.max(1)[:, None], right[:, None], self.weights, bins)

  def recognition(self) -> rates.Rate:
    """Mean over groups of the share of their images that is right (Spanhol et al. 2016)."""
    _, group, size = np.unique(self.groups, return_inverse=True, return_counts=True)
    share = 1 / size[group]
    right = share * (self.predicted == self.labels)
    return rates.ratio(self.weights @ right, self.weights @ share)


_View = _Weighted | decisions.Weighted
Metric = Callable[[Any], rates.Rate]  # of a `_View`

METRICS: dict[str, Metric] = {
  "accuracy": lambda t: rates.accuracy(t.matrix),
  "balanced_accuracy": lambda t: rates.balanced_accuracy(t.matrix),
  "ovr_balanced": lambda t: rates.ovr_balanced(t.matrix),
  "macro_f1": lambda t: rates.macro(rates.f_beta(t.matrix), t.matrix),
  "weighted_f1": lambda t: rates.average(rates.f_beta(t.matrix), rates.support(t.matrix)),
  "macro_specificity": lambda t: rates.macro(rates.specificity(t.matrix), t.matrix),
  "macro_ppv": lambda t: rates.macro(rates.ppv(t.matrix), t.matrix),
  "macro_npv": lambda t: rates.macro(rates.npv(t.matrix), t.matrix),
  "auc": lambda t: t.ranked[0],
  "ap": lambda t: t.ranked[1],
  "group_recognition": _Weighted.recognition,
  "ece": lambda t: rates.calibration_error(t.reliability(BINS)),
  "log_loss": _Weighted.log_loss,
  "brier": _Weighted.brier,
}
BINARY: dict[str, Metric] = {  # of class 1
  "sensitivity": lambda t: rates.of_class(rates.sensitivity(t.matrix), 1),
  "specificity": lambda t: rates.of_class(rates.specificity(t.matrix), 1),
  "ppv": lambda t: rates.of_class(rates.ppv(t.matrix), 1),
  "npv": lambda t: rates.of_class(rates.npv(t.matrix), 1),
  "f1": lambda t: rates.of_class(rates.f_beta(t.matrix), 1),
}


def _known(classes: int, multi_label: bool) -> dict[str, Metric]:
  if multi_label:
    return decisions.METRICS
  return METRICS | BINARY if classes == 2 else METRICS


def names(classes: int, multi_label: bool = False) -> tuple[str, ...]:
  """Names that `summary`, `intervals` and `settings.Eval.select` know.

  Args:
    classes: how many there are. multi_label: whether an image may have several of them.
  """
  return tuple(_known(classes, multi_label))


def _of(predictions: contract.Predictions) -> dict[str, Metric]:
  """The metrics of a table."""
  return _known(len(predictions.classes), predictions.multi_label)


def _chosen(predictions: contract.Predictions, wanted: Sequence[str]) -> dict[str, Metric]:
  known = _of(predictions)
  missing = [name for name in wanted if name not in known]
  if missing:
    raise KeyError(
      f"no metric {missing[0]!r} of {len(predictions.classes)} classes: choose from"
      f" {', '.join(known)}"
    )
  return {name: known[name] for name in wanted}


def _weighted(predictions: contract.Predictions, weights: np.ndarray) -> _View:
  view = decisions.Weighted if predictions.multi_label else _Weighted
  return view(predictions, weights)


def _once(predictions: contract.Predictions) -> _View:
  """The table as it is, every image counting once."""
  _check(predictions)
  return _weighted(predictions, np.ones((1, len(predictions.ids))))


def summary(predictions: contract.Predictions) -> dict[str, float]:
  """Every metric of `names(K)` by its name, 0 where it does not exist.

  `sensitivity`, `specificity`, `ppv`, `npv` and `f1` are those of class 1, where there are two. So
  are `auc` and `ap`; of more classes these are means over one-vs-rest problems that have both.
  `ece` is of the highest score in 15 equal bins (Guo et al. 2017). Where an image may have several
  classes, `macro_...`, `auc` and `ap` are means over the classes of which there is an image, and
  the others go by all decisions about a class.

  Raises:
    ValueError: no rows, a label outside the classes, or a score that is not finite.
  """
  table = _once(predictions)
  return {name: float(metric(table).value[0]) for name, metric in _of(predictions).items()}


def reliability(predictions: contract.Predictions, bins: int = BINS) -> rates.Reliability:
  """Calibration in `bins` equal bins, each array [bins].

  Of the highest score; where an image may have several classes, of every class's score.
  """
  return rates.Reliability(*(a[0] for a in _once(predictions).reliability(bins)))


def draws(groups: int, resamples: int, seed: int, rows: int) -> Iterator[np.ndarray]:
  """Times that each of `groups` is drawn, [r, groups] for each block of at most `rows` resamples.

  The resamples depend on the seed and the number of groups only, not on how they are cut in blocks.
  """
  rng = np.random.default_rng(seed)
  for start in range(0, resamples, rows):
    r = min(rows, resamples - start)
    picks = rng.integers(groups, size=(r, groups)) + groups * np.arange(r)[:, None]
    yield np.bincount(picks.ravel(), minlength=r * groups).reshape(r, groups)


def _resampled(
  tables: Sequence[contract.Predictions], metrics: dict[str, Metric], resamples: int, seed: int
) -> list[dict[str, rates.Rate]]:
  """Each table's metrics, [resamples], all under the same draws of the groups they share."""
  known, group = np.unique(tables[0].groups, return_inverse=True)
  blocks: list[dict[str, list[rates.Rate]]] = [{name: [] for name in metrics} for _ in tables]
  for drawn in draws(len(known), resamples, seed, rows=max(1, _BLOCK // len(group))):
    weights = drawn[:, group].astype(float)  # [r, n]
    for table, kept in zip(tables, blocks, strict=True):
      view = _weighted(table, weights)
      for name, metric in metrics.items():
        kept[name].append(metric(view))
  return [{name: rates.concatenate(each) for name, each in kept.items()} for kept in blocks]


def _bounds(values: np.ndarray) -> tuple[float, float]:
  low, high = np.percentile(values, [2.5, 97.5]) if values.size else (0.0, 0.0)
  return float(low), float(high)


def _interval(point: rates.Rate, resampled: rates.Rate) -> Interval:
  """The interval of a metric whose value is `point` [1] and whose resamples are [R]."""
  share = float(resampled.defined.mean()) if point.defined[0] else 0.0
  return Interval(float(point.value[0]), *_bounds(resampled.value[resampled.defined]), share)


def intervals(
  predictions: contract.Predictions, wanted: Sequence[str], resamples: int, seed: int
) -> dict[str, Interval]:
  """Percentile bootstrap intervals (95 %) over groups: a patient is drawn with all its images.

  Resamples in which a metric does not exist (no positive was drawn) are left out of its bounds.

  Args:
    predictions: the table.
    wanted: names out of `names(K)`; KeyError for another.
    resamples: how many; 10,000 is usual.
    seed: of the draws; equal seeds give equal intervals, in any order of the rows.
  """
  return means([predictions], wanted, resamples, seed)


def means(
  tables: Sequence[contract.Predictions], wanted: Sequence[str], resamples: int, seed: int
) -> dict[str, Interval]:
  """`intervals` of the mean over several tables of the same images, such as those of seeds.

  All tables are under the same resamples. The bounds are for other patients: how far the tables lie
  apart is not in them.

  Raises:
    ValueError: the tables differ in images, labels, groups or classes.
  """
  tables = _all_aligned(tables)
  chosen, once = _chosen(tables[0], wanted), [_once(table) for table in tables]
  resampled = _resampled(tables, chosen, resamples, seed)
  return {
    name: _interval(_mean(metric, once), rates.mean([each[name] for each in resampled]))
    for name, metric in chosen.items()
  }


def _mean(metric: Metric, tables: Sequence[_View]) -> rates.Rate:
  return rates.mean([metric(table) for table in tables])


def _all_aligned(tables: Sequence[contract.Predictions]) -> list[contract.Predictions]:
  return [tables[0], *(_aligned(tables[0], table) for table in tables[1:])]


def _aligned(a: contract.Predictions, b: contract.Predictions) -> contract.Predictions:
  """`b` in the order of `a`; raises ValueError unless both hold the same images, alike."""
  if a.classes != b.classes or a.labels.ndim != b.labels.ndim:
    raise ValueError(f"the two tables have other classes: {a.classes} and {b.classes}")
  order_a, order_b = (np.argsort(t.ids, kind="stable") for t in (a, b))
  if len(a.ids) != len(b.ids) or (a.ids[order_a] != b.ids[order_b]).any():
    alone = [np.setdiff1d(a.ids, b.ids), np.setdiff1d(b.ids, a.ids)]
    raise ValueError(
      f"the two tables hold other images: {len(a.ids)} and {len(b.ids)} rows, {alone[0].size} only"
      f" in the first and {alone[1].size} only in the second, e.g."
      f" {', '.join(map(str, np.concatenate(alone)[:2]))}; score both on one part of one set"
    )
  rows = np.empty(len(a.ids), int)
  rows[order_a] = order_b
  labels, groups = b.labels[rows], b.groups[rows]
  relabelled = (labels != a.labels).reshape(len(labels), -1).any(axis=1)
  other = np.flatnonzero(relabelled | (groups != a.groups))
  if other.size:
    raise ValueError(
      f"the two tables give {other.size} images another label or group, first"
      f" {str(a.ids[other[0]])!r}: score both on one version of the set"
    )
  return contract.Predictions(b.ids[rows], groups, b.split, labels, b.scores[rows], b.classes)


def _difference(points: Sequence[rates.Rate], resampled: Sequence[rates.Rate]) -> Difference:
  """The first minus the second, with p = 2 (smaller side of 0 + 1) / (resamples + 1)."""
  value, drawn = (rates.subtract(*pair) for pair in (points, resampled))
  signs = drawn.value[drawn.defined]
  side = int(min((signs <= 0).sum(), (signs >= 0).sum()))
  return Difference(*_interval(value, drawn), p=min(1.0, 2 * (side + 1) / (signs.size + 1)))


def paired(
  a: contract.Predictions,
  b: contract.Predictions,
  wanted: Sequence[str],
  resamples: int,
  seed: int,
) -> dict[str, Difference]:
  """Differences a - b on the same images, both under the same resamples of their groups.

  The p-value is the two-sided bootstrap one, (count + 1) / (resamples + 1); nothing corrects it
  for looking at several metrics.

  Raises:
    ValueError: the tables differ in images, labels, groups or classes.
  """
  return mean_differences([a], [b], wanted, resamples, seed)


def mean_differences(
  ours: Sequence[contract.Predictions],
  theirs: Sequence[contract.Predictions],
  wanted: Sequence[str],
  resamples: int,
  seed: int,
) -> dict[str, Difference]:
  """`paired`, of the mean over several tables minus the mean over several others; see `means`."""
  tables, n = _all_aligned([*ours, *theirs]), len(ours)
  chosen, once = _chosen(tables[0], wanted), [_once(table) for table in tables]
  resampled = _resampled(tables, chosen, resamples, seed)
  found = {}
  for name, metric in chosen.items():
    drawn = [each[name] for each in resampled]
    points = _mean(metric, once[:n]), _mean(metric, once[n:])
    found[name] = _difference(points, (rates.mean(drawn[:n]), rates.mean(drawn[n:])))
  return found
