"""A look at images of folders, archives, files and prepared collections, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import pathlib
import re
from typing import NamedTuple

import numpy as np

from medjax import settings
from medjax.data import collection, isolation, readers, sources

SECONDS = 60.0  # for one file
GIGABYTES = 4.0  # for one worker
BINS = 64  # of an image's histogram, from black to white
_PARTS = re.compile(r"(?i)(train|val|test)\w*")


@dataclasses.dataclass(frozen=True)
class View:
  """How images are to be seen: height and width, channels (0: 3 for colour, else 1), reading."""

  size: int
  channels: int
  reading: settings.Reading


@dataclasses.dataclass(frozen=True)
class Glance:
  """One image as a network sees it, and what is known of it.

  Attributes:
    name: path and, of files with several, number of the frame.
    label: the folder that names its class, or empty.
    group: patient or source, or empty.
    about: what the reader tells.
    pixels: [size, size, C] uint8, for the eye also where the network gets 16 bits.
    counts: [BINS] int64, the histogram of the prepared image at its own size.
  """

  name: str
  label: str
  group: str
  about: readers.About
  pixels: np.ndarray
  counts: np.ndarray


class Refused(NamedTuple):
  """A file that could not be read."""

  name: str
  reason: str


class _File(NamedTuple):
  source: pathlib.Path
  entry: sources.Entry

  @property
  def name(self) -> str:
    inner = self.source / self.entry.path if self.source.is_dir() else self.source
    return str(inner)


class _Job(NamedTuple):
  data: bytes | str  # or the reason for none
  view: View


def spread(total: int, most: int) -> np.ndarray:
  """Rows of at most `most` of `total` things, evenly spaced; 0 takes all."""
  count = min(total, most) if most else total
  return np.arange(count) * total // max(1, count)


def of_paths(
  paths: Sequence[pathlib.Path], view: View, most: int, workers: int, pattern: str = ""
) -> tuple[Iterator[Glance | Refused], int]:
  """Looks at files and prepared collections.

  Args:
    paths: folders, archives, files, and folders of collections.
    view: how images are to be seen. Those of a collection are seen as they were prepared.
    most: files and images looked at, evenly spaced; 0 for all.
    workers: processes that decode.
    pattern: finds the group in a file's name, by its first group or as a whole; where it finds
      none, the patient of a DICOM header is the group.

  Returns:
    What is seen, in order, and how many files and images there are in all.

  Raises:
    FileNotFoundError: a path that does not exist.
    ValueError: no image by its name.
  """
  prepared = [collection.open(path) for path in paths if collection.is_collection(path)]
  plain = [path for path in paths if not collection.is_collection(path)]
  files = [_File(path, entry) for path in plain for entry in sources.walk(path)]
  files = [file for file in files if not file.entry.is_clutter]
  total = len(files) + sum(map(len, prepared))
  if not total:
    raise ValueError(f"no image in {', '.join(map(str, paths))}: name folders, archives or images")
  rows = spread(total, most)
  seen = [_of_files([files[row] for row in rows[rows < len(files)]], view, workers, pattern)]
  start = len(files)
  for opened in prepared:
    own = rows[(rows >= start) & (rows < start + len(opened))] - start
    seen.append(_of_collection(opened, own))
    start += len(opened)
  return itertools.chain.from_iterable(seen), total


def _of_files(
  files: Sequence[_File], view: View, workers: int, pattern: str
) -> Iterator[Glance | Refused]:
  contents = sources.contents((file.source, file.entry) for file in files)
  jobs = (_Job(data, view) for data in contents)
  results = isolation.decoded(jobs, _looked, workers, SECONDS, GIGABYTES)
  for file, result in zip(files, results, strict=True):
    if result.value is None:
      yield Refused(file.name, result.reason)
      continue
    for glance, several in result.value:
      number = f" #{glance.name}" if several else ""
      group = _group(file.name, pattern) or glance.group
      yield dataclasses.replace(
        glance, name=file.name + number, label=_label(file.entry.path), group=group
      )


def _looked(job: _Job) -> list[tuple[Glance, bool]]:
  """In the worker: every chosen frame, its number as its name, and whether a file holds several."""
  if isinstance(job.data, str):
    raise readers.Unreadable(job.data)
  found = list(readers.frames(job.data, job.view.reading))
  several = len(found) > 1 or any(frame.index for frame in found)
  return [(_glance(frame, job.view), several) for frame in found]


def _glance(frame: readers.Frame, view: View) -> Glance:
  channels = view.channels or (3 if frame.about.colour else 1)
  fitted = readers.fit(frame.pixels, view.size, channels, view.reading)
  counts = _histogram(readers.to_8_bit(frame.pixels))
  pixels = readers.to_8_bit(fitted)
  return Glance(str(frame.index), "", frame.about.patient, frame.about, pixels, counts)


def _histogram(pixels: np.ndarray) -> np.ndarray:
  """[BINS] int64 of uint8 pixels, all channels but transparency together."""
  colour = pixels[..., : 1 if pixels.shape[2] < 3 else 3]
  return np.bincount(colour.ravel() // np.uint8(256 // BINS), minlength=BINS)


def _of_collection(opened: collection.Collection, rows: np.ndarray) -> Iterator[Glance]:
  table = opened.table.take(rows).to_pylist() if len(rows) else []
  for row, known in zip(rows, table, strict=True):
    pixels = readers.to_8_bit(opened.read([int(row)])[0])
    about = readers.About(
      format="prepared",
      steps=("as prepared",),
      **{k: known[k] for k in ("modality", "body_part", "bits", "height", "width", "colour")},
    )
    group = known["group"] or known["patient"]
    name = f"{opened.folder}/{known['path'] or known['id']}"
    yield Glance(name, known["label"], group, about, pixels, _histogram(pixels))


def _label(path: str) -> str:
  """The outermost folder that is not a part of a split, or empty."""
  folders = path.split("/")[:-1]
  return next((folder for folder in folders if not _PARTS.fullmatch(folder)), "")


def _group(path: str, pattern: str) -> str:
  match = re.search(pattern, path.rpartition("/")[2]) if pattern else None
  return "" if match is None else next(filter(None, match.groups()), match[0])
