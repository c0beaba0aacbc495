"""Decodes every image of a set once, and keeps what came of it on disk, found by its content.

An entry is a prepared collection of the images that could be read, and `moments.npy` beside it. It
is written under another name and renamed when complete, so that a killed run leaves no half entry
and of two runs at once one wins. Of a set that is a prepared collection of the right size already,
only the moments are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from typing import NamedTuple
import uuid

import numpy as np

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data import collection, duplicates, patience, progress, readers
from medjax.data.collection import keeping, pseudonyms

_CHUNK_IMAGES, _CHUNK_BYTES = 256, 2**26  # the most that is decoded ahead of writing
_LAYOUT = 3  # of an entry; another one has another key
_MOMENTS = "moments.npy"


@dataclasses.dataclass(frozen=True)
class Decoded:
  """What one look at every image leaves.

  Attributes:
    read: rows [m] -> uint8 or uint16 [m, H, W, C], of readable rows; any number of threads at once.
    moments: int64 [n, 2, C], each image's sum and sum of squares over its pixels; exact.
    pictures: int64 [n], the same number for the same pixels; -1 where unreadable, or so flat that
      equal pixels say nothing.
    unreadable: row -> reason.
    where: the pixels lie, for messages.
  """

  read: catalogue_lib.FetchMany
  moments: np.ndarray
  pictures: np.ndarray
  unreadable: dict[int, str]
  where: str


def load(rows: catalogue_lib.Catalogue, cfg: settings.Data) -> Decoded:
  """Opens the entry of these images at this size, decoding them first if there is none.

  Args:
    rows: the set.
    cfg: its settings; image_size, channels, reading, cache and threads are read.

  Raises:
    OSError: the cache cannot be written, for want of space or rights.
  """
  folder = _place(rows, cfg)
  if folder.exists() and _mended(folder, rows, cfg):
    shutil.rmtree(folder)
  if not folder.exists():
    try:
      _fill(folder, rows, cfg)
    except OSError as error:
      need = 0.0 if _is_decoded(rows, cfg) else gigabytes(len(rows), cfg)
      raise OSError(
        f"cannot keep decoded images in {folder.parent}: {error.strerror or error}. Make room for"
        f" {1e3 * need:,.0f} MB or name another folder with --config.data.cache=FOLDER"
      ) from error
  return _opened(folder, rows, cfg.root)


def dtype(cfg: settings.Data) -> np.dtype:
  """Of decoded pixels."""
  return np.dtype(np.uint16 if cfg.reading.depth == 16 else np.uint8)


def gigabytes(images: int, cfg: settings.Data) -> float:
  """What decoded images take."""
  return images * cfg.image_size**2 * cfg.channels * dtype(cfg).itemsize / 1e9


def _is_decoded(rows: catalogue_lib.Catalogue, cfg: settings.Data) -> bool:
  """Whether the set's own pixels are what the settings ask for."""
  shape = (cfg.image_size, cfg.image_size, cfg.channels)
  return rows.decoded is not None and (rows.shape, rows.dtype) == (shape, dtype(cfg))


def _place(rows: catalogue_lib.Catalogue, cfg: settings.Data) -> pathlib.Path:
  reading = dataclasses.asdict(cfg.reading)
  pixels = [readers.VERSION, rows.content, len(rows), cfg.image_size, cfg.channels, reading]
  digest = hashlib.sha256(json.dumps([_LAYOUT, *pixels]).encode()).hexdigest()
  return pathlib.Path(cfg.cache).expanduser() / f"{cfg.name}-{digest[:32]}"


def _mended(folder: pathlib.Path, rows: catalogue_lib.Catalogue, cfg: settings.Data) -> bool:
  """Whether an image that could not be read now can: a disk's hiccup must not last for ever."""
  return any(not _look(rows, row, cfg).reason for row in _unreadable(folder))


def _unreadable(folder: pathlib.Path) -> dict[int, str]:
  """Row -> reason."""
  with (folder / "quarantine.tsv").open(newline="", encoding="utf-8") as file:
    return {int(row): reason for row, reason in list(csv.reader(file, delimiter="\t"))[1:]}


def _opened(folder: pathlib.Path, rows: catalogue_lib.Catalogue, root: str) -> Decoded:
  moments = np.load(folder / _MOMENTS, allow_pickle=False)
  if not collection.is_collection(folder):
    assert rows.decoded is not None
    return Decoded(rows.decoded, moments, _numbers(rows.digests), {}, root)
  kept, unreadable = collection.open(folder), _unreadable(folder)
  places = np.full(len(rows), -1)
  places[[row for row in range(len(rows)) if row not in unreadable]] = np.arange(len(kept))
  digests = np.full(len(rows), "", object)
  digests[places >= 0] = kept.table["pixels_sha256"].to_numpy(zero_copy_only=False)
  numbers = _numbers(digests)
  return Decoded(lambda own: kept.read(places[own]), moments, numbers, unreadable, str(folder))


def _numbers(digests: np.ndarray) -> np.ndarray:
  """[n] a number for each text; -1 for none."""
  numbers = np.unique(digests.astype(str), return_inverse=True)[1]
  return np.where(digests == "", -1, numbers)


def _fill(folder: pathlib.Path, rows: catalogue_lib.Catalogue, cfg: settings.Data) -> None:
  partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
  folder.parent.mkdir(0o700, parents=True, exist_ok=True)  # it holds images of patients
  partial.mkdir()
  try:
    if _is_decoded(rows, cfg):
      _write_moments(partial, rows)
    else:
      _write(partial, rows, cfg)
    partial.rename(folder)
  except OSError:
    if not folder.exists():  # else another run was faster, and its entry is as good
      raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _write_moments(partial: pathlib.Path, rows: catalogue_lib.Catalogue) -> None:
  """The moments of a set that is decoded already, read some images at a time."""
  assert rows.decoded is not None
  starts = range(0, len(rows), _CHUNK_IMAGES)
  some = (np.arange(start, min(start + _CHUNK_IMAGES, len(rows))) for start in starts)
  found = (_moments(rows.decoded(own)) for own in some)
  told = progress.told(found, len(rows), "images looked at", size=len)
  np.save(partial / _MOMENTS, np.concatenate(list(told)))
  pseudonyms.write_quarantine(partial, ())


def _write(partial: pathlib.Path, rows: catalogue_lib.Catalogue, cfg: settings.Data) -> None:
  moments = np.zeros((len(rows), 2, cfg.channels), np.int64)
  unreadable: list[tuple[str, str]] = []

  def readable() -> Iterator[keeping.Kept]:
    looks = progress.told(_looks(rows, cfg), len(rows), "images decoded")
    for row, look in enumerate(looks):
      if look.reason:
        unreadable.append((str(row), look.reason))
      else:
        moments[row] = look.moments
        yield keeping.Kept(rows.ids[row], look.digest, look.pixels)

  shape = (cfg.image_size, cfg.image_size, cfg.channels)
  keeping.write(partial, readable(), shape, cfg.reading, unreadable)
  np.save(partial / _MOMENTS, moments)


class _Look(NamedTuple):
  """Pixels [H, W, C], moments [2, C] and digest of one image; or why there are none."""

  pixels: np.ndarray
  moments: np.ndarray
  digest: str
  reason: str


def _looks(rows: catalogue_lib.Catalogue, cfg: settings.Data) -> Iterator[_Look]:
  """Every image in order, decoded by threads a chunk ahead."""
  fitting = _CHUNK_BYTES // (cfg.image_size**2 * cfg.channels)
  chunk = max(1, min(_CHUNK_IMAGES, fitting))
  with patience.Crew(cfg.threads or os.cpu_count() or 1) as crew:
    for start in range(0, len(rows), chunk):
      own = range(start, min(start + chunk, len(rows)))
      sent = [crew.submit(_look, rows, row, cfg) for row in own]
      for row, look in zip(own, sent, strict=True):
        try:
          yield patience.result(look, cfg.patience, rows.ids[row])
        except TimeoutError as error:  # an OSError would be taken for one of the cache's
          raise ValueError(str(error)) from error


def _look(rows: catalogue_lib.Catalogue, row: int, cfg: settings.Data) -> _Look:
  try:
    pixels = readers.read(rows.read(row), cfg.image_size, cfg.channels, cfg.reading)
  except (OSError, readers.Unreadable) as error:
    nothing = np.zeros(0)
    return _Look(nothing, nothing, "", str(error))
  pixels = np.ascontiguousarray(pixels)
  moments = _moments(pixels[None])[0]
  return _Look(pixels, moments, _digest(pixels, moments), "")


def _moments(pixels: np.ndarray) -> np.ndarray:
  """[n, 2, C] sums and sums of squares of [n, H, W, C]."""
  sums = pixels.sum((1, 2), np.int64)
  squares = np.square(pixels, dtype=np.uint32).sum((1, 2), np.int64)  # 65,535 squared fits
  return np.stack([sums, squares], 1)


def _digest(pixels: np.ndarray, moments: np.ndarray) -> str:
  """Of the pixels, whose moments [2, C] are known; nothing of a flat image."""
  first, second = moments.sum(1).tolist()  # Python's integers: no overflow below
  deviation = (pixels.size * second - first**2) ** 0.5 / pixels.size
  if deviation < duplicates.FLAT * np.iinfo(pixels.dtype).max / 255:
    return ""
  return hashlib.sha256(pixels.data).hexdigest()
