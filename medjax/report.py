"""The report of a run: what it found, with intervals, as a page and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.metadata
import os
import pathlib
import platform
import re
from typing import Any

import jax
import numpy as np

from medjax import contract, figures, metrics, page, phrases, rates
from medjax import study as study_lib

SYNTHETIC = "SYNTHETIC DATA: a program drew these images. Nothing here is about real patients."
LEAKY = (
  "LEAKY SPLIT: images of one patient, lesion or source lie in several parts. These figures are too"
  " good; they only serve to be set beside published ones made alike."
)
_FEW_GROUPS = 20
_PACKAGES = ("medjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@dataclasses.dataclass(frozen=True)
class StageReport:
  """One stage of a run.

  Attributes:
    name: of the stage. info: of its data.
    counts: table of images and groups by part and class, as text.
    history: rows of its `metrics.jsonl`.
    predictions: of its test part; None where the stage has no classifier.
    intervals: of those predictions, from `metrics.intervals`, for the metrics in `names`.
    pictures: [n, H, W, C] uint8 images out of the test part.
    picture_rows: [n] the row of `predictions` that each picture is; see `pick`.
    leaky: whether the split cut through groups.
    notes: remarks, a sentence each.
  """

  name: str
  info: contract.DataInfo
  counts: str
  history: Sequence[Mapping[str, Any]] = ()
  predictions: contract.Predictions | None = None
  intervals: Mapping[str, metrics.Interval] = dataclasses.field(default_factory=dict)
  pictures: np.ndarray | None = None
  picture_rows: Sequence[int] = ()
  leaky: bool = False
  notes: Sequence[str] = ()


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
    title: of the experiment. stages: in order.
    primary: the metric that was chosen beforehand to say whether it helped.
    resamples: behind every interval.
    comparison: from `compare`. study: of many stages; it stands in place of their details.
    settings: the resolved config, as text. command: that started the run.
    environment: what it ran on, from `environment`.
  """

  title: str
  stages: Sequence[StageReport]
  primary: str
  resamples: int
  comparison: Comparison | None = None
  study: study_lib.Study | None = None
  settings: str = ""
  command: str = ""
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

  @property
  def scored(self) -> list[StageReport]:
    """The stages that have predictions."""
    return [stage for stage in self.stages if stage.predictions is not None]

  @property
  def tables(self) -> list[contract.Predictions]:
    """Their predictions."""
    return [stage.predictions for stage in self.stages if stage.predictions is not None]


def environment() -> dict[str, str]:
  """Versions of Python and of the packages that results depend on, the machine and its devices."""
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "from source, not installed"
  devices = jax.devices()
  found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
  found["devices"] = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
  return found


def pick(table: contract.Predictions, each: int = 8) -> np.ndarray:
  """Rows of up to `each` mistakes, worst first, then of as many right ones, surest first."""
  denied = 1 - table.scores if table.multi_label else np.inf  # of a class that is not there
  of_truth = np.where(table.members, table.scores, denied).min(axis=1)
  order = np.argsort(of_truth, kind="stable")
  wrong = _wrong(table)[order]
  return np.concatenate([order[wrong][:each], order[~wrong][::-1][:each]])


def _wrong(table: contract.Predictions) -> np.ndarray:
  """[n] bool, which images were given other classes than they have."""
  return (table.assigned != table.members).any(axis=1)


def names(classes: int, primary: str, multi_label: bool = False) -> tuple[str, ...]:
  """The metrics that a report shows, the primary one first.

  Of two classes it leaves out the averages of two rates that are both shown.
  """
  averages = {"macro_specificity", "macro_ppv", "macro_npv", "ovr_balanced", "weighted_f1"}
  both_shown = averages if classes == 2 and not multi_label else set()
  rest = (n for n in metrics.names(classes, multi_label) if n not in both_shown)
  return tuple(dict.fromkeys((primary, *rest)))


def compare(
  stage: StageReport, baseline: StageReport, wanted: Sequence[str], resamples: int, seed: int
) -> Comparison:
  """The paired comparison of two scored stages; raises ValueError unless of the same images."""
  if stage.predictions is None or baseline.predictions is None:
    raise ValueError(
      f"{stage.name!r} and {baseline.name!r} cannot be compared: both need predictions"
    )
  found = metrics.paired(stage.predictions, baseline.predictions, wanted, resamples, seed)
  return Comparison(stage.name, baseline.name, found)


# Words and numbers.


def _outcome(report: Report) -> tuple[str, str]:
  """The verdict on the primary metric, and the sentence that says it."""
  c = report.comparison
  assert c is not None
  d = c.differences[report.primary]
  found = phrases.verdict(report.primary, d)
  words = {
    "better": f"{c.stage} is better than {c.baseline}",
    "worse": f"{c.stage} is worse than {c.baseline}",
    "no difference shown": f"No difference shown between {c.stage} and {c.baseline}",
  }
  size = f"{phrases.difference(d)}, {phrases.p(d)}"
  return found, f"{words[found]}: {figures.label(report.primary)} {size}"


def _basis(report: Report, table: contract.Predictions) -> str:
  """What the intervals rest on."""
  groups = len(np.unique(table.groups))
  text = (
    f"{len(table.ids):,} images of {groups:,} groups, {table.split} part; 95% intervals by"
    f" {report.resamples:,} bootstrap resamples of groups"
  )
  return f"{text}. So few groups make them too narrow." if groups < _FEW_GROUPS else f"{text}."


def _metric_rows(report: Report) -> dict[str, list[str]]:
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


def _metric_head(report: Report) -> list[str]:
  head = [stage.name for stage in report.scored]
  if report.comparison is not None:
    head += [f"{report.comparison.stage} minus {report.comparison.baseline}", ""]
  return head


def _statement(report: Report) -> tuple[str, list[str]]:
  """What the run found, as one of the verdicts and as sentences, the most important first."""
  bases = list(dict.fromkeys(_basis(report, table) for table in report.tables))
  if not report.scored:
    return "", ["No stage has a classifier and a test part, so nothing is scored."]
  if report.comparison is not None:
    found, outcome = _outcome(report)
    return found, [f"{outcome}.", *bases]
  if report.study is not None:
    return "", [*_study_terms(report.study), *bases]
  name = report.primary
  values = [(s.name, s.intervals[name]) for s in report.scored if name in s.intervals]
  return "", [f"{s}: {figures.label(name)} {phrases.interval(v)}." for s, v in values] + bases


def terminal_table(report: Report) -> str:
  """The metrics of every scored stage, with intervals and the paired difference, as text."""
  head, rows = _result_table(report)
  table = [["", *head[1:]], *rows]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
  return "\n".join([*lines, "", *_statement(report)[1], *_warnings(report)]).strip("\n")


def _result_table(report: Report) -> tuple[list[str], list[list[str]]]:
  """Head and rows: the arms of a study, or else every metric of every scored stage."""
  if report.study is not None:
    return _study_table(report.study)
  rows = [[figures.label(name), *cells] for name, cells in _metric_rows(report).items()]
  return ["metric", *_metric_head(report)], rows


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
    words = (phrases.difference(d), f"{d.p:.3f}", phrases.verdict(study.metric, d)) if d else ()
    row += words or ("", "", "")
  return row


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


def _warnings(report: Report) -> list[str]:
  """What must be said before any figure."""
  synthetic = any(stage.info.synthetic for stage in report.stages)
  leaky = any(stage.leaky for stage in report.stages)
  return [SYNTHETIC] * synthetic + [LEAKY] * leaky


# The page.


def write(path: pathlib.Path, report: Report) -> pathlib.Path:
  """Writes the page to `path` and its figures to `figures/` beside it."""
  sheet = page.Page(report.title or "medjax run", path)
  for warning in _warnings(report):
    sheet.text(warning, class_="banner")
  anchors = {f"stage-{i}": stage.name for i, stage in enumerate(report.stages, 1)}
  sheet.links({"result": "Result", **anchors, "setup": "How it was made"})
  _write_result(sheet, report)
  for (anchor, title), stage in zip(anchors.items(), report.stages, strict=True):
    sheet.section(f"Stage {title}", anchor)
    _write_stage(sheet, report, stage, f"{anchor.removeprefix('stage-')}_{_slug(title)}")
  _write_setup(sheet, report)
  return sheet.write()


def _slug(name: str) -> str:
  return re.sub(r"[^\w-]+", "_", name)


def _write_result(sheet: page.Page, report: Report) -> None:
  sheet.section("Result", "result")
  found, sentences = _statement(report)
  sheet.headline(sentences, found if found in ("better", "worse") else "")
  if report.comparison is not None:
    drawing = figures.differences(report.comparison.differences)
    caption = f"{_metric_head(report)[-2]}, paired on the same images, 95% intervals."
    sheet.figures([("differences", caption, drawing)], "one")
  if report.study is not None:
    drawing, caption = study_lib.plot(report.study), "Means, 95% intervals, a dot for each repeat."
    sheet.figures([("study", caption, drawing)], "one")
  if report.scored:
    sheet.table(*_result_table(report), figures.label(report.primary))
    sheet.text(_footnote(report), class_="soft")


def _footnote(report: Report) -> str:
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


def _write_stage(sheet: page.Page, report: Report, stage: StageReport, prefix: str) -> None:
  for note in stage.notes:
    sheet.text(note)
  sheet.heading("Images")
  sheet.code(stage.counts)
  if stage.history:
    sheet.heading("Training")
    select = (report.primary, "macro_f1", "auc")
    drawn = figures.training_curves(stage.history, select)
    named = [
      (f"{prefix}_{_slug(title)}", f"{title}, {stage.name}", d) for title, d in drawn.items()
    ]
    sheet.figures(named, "figures small")
  if stage.predictions is not None:
    _write_scores(sheet, report, stage.predictions)
    if report.study is None:  # which has too many stages for it
      _write_curves(sheet, stage.predictions, prefix)
    _write_pictures(sheet, stage, stage.predictions)


def _write_scores(sheet: page.Page, report: Report, table: contract.Predictions) -> None:
  sheet.heading(f"Scores on the {table.split} part")
  sheet.text(_basis(report, table), class_="soft")
  if absent := metrics.absent_classes(table):
    sheet.text(f"Without an image here, and left out of every mean: {', '.join(absent)}.")
  sheet.table(["class", "images", *_PER_CLASS], _class_rows(table))


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
  sheet.figures([(f"{prefix}_{name}", *each) for name, each in drawn.items()])


_PER_CLASS = {
  "sensitivity": rates.sensitivity,
  "specificity": rates.specificity,
  "PPV": rates.ppv,
  "NPV": rates.npv,
  "F1": rates.f_beta,
  "accuracy": rates.ovr_accuracy,
}


def _class_rows(table: contract.Predictions) -> list[list[str]]:
  matrix = rates.decisions(table.members, table.assigned, np.ones(len(table.ids)))
  columns = [rates.of_class(rate(matrix), 1) for rate in _PER_CLASS.values()]
  return [
    [name, f"{table.members[:, c].sum():,}"]
    + [f"{rate.value[c]:.3f}" if rate.defined[c] else "does not exist" for rate in columns]
    for c, name in enumerate(table.classes)
  ]


def _write_pictures(sheet: page.Page, stage: StageReport, table: contract.Predictions) -> None:
  if stage.pictures is None:
    return
  rows = np.asarray(stage.picture_rows, int)
  right = ~_wrong(table)[rows]
  kinds = (("Worst mistakes", "wrong", ~right), ("Surest right ones", "", right))
  for title, class_, chosen in kinds:
    sheet.heading(title)
    if not chosen.any():
      sheet.text("None among the images shown.")
    pairs = zip(stage.pictures[chosen], rows[chosen], strict=True)
    sheet.pictures(((p, str(table.ids[r]), _caption(table, r)) for p, r in pairs), class_)


def _caption(table: contract.Predictions, row: int) -> list[str]:
  truth, guess = (np.flatnonzero(each[row]) for each in (table.members, table.assigned))
  guessed = [f"{table.classes[c]} {table.scores[row, c]:.2f}" for c in guess]
  return [
    f"truth {', '.join(table.classes[c] for c in truth) or 'none'}",
    f"predicted {', '.join(guessed) or 'none'}",
  ]


def _write_setup(sheet: page.Page, report: Report) -> None:
  sheet.section("How it was made", "setup")
  if report.command:
    sheet.code(report.command)
  sheet.table(["what", "version"], report.environment.items())
  if report.settings:
    sheet.code(report.settings, summary="Settings, all of them")
