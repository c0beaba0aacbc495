"""What a collection is to be made of, and where its parts lie while it is made."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import pathlib

from medjax import settings
from medjax.data import readers

SHARD_FILES = 256  # source files a shard: little is lost by a kill, and shards are many
VERSION = 1  # of the layout
DESCRIPTION = "collection.json"  # written last: a folder without it is not finished
_UNFINISHED = "unfinished"


@dataclasses.dataclass(frozen=True)
class Plan:
  """The settings of one collection; small, so that it travels to every worker.

  Attributes:
    folder: where the collection is made.
    sources: folders, archives and files, absolute.
    size: height and width of the images in pixels.
    channels: 1 (grey), 3 (RGB), or 0: images of colour keep it, the others are kept grey.
    reading: how values become pixels.
    salt: goes into every hash that stands for a path or a person.
    keep_paths: the manifest tells paths, and not their hashes alone.
    seconds, gigabytes: what one file may take to be read; the results of the others do not depend
      on it.
  """

  folder: pathlib.Path
  sources: tuple[pathlib.Path, ...]
  size: int
  channels: int = 0
  reading: settings.Reading = settings.Reading()
  salt: bytes = b""
  keep_paths: bool = False
  seconds: float = 120.0
  gigabytes: float = 6.0

  @property
  def unfinished(self) -> pathlib.Path:
    """The folder of what is needed only until the collection is finished."""
    return self.folder / _UNFINISHED

  def listing(self, shard: int) -> pathlib.Path:
    """The files of a shard, a line of JSON each."""
    return self.unfinished / f"{shard:05d}.listing"

  def rows(self, shard: int) -> pathlib.Path:
    """The manifest of a shard's images; the last file of a shard to be written."""
    return self.unfinished / f"{shard:05d}.parquet"

  def thumbnails(self, shard: int | None = None) -> pathlib.Path:
    """The thumbnails of a shard's images, or of all: raw, 64x64 bytes each."""
    return self.unfinished / ("all.thumbnails" if shard is None else f"{shard:05d}.thumbnails")

  def refusals(self, shard: int) -> pathlib.Path:
    """The counts of a shard's files, and those that could not be read."""
    return self.unfinished / f"{shard:05d}.refusals"

  def described(self) -> dict[str, object]:
    """What the pixels and rows depend on besides the files: settings and versions."""
    return {
      "version": VERSION,
      "readers": readers.VERSION,
      "size": self.size,
      "channels": self.channels,
      "reading": dataclasses.asdict(self.reading),
      "keep_paths": self.keep_paths,
      "shard_files": SHARD_FILES,
    }

  def sealed(self) -> hmac.HMAC:
    """A hash of settings and salt to which the files can be added; it betrays neither."""
    return hmac.new(self.salt, json.dumps(self.described()).encode(), hashlib.sha256)
