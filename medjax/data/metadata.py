"""What is known of a patient beside the image, as numbers; fitted on the training part alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

Record = Mapping[str, str | float | None]  # property -> value; None or "" where it is not known


@dataclasses.dataclass(frozen=True)
class Number:
  """A property that is counted or measured: one column, (value - mean) / deviation."""

  name: str


@dataclasses.dataclass(frozen=True)
class Category:
  """A property out of a list: a column for every value, and a first one for all others.

  Attributes:
    values: the list, where the set's authors give one, so that every split has the same columns;
      else the values of the training part, sorted.
  """

  name: str
  values: tuple[str, ...] = ()


Field = Number | Category


@dataclasses.dataclass(frozen=True)
class _Scale:
  name: str
  mean: float
  deviation: float

  def __call__(self, records: Sequence[Record]) -> np.ndarray:
    """[n, 1]; 0, which is the training part's mean, where it is not known."""
    values = _numbers(records, self.name)
    return np.nan_to_num((values - self.mean) / self.deviation, nan=0.0)[:, None]


@dataclasses.dataclass(frozen=True)
class _OneHot:
  name: str
  values: tuple[str, ...]

  def __call__(self, records: Sequence[Record]) -> np.ndarray:
    """[n, 1 + values]; zeros where it is not known, the first column for a strange value."""
    place = {value: column for column, value in enumerate(self.values, 1)} | {"": -1}
    columns = np.array([place.get(str(record.get(self.name) or ""), 0) for record in records])
    return (columns[:, None] == np.arange(1 + len(self.values))).astype(float)


@dataclasses.dataclass(frozen=True)
class Encoder:
  """Records to rows of numbers, by what `fit` saw."""

  steps: tuple[_Scale | _OneHot, ...]

  def __call__(self, records: Sequence[Record]) -> np.ndarray:
    """[n, M] float32, the fields' columns side by side in their order.

    Raises:
      ValueError: a number that is none.
    """
    return np.concatenate([step(records) for step in self.steps], axis=1).astype(np.float32)

  @property
  def width(self) -> int:
    """M."""
    return self([{}]).shape[1]

  @property
  def names(self) -> tuple[str, ...]:
    """The properties that it reads of a record."""
    return tuple(step.name for step in self.steps)

  def described(self) -> tuple[dict[str, Any], ...]:
    """Its steps as plain JSON types, from which `restored` makes it again."""
    return tuple(
      {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(step).items()
      }
      for step in self.steps
    )


def restored(steps: Sequence[Mapping[str, Any]]) -> Encoder:
  """The encoder that `Encoder.described` described."""
  return Encoder(
    tuple(
      _OneHot(step["name"], tuple(step["values"])) if "values" in step else _Scale(**step)
      for step in steps
    )
  )


def fit(records: Sequence[Record], fields: Sequence[Field]) -> Encoder:
  """Takes means, deviations and lists of values from the records of the training part.

  With HAM10000's age, sex and localization this makes the 21 columns of Nguyen et al. 2022.

  Raises:
    ValueError: a number that is none.
  """
  return Encoder(tuple(_fitted(records, field) for field in fields))


def _fitted(records: Sequence[Record], field: Field) -> _Scale | _OneHot:
  if isinstance(field, Category):
    seen = {str(record.get(field.name) or "") for record in records} - {""}
    return _OneHot(field.name, field.values or tuple(sorted(seen)))
  known = _numbers(records, field.name)
  known = known[~np.isnan(known)]
  if not len(known):
    return _Scale(field.name, 0.0, 1.0)
  return _Scale(field.name, float(known.mean()), float(known.std()) or 1.0)


def _numbers(records: Sequence[Record], name: str) -> np.ndarray:
  """[n] float, NaN where not known."""
  values = [record.get(name) for record in records]
  try:
    found = np.array([np.nan if value in (None, "") else value for value in values], float)
    if np.isinf(found).any():
      raise ValueError(f"{values[np.isinf(found).argmax()]!r} is infinite")
  except ValueError as error:
    raise ValueError(
      f"metadata {name!r} is to be a number: {error}. Leave it blank where it is not known, or name"
      " it among data.categories"
    ) from None
  return found
