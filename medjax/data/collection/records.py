"""Pixels as records: raw, little-endian, one image a record, [size, size, 1 or 3]."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import threading
import uuid

from array_record.python import array_record_module
import numpy as np

_WRITING = "group_size:1,uncompressed"  # read at random, and pixels shrink little
_READING = "readahead_buffer_size:0,max_parallelism:0"
_OPEN = 128  # shards
_SHOWN = 80  # characters of the library's error


def path(folder: pathlib.Path, shard: int) -> pathlib.Path:
  """The file of a shard."""
  return folder / "shards" / f"{shard:05d}.array_record"


def dtype(depth: int) -> np.dtype:
  """Of pixels of 8 or 16 bits."""
  return np.dtype({8: "u1", 16: "<u2"}[depth])


@contextlib.contextmanager
def replacing(target: pathlib.Path) -> Iterator[pathlib.Path]:
  """A path to write to, which takes the target's name when all went well: never half a file."""
  partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
  try:
    yield partial
    partial.rename(target)
  finally:
    partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(file: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
  """Gives the function that writes the next record; the file is there when all went well."""
  with replacing(file) as partial:
    writer = array_record_module.ArrayRecordWriter(str(partial), _WRITING)
    try:
      yield writer.write
    finally:
      writer.close()


class Images:
  """The images of some shards, read at random; any number of threads at once.

  Args:
    folder: the collection's.
    shards, rows: [n] int, where each image stands.
    shape: (size, size, channels) that is handed out; grey images are repeated to three channels.
    dtype: of the pixels.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    shards: np.ndarray,
    rows: np.ndarray,
    shape: tuple[int, int, int],
    dtype: np.dtype,
  ):
    self._folder, self._shards, self._rows = folder, shards, rows
    self._shape, self._dtype = shape, dtype
    self._readers: collections.OrderedDict[int, array_record_module.ArrayRecordReader] = (
      collections.OrderedDict()
    )
    self._lock = threading.Lock()

  def read(self, rows: np.ndarray) -> np.ndarray:
    """Images [n, size, size, channels] of [n] rows, a read a shard.

    Raises:
      ValueError: a shard is damaged or missing.
    """
    images = np.empty((len(rows), *self._shape), self._dtype)
    shards = self._shards[rows]
    for shard in np.unique(shards).tolist():
      wanted = np.flatnonzero(shards == shard)
      self._fill(images, wanted, self._records(shard, self._rows[rows[wanted]].tolist()))
    return images

  def _records(self, shard: int, rows: list[int]) -> list[bytes]:
    plane = self._shape[0] * self._shape[1] * self._dtype.itemsize
    try:
      found = self._reader(shard).read(rows)
      if not {len(record) for record in found} <= {plane, 3 * plane}:  # of some files that were cut
        raise OSError("a record of another length")
      return found
    except (OSError, RuntimeError, ValueError, IndexError) as error:  # what the library says
      raise ValueError(
        f"{path(self._folder, shard)} is damaged or missing ({str(error)[:_SHOWN]}): take the"
        f" folder {self._folder} away and start the same command again, which decodes the images"
        " anew; a prepared collection is made anew by the command that made it"
      ) from error

  def _fill(self, images: np.ndarray, wanted: np.ndarray, records: list[bytes]) -> None:
    """Puts records in their places: those of one length at once."""
    lengths = np.array([len(record) for record in records])
    for length in np.unique(lengths):
      chosen = np.flatnonzero(lengths == length)
      joined = b"".join([records[i] for i in chosen])
      pixels = np.frombuffer(joined, self._dtype)
      images[wanted[chosen]] = pixels.reshape(len(chosen), *self._shape[:2], -1)

  def _reader(self, shard: int) -> array_record_module.ArrayRecordReader:
    with self._lock:
      if shard not in self._readers:
        file = os.fspath(path(self._folder, shard))
        self._readers[shard] = array_record_module.ArrayRecordReader(file, _READING)
        if len(self._readers) > _OPEN:
          self._readers.popitem(last=False)
      self._readers.move_to_end(shard)
      return self._readers[shard]
