"""Decodes every image of a set once, and keeps what came of it on disk, found by its content.

An entry is a folder: `moments.npy`, `unreadable.json`, and for the resident feed `images.npy`. It
is written under another name and renamed when complete, so that a killed run leaves no half entry
and of two runs at once one wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import time
from typing import NamedTuple
import uuid

import numpy as np

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data import readers

_CHUNK_IMAGES, _CHUNK_BYTES = 256, 2**26  # the most that is decoded ahead of writing
_QUIET_SECONDS = 3.0  # between two progress lines, and before the first


@dataclasses.dataclass(frozen=True)
class Decoded:
  """What one look at every image leaves.

  Attributes:
    images: uint8 [n, H, W, C] mapped from disk, zeros where unreadable; None if not asked for.
    moments: int64 [n, 2, C], each image's sum and sum of squares over its pixels; exact.
    unreadable: row -> reason.
  """

  images: np.ndarray | None
  moments: np.ndarray
  unreadable: dict[int, str]


def load(rows: catalogue_lib.Catalogue, cfg: settings.Data, keep: bool) -> Decoded:
  """Opens the entry of these images at this size, decoding them first if there is none.

  Args:
    rows: the set.
    cfg: its settings; image_size, channels, cache and threads are read.
    keep: whether pixels are kept, or only their moments.

  Raises:
    OSError: the cache cannot be written, for want of space or rights.
  """
  folder = _place(rows, cfg, keep)
  if folder.exists() and _mended(folder, rows, cfg):
    shutil.rmtree(folder)
  if not folder.exists():
    try:
      _fill(folder, rows, cfg, keep)
    except OSError as error:
      need = len(rows) * cfg.image_size**2 * cfg.channels if keep else 0
      raise OSError(
        f"cannot keep decoded images in {folder.parent}: {error.strerror or error}. Make room for"
        f" {need / 1e6:,.0f} MB or name another folder with --config.data.cache=FOLDER"
      ) from error
  return _opened(folder)


def _place(rows: catalogue_lib.Catalogue, cfg: settings.Data, keep: bool) -> pathlib.Path:
  key = [readers.VERSION, rows.content, len(rows), cfg.image_size, cfg.channels, keep]
  digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
  return pathlib.Path(cfg.cache).expanduser() / f"{cfg.name}-{digest[:32]}"


def _mended(folder: pathlib.Path, rows: catalogue_lib.Catalogue, cfg: settings.Data) -> bool:
  """Whether an image that could not be read now can: a disk's hiccup must not last for ever."""
  return any(not _look(rows, row, cfg).reason for row in _opened(folder).unreadable)


def _opened(folder: pathlib.Path) -> Decoded:
  images = folder / "images.npy"
  unreadable = json.loads((folder / "unreadable.json").read_text())
  return Decoded(
    images=np.load(images, mmap_mode="r") if images.exists() else None,
    moments=np.load(folder / "moments.npy"),
    unreadable={int(row): reason for row, reason in unreadable.items()},
  )


def _fill(
  folder: pathlib.Path, rows: catalogue_lib.Catalogue, cfg: settings.Data, keep: bool
) -> None:
  partial = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.partial")
  partial.mkdir(parents=True)
  try:
    _write(partial, rows, cfg, keep)
    partial.rename(folder)
  except OSError:
    if not folder.exists():  # else another run was faster, and its entry is as good
      raise
  finally:
    shutil.rmtree(partial, ignore_errors=True)


def _write(
  partial: pathlib.Path, rows: catalogue_lib.Catalogue, cfg: settings.Data, keep: bool
) -> None:
  """Writes the entry row by row, plainly: a full disk kills whoever writes through a memory map."""
  shape = (len(rows), cfg.image_size, cfg.image_size, cfg.channels)
  moments = np.zeros((len(rows), 2, cfg.channels), np.int64)
  unreadable = {}
  pixels = partial / "images.npy" if keep else pathlib.Path(os.devnull)
  with pixels.open("wb") as file:
    np.lib.format.write_array_header_1_0(
      file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    for row, look in enumerate(_told(_looks(rows, cfg), len(rows))):
      moments[row] = look.moments
      if look.reason:
        unreadable[row] = look.reason
      file.write(look.pixels.data)
  np.save(partial / "moments.npy", moments)
  (partial / "unreadable.json").write_text(json.dumps(unreadable))


class _Look(NamedTuple):
  """Pixels [H, W, C] and moments [2, C] of one image, or zeros and why there are none."""

  pixels: np.ndarray
  moments: np.ndarray
  reason: str


def _looks(rows: catalogue_lib.Catalogue, cfg: settings.Data) -> Iterator[_Look]:
  """Every image in order, decoded by threads a chunk ahead."""
  fitting = _CHUNK_BYTES // (cfg.image_size**2 * cfg.channels)
  chunk = max(1, min(_CHUNK_IMAGES, fitting))
  with futures.ThreadPoolExecutor(cfg.threads or os.cpu_count()) as pool:
    for start in range(0, len(rows), chunk):
      stop = min(start + chunk, len(rows))
      yield from pool.map(lambda row: _look(rows, row, cfg), range(start, stop))


def _look(rows: catalogue_lib.Catalogue, row: int, cfg: settings.Data) -> _Look:
  try:
    pixels = readers.read(rows.read(row), cfg.image_size, cfg.channels)
  except (OSError, readers.Unreadable) as error:
    nothing = np.zeros((cfg.image_size, cfg.image_size, cfg.channels), np.uint8)
    return _Look(nothing, np.zeros((2, cfg.channels), np.int64), str(error))
  sums = pixels.sum((0, 1), np.int64)
  squares = np.square(pixels, dtype=np.uint32).sum((0, 1), np.int64)
  return _Look(np.ascontiguousarray(pixels), np.stack([sums, squares]), "")


def _told(looks: Iterator[_Look], total: int) -> Iterator[_Look]:
  """Passes on what comes; prints how far it is, how fast, and how long it will take."""
  start = last = time.monotonic()
  for done, look in enumerate(looks, 1):
    yield look
    now = time.monotonic()
    if now - last > _QUIET_SECONDS or (done == total and last > start):
      rate, last = done / (now - start), now
      left = (total - done) / rate
      print(f"decoded {done:,} of {total:,} images, {rate:,.0f}/s, {left:.0f} s left", flush=True)
