"""A mixed tree of files, with zip and tar archives in it, listed in order and read in place.

Nothing is unpacked to disk. What must not be opened (a path that leaves its archive, a link that
leads in circles, what unpacks to far more than it holds) is handed out as refused, with the reason,
so that it can be counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import itertools
import os
import pathlib
import stat
from typing import IO, NamedTuple

from medjax.data import archives
from medjax.data.datasets import files

_MOST_NESTED = 3  # archives within one another


@dataclasses.dataclass(frozen=True)
class Entry:
  """A file of a source.

  Attributes:
    steps: its path relative to the source, one step more for each archive passed through:
      ("2021/films.zip", "a/1.png") is the member a/1.png of 2021/films.zip. A source that is a file
      itself is listed under its name.
    bytes: the length, unpacked.
    refused: why it is not to be read; "" if it may.
    places: for each step after the first, where its archive holds it.
  """

  steps: tuple[str, ...]
  bytes: int
  refused: str = ""
  places: tuple[int, ...] = ()

  @property
  def path(self) -> str:
    """The steps as one path: `2021/films.zip/a/1.png`."""
    return "/".join(self.steps)

  @functools.cached_property
  def is_clutter(self) -> bool:
    """Whether the name alone says that it is no image."""
    return files.is_clutter(self.path)


def walk(source: pathlib.Path) -> Iterator[Entry]:
  """Yields every file of a source: a folder, an archive or a single file.

  Folders and files come sorted by name, members as their archive lists them, so that the order is
  the same on every machine. Links are followed, but no link to a folder twice.

  Args:
    source: what to list.

  Raises:
    FileNotFoundError: it does not exist.
  """
  if not source.exists():
    raise FileNotFoundError(f"{source} does not exist: name a folder, an archive or an image")
  with Reader(source) as reader:
    if source.is_dir():
      yield from _tree(source, reader)
    else:
      yield from _file(str(source), source.name, reader)


Identity = tuple[int, int]  # device and inode: what a folder is, by whatever path it is reached


class _Level(NamedTuple):
  """A folder on the way down: its path, that below the source, the folders that it lies in."""

  path: str
  prefix: str
  above: tuple[Identity, ...]
  names: Iterator[str]


def _tree(root: pathlib.Path, reader: Reader) -> Iterator[Entry]:
  """Every file below a folder. A stack of its own: a tree may be deeper than Python's."""
  linked: set[Identity] = set()  # folders that a link has led to
  levels = [_Level(str(root), "", (_identity(str(root)),), iter(sorted(os.listdir(root))))]
  while levels:
    level = levels[-1]
    name = next(level.names, None)
    if name is None:
      levels.pop()
      continue
    path, inner = os.path.join(level.path, name), level.prefix + name
    if not os.path.isdir(path):
      yield from _file(path, inner, reader)
    elif refused := _circle(path, level.above, linked):
      yield Entry((inner,), 0, refused)
    else:
      try:
        names = iter(sorted(os.listdir(path)))
        levels.append(_Level(path, f"{inner}/", (*level.above, _identity(path)), names))
      except OSError as error:
        yield Entry((inner,), 0, f"cannot be listed: {error.strerror}")


def _identity(path: str) -> Identity:
  status = os.stat(path)
  return status.st_dev, status.st_ino


def _circle(folder: str, above: tuple[Identity, ...], linked: set[Identity]) -> str:
  """Why a link to a folder is not followed; by the second rule few links make no endless tree."""
  if not os.path.islink(folder):
    return ""
  target = _identity(folder)
  if target in above:
    return "a link to a folder that it lies in"
  if target in linked:
    return "a second link to the same folder"
  linked.add(target)
  return ""


def _file(path: str, name: str, reader: Reader) -> Iterator[Entry]:
  try:
    status = os.stat(path)
  except OSError as error:
    yield Entry((name,), 0, f"cannot be opened: {error.strerror}")
    return
  if stat.S_ISREG(status.st_mode):
    yield from _opened(Entry((name,), status.st_size), reader)
  else:
    yield Entry((name,), 0, "no regular file")


def _opened(entry: Entry, reader: Reader) -> Iterator[Entry]:
  """The entry itself or, where it is an archive, what it holds."""
  hidden = files.is_clutter(f"{entry.path}/member")
  if entry.refused or hidden or not archives.is_archive(entry.steps[-1]):
    refused = entry.refused or archives.too_large(entry.bytes)
    yield dataclasses.replace(entry, refused=refused)
  elif len(entry.steps) > _MOST_NESTED:
    yield dataclasses.replace(entry, refused=f"more than {_MOST_NESTED} archives in one another")
  else:
    yield from _members(entry, reader)


def _members(entry: Entry, reader: Reader) -> Iterator[Entry]:
  try:
    for member in reader.archive(entry.steps, entry.places).members():
      steps, places = (*entry.steps, member.name), (*entry.places, member.place)
      yield from _opened(Entry(steps, member.bytes, member.refused, places), reader)
  except archives.DAMAGE as error:
    yield dataclasses.replace(entry, refused=f"archive not read to its end: {error}")


class _Open(NamedTuple):
  """An archive that is open, the steps to it, and the file that it reads."""

  steps: tuple[str, ...]
  archive: archives.Zip | archives.Tar
  file: IO[bytes]


class Reader:
  """Reads entries of one source; the archives around the last one stay open. For one thread.

      with sources.Reader(source) as reader:
        data = reader.read(entry)

  Args:
    source: what `walk` listed.
  """

  def __init__(self, source: pathlib.Path):
    self._root = source if source.is_dir() else source.parent
    self._open: list[_Open] = []  # each lies in the one before it

  def __enter__(self) -> Reader:
    return self

  def __exit__(self, *raised: object) -> None:
    self._close_others(())

  def read(self, entry: Entry) -> bytes:
    """The bytes of an entry.

    Raises:
      OSError: it was refused, cannot be read, or is shorter or longer than was listed.
    """
    if entry.refused:
      raise OSError(entry.refused)
    try:
      with self._stream(entry.steps, entry.places) as stream:
        data = stream.read(entry.bytes + 1)
    except archives.DAMAGE as error:
      raise OSError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if len(data) != entry.bytes:
      raise OSError(f"holds {len(data):,} bytes instead of {entry.bytes:,}: cut off or changed")
    return data

  def archive(self, steps: tuple[str, ...], places: tuple[int, ...]) -> archives.Zip | archives.Tar:
    """The archive that these steps lead to; what `archives.DAMAGE` holds may be raised."""
    self._close_others(steps)
    if not self._open or self._open[-1].steps != steps:
      file = self._stream(steps, places)
      try:
        self._open.append(_Open(steps, archives.open(file, steps[-1]), file))
      except BaseException:
        file.close()
        raise
    return self._open[-1].archive

  def _stream(self, steps: tuple[str, ...], places: tuple[int, ...]) -> IO[bytes]:
    if len(steps) == 1:
      return (self._root / steps[0]).open("rb")
    return self.archive(steps[:-1], places[:-1]).open(places[-1])

  def _close_others(self, steps: tuple[str, ...]) -> None:
    """Closes the archives that these steps do not lead through."""
    while self._open and steps[: len(self._open[-1].steps)] != self._open[-1].steps:
      innermost = self._open.pop()
      innermost.archive.close()
      innermost.file.close()


def contents(entries: Iterable[tuple[pathlib.Path, Entry]]) -> Iterator[bytes | str]:
  """Bytes of each (source, entry), or why there are none; archives stay open between members."""
  for source, group in itertools.groupby(entries, lambda pair: pair[0]):
    with Reader(source) as reader:
      for _, entry in group:
        try:
          yield reader.read(entry)
        except OSError as error:
          yield str(error)
