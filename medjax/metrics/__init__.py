"""Metrics of a whole table of predictions, with bootstrap intervals and paired differences.

Everything is computed under a number of times that each group counts, [R, G]: ones give the value,
the counts of bootstrap resamples give those of the resamples, so that a block of them is one call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import numpy as np

from medjax import contract
from medjax.metrics import choices, decisions, rates

BINS = rates.BINS
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "ece", "misclassification"})
FEW_GROUPS, FEW_IMAGES = 50, 10  # fewer are too few for an interval to be trusted
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


def check(predictions: contract.Predictions) -> None:
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


Metric = Callable[[Any], rates.Rate]  # of a `_View`
_Table = choices.Table | decisions.Table
_View = choices.Weighted | decisions.Weighted

# Of every class against the others, [R, K].
BY_CLASS: dict[str, Metric] = {
  **{
    name: functools.partial(lambda rating, view: view.of_classes(rating), rating)
    for name, rating in rates.PER_CLASS.items()
  },
  "accuracy": lambda view: view.of_classes(rates.ovr_accuracy),
  "auc": lambda view: view.areas[0],
  "ap": lambda view: view.areas[1],
}


def _known(classes: int, multi_label: bool) -> dict[str, Metric]:
  if multi_label:
    return decisions.METRICS
  return choices.METRICS | (choices.BINARY if classes == 2 else choices.SEVERAL)


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


def _table(predictions: contract.Predictions, unit: np.ndarray) -> _Table:
  check(predictions)
  kind = decisions.Table if predictions.multi_label else choices.Table
  return kind(predictions, unit)


def _view(table: _Table, times: np.ndarray) -> _View:
  if isinstance(table, decisions.Table):
    return decisions.Weighted(table, times)
  return choices.Weighted(table, times)


def _once(predictions: contract.Predictions) -> _View:
  """The table as it is, every image counting once."""
  return _view(_table(predictions, np.zeros(len(predictions.ids), int)), np.ones((1, 1)))


def _counting(predictions: contract.Predictions, weights: np.ndarray) -> _View:
  """The table whose images count `weights` [n] times."""
  times = np.asarray(weights, float)
  if times.shape != predictions.ids.shape or not np.isfinite(times).all() or (times < 0).any():
    raise ValueError(
      f"weights {times.shape} for {len(predictions.ids)} images: give each a finite one, 0 or more"
    )
  return _view(_table(predictions, np.arange(len(times))), times[None])


def summary(
  predictions: contract.Predictions, weights: np.ndarray | None = None
) -> dict[str, float]:
  """Every metric of `names(K)` by its name, 0 where it does not exist.

  `sensitivity`, `specificity`, `ppv`, `npv` and `f...` are those of class 1, where there are two.
  So are `auc` and `ap`; of more classes these are means over one-vs-rest problems that have both.
  `macro_...` are means over the classes of which there is an image, `weighted_...` by their images;
  `quadratic_kappa` takes the order of the classes for a scale; `ece` is of the highest score in 15
  equal bins (Guo et al. 2017). Where an image may have several classes, the means are over them,
  and the others go by all decisions about a class.

  Args:
    predictions: the table. weights: [n] times that each image counts; by default once.

  Raises:
    ValueError: no rows, a label outside the classes, or a score or weight that is not finite.
  """
  view = _once(predictions) if weights is None else _counting(predictions, weights)
  return {name: float(metric(view).value[0]) for name, metric in _of(predictions).items()}


def reliability(predictions: contract.Predictions) -> rates.Reliability:
  """Calibration in `BINS` equal bins, each array [BINS].

  Of the highest score; where an image may have several classes, of every class's score.
  """
  view = _once(predictions)
  return rates.Reliability(*(a[0] for a in view.reliability(view.table.calibration)))


def cautions(predictions: contract.Predictions) -> list[str]:
  """What to say beside the intervals of a table of too few groups or images, a sentence each."""
  said, groups = [], len(np.unique(predictions.groups))
  if groups < FEW_GROUPS:
    said.append(
      f"Only {groups} groups: 95% intervals from fewer than {FEW_GROUPS} are too narrow as a rule."
    )
  counts = predictions.members.sum(axis=0)
  rare = np.flatnonzero(counts < FEW_IMAGES)
  if rare.size:
    told = ", ".join(f"{predictions.classes[c]} ({counts[c]})" for c in rare)
    said.append(
      f"Fewer than {FEW_IMAGES} images of {told}: bootstrap intervals that rest on them are too"
      " narrow."
    )
  return said


def draws(groups: int, resamples: int, seed: int, rows: int) -> Iterator[np.ndarray]:
  """Times that each of `groups` is drawn, [r, groups] for each block of at most `rows` resamples.

  The resamples depend on the seed and the number of groups only, not on how they are cut in blocks.
  """
  rng = np.random.default_rng(seed)
  for start in range(0, resamples, rows):
    r = min(rows, resamples - start)
    picks = rng.integers(groups, size=(r, groups)) + groups * np.arange(r)[:, None]
    yield np.bincount(picks.ravel(), minlength=r * groups).reshape(r, groups)


class _Bootstrap:
  """Tables of the same images under the same resamples of the groups that they share."""

  def __init__(self, predictions: Sequence[contract.Predictions]):
    self._known, self._unit = np.unique(predictions[0].groups, return_inverse=True)
    self._tables = [_table(each, self._unit) for each in predictions]

  def points(self, metrics: Mapping[str, Metric]) -> list[dict[str, rates.Rate]]:
    """Each table's metrics, [1, ...], every group counting once."""
    once = [_view(table, np.ones((1, len(self._known)))) for table in self._tables]
    return [{name: metric(view) for name, metric in metrics.items()} for view in once]

  def resampled(
    self, metrics: Mapping[str, Metric], resamples: int, seed: int
  ) -> list[dict[str, rates.Rate]]:
    """Each table's metrics, [resamples, ...]."""
    kept: list[dict[str, list[rates.Rate]]] = [{name: [] for name in metrics} for _ in self._tables]
    rows = max(1, _BLOCK // len(self._unit))
    for drawn in draws(len(self._known), resamples, seed, rows):
      times = drawn.astype(float)
      for table, blocks in zip(self._tables, kept, strict=True):
        view = _view(table, times)
        for name, metric in metrics.items():
          blocks[name].append(metric(view))
    return [{name: rates.concatenate(each) for name, each in blocks.items()} for blocks in kept]


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
  chosen, bootstrap = _chosen(tables[0], wanted), _Bootstrap(aligned(tables))
  points, drawn = bootstrap.points(chosen), bootstrap.resampled(chosen, resamples, seed)
  return {
    name: _interval(*(rates.mean([each[name] for each in found]) for found in (points, drawn)))
    for name in chosen
  }


def by_class(
  predictions: contract.Predictions, resamples: int, seed: int
) -> dict[str, tuple[Interval, ...]]:
  """`intervals` of every class against the others.

  Returns:
    K intervals each of `BY_CLASS`; `accuracy` is that of telling the class from the rest, never the
    table's.
  """
  return of_classes(predictions, BY_CLASS, resamples, seed)


def of_classes(
  predictions: contract.Predictions, chosen: Mapping[str, Metric], resamples: int, seed: int
) -> dict[str, tuple[Interval, ...]]:
  """The same of metrics [R, K] of one's own, such as `BY_CLASS` has."""
  bootstrap = _Bootstrap([predictions])
  (points,), (drawn,) = bootstrap.points(chosen), bootstrap.resampled(chosen, resamples, seed)
  return {
    name: tuple(
      _interval(rates.of_class(points[name], c), rates.of_class(drawn[name], c))
      for c in range(len(predictions.classes))
    )
    for name in chosen
  }


def wilson(predictions: contract.Predictions) -> dict[str, tuple[Interval, ...]]:
  """Wilson's intervals of every class's rates, which take images as independent.

  They are for tables of one image a group, and stay honest where every image is right, of which a
  bootstrap makes an interval without width. With several images a group they are too narrow.

  Returns:
    K intervals each of `sensitivity`, `specificity`, `ppv`, `npv` and `accuracy` (one against the
    rest).
  """
  tp, fp, fn, tn = _once(predictions).counts
  shares = {
    "sensitivity": (tp, tp + fn),
    "specificity": (tn, tn + fp),
    "ppv": (tp, tp + fp),
    "npv": (tn, tn + fn),
    "accuracy": (tp + tn, tp + fp + fn + tn),
  }
  return {name: _wilson(hits[0], total[0]) for name, (hits, total) in shares.items()}


def _wilson(hits: np.ndarray, total: np.ndarray) -> tuple[Interval, ...]:
  share, bounds = rates.ratio(hits, total), rates.wilson(hits, total)
  columns = (share.value, *bounds, share.defined)
  return tuple(Interval(*map(float, row)) for row in zip(*columns, strict=True))


def aligned(tables: Sequence[contract.Predictions]) -> list[contract.Predictions]:
  """The tables in the order of the first's images.

  Raises:
    ValueError: they differ in images, labels, groups or classes.
  """
  return [tables[0], *(_in_order(tables[0], table) for table in tables[1:])]


def _in_order(a: contract.Predictions, b: contract.Predictions) -> contract.Predictions:
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
  found = b.rows(rows)
  relabelled = (found.labels != a.labels).reshape(len(rows), -1).any(axis=1)
  other = np.flatnonzero(relabelled | (found.groups != a.groups))
  if other.size:
    raise ValueError(
      f"the two tables give {other.size} images another label or group, first"
      f" {str(a.ids[other[0]])!r}: score both on one version of the set"
    )
  return found


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
  every, n = [*ours, *theirs], len(ours)
  chosen, bootstrap = _chosen(every[0], wanted), _Bootstrap(aligned(every))
  points, drawn = bootstrap.points(chosen), bootstrap.resampled(chosen, resamples, seed)
  return {name: _difference(_sides(points, name, n), _sides(drawn, name, n)) for name in chosen}


def _sides(found: Sequence[Mapping[str, rates.Rate]], name: str, n: int) -> list[rates.Rate]:
  """The mean of a metric over the first n tables, and over the others."""
  each = [table[name] for table in found]
  return [rates.mean(each[:n]), rates.mean(each[n:])]
