"""The report as a page: `report.html`, in one file, with its figures as files beside it."""

from __future__ import annotations

import json
import operator
import pathlib
import re

import numpy as np

from medjax import contract, figures, metrics, page
from medjax import study as study_lib
from medjax.report import card, contents, examples, flow, words

_WORDY = 40  # characters of a cell from which on the lines of its table are wrapped


def write(path: pathlib.Path, report: contents.Report) -> pathlib.Path:
  """Writes the page to `path` and its figures to `figures/` beside it."""
  sheet = page.Page(report.title or "medjax run", path)
  for warning in words.warnings(report):
    sheet.text(warning, class_="banner")
  anchors = {f"stage-{i}": stage.name for i, stage in enumerate(report.stages, 1)}
  cards = {"card": "Model card"} if report.scored else {}
  sheet.links({"result": "Result", **anchors, **cards, "setup": "How it was made"})
  _write_result(sheet, report)
  for (anchor, title), stage in zip(anchors.items(), report.stages, strict=True):
    sheet.section(f"Stage {title}", anchor)
    _write_stage(sheet, report, stage, f"{anchor.removeprefix('stage-')}_{_slug(title)}")
  if report.scored:
    _write_card(sheet, report)
  _write_setup(sheet, report)
  return sheet.write()


def _slug(name: str) -> str:
  return re.sub(r"[^\w-]+", "_", name)


def _write_result(sheet: page.Page, report: contents.Report) -> None:
  sheet.section("Result", "result")
  if report.question:
    sheet.text(report.question, class_="question")
  found, sentences = words.statement(report)
  sheet.headline(sentences, found if found in ("better", "worse") else "")
  if report.comparison is not None:
    drawing = figures.differences(report.comparison.differences)
    left_out = ", ".join(map(figures.label, sorted(figures.UNBOUNDED)))
    caption = f"{words.metric_head(report)[-2]}, paired on the same images, 95% intervals."
    caption += f" Not drawn: {left_out}, of another scale."
    sheet.figures([("differences", caption, page.png(drawing))], "one")
  if report.study is not None:
    drawing, caption = study_lib.plot(report.study), "Means, 95% intervals, a dot for each repeat."
    sheet.figures([("study", caption, page.png(drawing))], "one")
  if report.scored:
    sheet.table(*words.result_table(report), figures.label(report.primary))
    if report.study is None:  # which has but one metric
      sheet.text(words.footnote(report), class_="soft")


def _write_stage(
  sheet: page.Page, report: contents.Report, stage: contents.StageReport, prefix: str
) -> None:
  _write_images(sheet, report, stage, prefix)
  if stage.history:
    _write_training(sheet, report, stage, prefix)
  if stage.predictions is not None:
    _write_scores(sheet, report, stage, stage.predictions)
    if report.study is None:  # which has too many stages for it
      _write_curves(sheet, stage.predictions, prefix)
    _write_more(sheet, stage, prefix)
    if stage.gallery is not None:
      _write_pictures(sheet, stage.gallery, stage.predictions)


def _write_images(
  sheet: page.Page, report: contents.Report, stage: contents.StageReport, prefix: str
) -> None:
  """Where the images come from and go to, and what was looked for between the parts."""
  sheet.heading("Images")
  if like := _alike(report, stage):
    sheet.text(f"As in stage {like}, from the images found to the leaks between parts.")
    return
  if stage.flow.main and report.study is None:
    drawn = (f"{prefix}_flow", "Images from found to tested.", page.png(flow.draw(stage.flow)))
    sheet.figures([drawn], "one", alt=flow.told(stage.flow))
  sheet.code(stage.counts)
  told = stage.checks.values()
  sheet.list([note for note in stage.notes if note not in told])
  if stage.checks:
    sheet.heading("Leaks between parts")
    sheet.table(["looked for", "found"], stage.checks.items(), class_="prose")


def _alike(report: contents.Report, stage: contents.StageReport) -> str:
  """Name of the first stage of a study of which all that is told of its images is the same."""
  told = operator.attrgetter("counts", "notes", "checks")
  first = next(other for other in report.stages if told(other) == told(stage))
  return "" if report.study is None or first is stage else first.name


def _write_training(
  sheet: page.Page, report: contents.Report, stage: contents.StageReport, prefix: str
) -> None:
  sheet.heading("Training")
  drawn = figures.training_curves(stage.history, (report.primary, "macro_f1", "auc"))
  sheet.figures(
    [
      (f"{prefix}_{_slug(title)}", f"{title}, {stage.name}", page.png(drawing))
      for title, drawing in drawn.items()
    ],
    "figures small",
  )


def _write_scores(
  sheet: page.Page,
  report: contents.Report,
  stage: contents.StageReport,
  table: contract.Predictions,
) -> None:
  sheet.heading(f"Scores on the {table.split} part")
  sheet.text(words.basis(report, table), class_="soft")
  if absent := metrics.absent_classes(table):
    sheet.text(f"Without an image here, and left out of every mean: {', '.join(absent)}.")
  if stage.per_class:
    sheet.table(*words.class_table(stage, table))
  elif report.study is not None:
    sheet.table(["metric", "value"], words.stage_rows(stage))


def _write_curves(sheet: page.Page, table: contract.Predictions, prefix: str) -> None:
  drawn = {
    "confusion": ("Images, and their share of each true class.", figures.confusion_matrix(table)),
    "roc": ("ROC curve. Dotted: chance.", figures.roc(table)),
    "precision_recall": ("Precision and recall. Dotted: chance.", figures.precision_recall(table)),
    "calibration": (
      "Calibration. Dotted: scores that keep their word.",
      figures.calibration(table),
    ),
  }
  sheet.figures([(f"{prefix}_{name}", text, page.png(d)) for name, (text, d) in drawn.items()])


def _write_more(sheet: page.Page, stage: contents.StageReport, prefix: str) -> None:
  for table in stage.tables:
    sheet.heading(table.title)
    rows = [words.written(row) for row in table.rows]
    wordy = any(len(cell) > _WORDY for row in rows for cell in row)
    sheet.table(table.head, rows, class_="prose" if wordy else "")
    if table.note:
      sheet.text(table.note, class_="soft")
  sheet.figures([(f"{prefix}_{_slug(d.name)}", d.caption, d.png) for d in stage.drawings])


def _write_pictures(
  sheet: page.Page, gallery: contents.Gallery, table: contract.Predictions
) -> None:
  rows, shown = np.asarray(gallery.rows, int), gallery.pictures
  if gallery.overlays is not None:
    shown = _beside(shown, gallery.overlays)
  right = ~examples.wrong(table)[rows]
  kinds = (("Worst mistakes", "wrong", ~right), ("Surest right ones", "", right))
  for title, class_, chosen in kinds:
    sheet.heading(title)
    if not chosen.any():
      sheet.text("None among the images shown.")
    sheet.pictures(
      (
        (shown[i], str(table.ids[rows[i]]), examples.caption(table, rows[i]))
        for i in np.flatnonzero(chosen)
      ),
      class_ if gallery.overlays is None else f"{class_} wide",
    )
  if gallery.note:
    sheet.text(gallery.note, class_="soft")


def _beside(pictures: np.ndarray, overlays: np.ndarray) -> np.ndarray:
  """Each picture [n, H, W, C] and to its right the same under its map, [n, H, 2 W, 3]."""
  coloured = np.broadcast_to(pictures, overlays.shape)
  return np.concatenate([coloured, overlays], axis=2)


def _write_card(sheet: page.Page, report: contents.Report) -> None:
  """The card of the last scored stage, which a workdir stands for as a model."""
  stage = report.scored[-1]
  sheet.section("Model card", "card")
  sheet.text(f"Of stage {stage.name}, the network that this folder stands for.", class_="soft")
  for heading, lines in card.sections(report, stage).items():
    sheet.heading(heading)
    sheet.list(lines)


def _write_setup(sheet: page.Page, report: contents.Report) -> None:
  sheet.section("How it was made", "setup")
  if report.command:
    sheet.code(report.command)
  sheet.table(["what", "version"], report.environment.items())
  hashes = [[what, digits] for what, digits in report.hashes.items()]
  hashes += [
    [f"{s.name}, {what}", digits] for s in report.stages for what, digits in s.hashes.items()
  ]
  if hashes:
    sheet.heading("SHA-256")
    sheet.table(["of", "is"], hashes)
  if report.settings:
    sheet.code(json.dumps(report.settings, indent=2), summary="Settings, all of them")
