"""The tables of a report that break its numbers down: by groups, by subgroups, by what was lost.

They are made of tables of predictions alone, so that scoring a stage again makes them again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import pathlib

import numpy as np

from medjax import contract, figures, metrics, phrases, probing, report, settings
from medjax.data import catalogue
from medjax.metrics import pooling, subgroups
from medjax.report import contents


def tables(
  cfg: settings.Eval, table: contract.Predictions, folder: pathlib.Path, seed: int
) -> list[report.Table]:
  """What `cfg` asks for of the test part.

  Args:
    cfg: evaluation of the stage. table: its predictions. folder: of the stage, with those of its
      probes. seed: of the bootstrap.

  Raises:
    KeyError, ValueError: a column is not there, or images cannot be pooled.
  """
  return [
    *_levels(cfg, table, seed),
    *_subgroups(cfg, table, seed),
    *_probes(cfg, table, folder, seed),
  ]


def check(stage: settings.Stage, splits: catalogue.Splits) -> None:
  """Raises KeyError or ValueError before a training for what would fail after it."""
  cfg, part = stage.eval, splits.parts.get("test")
  network = not isinstance(stage.objective, settings.Classical)
  if not network and (cfg.probes or cfg.augment):
    raise ValueError(
      f"stage {stage.name!r}: eval.probes and eval.augment need a network, and"
      " objective=classical has none: leave them empty there"
    )
  if cfg.augment and stage.augment == settings.Augment(name=stage.augment.name):
    raise ValueError(
      f"stage {stage.name!r}: eval.augment={cfg.augment} draws views by stage.augment, which"
      " changes nothing: choose another, such as augment=cxr_safe, or leave eval.augment at 0"
    )
  if cfg.probes:
    _check_probes(stage, splits.info)
  if part is None or not splits.info.classes:
    return
  scores = np.full((len(part), len(splits.info.classes)), 1 / len(splits.info.classes))
  table = contract.Predictions(
    part.ids, part.groups, part.name, part.labels, scores, splits.info.classes, part.facts
  )
  for column in cfg.subgroups:
    pooling.column(table, column)
  if cfg.pool:
    pooling.pooled(table, cfg.pool, cfg.pool_by or pooling.GROUP)


def _check_probes(stage: settings.Stage, info: contract.DataInfo) -> None:
  """Raises ValueError for probes of which the metadata make nothing."""
  asked = probing.METADATA in stage.eval.probes
  given = stage.model.metadata != "none" or isinstance(stage.model, settings.MetadataMLP)
  sees = bool(given and info.metadata)
  if asked and not sees:
    raise ValueError(
      f"stage {stage.name!r}: eval.probes has metadata, and {stage.model.name} sees none: leave it"
      " out, or set model.metadata"
    )
  if sees and not asked:
    raise ValueError(
      f"stage {stage.name!r}: {stage.model.name} sees metadata, by which it may score images that"
      " have lost everything: add metadata to eval.probes"
    )


def _wanted(cfg: settings.Eval, table: contract.Predictions) -> tuple[str, ...]:
  """The few metrics that are broken down, the primary one first."""
  if table.multi_label:
    rest: tuple[str, ...] = ("macro_sensitivity", "macro_specificity")
  elif len(table.classes) == 2:
    rest = ("sensitivity", "specificity")
  else:
    rest = ("balanced_accuracy", "macro_specificity")
  return tuple(dict.fromkeys((cfg.select, probing.SCORE, *rest)))


def _levels(cfg: settings.Eval, table: contract.Predictions, seed: int) -> Iterator[report.Table]:
  """The metrics of images beside those of what their scores are pooled to."""
  if not cfg.pool:
    return
  names = report.names(len(table.classes), cfg.select, table.multi_label)
  both = {"images": table, "pooled": pooling.pooled(table, cfg.pool, cfg.pool_by or pooling.GROUP)}
  found = [metrics.intervals(each, names, cfg.bootstrap, seed) for each in both.values()]
  what = cfg.pool_by or "group"
  yield report.Table(
    title=f"Images and each {what} as one",
    head=["", *(f"{len(each):,} {name}" for name, each in both.items())],
    rows=[[figures.label(name), *(each[name] for each in found)] for name in names],
    note=f"Pooled: the scores of the images of one {what} by their {cfg.pool.replace('_', '-')}.",
  )


def _subgroups(
  cfg: settings.Eval, table: contract.Predictions, seed: int
) -> Iterator[report.Table]:
  wanted = _wanted(cfg, table)
  for column in cfg.subgroups:
    found = subgroups.of(table, column, wanted, cfg.bootstrap, seed)
    yield report.Table(
      title=f"By {column.replace('_', ' ')}",
      head=["", "images", "groups", *_counted(table), *map(figures.label, wanted)],
      rows=[_subgroup(each, wanted, table) for each in found],
      note=" ".join([*_small(found), _LOOKED]),
    )


_LACK = "Means are over the classes that a part has an image of, which are not all in every part."
_LOOKED = (
  "Intervals of parts of the patients are wide, and of many parts some differ by chance: nothing"
  " here is corrected for looking at several."
)


def _counted(table: contract.Predictions) -> list[str]:
  """The class whose images are counted, where it is one."""
  return [table.classes[1]] if len(table.classes) == 2 and not table.multi_label else []


def _subgroup(
  found: subgroups.Subgroup, wanted: Sequence[str], table: contract.Predictions
) -> list[contents.Cell]:
  counts = [int(found.counts[1]) for _ in _counted(table)]
  scores = [found.intervals.get(name, "too few images") for name in wanted]
  return [found.value, found.images, found.groups, *counts, *scores]


def _small(found: Sequence[subgroups.Subgroup]) -> list[str]:
  """Which of them are too small to be scored, or for the width of their intervals."""
  least, few = subgroups.LEAST, metrics.FEW_GROUPS
  none = [each.value for each in found if not each.intervals]
  narrow = [each.value for each in found if each.intervals and each.groups < few]
  lack = any((each.counts == 0).any() for each in found if each.intervals)
  said = [_LACK] * lack
  said += [f"Below {least} images, not scored: {', '.join(none)}."] * bool(none)
  text = f"Below {few} groups, where 95% intervals come out too narrow: {', '.join(narrow)}."
  return said + [text] * bool(narrow)


def _probes(
  cfg: settings.Eval, table: contract.Predictions, folder: pathlib.Path, seed: int
) -> Iterator[report.Table]:
  if not cfg.probes:
    return
  wanted = tuple(dict.fromkeys((probing.SCORE, cfg.select)))
  plain = metrics.intervals(table, wanted, cfg.bootstrap, seed)
  found = probing.of(probing.read(folder, cfg), table, wanted, cfg.bootstrap, seed)
  first: list[contents.Cell] = ["the images as they are"]
  for name in wanted:
    first += [plain[name], ""]
  yield report.Table(
    title="What the network goes by",
    head=["", *(text for name in wanted for text in (figures.label(name), "change"))],
    rows=[first, *(_probe(each, wanted) for each in found)],
    note=" ".join(probing.said(found)),
  )


def _probe(found: probing.Probe, wanted: Sequence[str]) -> list[contents.Cell]:
  row: list[contents.Cell] = [probing.WHAT[found.name]]
  for name in wanted:
    change = found.differences[name]
    row += [found.intervals[name], f"{phrases.difference(change)}, {phrases.p(change)}"]
  return row
