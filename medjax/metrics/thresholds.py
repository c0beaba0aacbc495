"""Thresholds: scores from which on an image is given a class, chosen on one part for others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from medjax import contract, metrics, settings
from medjax.metrics import rates

SHOWN = ("sensitivity", "specificity", "ppv", "npv")


class Unreached(ValueError):
  """A criterion that no score of a table fulfils."""


@dataclasses.dataclass(frozen=True)
class Threshold:
  """A score from which on an image is given a class.

  Attributes:
    positive: the class. criterion: by which it was chosen, in words.
    part: that it was chosen on; it cannot be scored there.
    value: the score, after the temperature where there is one.
  """

  positive: str
  criterion: str
  part: str
  value: float

  def decided(self, table: contract.Predictions) -> contract.Predictions:
    """The decisions on a table as one of two classes, `not <positive>` and the class.

    The scores are 0 and 1, so that `metrics.intervals` gives sensitivity, specificity, PPV and NPV.

    Raises:
      ValueError: the table is of the part that the threshold was chosen on, or lacks the class.
    """
    if table.split == self.part:
      raise ValueError(
        f"the threshold {self.value:.4g} of {self.positive!r} ({self.criterion}) was chosen on the"
        f" part {self.part!r}, and would look better there than it is: score another part, or"
        " choose it on another one, such as val (eval.thresholds, part=val)"
      )
    column = _column(table.classes, self.positive)
    given = table.scores[:, column] >= self.value
    return dataclasses.replace(
      table,
      labels=table.members[:, column].astype(np.int32),
      scores=np.column_stack([~given, given]).astype(float),
      classes=(f"not {self.positive}", self.positive),
    )


def _column(classes: Sequence[str], positive: str) -> int:
  if positive not in classes:
    raise ValueError(f"a threshold of {positive!r}, and the classes are {', '.join(classes)}")
  return classes.index(positive)


def scored(
  threshold: Threshold, table: contract.Predictions, resamples: int, seed: int
) -> dict[str, metrics.Interval]:
  """Sensitivity, specificity, PPV and NPV of a threshold, with bootstrap intervals over groups.

  Raises:
    ValueError: the table is of the part that the threshold was chosen on.
  """
  return metrics.intervals(threshold.decided(table), SHOWN, resamples, seed)


# Choosing one.


def positives(
  cfg: settings.Threshold, classes: Sequence[str], multi_label: bool
) -> tuple[str, ...]:
  """The classes that a criterion is for.

  Raises:
    ValueError: it names a class that there is not.
  """
  if cfg.positive:
    return (classes[_column(classes, cfg.positive)],)
  return tuple(classes) if multi_label or len(classes) != 2 else (classes[1],)


def choose(cfg: settings.Threshold, table: contract.Predictions, positive: str) -> Threshold:
  """The threshold of a class that a criterion asks for on a table.

  It lies halfway between the lowest score that reaches it and the next one below (0 below the
  last), so that no image changes sides for the rounding of another machine. Of thresholds that are
  equally good by the criterion, the highest is taken.

  Raises:
    Unreached: no score fulfils it, or the table has no image of the class, or no other image.
    ValueError: the table cannot be scored, or lacks the class.
  """
  metrics.check(table)
  column = _column(table.classes, positive)
  ranking = rates.ranking(table.members[:, column], table.scores[:, column])
  where = f"{criterion(cfg)} of {positive!r} on the part {table.split!r}"
  if not (ranking.tp[-1] and ranking.fp[-1]):
    lacking = f"image of {positive!r}" if ranking.fp[-1] else f"image but those of {positive!r}"
    raise Unreached(f"{where} cannot be told: there is no {lacking}")
  try:
    place = _CRITERIA[type(cfg)](cfg, ranking)
  except Unreached as error:
    raise Unreached(f"{where} cannot be reached: {error}") from None
  return Threshold(positive, criterion(cfg), table.split, _between(ranking.thresholds, place))


def criterion(cfg: settings.Threshold) -> str:
  """A criterion in words, such as `sensitivity >= 0.95`."""
  if isinstance(cfg, settings.AtLeast):
    return f"{cfg.name} >= {cfg.at_least:g}"
  if isinstance(cfg, settings.Cost):
    (_, alarm), (missed, _) = cfg.costs
    return f"least cost, {missed:g} missed and {alarm:g} false alarm"
  return cfg.name


def _between(scores: np.ndarray, place: int) -> float:
  here, below = scores[place], scores[place + 1] if place + 1 < len(scores) else 0.0
  middle = (here + below) / 2
  return float(middle if middle > below else here)  # two neighbours have nothing between them


def _youden(_: settings.Threshold, r: rates.Ranking) -> int:
  return int(np.argmax(r.tp * r.fp[-1] - r.fp * r.tp[-1]))  # whole numbers: ties stay ties


def _at_least(cfg: settings.AtLeast, r: rates.Ranking) -> int:
  """Of the scores that reach the rate, the highest for a sensitivity, else the lowest."""
  found: Mapping[str, np.ndarray] = {
    "sensitivity": r.tp / r.tp[-1],
    "specificity": (r.fp[-1] - r.fp) / r.fp[-1],
    "ppv": r.tp / (r.tp + r.fp),
  }
  rate = found[cfg.name]
  reached = np.flatnonzero(rate >= cfg.at_least)
  if not reached.size:
    raise Unreached(f"the highest {cfg.name} is {rate.max():.3f}")
  return int(reached[0 if cfg.name == "sensitivity" else -1])


def _cheapest(cfg: settings.Cost, r: rates.Ranking) -> int:
  (rejected, alarm), (missed, found) = cfg.costs
  positive, negative = r.tp[-1], r.fp[-1]
  given = alarm * r.fp + found * r.tp + rejected * (negative - r.fp) + missed * (positive - r.tp)
  if given.min() > rejected * negative + missed * positive:
    raise Unreached("to give the class to no image costs least")
  return int(np.argmin(given))


_CRITERIA: dict[type[settings.Threshold], Callable[[Any, rates.Ranking], int]] = {
  settings.Threshold: _youden,
  settings.AtLeast: _at_least,
  settings.Cost: _cheapest,
}


def chosen(
  wanted: Sequence[settings.Threshold], tables: Mapping[str, contract.Predictions]
) -> tuple[tuple[Threshold, ...], tuple[str, ...]]:
  """Every threshold that is asked for, and a sentence for each that cannot be had.

  Args:
    wanted: criteria. tables: part -> its predictions, tempered where they are to be.

  Raises:
    ValueError: a criterion names a part or a class that there is not.
  """
  found, notes = [], []
  for cfg in wanted:
    if cfg.part not in tables:
      raise ValueError(
        f"eval.thresholds: {criterion(cfg)} is to be chosen on the part {cfg.part!r}; scored are"
        f" {', '.join(tables)}"
      )
    table = tables[cfg.part]
    for positive in positives(cfg, table.classes, table.multi_label):
      try:
        found.append(choose(cfg, table, positive))
      except Unreached as error:
        notes.append(str(error))
  return tuple(found), tuple(notes)
