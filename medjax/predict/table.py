"""The table of predictions: a row an input, safe on disk batch by batch, completed after a kill."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
import csv
import io
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np

_END = b"\r\n"  # of a row, as `csv` writes it
_UNFINISHED = ".unfinished"  # ends the hidden name of what lies beside a table until it is whole


class Row(NamedTuple):
  """What is said of an input: its classes and scores [K], or why there are none."""

  path: str
  predicted: str
  scores: np.ndarray | None
  error: str = ""


class Table:
  """A CSV with the columns `path,predicted,score_<class>...,error`, a row an input.

  Beside it lies a file that says by what it is made, until it is whole: by that a half table is
  known, and completed only by what began it. Names that are no UTF-8 keep their bytes.
  """

  def __init__(
    self, path: pathlib.Path, classes: Sequence[str], about: dict[str, Any], resume: bool
  ):
    """Begins a table, or goes on with one.

    Args:
      path: of the CSV. classes: names of the scores.
      about: by what it is made, as JSON types; a table made otherwise is not gone on with.
      resume: keep the whole rows that are there; a last one that was cut off goes.

    Raises:
      ValueError: a half table is there and `resume` is not asked for, or another table is there.
    """
    self._path = path
    self._columns = ["path", "predicted", *(f"score_{name}" for name in classes), "error"]
    self._mark = path.with_name(f".{path.name}{_UNFINISHED}")
    self.done: collections.Counter[str] = collections.Counter()  # rows of each path
    self.failed = 0
    self._check(about, resume)
    length = self._kept() if resume and path.exists() else 0
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    self._mark.write_text(json.dumps(about) + "\n", encoding="utf-8")
    self._file = path.open("ab")
    self._file.truncate(length)
    if not length:
      self._write([self._columns])

  def __enter__(self) -> Table:
    return self

  def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
    self._file.close()
    if kind is None:
      self._mark.unlink()

  def add(self, rows: Sequence[Row]) -> None:
    """Writes rows; they are on disk when it returns."""
    self.failed += sum(bool(row.error) for row in rows)
    self._write([self._cells(row) for row in rows])

  def _cells(self, row: Row) -> list[str]:
    blank = [""] * (len(self._columns) - 3)
    scores = blank if row.scores is None else map(repr, row.scores.tolist())
    return [row.path, row.predicted, *scores, row.error]

  def _write(self, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    self._file.write(text.getvalue().encode("utf-8", "surrogateescape"))
    self._file.flush()
    os.fsync(self._file.fileno())

  def _check(self, about: dict[str, Any], resume: bool) -> None:
    """Refuses to write over what is no finished table, and to go on with what others began."""
    if not self._path.exists() or not self._path.stat().st_size:
      return
    if not self._mark.exists():
      self._check_header(exactly=resume)
    elif not resume:
      raise ValueError(
        f"{self._path} was cut off: complete it with --resume, or remove it to start anew"
      )
    elif (begun := json.loads(self._mark.read_text(encoding="utf-8"))) != about:
      raise ValueError(
        f"{self._path} was begun by {begun}, and this is {about}: go on with the same, or remove it"
      )

  def _check_header(self, exactly: bool) -> None:
    """Refuses a finished file that is no table of predictions, or not `exactly` one like this."""
    with self._path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
      header = next(csv.reader(file), [])
    length = len(self._columns) if exactly else 2
    if header[:length] != self._columns[:length]:
      raise ValueError(
        f"{self._path} holds {','.join(header)} and not {','.join(self._columns)}: name another"
        " file by --out"
      )

  def _kept(self) -> int:
    """Counts the whole rows that are there; the length of the file up to the end of the last."""
    length = 0
    for number, (end, row) in enumerate(_whole(self._path)):
      if len(row) != len(self._columns):
        break
      if number:
        self.done[row[0]] += 1
        self.failed += bool(row[-1])
      length = end
    return length


def _whole(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
  """Each row that was written to the end of a line, and where it ends in the file."""
  line, end = b"", 0

  def lines() -> Iterator[str]:  # a cell may hold line breaks: a row is one of these or several
    nonlocal line, end
    for line in file:
      end += len(line)
      yield line.decode("utf-8", "surrogateescape")

  with path.open("rb") as file:
    for row in csv.reader(lines()):
      if line.endswith(_END):
        yield end, row
