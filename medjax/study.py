"""A study: the scored stages of a run as rows of one table, and what its arms come to.

A row is a stage, with the interval of its own test part. An arm at one level (such as a share of
the labels) is a summary: predictions of its folds are put together first, then the mean is taken
over its repeats (such as seeds), and the difference to the baseline's mean at the same level, in
pairs where both were scored on the same images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import csv
import dataclasses
import pathlib
import statistics

from matplotlib import figure as mpl_figure
import numpy as np

from medjax import contract, figures, metrics, settings

FILE, SUMMARY, PLOT = "study.csv", "study_summary.csv", "study.png"
_BOUNDS = ("value", "low", "high")


@dataclasses.dataclass(frozen=True)
class Scored:
  """A stage of a study: its cell, its predictions, and the interval of the study's metric."""

  cell: tuple[str, ...]
  predictions: contract.Predictions
  interval: metrics.Interval


@dataclasses.dataclass(frozen=True)
class Summary:
  """An arm at one level.

  Attributes:
    arm: what is compared. level: the other columns that are neither repeats nor pooled.
    values: of each repeat, in order.
    interval: of their mean, for other patients; None where repeats were scored on other images.
    difference: of the mean to the baseline's at this level; None for the baseline itself, where the
      level has none, and where the images are others.
  """

  arm: str
  level: tuple[str, ...]
  values: tuple[float, ...]
  interval: metrics.Interval | None
  difference: metrics.Difference | None

  @property
  def mean(self) -> float:
    """Over the repeats."""
    return statistics.fmean(self.values)

  @property
  def spread(self) -> float | None:
    """Standard deviation over the repeats; None of a single one."""
    return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclasses.dataclass(frozen=True)
class Study:
  """What a run found.

  Attributes:
    cfg: its settings. metric: that is compared. rows: its stages. summaries: its arms, level by
    level.
  """

  cfg: settings.Study
  metric: str
  rows: Sequence[Scored]
  summaries: Sequence[Summary]

  @property
  def levels(self) -> tuple[str, ...]:
    """Names of the columns of `Summary.level`."""
    inner = (self.cfg.columns[0], self.cfg.repeats, self.cfg.pooled)
    return tuple(name for name in self.cfg.columns if name not in inner)


def of(
  cfg: settings.Study, rows: Sequence[Scored], metric: str, resamples: int, seed: int
) -> Study:
  """Makes the study's tables.

  Args:
    cfg: what the cells hold. rows: its scored stages, in order.
    metric: one of `metrics.names`. resamples, seed: of the intervals.

  Raises:
    ValueError: stages whose predictions are pooled were scored on the same image.
  """
  arms = _arms(cfg, rows)
  found = []
  for (arm, level), repeats in arms.items():
    theirs = [] if arm == cfg.baseline else list(arms.get((cfg.baseline, level), {}).values())
    found.append(_summary(arm, level, list(repeats.values()), theirs, metric, resamples, seed))
  return Study(cfg, metric, rows, found)


_Arms = dict[tuple[str, tuple[str, ...]], dict[str, contract.Predictions]]


def _arms(cfg: settings.Study, rows: Sequence[Scored]) -> _Arms:
  """(arm, level) -> repeat -> its predictions, those of pooled stages in one table."""
  parts: dict[tuple, list[contract.Predictions]] = {}
  for row in rows:
    named = dict(zip(cfg.columns, row.cell, strict=True))
    arm, repeat = named.pop(cfg.columns[0]), named.pop(cfg.repeats, "")
    named.pop(cfg.pooled, "")
    parts.setdefault((arm, tuple(named.values()), repeat), []).append(row.predictions)
  arms: _Arms = {}
  for (arm, level, repeat), tables in parts.items():
    arms.setdefault((arm, level), {})[repeat] = _pooled(tables)
  return arms


def _pooled(tables: Sequence[contract.Predictions]) -> contract.Predictions:
  """Tables of different images as one."""
  ids, groups, labels, scores = (
    np.concatenate([getattr(table, name) for table in tables])
    for name in ("ids", "groups", "labels", "scores")
  )
  if len(set(ids)) < len(ids):
    raise ValueError(
      "study.pooled joins stages that were scored on the same images: with"
      " data.split.folded=test every fold is scored on its own, or set study.repeats instead"
    )
  return contract.Predictions(ids, groups, tables[0].split, labels, scores, tables[0].classes)


def _summary(
  arm: str,
  level: tuple[str, ...],
  ours: Sequence[contract.Predictions],
  theirs: Sequence[contract.Predictions],
  metric: str,
  resamples: int,
  seed: int,
) -> Summary:
  values = tuple(metrics.summary(table)[metric] for table in ours)
  interval = difference = None
  if _same_images(ours):
    interval = metrics.means(ours, [metric], resamples, seed)[metric]
  if theirs and _same_images([*ours, *theirs]):
    difference = metrics.mean_differences(ours, theirs, [metric], resamples, seed)[metric]
  return Summary(arm, level, values, interval, difference)


def _same_images(tables: Sequence[contract.Predictions]) -> bool:
  return len({tuple(sorted(table.ids.tolist())) for table in tables}) == 1


def write(folder: pathlib.Path, study: Study) -> None:
  """Writes `study.csv`, a row a stage, `study_summary.csv`, an arm and level, and `study.png`."""
  _write(folder / FILE, [*study.cfg.columns, *_BOUNDS], map(_row, study.rows))
  head = [study.cfg.columns[0], *study.levels, "repeats", *_BOUNDS, "spread"]
  of_baseline = [f"difference_{name}" for name in _BOUNDS] + ["p"]
  _write(folder / SUMMARY, head + of_baseline, map(_summary_row, study.summaries))
  plot(study).savefig(folder / PLOT, metadata={"Software": None})


def _row(row: Scored) -> list[str]:
  return [*row.cell, *map(repr, row.interval[:3])]


def _summary_row(found: Summary) -> list[str]:
  interval = found.interval[:3] if found.interval else (found.mean, None, None)
  spread, d = found.spread, found.difference
  difference = (*d[:3], d.p) if d else (None,) * 4
  numbers = ["" if value is None else repr(value) for value in (*interval, spread, *difference)]
  return [found.arm, *found.level, str(len(found.values)), *numbers]


def _write(path: pathlib.Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
  partial = path.with_suffix(".partial")
  with partial.open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([head, *rows])
  partial.replace(path)


def plot(study: Study) -> mpl_figure.Figure:
  """The arms over their levels; one below the other where there is one level only."""
  arms: dict[str, dict[str, figures.Cell]] = {}
  for found in study.summaries:
    arms.setdefault(found.arm, {})[", ".join(found.level)] = found.values, found.interval
  if len({found.level for found in study.summaries}) > 1:
    return figures.arms_by_level(arms, study.metric, ", ".join(study.levels))
  only = {arm: cell for arm, cells in arms.items() for cell in cells.values()}
  return figures.arms_listed(only, study.metric, study.cfg.baseline)
