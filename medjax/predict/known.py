"""What is known of patients beside their images, from a table, as networks take it."""

from __future__ import annotations

import collections
from collections.abc import Sequence
import csv
import dataclasses
import os
import pathlib

import numpy as np

from medjax.data import metadata
from medjax.data.datasets import files
from medjax.predict import scoring

_PATHS = ("image", "path")  # names of the column that says which image a row is about


@dataclasses.dataclass(frozen=True)
class Known:
  """Rows of a table, found by their images.

  Attributes:
    file: the table. place: absolute path -> row.
    columns: [n, M] encoded for each network; None for one that takes no metadata.
  """

  file: pathlib.Path
  place: dict[str, int]
  columns: Sequence[np.ndarray | None]

  def missing(self, path: str) -> str:
    """Why nothing is known of an image; empty where something is."""
    return "" if os.path.abspath(path) in self.place else f"{self.file} has no row for it"

  def of(self, paths: Sequence[str]) -> list[np.ndarray | None]:
    """[b, M] of images for each network."""
    rows = [self.place[os.path.abspath(path)] for path in paths]
    return [None if column is None else column[rows] for column in self.columns]


def given(file: pathlib.Path | None, scorers: Sequence[scoring.Scorer]) -> Known | None:
  """What a command was given by `--metadata`, see `load`; None for networks that take none."""
  if file is None:
    encoded(scorers, None, 0)  # raises where metadata are missing
    return None
  return load(file, scorers)


def load(file: pathlib.Path, scorers: Sequence[scoring.Scorer]) -> Known:
  """Reads a CSV whose column `image` (or `path`) is a path, relative to the CSV or to where one is.

  Raises:
    OSError: it cannot be read.
    KeyError: a column that is missing.
    ValueError: no network takes metadata, two rows are about one image, or a number that is none.
  """
  with file.open(newline="", encoding="utf-8-sig") as stream:
    reader = csv.DictReader(stream)
    names, records = list(reader.fieldnames or ()), list(reader)
  key = next((name for name in _PATHS if name in names), None)
  if key is None:
    raise KeyError(f"{file} has no column 'image' with the paths, only {files.some(names, 8)}")
  cells = [record[key] or "" for record in records]
  below = {os.path.abspath(file.parent / cell): row for row, cell in enumerate(cells)}
  if len(below) < len(cells):
    twice = [cell for cell, count in collections.Counter(cells).items() if count > 1]
    raise ValueError(f"{file}: more than one row is about {files.some(twice)}")
  here = {os.path.abspath(cell): row for row, cell in enumerate(cells)}
  _check_columns(file, names, scorers)
  return Known(file, here | below, encoded(scorers, records, len(records)))


def _check_columns(
  file: pathlib.Path, names: Sequence[str], scorers: Sequence[scoring.Scorer]
) -> None:
  wanted = {step["name"] for scorer in scorers for step in scorer.encoding}
  lost = sorted(wanted - set(names))
  if lost:
    raise KeyError(
      f"{file} has no column {lost[0]!r}, which the network was trained with:"
      f"{files.suggestion(lost[0], names)} it needs {', '.join(sorted(wanted))}"
    )


def encoded(
  scorers: Sequence[scoring.Scorer], records: Sequence[metadata.Record] | None, count: int
) -> list[np.ndarray | None]:
  """[count, M] for each network, None for one that takes no metadata.

  Raises:
    ValueError: metadata are missing, or nobody asked for them, or a number that is none.
  """
  wanted = sorted({step["name"] for scorer in scorers for step in scorer.encoding})
  if wanted and records is None:
    raise ValueError(
      f"the network was trained with {', '.join(wanted)} beside the image: give them by --metadata"
      " FILE.csv, or as `metadata` in Python"
    )
  if records is None:
    return [None] * len(scorers)
  if not wanted or len(records) != count:
    raise ValueError(
      f"metadata of {len(records)} images for {count}"
      if wanted
      else "the network was trained without metadata: leave them out"
    )
  return [
    metadata.restored(scorer.encoding)(records) if scorer.encoding else None for scorer in scorers
  ]
