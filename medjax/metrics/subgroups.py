"""Metrics of parts of the patients: by sex, age, site, scanner, or whatever else is known of them.

A network may be right on the average and wrong for some: a table of predictions is cut by a column
of its metadata, and each part is scored for itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import itertools

import numpy as np

from medjax import contract, metrics
from medjax.metrics import pooling

UNKNOWN = "not known"
AGES = (40.0, 60.0, 80.0)  # years, from each of which on a further band of ages begins
LEAST = 10  # images below which a subgroup is told, but not scored
_DISTINCT = 10  # different numbers up to which each is a subgroup of its own, as grades are


@dataclasses.dataclass(frozen=True)
class Subgroup:
  """The images that share a value.

  Attributes:
    value: or the band of values, such as `40-59`; `UNKNOWN` where the cell is blank.
    images, groups: how many there are.
    counts: [K] images of each class.
    intervals: of the metrics; empty where there are fewer than `LEAST` images.
  """

  value: str
  images: int
  groups: int
  counts: np.ndarray
  intervals: Mapping[str, metrics.Interval]


def of(
  table: contract.Predictions, column: str, wanted: Sequence[str], resamples: int, seed: int
) -> list[Subgroup]:
  """Scores each value of a column for itself.

  Args:
    table: with the column among its metadata.
    column: its name; numbers are cut into bands, see `banded`.
    wanted: metrics, see `metrics.names`.
    resamples, seed: of the bootstrap over groups, see `metrics.intervals`.

  Returns:
    The subgroups, together all images, in the order of the bands or values; `UNKNOWN` comes last.

  Raises:
    KeyError: no such column or metric.
  """
  values, order = banded(column, pooling.column(table, column))
  return [_scored(table.rows(values == value), value, wanted, resamples, seed) for value in order]


def _scored(
  table: contract.Predictions, value: str, wanted: Sequence[str], resamples: int, seed: int
) -> Subgroup:
  found = metrics.intervals(table, wanted, resamples, seed) if len(table) >= LEAST else {}
  return Subgroup(value, len(table), len(np.unique(table.groups)), table.members.sum(axis=0), found)


def banded(column: str, cells: np.ndarray) -> tuple[np.ndarray, list[str]]:
  """The subgroup of each image, and the subgroups in order.

  A column is one of numbers where every cell that is not blank is one. Ages are cut at `AGES`,
  other numbers at their quartiles; ten different numbers or fewer stand for themselves, as words
  do.

  Args:
    column: its name; `age`, and what ends in `_age` or `_age_years`, holds ages. cells: [n] text.

  Returns:
    [n] text, and its different values, those that are not known last.
  """
  known = cells != ""
  names = np.full(len(cells), UNKNOWN, object)
  names[known], order = _bands(column, cells[known])
  return names.astype(str), order + ([] if known.all() else [UNKNOWN])


def _bands(column: str, cells: np.ndarray) -> tuple[np.ndarray, list[str]]:
  """The same of cells that are not blank."""
  numbers = _numbers(cells)
  if numbers is None:
    return cells, sorted(set(cells.tolist()))
  if column.lower().removesuffix("_years").split("_")[-1] == "age":
    return _cut(numbers, np.array(AGES))
  distinct, which = np.unique(numbers, return_inverse=True)
  if len(distinct) > _DISTINCT:
    return _cut(numbers, np.unique(np.quantile(numbers, [0.25, 0.5, 0.75])))
  names = np.array([f"{number:.6g}" for number in distinct])
  return names[which], names.tolist()


def _numbers(cells: np.ndarray) -> np.ndarray | None:
  """The cells as numbers; None where one is none, or there is no cell."""
  try:
    found = cells.astype(float)
  except ValueError:
    return None
  return found if len(found) and np.isfinite(found).all() else None


def _cut(numbers: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, list[str]]:
  """The name of each number's band, and the names of the bands that hold one, rising."""
  whole = bool((np.append(numbers, edges) % 1 == 0).all())
  between = [_between(*pair, whole) for pair in itertools.pairwise(edges)]
  names = np.array([f"below {edges[0]:.6g}", *between, f"{edges[-1]:.6g} and above"])
  band = np.searchsorted(edges, numbers, side="right")
  return names[band], names[np.unique(band)].tolist()


def _between(low: float, high: float, whole: bool) -> str:
  return f"{low:.6g}-{high - 1:.6g}" if whole else f"{low:.6g} to below {high:.6g}"
