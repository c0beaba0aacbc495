"""Settings of a study: many stages of one run as rows of one table."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """A table over the stages of a run; every stage that names its `cell` is a row.

  Attributes:
    columns: names of what a cell holds. The first is the arm: what is compared. Empty for no study.
    repeats: the column of what differs by chance alone, such as the seed; over it means are taken.
    pooled: the column of stages that are scored on different images, such as the fold; their
      predictions are put together and scored as one.
    baseline: the arm that every other is held against in pairs; empty for none.
  """

  columns: tuple[str, ...] = ()
  repeats: str = ""
  pooled: str = ""
  baseline: str = ""

  def __post_init__(self):
    inner = [name for name in (self.repeats, self.pooled) if name]
    if len({*self.columns, "value", "low", "high"}) < len(self.columns) + 3:
      raise ValueError(f"study.columns={self.columns}: each its own name, none value, low or high")
    if wrong := [name for name in inner if name not in self.columns[1:]]:
      raise ValueError(
        f"study.repeats and study.pooled name columns after the first of study.columns="
        f"{self.columns}, and {wrong[0]!r} is none"
      )
    if len(inner) > len(set(inner)):
      raise ValueError(f"study.repeats and study.pooled are both {inner[0]!r}: take two columns")
    if self.baseline and not self.columns:
      raise ValueError(f"study.baseline={self.baseline!r} needs study.columns, such as ('arm',)")
