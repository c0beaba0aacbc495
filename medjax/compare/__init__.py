"""Two tables of predictions of the same images, compared."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import pathlib

import numpy as np

from medjax import contract, evaluate, metrics, report, trained
from medjax.metrics import delong, mcnemar


@dataclasses.dataclass(frozen=True)
class Side:
  """One of two.

  Attributes:
    path: of its table. table: of predictions. select: metric that its run was chosen by, if known.
  """

  path: pathlib.Path
  table: contract.Predictions
  select: str = ""


@dataclasses.dataclass(frozen=True)
class Comparison:
  """What two tables of the same images come to.

  Attributes:
    a, b: the two.
    primary: the metric that decides. resamples, seed: of the bootstrap.
    intervals: of both, by metric, the primary one first. differences: a - b, alike.
    delong: differences of AUC, a - b, by class. discordant: what only one of them has right.
  """

  a: Side
  b: Side
  primary: str
  resamples: int
  seed: int
  intervals: tuple[Mapping[str, metrics.Interval], Mapping[str, metrics.Interval]]
  differences: Mapping[str, metrics.Difference]
  delong: Mapping[str, metrics.Difference]
  discordant: mcnemar.Discordant

  @property
  def groups(self) -> int:
    """Number of groups of images."""
    return len(np.unique(self.a.table.groups))


def opened(path: pathlib.Path, stage: str = "", part: str = "test") -> Side:
  """Finds and reads a table of predictions.

  Args:
    path: the table itself, the folder of a stage, or a workdir.
    stage: of a workdir; empty for the last one with such a table. part: that was scored.

  Raises:
    FileNotFoundError: there is none.
    ValueError: the file is none.
  """
  if path.is_file():
    return Side(path, evaluate.read(path))
  name, selects = f"predictions_{part}.csv", _selects(path)
  if stage and selects and stage not in selects:
    raise ValueError(f"{path} has no stage {stage!r}: choose from {', '.join(selects)}")
  folders = (
    [path / each for each in ([stage] if stage else reversed(selects))] if selects else [path]
  )
  for folder in folders:
    if (folder / name).is_file():
      select = _selects(folder.parent).get(folder.name, "")
      return Side(folder / name, evaluate.read(folder / name), select)
  raise FileNotFoundError(
    f"no {name} in {', '.join(map(str, folders))}: give a table of predictions, or the folder of a"
    " run or of a stage that is finished and has a classifier"
  )


def _selects(workdir: pathlib.Path) -> dict[str, str]:
  """Each stage of a workdir and the metric that its checkpoint was chosen by; empty for others.

  The config is not parsed, so that a run of an earlier version can still be compared.
  """
  if not (workdir / trained.CONFIG).is_file():
    return {}
  stages = json.loads((workdir / trained.CONFIG).read_text(encoding="utf-8"))["stages"]
  return {stage["name"]: stage["eval"]["select"] for stage in stages}


def of(a: Side, b: Side, primary: str = "", resamples: int = 10_000, seed: int = 0) -> Comparison:
  """Compares two tables of the same images.

  Args:
    a, b: from `opened`. primary: metric that decides; empty for the one that `a`, or else `b`, was
      chosen by, and of plain tables the AUC.
    resamples, seed: of the bootstrap over groups.

  Raises:
    KeyError: no such metric. ValueError: the tables are not of the same images, alike.
  """
  primary = primary or a.select or b.select or "auc"
  ours, theirs = metrics.aligned([a.table, b.table])
  names = report.names(len(ours.classes), primary, ours.multi_label)
  first, second = (metrics.intervals(each, names, resamples, seed) for each in (ours, theirs))
  return Comparison(
    a,
    b,
    primary,
    resamples,
    seed,
    (first, second),
    metrics.paired(ours, theirs, names, resamples, seed),
    delong.paired(ours, theirs),
    mcnemar.exact(ours, theirs),
  )
