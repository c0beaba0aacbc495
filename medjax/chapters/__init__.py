"""What a report says of a stage, and how it is kept in the stage's folder.

A stage that is finished is not wired again by the next start of the run: its chapter is read.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from medjax import contract, evaluate, metrics, report, settings, trained, writer
from medjax.chapters import appendix, breakdown, gallery, provenance
from medjax.data import catalogue

FILE, PICTURES, DRAWINGS = "chapter.json", "pictures.npz", "drawings"
TEST = "predictions_test.csv"


def of(
  stage: settings.Stage,
  splits: catalogue.Splits,
  tables: Mapping[str, contract.Predictions],
  folder: pathlib.Path,
  seed: int,
) -> report.StageReport:
  """Gathers what is to be told of a stage.

  Args:
    stage: its settings. splits: its data. tables: part -> predictions; empty without a classifier.
    folder: of its files. seed: of the bootstrap.
  """
  chapter = _told(stage, splits, tables, folder, seed)
  if "test" not in tables:
    return chapter
  table = tables["test"]
  if stage.cell:  # one of many: its metric alone, and no pictures
    found = metrics.intervals(table, (stage.eval.select,), stage.eval.bootstrap, seed)
    return dataclasses.replace(chapter, predictions=table, intervals=found)
  return _scored(chapter, stage, splits.parts["test"], table, folder, seed)


def _told(
  stage: settings.Stage,
  splits: catalogue.Splits,
  tables: Mapping[str, contract.Predictions],
  folder: pathlib.Path,
  seed: int,
) -> report.StageReport:
  """What there is to tell of any stage."""
  chapter = report.StageReport(
    name=stage.name,
    info=splits.info,
    counts=splits.table,
    history=_history(folder),
    leaky=splits.leaky,
    notes=splits.notes,
    flow=provenance.flow(splits, tables),
    checks=splits.census.checks if splits.census else {},
    facts=provenance.facts(stage, seed if stage.seed is None else stage.seed, "val" in tables),
  )
  if stage.cell:
    return chapter
  return dataclasses.replace(
    chapter,
    hashes=provenance.hashes(folder),
    further=[name for name in tables if name not in contract.PARTS],
    tables=appendix.tables(stage.eval, tables, folder, seed),
    drawings=appendix.drawings(tables),
  )


def _scored(
  chapter: report.StageReport,
  stage: settings.Stage,
  part: catalogue.Part,
  table: contract.Predictions,
  folder: pathlib.Path,
  seed: int,
) -> report.StageReport:
  """The chapter with what was found on the test part."""
  cfg = stage.eval
  names = report.names(len(table.classes), cfg.select, table.multi_label)
  found = metrics.intervals(table, names, cfg.bootstrap, seed)
  of_classes = metrics.by_class(table, cfg.bootstrap, seed)
  published = provenance.published(stage.data, table, found)
  return dataclasses.replace(
    chapter,
    predictions=table,
    intervals=found,
    per_class={
      name: {metric: each[c] for metric, each in of_classes.items()}
      for c, name in enumerate(table.classes)
    },
    gallery=gallery.of(stage, part, table, folder),
    tables=[*published, *chapter.tables, *breakdown.tables(cfg, table, folder, seed)],
  )


def save(folder: pathlib.Path, chapter: report.StageReport) -> None:
  """Keeps a chapter; its predictions and its log lie in the folder already."""
  kept = {
    "name": chapter.name,
    "counts": chapter.counts,
    "leaky": chapter.leaky,
    "notes": chapter.notes,
    "scored": chapter.predictions is not None,
    "intervals": chapter.intervals,
    "per_class": chapter.per_class,
    "flow": dataclasses.asdict(chapter.flow),
    "checks": chapter.checks,
    "further": chapter.further,
    "facts": chapter.facts,
    "hashes": chapter.hashes,
    "tables": [dataclasses.asdict(table) for table in chapter.tables],
    "drawings": {drawing.name: drawing.caption for drawing in chapter.drawings},
  }
  _save_pictures(folder, chapter)
  partial = folder / f"{FILE}.partial"
  partial.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
  partial.replace(folder / FILE)


def _save_pictures(folder: pathlib.Path, chapter: report.StageReport) -> None:
  (folder / PICTURES).unlink(missing_ok=True)
  if chapter.gallery is not None:
    fields = {key: value for key, value in vars(chapter.gallery).items() if value is not None}
    np.savez_compressed(folder / PICTURES, **fields)
  for drawing in chapter.drawings:
    (folder / DRAWINGS).mkdir(exist_ok=True)
    (folder / DRAWINGS / f"{drawing.name}.png").write_bytes(drawing.png)


def saved(folder: pathlib.Path) -> report.StageReport | None:
  """The chapter that `save` kept.

  None where the stage is not finished, a file is gone, or another version of medjax wrote it.
  """
  if not (folder / FILE).is_file():
    return None
  try:
    return _heard(json.loads((folder / FILE).read_text(encoding="utf-8")), folder)
  except (FileNotFoundError, KeyError, TypeError):
    return None


def _heard(kept: dict[str, Any], folder: pathlib.Path) -> report.StageReport:
  """The chapter of what `save` kept, and of the files beside it."""
  return report.StageReport(
    info=trained.recalled(folder),
    history=_history(folder),
    predictions=evaluate.read(folder / TEST) if kept.pop("scored") else None,
    intervals=_intervals(kept.pop("intervals")),
    per_class={name: _intervals(found) for name, found in kept.pop("per_class").items()},
    gallery=_gallery(folder / PICTURES),
    flow=report.Flow(
      **{name: [report.Count(*row) for row in rows] for name, rows in kept.pop("flow").items()}
    ),
    tables=[_table(**table) for table in kept.pop("tables")],
    drawings=[
      report.Drawing(name, caption, (folder / DRAWINGS / f"{name}.png").read_bytes())
      for name, caption in kept.pop("drawings").items()
    ],
    **kept,
  )


def _intervals(kept: Mapping[str, list[float]]) -> dict[str, metrics.Interval]:
  return {name: metrics.Interval(*found) for name, found in kept.items()}


def _gallery(file: pathlib.Path) -> report.Gallery | None:
  if not file.is_file():
    return None
  with np.load(file, allow_pickle=False) as kept:
    return report.Gallery(
      kept["pictures"], kept["rows"].tolist(), kept.get("overlays"), str(kept["note"])
    )


def _table(title: str, head: list[str], rows: list[list[Any]], note: str) -> report.Table:
  """A table as it was: JSON holds an interval as a list."""
  cells = [[metrics.Interval(*c) if isinstance(c, list) else c for c in row] for row in rows]
  return report.Table(title, head, cells, note)


def _history(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of the stage's log, which a stage without steps does not have."""
  file = folder / writer.FILE
  return writer.read(file) if file.is_file() else []
