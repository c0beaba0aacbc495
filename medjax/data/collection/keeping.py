"""Images that are decoded already as a prepared collection: what the feed's cache is made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import itertools
import json
import pathlib

import numpy as np

from medjax import settings
from medjax.data import readers
from medjax.data.collection import manifest, pseudonyms, records
from medjax.data.collection import plan as plan_lib

_SHARD = 4096  # images


@dataclasses.dataclass(frozen=True)
class Kept:
  """One image: its id, a digest of its pixels or "", and uint8 or uint16 [size, size, channels]."""

  id: str
  digest: str
  pixels: np.ndarray


def write(
  folder: pathlib.Path,
  images: Iterable[Kept],
  shape: tuple[int, int, int],
  reading: settings.Reading,
  quarantine: Iterable[tuple[str, str]],
) -> None:
  """Writes a collection of images in their order; where they come from is not told.

  Args:
    folder: empty.
    images: in order, read once. shape: of each, (size, size, channels).
    reading: how they were read.
    quarantine: (id, reason) of what could not be read; asked for when all images have come.
  """
  (folder / "shards").mkdir()
  lengths: list[int] = []
  ids: list[str] = []
  digests: list[str] = []
  for shard in _shards(iter(images)):
    with records.writing(records.path(folder, len(lengths))) as write_record:
      start = len(ids)
      for image in shard:
        write_record(image.pixels.astype(records.dtype(reading.depth), copy=False).tobytes())
        ids.append(image.id)
        digests.append(image.digest)
    lengths.append(len(ids) - start)
  columns: dict[str, Sequence | np.ndarray] = {
    "id": ids,
    "pixels_sha256": digests,
    "height": np.full(len(ids), shape[0]),
    "width": np.full(len(ids), shape[1]),
    "colour": np.full(len(ids), shape[2] == 3),
    "bits": np.full(len(ids), reading.depth),
    "shard": np.repeat(np.arange(len(lengths)), lengths),
    "row": np.concatenate([np.arange(n) for n in lengths] or [np.zeros(0, int)]),
  }
  manifest.write_columns(folder / manifest.FILE, columns, len(ids))
  pseudonyms.write_quarantine(folder, quarantine)
  described = {
    "version": plan_lib.VERSION,
    "readers": readers.VERSION,
    "size": shape[0],
    "channels": shape[2],
    "stored_channels": shape[2],
    "depth": reading.depth,
    "reading": dataclasses.asdict(reading),
    "synthetic": False,
    "counts": {"images": len(ids)},
  }
  (folder / plan_lib.DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")


def _shards(images: Iterator[Kept]) -> Iterator[Iterator[Kept]]:
  """Runs of images; each must be used up before the next."""
  for first in images:
    yield itertools.chain([first], itertools.islice(images, _SHARD - 1))
