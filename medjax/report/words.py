"""What a run found, in sentences and in tables, the same for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from medjax import contract, figures, metrics, phrases
from medjax import study as study_lib
from medjax.report import contents

SYNTHETIC = "SYNTHETIC DATA: a program drew these images. Nothing here is about real patients."
LEAKY = (
  "LEAKY SPLIT: images of one patient, lesion or source lie in several parts. These figures are too"
  " good; they only serve to be set beside published ones made alike."
)

_AGAINST_A_BASELINE = {  # of `phrases.verdict`
  "better": "is better with",
  "worse": "is worse with",
  "no difference shown": "shows no difference with",
}
_SHOWN = ("sensitivity", "specificity", "ppv", "npv", "f1", "auc")  # of every class, on the page


def warnings(report: contents.Report) -> list[str]:
  """What must be said before any figure."""
  synthetic = any(stage.info.synthetic for stage in report.stages)
  leaky = any(stage.leaky for stage in report.stages)
  return [SYNTHETIC] * synthetic + [LEAKY] * leaky


def cautions(report: contents.Report) -> list[str]:
  """What the parts that were scored are too small for, each sentence once."""
  each = [metrics.cautions(table) for table in report.tables]
  return list(dict.fromkeys(sentence for found in each for sentence in found))


def statement(report: contents.Report) -> tuple[str, list[str]]:
  """What the run found, as one of the verdicts and as sentences, the most important first."""
  bases = list(dict.fromkeys(basis(report, table) for table in report.tables))
  bases += cautions(report)
  if not report.scored:
    return "", ["No stage has a classifier and a test part, so nothing is scored."]
  if report.comparison is not None:
    found, sentence = _outcome(report, report.comparison)
    return found, [f"{sentence}.", *bases]
  if report.study is not None:
    return "", [*_study_outcome(report.study), *_study_terms(report.study), *bases]
  name = report.primary
  values = [(s.name, s.intervals[name]) for s in report.scored if name in s.intervals]
  return "", [f"{s}: {figures.label(name)} {phrases.interval(v)}." for s, v in values] + bases


def _outcome(report: contents.Report, c: contents.Comparison) -> tuple[str, str]:
  """The verdict on the primary metric, and the sentence that says it."""
  d = c.differences[report.primary]
  found = phrases.verdict(report.primary, d)
  size = f"{figures.label(report.primary)} {phrases.difference(d)}, {phrases.p(d)}"
  return found, f"{phrases.outcome(found, c.stage, c.baseline)}: {size}"


def basis(report: contents.Report, table: contract.Predictions) -> str:
  """What the intervals rest on."""
  groups = len(np.unique(table.groups))
  return (
    f"{len(table.ids):,} images of {groups:,} groups, {table.split} part; 95% intervals by"
    f" {report.resamples:,} bootstrap resamples of groups."
  )


def terminal_table(report: contents.Report) -> str:
  """The metrics of every scored stage, with intervals and the paired difference, as text."""
  head, rows = result_table(report)
  table = [["", *head[1:]], *rows]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
  return "\n".join([*lines, "", *statement(report)[1], *warnings(report)]).strip("\n")


def result_table(report: contents.Report) -> tuple[list[str], list[list[str]]]:
  """Head and rows: the arms of a study, or else every metric of every scored stage."""
  if report.study is not None:
    return _study_table(report.study)
  rows = [[figures.label(name), *cells] for name, cells in _metric_rows(report).items()]
  return ["metric", *metric_head(report)], rows


def metric_head(report: contents.Report) -> list[str]:
  """The scored stages, and the difference of two of them."""
  head = [stage.name for stage in report.scored]
  if report.comparison is not None:
    head += [f"{report.comparison.stage} minus {report.comparison.baseline}", ""]
  return head


def _metric_rows(report: contents.Report) -> dict[str, list[str]]:
  """Each metric's cells: an interval for each scored stage, then the paired difference."""
  known = dict.fromkeys(name for stage in report.scored for name in stage.intervals)
  rows = {}
  for name in known:
    found = [stage.intervals.get(name) for stage in report.scored]
    rows[name] = [phrases.interval(each) if each else "" for each in found]
    if report.comparison is not None:
      d = report.comparison.differences.get(name)
      rows[name] += [phrases.difference(d), phrases.verdict(name, d)] if d else ["", ""]
  return rows


def stage_rows(stage: contents.StageReport) -> list[list[str]]:
  """The metrics of one stage, a row each."""
  return [[figures.label(name), phrases.interval(v)] for name, v in stage.intervals.items()]


def _study_table(study: study_lib.Study) -> tuple[list[str], list[list[str]]]:
  cfg = study.cfg
  head = [cfg.columns[0], *study.levels, figures.label(study.metric)]
  head += ["spread"] if cfg.repeats else []
  head += [f"minus {cfg.baseline}", "p", ""] if cfg.baseline else []
  return head, [_study_row(study, found) for found in study.summaries]


def _study_row(study: study_lib.Study, found: study_lib.Summary) -> list[str]:
  mean = f"{found.mean:.3f}" if found.interval is None else phrases.interval(found.interval)
  row = [found.arm, *found.level, mean]
  if study.cfg.repeats:
    row.append("" if found.spread is None else f"{found.spread:.3f} of {len(found.values)}")
  if study.cfg.baseline:
    d = found.difference
    words = (
      (phrases.difference(d), phrases.p_cell(d), phrases.verdict(study.metric, d)) if d else ()
    )
    row += words or ("", "", "")
  return row


def _study_outcome(study: study_lib.Study) -> list[str]:
  """Which arms are better than the baseline, which are worse, and of which neither shows."""
  by_verdict: dict[str, list[str]] = {}
  for found in study.summaries:
    if found.difference is not None:
      name = f"{found.arm} ({', '.join(found.level)})" if found.level else found.arm
      by_verdict.setdefault(phrases.verdict(study.metric, found.difference), []).append(name)
  if not by_verdict:
    return []
  told = [
    f"{words} {', '.join(by_verdict[said])}"
    for said, words in _AGAINST_A_BASELINE.items()
    if said in by_verdict
  ]
  return [f"Against {study.cfg.baseline}, {figures.label(study.metric)} {'; it '.join(told)}."]


def _study_terms(study: study_lib.Study) -> list[str]:
  """What the columns of the study's table mean."""
  cfg, terms = study.cfg, []
  if cfg.pooled:
    terms.append(f"The images of every {cfg.pooled} are put together and scored as one table.")
  if cfg.repeats:
    terms.append(
      f"Values are means over the column {cfg.repeats}, spread is the standard deviation along it;"
      f" intervals are for other patients, not for another {cfg.repeats}."
    )
  if cfg.baseline:
    terms.append(
      f"Differences to {cfg.baseline} are paired on the same images; nothing is corrected for their"
      " number."
    )
  return terms


def class_table(
  stage: contents.StageReport, table: contract.Predictions
) -> tuple[list[str], list[list[str]]]:
  """Head and rows: the rates of each class against the rest, with intervals."""
  images = dict(zip(table.classes, table.members.sum(0).tolist(), strict=True))
  shown = [name for name in _SHOWN if all(name in each for each in stage.per_class.values())]
  rows = [
    [each, f"{images[each]:,}", *(phrases.interval(found[name]) for name in shown)]
    for each, found in stage.per_class.items()
  ]
  return ["class", "images", *map(figures.label, shown)], rows


def footnote(report: contents.Report) -> str:
  """What a reader must know to read the table of metrics."""
  text = "The marked metric was chosen beforehand; nothing is corrected for looking at the others."
  classes = report.tables[-1].classes
  if report.tables[-1].multi_label:
    return (
      f"{text} An image may have several classes, each told from a score of {contract.THRESHOLD:g}"
      " on; means are over the classes that some image here has."
    )
  if len(classes) == 2:
    return f"{text} Sensitivity, AUC and their like are those of {classes[1]}."
  return f"{text} AUC and average precision are means over one-vs-rest problems."


def written(cells: Iterable[contents.Cell]) -> list[str]:
  """The cells of a row as text."""
  return [_written(cell) for cell in cells]


def _written(cell: contents.Cell) -> str:
  if isinstance(cell, metrics.Interval):
    return phrases.interval(cell)
  if isinstance(cell, float):
    return f"{cell:.3f}"
  return cell if isinstance(cell, str) else f"{cell:,}"
