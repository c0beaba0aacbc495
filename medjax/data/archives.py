"""Zip and tar archives read in place, member by member; what is unsafe in them is refused.

Nothing is unpacked to disk. A member is found again by its place: its number in a zip, the offset
of its header in a tar. A compressed tar, and an archive that lies compressed in another, can only
be read forwards: members taken in order cost one pass, an earlier one starts again.
"""

from __future__ import annotations

from collections.abc import Iterator
import lzma
import pathlib
import re
import tarfile
from typing import IO, NamedTuple, cast
import zipfile
import zlib

MOST_BYTES = 2**31  # of one file: what a reader takes into memory
_BOMB_BYTES, _BOMB_RATIO = 2**26, 500  # real images do not shrink so far: deflate ends at 1,032
_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

# What a damaged archive raises. RuntimeError: encrypted; NotImplementedError: unknown compression.
DAMAGE = (
  OSError,
  EOFError,
  ValueError,
  RuntimeError,
  NotImplementedError,
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
  tarfile.TarError,
)


class Member(NamedTuple):
  """A file of an archive: name, place, length unpacked, and why it is not to be read."""

  name: str
  place: int
  bytes: int
  refused: str = ""


def is_archive(name: str) -> bool:
  """Whether a name says that this is an archive that can be read in place."""
  return name.lower().endswith((".zip", *_TARS))


def open(file: IO[bytes], name: str) -> Zip | Tar:
  """Opens an archive of the kind that its name tells; whatever `DAMAGE` holds may be raised."""
  return Tar(file) if name.lower().endswith(_TARS) else Zip(file)


def too_large(size: int) -> str:
  """The reason not to read a file of that many bytes, or nothing."""
  if size <= MOST_BYTES:
    return ""
  return f"{size:,} bytes are more than the {MOST_BYTES:,} that one image file may have"


class Zip:
  """A zip file."""

  def __init__(self, file: IO[bytes]):
    self._zip = zipfile.ZipFile(file)

  def members(self) -> Iterator[Member]:
    """Its files, in the order of its directory."""
    seen: set[str] = set()
    for place, info in enumerate(self._zip.infolist()):
      if not info.is_dir():
        unsafe = _leaves(info.filename) or _twice(info.filename, seen)
        locked = "encrypted" if info.flag_bits & 1 else ""
        bomb = _bomb(info.compress_size, info.file_size)
        yield Member(info.filename, place, info.file_size, unsafe or locked or bomb)

  def open(self, place: int) -> IO[bytes]:
    """The bytes of the member there."""
    return self._zip.open(self._zip.infolist()[place])

  def close(self) -> None:
    """Lets go of it."""
    self._zip.close()


class Tar:
  """A tar file, plain or compressed."""

  def __init__(self, file: IO[bytes]):
    self._packed = file
    self._tar = tarfile.open(fileobj=file)  # noqa: SIM115 - `close` does it

  def members(self) -> Iterator[Member]:
    """Its files, in order. `TarFile.next` takes a damaged header for the end: this raises."""
    seen: set[str] = set()
    place = 0
    while (info := self._info(place)) is not None:
      place = self._tar.offset  # of the next header
      if not info.isdir():
        link = "a link or device in an archive" if not info.isreg() or info.issparse() else ""
        unsafe = link or _leaves(info.name) or _twice(info.name, seen)
        yield Member(info.name, info.offset, info.size, unsafe or self._passed(info, place))

  def _passed(self, info: tarfile.TarInfo, following: int) -> str:
    """Goes on to the next header, which in a compressed tar unpacks the member: is it a bomb?"""
    if self._stream is self._packed:
      return ""
    if refused := too_large(info.size):
      raise tarfile.TarError(refused)
    before = self._packed.tell()
    self._stream.seek(following)
    return _bomb(self._packed.tell() - before, info.size)

  def _info(self, place: int) -> tarfile.TarInfo | None:
    """The header at an offset; None where the archive's end is marked by zeros."""
    self._stream.seek(place)
    block = self._stream.read(tarfile.BLOCKSIZE)
    if not block:
      raise tarfile.TarError("it has no mark at its end, so it may be cut off")
    if not block.strip(b"\0"):
      return None
    self._stream.seek(place)
    return tarfile.TarInfo.fromtarfile(self._tar)

  @property
  def _stream(self) -> IO[bytes]:
    """The file, unpacked where it is compressed."""
    return cast(IO[bytes], self._tar.fileobj)

  def open(self, place: int) -> IO[bytes]:
    """The bytes of the member whose header stands there."""
    info = self._info(place)
    stream = self._tar.extractfile(info) if info is not None else None
    if stream is None:
      raise OSError("no file at this place: the archive has changed")
    return stream

  def close(self) -> None:
    """Lets go of it."""
    self._tar.close()


def _leaves(name: str) -> str:
  steps = pathlib.PurePosixPath(name.replace("\\", "/"))
  outside = ".." in steps.parts or steps.is_absolute() or re.match("[A-Za-z]:", name)
  return "its path leaves the archive" if outside else ""


def _twice(name: str, seen: set[str]) -> str:
  again = name in seen
  seen.add(name)
  return "a second member of the same name" if again else ""


def _bomb(packed: int, unpacked: int) -> str:
  if unpacked > _BOMB_BYTES and unpacked > _BOMB_RATIO * packed:
    return f"{packed:,} bytes that unpack to {unpacked:,} are no images (a zip bomb?)"
  return ""
