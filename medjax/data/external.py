"""Further test sets: images of the same classes from elsewhere, beside the parts of a set."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib
from medjax.data import metadata, overlap
from medjax.data.datasets import files


def fitting(cfg: settings.Data, info: contract.DataInfo) -> settings.Data:
  """The settings of a further set; a table that names no classes has those of the network."""
  if isinstance(cfg, settings.Table) and not cfg.classes:
    return dataclasses.replace(cfg, classes=info.classes)
  return cfg


def scored(rows: catalogue_lib.Catalogue, cfg: settings.Data) -> np.ndarray:
  """Rows of the test part of a set's own split; of a set that has none, or is dealt anew, all."""
  test = rows.parts == "test"
  official = cfg.split.mode == "official" and test.any()
  return np.flatnonzero(test) if official else np.arange(len(rows))


def relabelled(
  rows: catalogue_lib.Catalogue, info: contract.DataInfo, name: str
) -> catalogue_lib.Catalogue:
  """The set with its classes in the order of the network's.

  Raises:
    ValueError: they are other classes by name, or other kinds of labels.
  """
  if rows.multi_label != info.multi_label:
    kinds = {True: "several classes an image", False: "one class an image"}
    raise ValueError(
      f"eval.tests: {name} has {kinds[rows.multi_label]}, and the network was taught"
      f" {kinds[info.multi_label]}"
    )
  if set(rows.classes) != set(info.classes):
    raise ValueError(
      f"eval.tests: {name} has the classes {', '.join(rows.classes) or 'none'}, and the"
      f" network knows {', '.join(info.classes)}: name them alike. A set that lacks some can be"
      " given as a CSV file (name=table), whose classes are the network's"
    )
  if rows.multi_label:
    labels = rows.labels[:, [rows.classes.index(each) for each in info.classes]]
  else:
    order = np.array([info.classes.index(each) for each in rows.classes], np.int32)
    labels = order[rows.labels]
  return dataclasses.replace(rows, labels=labels, classes=info.classes)


def encoded(rows: catalogue_lib.Catalogue, info: contract.DataInfo, name: str) -> np.ndarray | None:
  """[n, M] metadata as the network was given them, None where it was given none.

  Raises:
    ValueError: the set does not tell them.
  """
  if not info.metadata:
    return None
  encoder = metadata.restored(info.encoding)
  told = {property for record in rows.metadata for property in record}
  if missing := set(encoder.names) - told:
    raise ValueError(
      f"eval.tests: {name} does not tell {', '.join(sorted(missing))}, which the network sees"
      " (model.metadata)"
    )
  return encoder(rows.metadata)


def check_pixels(cfg: settings.Data, ours: settings.Data, name: str) -> None:
  """Raises ValueError where the pixels of a further set are not as those of the stage's."""
  theirs, mine = (
    f"{c.image_size} pixels, {c.channels} channels, {c.reading.depth} bits" for c in (cfg, ours)
  )
  if theirs != mine:
    raise ValueError(
      f"eval.tests: {name} has images of {theirs}, and the network sees {mine}: leave image_size"
      " and channels away there, and give both the same reading.depth"
    )


def leak(
  learnt: overlap.Images, test: overlap.Images, by_name: bool, leaks: str, kept: pathlib.Path
) -> str:
  """What of a further set was learnt from, as a sentence; "" for nothing.

  That are near-duplicates of train and val images, and other images of their patients.

  Args:
    learnt: the train and val images. test: the further set.
    by_name: whether groups of one name are one patient in both.
    leaks: `split.leaks` of the further set. kept: folder in which the audit is kept.

  Raises:
    ValueError: something is, and `leaks` is `refuse`.
  """
  _, seen = overlap.near(learnt, test, kept)
  if by_name:
    patients = {learnt.rows.groups[row] for row in learnt.own}
    own = [row for row in test.own if _patient(test.rows, row) in patients]
    seen = np.union1d(seen, np.array(own, int))
  if not len(seen):
    return ""
  found = (
    f"{len(seen):,} of the {len(test.own):,} images of {test.name} were learnt from, or are of"
    " patients who were: the train or val part shows them too, such as"
    f" {files.some([test.rows.ids[row] for row in seen])}"
  )
  if leaks == "refuse":
    raise ValueError(
      f"eval.tests: {found}. Scores on them would be too good: take them out of {test.name}, or go"
      " on with every output stamped leaky: give the set split=dict(leaks='stamp')"
    )
  return f"LEAKY: {found}"


def _patient(rows: catalogue_lib.Catalogue, row: int) -> str | None:
  """The group of an image, None where the image is its own."""
  return None if rows.groups[row] == rows.ids[row] else rows.groups[row]


def added(
  found: catalogue_lib.Splits, part: catalogue_lib.Part, leak: str, synthetic: bool, unreadable: int
) -> catalogue_lib.Splits:
  """The set with a further part, and what is to be told of it.

  Args:
    found: the set. part: the further one. leak: from `leak`. synthetic: whether a program drew its
      images. unreadable: how many of its files could not be read.
  """
  left = f"{unreadable} unreadable files of {part.name} are left out" if unreadable else ""
  drawn = f"SYNTHETIC: a program drew the images of {part.name}" if synthetic else ""
  census = found.census
  if census is not None:
    told = {f"images of {part.name} that were learnt from": leak or "none"}
    census = dataclasses.replace(census, checks={**census.checks, **told})
  return dataclasses.replace(
    found,
    parts={**found.parts, part.name: part},
    leaky=found.leaky or bool(leak),
    table=f"{found.table}\n{_line(part, found.info.classes)}",
    census=census,
    notes=(*found.notes, *(note for note in (left, drawn, leak) if note)),
  )


def _line(part: catalogue_lib.Part, classes: tuple[str, ...]) -> str:
  members = contract.members(part.labels, len(classes)).sum(axis=0)
  counts = ", ".join(f"{name} {count:,}" for name, count in zip(classes, members, strict=True))
  groups = len(np.unique(part.groups))
  return f"{part.name}, a further test set: {len(part):,} images of {groups:,} groups: {counts}"
