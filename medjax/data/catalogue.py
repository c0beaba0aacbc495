"""What a data set says of itself before anything is decoded, and what a split makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import dataclasses
import hashlib
import pathlib
from typing import Literal

import numpy as np

from medjax import contract

Read = Callable[[int], bytes | np.ndarray]
Kind = Literal["resident", "streamed"]  # of feed
Fetch = Callable[[int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Catalogue:
  """A data set before anything is decoded: one row an image.

  Attributes:
    ids: path relative to the data root, or index as text; unique.
    groups: patient, lesion or source of each image: what no split may cut.
    labels: [n] int32 index into `classes`; `contract.UNLABELLED` in every row of an unlabelled set.
    parts: [n] str, the official part (one of `contract.PARTS`) or "" where the set has none.
    classes: class names in label order; empty for an unlabelled set.
    read: row -> the encoded bytes of the file, or an array that is already pixels (uint8 or uint16,
      [H, W] or [H, W, C]). Called from several threads at once.
    content: a text that changes whenever what `read` gives would change; the cache of decoded
      images is found by it. `fingerprint` makes one from files.
    published: the official parts are those of a publication; where they cut a group, that is told,
      while the same in a user's own table stops the run.
    synthetic: the images were drawn by a program.
    notes: sentences for the user, such as which files were passed over.
  """

  ids: tuple[str, ...]
  groups: tuple[str, ...]
  labels: np.ndarray
  parts: np.ndarray
  classes: tuple[str, ...]
  read: Read
  content: str
  published: bool = False
  synthetic: bool = False
  notes: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Part:
  """One part of a split, readable. Row i of every field is the same image.

  Attributes:
    name: one of `contract.PARTS`.
    ids, groups: [n] str. labels: [n] int32.
    fetch: row -> uint8 [H, W, C], decoded anew; thread-safe. What the streamed feed calls.
    images: uint8 [n, H, W, C] when decoded for the resident feed, else None; equal to `fetch`.
  """

  name: str
  ids: np.ndarray
  groups: np.ndarray
  labels: np.ndarray
  fetch: Fetch
  images: np.ndarray | None

  def __len__(self) -> int:
    return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Splits:
  """A data set dealt to its parts, checked and ready to be fed.

  Attributes:
    parts: name -> Part; parts without images are left out.
    info: what models and objectives may know.
    leaky: some group stands in more than one part, so scores are too good.
    feed: "resident" or "streamed": the choice made.
    table: images and groups of each class in each part, as monospace text.
    quarantined: (id, reason) of each file that could not be read and is in no part.
    notes: sentences for the user: the choice of feed and why, leaks, files passed over.
  """

  parts: dict[str, Part]
  info: contract.DataInfo
  leaky: bool
  feed: Kind
  table: str
  quarantined: tuple[tuple[str, str], ...] = ()
  notes: tuple[str, ...] = ()


def fingerprint(paths: Iterable[pathlib.Path]) -> str:
  """A digest of the files' places, sizes and times of change, in order; nothing is opened."""
  digest = hashlib.sha256()
  for path in paths:
    stat = path.stat() if path.exists() else None
    state = (stat.st_size, stat.st_mtime_ns) if stat else ()
    digest.update(f"{path.absolute()} {state}\n".encode())
  return digest.hexdigest()
