"""What a report shows of further test sets, of calibration and of operating points.

It is made of tables of predictions and of what lies beside them alone, so that scoring a stage
again shows the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import pathlib

import numpy as np

from medjax import contract, figures, metrics, page, phrases, report, settings
from medjax.metrics import calibration, operating, prevalence, thresholds
from medjax.report import contents

_CHOSEN_BY = "val"  # the checkpoint was: what is shown is of the others
_RATES = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}

Scored = Mapping[str, contract.Predictions]


def tables(
  cfg: settings.Eval, scored: Scored, folder: pathlib.Path, seed: int
) -> list[report.Table]:
  """Further test sets; calibration, operating points and other prevalences on all parts but val.

  Args:
    cfg: evaluation of the stage. scored: part -> predictions, from `points.settled`.
    folder: of the stage. seed: of the bootstrap.
  """
  used, shown = operating.read(folder), {p: t for p, t in scored.items() if p != _CHOSEN_BY}
  found = [*_further(cfg, shown, seed)]
  for table in shown.values():
    found += [*_calibration(cfg, used, table, seed), *_operating(cfg, used, table, seed)]
    found += _elsewhere(cfg, table, seed)
  return found


def drawings(scored: Scored) -> list[report.Drawing]:
  """Confusion matrix, ROC curve and calibration of every further test set."""
  kinds = {
    "confusion": ("images, and their share of each true class", figures.confusion_matrix),
    "roc": ("ROC curve", figures.roc),
    "calibration": ("calibration", figures.calibration),
  }
  return [
    report.Drawing(f"{name}_{part}", f"{part}: {what}.", page.png(draw(table)))
    for part, table in scored.items()
    if part not in contract.PARTS
    for name, (what, draw) in kinds.items()
  ]


def _further(cfg: settings.Eval, shown: Scored, seed: int) -> Iterator[report.Table]:
  """The metrics of further test sets beside those of the test part."""
  if not set(shown) - set(contract.PARTS):
    return
  first = next(iter(shown.values()))
  names = report.names(len(first.classes), cfg.select, first.multi_label)
  found = [metrics.intervals(table, names, cfg.bootstrap, seed) for table in shown.values()]
  absent = {part: metrics.absent_classes(table) for part, table in shown.items()}
  yield report.Table(
    title="Further test sets",
    head=["", *(f"{part}: {_size(table)}" for part, table in shown.items())],
    rows=[[figures.label(name), *(each[name] for each in found)] for name in names],
    note=" ".join(
      f"{part} has no image of {', '.join(classes)}, which its means leave out."
      for part, classes in absent.items()
      if classes
    ),
  )


def _size(table: contract.Predictions) -> str:
  return f"{len(table):,} images of {len(np.unique(table.groups)):,} groups"


def _calibration(
  cfg: settings.Eval, used: operating.Operating, table: contract.Predictions, seed: int
) -> Iterator[report.Table]:
  warm = used.temperature
  if warm is None or warm.part == table.split:
    return
  before = warm.undone(table)
  wanted = calibration.SHOWN
  was, now = (metrics.intervals(each, wanted, cfg.bootstrap, seed) for each in (before, table))
  change = metrics.paired(table, before, wanted, cfg.bootstrap, seed)
  yield report.Table(
    title=f"Calibration on {_named(table)}, before and after a temperature",
    head=["", "before", "after", "after minus before"],
    rows=[
      [
        figures.label(name),
        was[name],
        now[name],
        f"{phrases.difference(change[name])}, {phrases.p(change[name])}",
      ]
      for name in wanted
    ],
    note=f"The temperature, {warm.value:.3g}, was fitted on the {warm.part} part (Guo et al. 2017)."
    " All other figures are of the scores after it. Lower is better in every row."
    + f" {warm.note}".rstrip(),
  )


def _operating(
  cfg: settings.Eval, used: operating.Operating, table: contract.Predictions, seed: int
) -> Iterator[report.Table]:
  used_here = [each for each in used.thresholds if each.part != table.split]
  head = ["class", "chosen for", "score from", *_RATES.values()]
  if used_here or used.notes:
    yield report.Table(
      title=f"Operating points on {_named(table)}",
      head=head,
      rows=[_over_groups(each, table, cfg.bootstrap, seed) for each in used_here] or [_NONE],
      note=" ".join([*(f"{note}." for note in used.notes), _PREVALENCE]),
    )
  if used_here:
    yield report.Table(
      title=f"Operating points on {_named(table)}, image by image",
      head=head,
      rows=[_one_by_one(each, table) for each in used_here],
      note="Images, and 95% intervals by Wilson, which take images as independent: too narrow where"
      " a group has several.",
    )


_NONE: list[contents.Cell] = ["none", *[""] * (2 + len(_RATES))]
_PREVALENCE = (
  "PPV and NPV hold at the prevalence of this part, and a threshold chosen for PPV or cost at that"
  " of the part it was chosen on."
)


def _point(point: thresholds.Threshold) -> list[contents.Cell]:
  return [point.positive, f"{point.criterion} on {point.part}", f"{point.value:.4g}"]


def _over_groups(
  point: thresholds.Threshold, table: contract.Predictions, resamples: int, seed: int
) -> list[contents.Cell]:
  found = thresholds.scored(point, table, resamples, seed)
  return [*_point(point), *(found[name] for name in _RATES)]


def _one_by_one(point: thresholds.Threshold, table: contract.Predictions) -> list[contents.Cell]:
  decided = point.decided(table)
  wilson, of = metrics.wilson(decided), _counts(decided)
  bounds = {name: wilson[name][1] for name in _RATES}
  return [
    *_point(point),
    *(f"{of[name]}: {each.low:.3f} to {each.high:.3f}" for name, each in bounds.items()),
  ]


def _counts(decided: contract.Predictions) -> dict[str, str]:
  """Rate -> the images that it is of, such as `18 of 20`."""
  truth, given = decided.labels == 1, decided.predicted == 1
  among = {"sensitivity": truth, "specificity": ~truth, "ppv": given, "npv": ~given}
  right = truth == given
  return {name: f"{(right & own).sum():,} of {own.sum():,}" for name, own in among.items()}


def _named(table: contract.Predictions) -> str:
  return f"the {table.split} part" if table.split in contract.PARTS else table.split


def _elsewhere(
  cfg: settings.Eval, table: contract.Predictions, seed: int
) -> Iterator[report.Table]:
  """PPV and NPV where classes are as frequent as `eval.prevalence` says."""
  if not cfg.prevalence:
    return
  found = prevalence.intervals(table, cfg.prevalence, cfg.bootstrap, seed)
  here = table.members.mean(axis=0).tolist()
  yield report.Table(
    title=f"PPV and NPV at another prevalence than on {_named(table)}",
    head=["class", "prevalence here", "stated", "PPV", "NPV"],
    rows=[
      [name, f"{here[c]:.3f}", f"{cfg.prevalence[c]:.3f}", found["ppv"][c], found["npv"][c]]
      for c, name in enumerate(table.classes)
    ],
    note="By sensitivity and specificity as they are here. What else is different there, such as"
    " milder disease, is not in it.",
  )
