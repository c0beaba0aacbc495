"""A prepared collection: images of one size in record files, and a manifest of what they are.

It is a folder:

- `manifest.parquet`: a row an image. `id`; `source`, the number of the SOURCE it came from; `key`,
  a salted hash of the path there, and `path` itself where that was asked for; `sha256` of the file;
  `frame` in it; `phash`; `pixels_sha256` at its own size; `modality`, `body_part`, `colour`,
  `height`, `width`, `bits`; `patient`, `study` and `series` as salted hashes; `exact_of` and
  `near_of`, the id of the first image that is equal, or near, to it; `shard` and `row` of its
  record.
- `shards/NNNNN.array_record`: raw little-endian pixels, an image a record. Images without colour
  are kept as one channel where channels were to stay as they are.
- `quarantine.tsv`: path and reason of each file that could not be read.
- `sources.tsv`: key, source and path of every file, unless the manifest tells paths.
- `salt`, where none was given.
- `collection.json`: the settings, the counts; written last.

`quarantine.tsv`, `sources.tsv` and `salt` can be read by their owner alone, since paths may name
patients.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib

import numpy as np
import pyarrow as pa

from medjax import settings
from medjax.data.collection import manifest, records
from medjax.data.collection import plan as plan_lib


@dataclasses.dataclass(frozen=True)
class Collection:
  """An opened collection; row i of the table is image i.

  Attributes:
    folder: where it lies.
    table: the manifest.
    size: height and width of the images.
    channels: of every image that `read` gives: 3 if any has colour.
    dtype: uint8, or uint16 little-endian.
    synthetic: the images were drawn by a program.
    reading: how the files that it was made of became its pixels.
  """

  folder: pathlib.Path
  table: pa.Table
  size: int
  channels: int
  dtype: np.dtype
  synthetic: bool
  reading: settings.Reading

  def __len__(self) -> int:
    return self.table.num_rows

  def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """The images of some rows, [n, size, size, channels]; any number of threads at once."""
    return self._images.read(np.asarray(rows, np.int64))

  @functools.cached_property
  def _images(self) -> records.Images:
    shards, rows = (self.table[name].to_numpy() for name in ("shard", "row"))
    shape = (self.size, self.size, self.channels)
    return records.Images(self.folder, shards, rows, shape, self.dtype)


def is_collection(folder: str | pathlib.Path) -> bool:
  """Whether a folder is a prepared collection, finished."""
  return (pathlib.Path(folder) / plan_lib.DESCRIPTION).is_file()


def open(folder: str | pathlib.Path) -> Collection:
  """Opens a prepared collection.

  Raises:
    FileNotFoundError: the folder holds none, or one that is not finished.
  """
  folder = pathlib.Path(folder)
  if not is_collection(folder):
    raise FileNotFoundError(
      f"{folder} holds no finished collection ({plan_lib.DESCRIPTION} is missing): make one with"
      f" python -m medjax.data prepare SOURCE... --out {folder}"
    )
  described = json.loads((folder / plan_lib.DESCRIPTION).read_text())
  return Collection(
    folder=folder,
    table=manifest.read(folder / manifest.FILE),
    size=described["size"],
    channels=described["stored_channels"],
    dtype=records.dtype(described["depth"]),
    synthetic=described["synthetic"],
    reading=settings.Reading(**described["reading"]),
  )
