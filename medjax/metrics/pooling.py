"""Several images of one patient, lesion or volume as one row of a table of predictions.

What comes out is a table like any other, so that every metric is computed on both levels.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import numpy as np

from medjax import contract

GROUP = "group"  # pools by `contract.Predictions.groups`

# (scores [n, C] in runs, where each run starts [m]) -> [m, C]
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]


class _Runs(NamedTuple):
  """Which rows belong together: ids [m] sorted, the first row of each [m], and of which each is."""

  ids: np.ndarray
  first: np.ndarray
  of: np.ndarray  # [n]

  def differ(self, values: np.ndarray) -> np.ndarray:
    """[k] rows whose value is another than that of the first row they belong with."""
    return np.flatnonzero(values != values[self.first][self.of])


def _mean(scores: np.ndarray, starts: np.ndarray) -> np.ndarray:
  size = np.diff(starts, append=len(scores))
  return np.add.reduceat(scores, starts) / size[:, None]


def _max(scores: np.ndarray, starts: np.ndarray) -> np.ndarray:
  return np.maximum.reduceat(scores, starts)


def _noisy_or(scores: np.ndarray, starts: np.ndarray) -> np.ndarray:
  """The probability that one image at least shows it, were the images independent."""
  return 1 - np.multiply.reduceat(1 - scores, starts)


RULES: dict[str, Rule] = {"mean": _mean, "max": _max, "noisy_or": _noisy_or}


def pooled(table: contract.Predictions, rule: str, by: str = GROUP) -> contract.Predictions:
  """Pools the rows that belong together into one.

  Of two classes, `max` and `noisy_or` pool the score of class 1, the finding, and class 0 is what
  remains: a volume is abnormal where one of its slices is. Of more classes each is pooled and then
  divided by the sum of all; where an image may have several, each stays as it is pooled.

  Args:
    table: a row an image.
    rule: one of `RULES`.
    by: what belongs together: `GROUP`, or the name of a column of the table's metadata such as a
      lesion, whose every value stays within a group.

  Returns:
    A row for each group or value, sorted, which is its id. Where an image may have several classes,
    it has those of any of its images. Metadata are kept where all images agree, and else blank.

  Raises:
    KeyError: an unknown rule or column.
    ValueError: images that belong together have different labels or groups, or a cell is blank.
  """
  if rule not in RULES:
    raise KeyError(f"no rule {rule!r} to pool scores by: choose from {', '.join(RULES)}")
  runs = _Runs(*np.unique(_keys(table, by), return_index=True, return_inverse=True))
  _check_same(runs, table.groups, "groups", table, by)
  return dataclasses.replace(
    table.rows(runs.first),
    ids=runs.ids,
    labels=_labels(table, runs, by),
    scores=_scores(table, RULES[rule], runs),
    metadata={name: _agreed(values, runs) for name, values in table.metadata.items()},
  )


def _keys(table: contract.Predictions, by: str) -> np.ndarray:
  """[n] text that is the same for rows that belong together."""
  if by == GROUP:
    return table.groups
  keys = column(table, by)
  blank = np.flatnonzero(keys == "")
  if blank.size:
    raise ValueError(
      f"{by!r} is not known of {blank.size} of {len(keys)} images, first"
      f" {str(table.ids[blank[0]])!r}: they cannot be pooled by it"
    )
  return keys


def column(table: contract.Predictions, name: str) -> np.ndarray:
  """[n] text of a column of metadata. Raises KeyError where the table has none of that name."""
  if name not in table.metadata:
    held = ", ".join(table.metadata) or "none"
    raise KeyError(f"no column {name!r} is known of the images of {table.split}, only: {held}")
  return table.metadata[name]


def _labels(table: contract.Predictions, runs: _Runs, by: str) -> np.ndarray:
  if not table.multi_label:
    _check_same(runs, table.labels, "labels", table, by)
    return table.labels[runs.first]
  found = np.zeros((len(runs.ids), len(table.classes)), table.labels.dtype)
  np.maximum.at(found, runs.of, table.labels)
  return found


def _check_same(
  runs: _Runs, values: np.ndarray, what: str, table: contract.Predictions, by: str
) -> None:
  """Raises ValueError unless all rows that belong together have one value."""
  rows = runs.differ(values)
  if rows.size:
    run = runs.of[rows[0]]
    pair = [str(table.ids[row]) for row in (runs.first[run], rows[0])]
    name = f"{by} {str(runs.ids[run])!r}" if by == GROUP else f"{by}={str(runs.ids[run])!r}"
    raise ValueError(
      f"{len(np.unique(runs.of[rows]))} of {len(runs.ids)} hold images of different {what}, such as"
      f" {name} with {pair[0]!r} and {pair[1]!r}: one row cannot stand for both. Pool by something"
      " finer (eval.pool_by), or leave eval.pool empty"
    )


def _scores(table: contract.Predictions, rule: Rule, runs: _Runs) -> np.ndarray:
  """[m, K] pooled scores."""
  order = np.argsort(runs.of, kind="stable")
  starts = np.searchsorted(runs.of[order], np.arange(len(runs.ids)))
  scores = np.asarray(table.scores, float)[order]
  if table.multi_label:
    return rule(scores, starts)
  if len(table.classes) == 2:
    finding = rule(scores[:, 1:], starts)
    return np.concatenate([1 - finding, finding], axis=1)
  found = rule(scores, starts)
  return found / found.sum(1, keepdims=True)


def _agreed(values: np.ndarray, runs: _Runs) -> np.ndarray:
  """[m] the value that all rows of a run share, or blank."""
  found = values[runs.first]
  found[runs.of[runs.differ(values)]] = ""
  return found
