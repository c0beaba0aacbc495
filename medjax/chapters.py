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
from medjax.data import catalogue

FILE, PICTURES = "chapter.json", "pictures.npz"
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
  chapter = report.StageReport(
    name=stage.name,
    info=splits.info,
    counts=splits.table,
    history=_history(folder),
    leaky=splits.leaky,
    notes=splits.notes,
  )
  if "test" not in tables:
    return chapter
  table, cfg = tables["test"], stage.eval
  if stage.cell:  # one of many: its metric alone, and no pictures
    found = metrics.intervals(table, (cfg.select,), cfg.bootstrap, seed)
    return dataclasses.replace(chapter, predictions=table, intervals=found)
  names, rows = report.names(len(table.classes), cfg.select, table.multi_label), report.pick(table)
  return dataclasses.replace(
    chapter,
    predictions=table,
    intervals=metrics.intervals(table, names, cfg.bootstrap, seed),
    pictures=np.stack([splits.parts["test"].fetch(row) for row in rows]),
    picture_rows=rows.tolist(),
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
    "picture_rows": chapter.picture_rows,
  }
  if chapter.pictures is not None:
    np.savez_compressed(folder / PICTURES, pictures=chapter.pictures)
  partial = folder / f"{FILE}.partial"
  partial.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
  partial.replace(folder / FILE)


def saved(folder: pathlib.Path) -> report.StageReport | None:
  """The chapter that `save` kept; None where the stage is not finished, or a file is gone."""
  if not (folder / FILE).is_file():
    return None
  kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
  scored = kept.pop("scored")
  if scored and not (folder / TEST).is_file():
    return None
  pictures = folder / PICTURES
  intervals = {name: metrics.Interval(*found) for name, found in kept.pop("intervals").items()}
  return report.StageReport(
    info=trained.recalled(folder),
    history=_history(folder),
    predictions=evaluate.read(folder / TEST) if scored else None,
    intervals=intervals,
    pictures=np.load(pictures)["pictures"] if kept["picture_rows"] else None,
    **kept,
  )


def _history(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of the stage's log, which a stage without steps does not have."""
  file = folder / writer.FILE
  return writer.read(file) if file.is_file() else []
