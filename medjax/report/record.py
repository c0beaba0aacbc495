"""Every number of the report for programs: `report.json`.

Its keys stay as they are: new ones may come, `format` grows where an old one changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import math
import pathlib
from typing import Any

import numpy as np

from medjax import contract, metrics
from medjax import study as study_lib
from medjax.metrics import rates
from medjax.report import card, contents, examples, words

FORMAT = 1


def write(path: pathlib.Path, report: contents.Report) -> None:
  """Writes the file; a reader sees the old one or the new one, never a half."""
  text = json.dumps(of(report), indent=2, allow_nan=False)
  partial = path.with_suffix(".partial")
  partial.write_text(text + "\n", encoding="utf-8")
  partial.replace(path)


def of(report: contents.Report) -> dict[str, Any]:
  """The report as JSON holds it. Where a metric does not exist, its `value` is null."""
  verdict, sentences = words.statement(report)
  return {
    "format": FORMAT,
    "title": report.title,
    "question": report.question,
    "warnings": words.warnings(report),
    "verdict": verdict,
    "statement": sentences,
    "primary": report.primary,
    "resamples": report.resamples,
    "stages": [_stage(report, stage) for stage in report.stages],
    "comparison": _comparison(report.comparison),
    "study": _study(report.study),
    "command": report.command,
    "environment": dict(report.environment),
    "hashes": dict(report.hashes),
    "settings": dict(report.settings),
  }


def _stage(report: contents.Report, stage: contents.StageReport) -> dict[str, Any]:
  return {
    "name": stage.name,
    "classes": list(stage.info.classes),
    "image_shape": list(stage.info.image_shape),
    "synthetic": stage.info.synthetic,
    "leaky": stage.leaky,
    "notes": list(stage.notes),
    "flow": _flow(stage.flow),
    "checks": dict(stage.checks),
    "training": _training(stage.history),
    "test": None if stage.predictions is None else _scores(report, stage, stage.predictions),
    "further": list(stage.further),
    "tables": [_table(table) for table in stage.tables],
    "facts": dict(stage.facts),
    "hashes": dict(stage.hashes),
  }


def _flow(flow: contents.Flow) -> dict[str, list[dict[str, Any]]]:
  rows = {"main": flow.main, "gone": flow.gone, "parts": flow.parts, "scored": flow.scored}
  return {name: [count._asdict() for count in counts] for name, counts in rows.items()}


def _training(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
  """Each number of the log: its steps and values, where it has one."""
  names = dict.fromkeys(key for row in history for key in row if key != "step")
  found: dict[str, dict[str, list[float]]] = {}
  for name in names:
    rows = [row for row in history if _number(row.get(name)) is not None]
    if rows:
      found[name] = {"steps": [row["step"] for row in rows], "values": [row[name] for row in rows]}
  return found


def _scores(
  report: contents.Report, stage: contents.StageReport, table: contract.Predictions
) -> dict[str, Any]:
  return {
    "part": table.split,
    "images": len(table.ids),
    "groups": len(np.unique(table.groups)),
    "cautions": metrics.cautions(table),
    "metrics": {name: interval(found) for name, found in stage.intervals.items()},
    "per_class": _per_class(stage, table),
    "confusion": _confusion(table),
    "calibration": {
      name: column.tolist() for name, column in metrics.reliability(table)._asdict().items()
    },
    "examples": [_example(table, row) for row in stage.gallery.rows] if stage.gallery else [],
    "limits": card.limits(stage),
  }


def _example(table: contract.Predictions, row: int) -> dict[str, Any]:
  truth, guess = examples.truth(table, row), examples.guess(table, row)
  return {"id": str(table.ids[row]), "truth": truth, "predicted": guess}


def _per_class(
  stage: contents.StageReport, table: contract.Predictions
) -> dict[str, dict[str, Any]]:
  images = dict(zip(table.classes, table.members.sum(0).tolist(), strict=True))
  return {
    each: {"images": images[each]} | {name: interval(one) for name, one in found.items()}
    for each, found in stage.per_class.items()
  }


def _confusion(table: contract.Predictions) -> list[Any]:
  """Rows of truth, columns of predictions; of several labels [[TN, FP], [FN, TP]] a class."""
  if table.multi_label:
    matrix = rates.decisions(table.members, table.assigned, np.ones(len(table.ids)))
    return matrix.astype(int).tolist()
  return rates.confusion(table.labels, table.predicted, len(table.classes)).astype(int).tolist()


def interval(found: metrics.Interval | None) -> dict[str, Any] | None:
  """A value and its bounds; nulls where it does not exist."""
  if found is None:
    return None
  keys = ("value", "low", "high")
  numbers = dict.fromkeys(keys) if found.defined == 0 else dict(zip(keys, found, strict=False))
  return numbers | {"defined": found.defined}


def _difference(found: metrics.Difference | None) -> dict[str, Any] | None:
  if found is None:
    return None
  return (interval(metrics.Interval(*found[:4])) or {}) | {"p": found.p}


def _comparison(found: contents.Comparison | None) -> dict[str, Any] | None:
  if found is None:
    return None
  differences = {name: _difference(d) for name, d in found.differences.items()}
  return {"stage": found.stage, "baseline": found.baseline, "differences": differences}


def _study(study: study_lib.Study | None) -> list[dict[str, Any]] | None:
  if study is None:
    return None
  return [
    {
      "arm": found.arm,
      "level": dict(zip(study.levels, found.level, strict=True)),
      "values": list(found.values),
      "mean": found.mean,
      "spread": found.spread,
      "interval": interval(found.interval),
      "difference": _difference(found.difference),
    }
    for found in study.summaries
  ]


def _number(value: Any) -> float | int | None:
  """A number that JSON knows, which infinity and what is no number are not; else None."""
  return value if isinstance(value, int | float) and math.isfinite(value) else None


def _cell(cell: contents.Cell) -> Any:
  if isinstance(cell, metrics.Interval):
    return interval(cell)
  return cell if isinstance(cell, str) else _number(cell)


def _table(table: contents.Table) -> dict[str, Any]:
  cells = [[_cell(cell) for cell in row] for row in table.rows]
  return {"title": table.title, "head": list(table.head), "rows": cells, "note": table.note}
