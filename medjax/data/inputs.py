"""Files to be read, named on a command line or on standard input, and their pixels in order.

They are listed once, to a temporary file, and decoded in worker processes, so that memory holds no
more of a million files than of a thousand, and a file that kills its decoder costs that file alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import dataclasses
import glob
import itertools
import json
import os
import pathlib
import sys
import tempfile
from typing import IO, NamedTuple

import numpy as np

from medjax import settings
from medjax.data import collection, isolation, readers, sources

STDIN = "-"
SECONDS = 120.0  # that reading one file may take
GIGABYTES = 6.0  # that one worker may take for it
_CHUNK = 8  # files that travel to a worker together


class Input(NamedTuple):
  """A file.

  Attributes:
    path: as it was named, with what lies below a folder or in an archive behind it.
    source: the folder, archive or file that was named. entry: where the file is in it.
  """

  path: str
  source: pathlib.Path
  entry: sources.Entry


class View(NamedTuple):
  """How a network sees files: height and width, channels, reading."""

  size: int
  channels: int
  reading: settings.Reading


@dataclasses.dataclass(frozen=True)
class Seen:
  """What came of a file: its pixels [H, W, C] for each view, or why there are none."""

  path: str
  pixels: Sequence[np.ndarray]
  error: str = ""


def walk(names: Iterable[str]) -> Iterator[Input]:
  """Yields every file that names stand for, in their order.

  Args:
    names: of files, folders, archives and patterns such as `scans/**/*.dcm`; `STDIN` stands for
      names on standard input, a line each. What a folder or an archive holds and is no image by its
      name is passed over; a file that is named itself never is, nor one that does not exist.

  Raises:
    ValueError: a prepared collection, whose files are no images.
  """
  for name in names:
    if name == STDIN:
      lines = (os.fsdecode(line) for line in sys.stdin.buffer)  # names need not be UTF-8
      yield from walk(line.rstrip("\r\n") for line in lines if line.strip())
      continue
    for found in _matched(name):
      yield from _below(found)


def check(names: Sequence[str]) -> None:
  """Raises FileNotFoundError where nothing that is named exists: a mistake, and no lost file."""
  found = (match for name in names for match in _matched(name))
  if not any(match == STDIN or pathlib.Path(match).exists() for match in found):
    raise FileNotFoundError(
      f"{names[0]} does not exist: name images, folders, archives or a quoted pattern"
    )


def _matched(name: str) -> list[str]:
  """The name itself where it exists or is no pattern."""
  if pathlib.Path(name).exists() or not glob.has_magic(name):
    return [name]
  return sorted(glob.glob(name, recursive=True)) or [name]


def _below(name: str) -> Iterator[Input]:
  source = pathlib.Path(name)
  if not source.exists():
    yield Input(name, source, sources.Entry((source.name,), 0, "does not exist"))
    return
  if collection.is_collection(source):
    raise ValueError(
      f"{name} is a prepared collection, whose images are scored by the run that trains or tests on"
      " it: name the files that it was made of"
    )
  for entry in sources.walk(source):
    steps = entry.steps if source.is_dir() else entry.steps[1:]
    if not steps or entry.refused or not entry.is_clutter:
      yield Input("/".join((name.rstrip("/"), *steps)), source, entry)


@contextlib.contextmanager
def listed(found: Iterable[Input]) -> Iterator[Listing]:
  """Keeps inputs in a temporary file, so that they can be counted before the first is read."""
  with tempfile.TemporaryFile() as file:
    count = 0
    for each in found:
      file.write(_line(each))
      count += 1
    yield Listing(file, count)


class Listing:
  """Inputs in order; made by `listed`."""

  def __init__(self, file: IO[bytes], count: int):
    self._file, self._count = file, count

  def __len__(self) -> int:
    return self._count

  def __iter__(self) -> Iterator[Input]:
    self._file.seek(0)
    for _ in range(self._count):
      yield _parsed(self._file.readline())


def _line(each: Input) -> bytes:
  entry = each.entry
  fields = (each.path, str(each.source), entry.steps, entry.bytes, entry.refused, entry.places)
  return json.dumps(fields).encode() + b"\n"


def _parsed(line: bytes) -> Input:
  path, source, steps, size, refused, places = json.loads(line)
  entry = sources.Entry(tuple(steps), size, refused, tuple(places))
  return Input(path, pathlib.Path(source), entry)


class _Job(NamedTuple):
  """A file and how it is seen; `data` are its bytes, or None where the worker is to read it."""

  input: Input
  views: Sequence[View]
  data: bytes | None


def seen(listed: Iterable[Input], views: Sequence[View], workers: int) -> Iterator[Seen]:
  """Reads files as networks see them, one image each, as `readers.read` does in training.

  Args:
    listed: the files, taken lazily. views: one for each network. workers: processes.

  Yields:
    One a file, in their order.
  """
  results = isolation.decoded(
    _jobs(listed, views), _read, workers, SECONDS, GIGABYTES, chunk=_CHUNK
  )
  for result in results:
    yield Seen(result.job.input.path, result.value or (), " ".join(result.reason.split()))


def _jobs(listed: Iterable[Input], views: Sequence[View]) -> Iterator[_Job]:
  """Members of archives are read here, in order, since some can only be read forwards."""
  for source, group in itertools.groupby(listed, lambda each: each.source):
    with sources.Reader(source) as reader:
      for each in group:
        yield _job(each, views, reader)


def _job(each: Input, views: Sequence[View], reader: sources.Reader) -> _Job:
  if each.entry.refused or not each.entry.places:
    return _Job(each, views, None)
  try:
    return _Job(each, views, reader.read(each.entry))
  except OSError as error:
    refused = dataclasses.replace(each.entry, refused=str(error))
    return _Job(each._replace(entry=refused), views, None)


def _read(job: _Job) -> list[np.ndarray]:
  """In the worker."""
  data = job.data
  if data is None:
    with sources.Reader(job.input.source) as reader:
      data = reader.read(job.input.entry)
  return [readers.read(data, *view) for view in job.views]
