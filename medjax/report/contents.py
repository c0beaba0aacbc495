"""What a report holds: its stages, what was found of each, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from medjax import contract, metrics
from medjax import study as study_lib

Cell = str | int | float | metrics.Interval


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of a chapter.

  Attributes:
    title: above it. head: of the columns. note: below it.
    rows: cells of the head's number: text, numbers, or intervals, which are written out.
  """

  title: str
  head: Sequence[str]
  rows: Sequence[Sequence[Cell]]
  note: str = ""


@dataclasses.dataclass(frozen=True)
class Drawing:
  """A figure of a chapter: the name of its file without ending, its caption, and it as PNG."""

  name: str
  caption: str
  png: bytes


class Count(NamedTuple):
  """So many images, of so many groups."""

  what: str
  images: int
  groups: int


@dataclasses.dataclass(frozen=True)
class Flow:
  """Images and groups from found to tested.

  Attributes:
    main: what was there at first, and after each thing that took some away.
    gone: what that was: `gone[i]` lies between `main[i]` and the next.
    parts: what the last of `main` was dealt to. scored: of which there are predictions.
  """

  main: Sequence[Count] = ()
  gone: Sequence[Count] = ()
  parts: Sequence[Count] = ()
  scored: Sequence[Count] = ()


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Images out of the test part.

  Attributes:
    pictures: [n, H, W, C] uint8. rows: [n] the row of the predictions that each is.
    overlays: [n, H, W, 3] uint8 the same under maps of where the network looked; None without.
    note: what there is to know of them.
  """

  pictures: np.ndarray
  rows: Sequence[int]
  overlays: np.ndarray | None = None
  note: str = ""


@dataclasses.dataclass(frozen=True)
class StageReport:
  """One stage of a run.

  Attributes:
    name: of the stage. info: of its data.
    counts: table of images and groups by part and class, as text.
    history: rows of its `metrics.jsonl`.
    predictions: of its test part; None where the stage has no classifier.
    intervals: of those predictions, from `metrics.intervals`, for the metrics in `names`.
    per_class: class -> rate of it against the rest -> interval.
    gallery: images of that part, chosen by `examples.pick`, or None.
    leaky: whether the split cut through groups.
    notes: remarks, a sentence each.
    tables, drawings: what else there is to show of its scores, in order.
    flow: images from found to tested. checks: what was looked for between parts -> what was found.
    further: names of the other test sets that it was scored on.
    facts: of the network and its training: what -> value, for the model card.
    hashes: SHA-256 of what the stage made: what -> digits.
  """

  name: str
  info: contract.DataInfo
  counts: str
  history: Sequence[Mapping[str, Any]] = ()
  predictions: contract.Predictions | None = None
  intervals: Mapping[str, metrics.Interval] = dataclasses.field(default_factory=dict)
  per_class: Mapping[str, Mapping[str, metrics.Interval]] = dataclasses.field(default_factory=dict)
  gallery: Gallery | None = None
  leaky: bool = False
  notes: Sequence[str] = ()
  tables: Sequence[Table] = ()
  drawings: Sequence[Drawing] = ()
  flow: Flow = Flow()
  checks: Mapping[str, str] = dataclasses.field(default_factory=dict)
  further: Sequence[str] = ()
  facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
  hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Paired differences, stage minus baseline, on one test part."""

  stage: str
  baseline: str
  differences: Mapping[str, metrics.Difference]


@dataclasses.dataclass(frozen=True)
class Report:
  """A run.

  Attributes:
    title: of the experiment. question: that it was made to answer. use: what the model is meant
      for, as its maker says; both may be empty.
    stages: in order.
    primary: the metric that was chosen beforehand to say whether it helped.
    resamples: behind every interval.
    comparison: from `compare`. study: of many stages; it stands in place of their details.
    settings: the resolved config. command: that started the run.
    environment: what it ran on, from `environment`. hashes: of files of the whole run.
  """

  title: str
  stages: Sequence[StageReport]
  primary: str
  resamples: int
  comparison: Comparison | None = None
  study: study_lib.Study | None = None
  question: str = ""
  use: str = ""
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  command: str = ""
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def scored(self) -> list[StageReport]:
    """The stages that have predictions."""
    return [stage for stage in self.stages if stage.predictions is not None]

  @property
  def tables(self) -> list[contract.Predictions]:
    """Their predictions."""
    return [stage.predictions for stage in self.stages if stage.predictions is not None]
