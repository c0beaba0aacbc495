"""How a network's scores are used: its temperature and thresholds, kept in its stage's folder."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from medjax import contract
from medjax.metrics import calibration, thresholds

FILE = "operating.json"


@dataclasses.dataclass(frozen=True)
class Operating:
  """What was chosen for a network after its training.

  Attributes:
    temperature: of its scores; None leaves them as the network gives them.
    thresholds: of its classes, see `predicted`.
    notes: a sentence for each threshold that was asked for and that no score reaches.
  """

  temperature: calibration.Temperature | None = None
  thresholds: tuple[thresholds.Threshold, ...] = ()
  notes: tuple[str, ...] = ()

  def apply(self, scores: np.ndarray, multi_label: bool = False) -> np.ndarray:
    """[..., K] scores after the temperature; thresholds do not change them."""
    if self.temperature is None:
      return scores
    return calibration.tempered(scores, self.temperature.value, multi_label)

  def first(self, classes: tuple[str, ...]) -> dict[int, float]:
    """Index of a class -> its threshold; of several for one class the first.

    Raises:
      ValueError: a threshold of a class that is not among `classes`.
    """
    found: dict[int, float] = {}
    for each in self.thresholds:
      if each.positive not in classes:
        raise ValueError(
          f"{FILE} has a threshold for the class {each.positive!r}, and the network knows"
          f" {', '.join(classes)}: the file is of another network"
        )
      found.setdefault(classes.index(each.positive), each.value)
    return found

  def predicted(
    self, scores: np.ndarray, classes: tuple[str, ...], multi_label: bool = False
  ) -> np.ndarray:
    """What images are taken for, by their scores [n, K] after the temperature.

    An image of one class is given a class with a threshold from that score on and never below it:
    the one of them with the highest score where several are reached, and otherwise that with the
    highest score among the classes without a threshold, or among all where each has one.

    Returns:
      [n] int, or where an image may have several classes [n, K] bool, each class by its threshold
      or else by `contract.THRESHOLD`.
    """
    limits = np.full(len(classes), contract.THRESHOLD if multi_label else np.inf)
    for index, value in self.first(classes).items():
      limits[index] = value
    reached = scores >= limits
    if multi_label:
      return reached
    free = np.isinf(limits) | np.isfinite(limits).all()
    eligible = np.where(reached.any(axis=1, keepdims=True), reached, free)
    return np.where(eligible, scores, -1.0).argmax(axis=1)


def to_dict(operating: Operating) -> dict[str, Any]:
  """As plain JSON types; `of` reads them back."""
  temperature = operating.temperature
  return {
    "temperature": None if temperature is None else dataclasses.asdict(temperature),
    "thresholds": [
      {"class": t.positive, "criterion": t.criterion, "part": t.part, "value": t.value}
      for t in operating.thresholds
    ],
    "notes": list(operating.notes),
  }


def of(kept: Mapping[str, Any]) -> Operating:
  """What `to_dict` gave."""
  temperature = kept.get("temperature")
  return Operating(
    calibration.Temperature(**temperature) if temperature else None,
    tuple(
      thresholds.Threshold(t["class"], t["criterion"], t["part"], t["value"])
      for t in kept.get("thresholds", ())
    ),
    tuple(kept.get("notes", ())),
  )


def write(folder: pathlib.Path, operating: Operating) -> None:
  """Keeps it in a stage's folder; an old file goes where nothing is to be kept."""
  if operating == Operating():
    (folder / FILE).unlink(missing_ok=True)
    return
  partial = folder / f"{FILE}.partial"
  partial.write_text(json.dumps(to_dict(operating), indent=2) + "\n", encoding="utf-8")
  partial.replace(folder / FILE)


def read(folder: pathlib.Path) -> Operating:
  """What `write` kept in a stage's folder; nothing chosen where there is no such file.

  Raises:
    ValueError: the file was damaged.
  """
  if not (folder / FILE).is_file():
    return Operating()
  text = (folder / FILE).read_text(encoding="utf-8")
  try:
    return of(json.loads(text))
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{folder / FILE} cannot be used ({error}): write it anew by python -m medjax.main"
      f" --task=evaluate --workdir={folder.parent}"
    ) from error
