"""A CSV with one row an image; paths are relative to the CSV."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import csv
import dataclasses
import os
import pathlib
from typing import Any

import numpy as np

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib
from medjax.data import metadata
from medjax.data.datasets import files, patients


def catalogue(cfg: settings.Table) -> catalogue_lib.Catalogue:
  """Reads the CSV that `cfg.root` names.

  Without a column of parts none are given; without a column of groups every image is its own. A
  column that the config names otherwise than by default must be there. Classes are `cfg.classes`,
  or else the labels of the training part, sorted. Ids are paths relative to the CSV.

  Raises:
    FileNotFoundError: no such CSV, or images that it names.
    KeyError: a column that is not there.
    ValueError: with line numbers: blank cells, two rows for one path, unknown parts or labels.
  """
  file = files.root(cfg.root, "a CSV file")
  if not file.is_file():
    raise ValueError(f"data.root={file} is a folder: table needs a CSV file")
  sheet = _Sheet.load(file)
  paths = [file.parent / cell for cell in sheet.column(cfg.path)]
  ids = tuple(pathlib.Path(os.path.relpath(path, file.parent)).as_posix() for path in paths)
  _check_paths(sheet, ids, paths)
  parts = sheet.optional(cfg.part, settings.Table.part)
  _check_parts(sheet, parts)
  labels = _labels(sheet, cfg)
  training = [label for label, part in zip(labels, parts, strict=True) if part in ("", "train")]
  if not (training or cfg.classes):
    raise ValueError(f"{file}: no row is in the part 'train'")
  classes = tuple(cfg.classes or sorted({name for names in training for name in names}))
  files.need_classes(classes, str(file))
  _check_labels(sheet, labels, classes)
  given = sheet.optional(cfg.group, settings.Table.group)
  known = [group or name for group, name in zip(given, ids, strict=True)]
  groups, notes = patients.grouped(known, ids, paths)
  return catalogue_lib.Catalogue(
    ids=ids,
    groups=groups,
    labels=_numbered(labels, classes, cfg),
    parts=np.array(parts),
    classes=classes,
    read=lambda row: paths[row].read_bytes(),
    content=catalogue_lib.fingerprint(paths),
    notes=notes,
    metadata=sheet.records((*cfg.numbers, *cfg.categories, *cfg.kept)),
    fields=(*map(metadata.Number, cfg.numbers), *map(metadata.Category, cfg.categories)),
  )


def _labels(sheet: _Sheet, cfg: settings.Table) -> list[tuple[str, ...]]:
  """The classes of each image: one, or as many as a separator parts."""
  if not cfg.separator:
    return [(cell,) for cell in sheet.column(cfg.label)]
  cells = [cell.split(cfg.separator) for cell in sheet.column(cfg.label, blank=True)]
  return [tuple(name.strip() for name in names if name.strip()) for names in cells]


def _numbered(
  labels: Sequence[tuple[str, ...]], classes: Sequence[str], cfg: settings.Table
) -> np.ndarray:
  """[n] int32, or with a separator [n, K] float32."""
  if not cfg.separator:
    return files.index([name for (name,) in labels], classes)
  return np.array([[name in names for name in classes] for names in labels], np.float32)


@dataclasses.dataclass(frozen=True)
class _Sheet:
  """The cells of a CSV; `lines` are where its rows stand in the file, counted from 1."""

  file: pathlib.Path
  names: tuple[str, ...]
  lines: tuple[int, ...]
  rows: tuple[dict[str, str], ...]

  @classmethod
  def load(cls, file: pathlib.Path) -> _Sheet:
    try:
      with file.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream)
        numbered = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
      raise ValueError(f"{file} is no CSV in UTF-8: {error}") from None
    if not numbered:
      raise ValueError(f"{file} holds no row below its header")
    ragged = [line for line, row in numbered if None in row or None in row.values()]
    if ragged:
      raise ValueError(
        f"{file}: lines with more or fewer cells than the header: {files.some(ragged, 8)}"
      )
    lines, rows = zip(*numbered, strict=True)
    return cls(file, tuple(reader.fieldnames or ()), lines, rows)

  def column(self, name: str, blank: bool = False) -> list[str]:
    """The cells of a column that must be there, and none of them blank unless it may be."""
    if name not in self.names:
      raise KeyError(
        f"{self.file} has no column {name!r}, only {files.some(self.names, 8)}."
        f"{files.suggestion(name, self.names)} Columns are parted by commas and named by data.path,"
        " data.label, data.part, data.group, data.numbers, data.categories and data.kept"
      )
    cells = [row[name].strip() for row in self.rows]
    missing = [line for line, cell in zip(self.lines, cells, strict=True) if not cell]
    if missing and not blank:
      raise ValueError(f"{self.file}: column {name!r} is blank in lines {files.some(missing, 8)}")
    return cells

  def records(self, names: Sequence[str]) -> tuple[dict[str, str], ...]:
    """The cells of some columns, row by row; none where no column is named."""
    columns = [self.column(name, blank=True) for name in names]
    return tuple(dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))

  def optional(self, name: str, default: str) -> list[str]:
    """The same, but all blank where the column is missing under its default name."""
    if name == default and name not in self.names:
      return [""] * len(self.rows)
    return self.column(name)

  def where(self, cells: Sequence[object], wrong: Callable[[Any], bool]) -> str:
    """The first of the cells that are wrong, with their lines; "" if none is."""
    pairs = zip(self.lines, cells, strict=True)
    return files.some([f"{str(cell)!r} (line {line})" for line, cell in pairs if wrong(cell)])


def _check_paths(sheet: _Sheet, ids: Sequence[str], paths: Sequence[pathlib.Path]) -> None:
  count = collections.Counter(ids)
  twice = sheet.where(ids, lambda name: count[name] > 1)
  if twice:
    raise ValueError(f"{sheet.file}: paths stand in more than one row: {twice}")
  lost = sheet.where(paths, lambda path: not path.is_file())
  if lost:
    raise FileNotFoundError(
      f"{sheet.file} names files that are not there (paths are relative to the CSV): {lost}"
    )


def _check_parts(sheet: _Sheet, parts: Sequence[str]) -> None:
  wrong = sheet.where(parts, lambda part: part not in ("", *contract.PARTS))
  if wrong:
    raise ValueError(f"{sheet.file}: a part is train, val or test, not {wrong}")


def _check_labels(sheet: _Sheet, labels: Sequence[tuple[str, ...]], classes: Sequence[str]) -> None:
  strange = [[name for name in names if name not in classes] for names in labels]
  wrong = [names[0] if names else "" for names in strange]
  if any(wrong):
    first = next(filter(None, wrong))
    raise ValueError(
      f"{sheet.file}: {len(list(filter(None, wrong)))} labels are not in the class list"
      f" {list(classes)}: {sheet.where(wrong, bool)}.{files.suggestion(first, classes)} The list is"
      " data.classes, or else the labels of the training part"
    )
