"""Lengths of training and intervals, as one type."""

from __future__ import annotations

import dataclasses
import re

_UNITS = {"step": "steps", "epoch": "epochs", "example": "examples", "%": "percent"}


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length or an interval: `"50 epochs"`, `"2000 steps"`, `"3e6 examples"`, `"5 %"`."""

  value: float
  unit: str

  @classmethod
  def parse(cls, text: str) -> Duration:
    """Reads a number and a unit; raises ValueError with the accepted forms."""
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(step|epoch|example|percent|%)s?\s*", str(text))
    if match is None:
      raise ValueError(f'{text!r} is no duration: write e.g. "50 epochs", "2000 steps" or "5 %"')
    return cls(float(match[1]), _UNITS.get(match[2], "percent"))

  def steps(self, batch_size: int, train_size: int, total: int = 0) -> int:
    """Whole steps, rounded to the nearest; percentages are of `total` steps."""
    scale = {
      "steps": 1.0,
      "epochs": train_size / batch_size,
      "examples": 1 / batch_size,
      "percent": total / 100,
    }
    return round(self.value * scale[self.unit])

  def __str__(self) -> str:
    return f"{self.value:g} {self.unit}"
