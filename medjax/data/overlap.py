"""Images of a pool that show what a target is scored on: they must not be trained on."""

from __future__ import annotations

from collections.abc import Sequence
import hashlib
import pathlib
from typing import NamedTuple
import uuid

import numpy as np

from medjax.data import cache, duplicates
from medjax.data import catalogue as catalogue_lib

_VERSION = 1  # of what is kept of an audit
_CHUNK = 1024  # images that are looked at together


class Images(NamedTuple):
  """Some images of a set: its name, all its images, what they show, and the rows that are meant."""

  name: str
  rows: catalogue_lib.Catalogue
  decoded: cache.Decoded
  own: np.ndarray


def shown(
  pool: Images, targets: Sequence[Images], kept: pathlib.Path
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Finds the images of a pool that are near-duplicates of images that are scored.

  With each of them goes its whole group: other images of a patient whom a target is scored on.
  What near-duplicates are is told in `duplicates`; here they are looked for in decoded pixels.

  Args:
    pool: what will be trained on. targets: what is scored.
    kept: folder in which an audit's result is kept, so that it is made once.

  Returns:
    Rows of the pool, sorted, and a sentence for each target.
  """
  groups, out, notes = np.array(pool.rows.groups), [], []
  for target in targets:
    seen, theirs = near(pool, target, kept)
    gone = pool.own[np.isin(groups[pool.own], groups[seen])]
    out.append(gone)
    notes.append(
      f"audit: {len(gone):,} of {len(pool.own):,} images are left out, {len(seen):,} of them for"
      f" showing {len(theirs):,} of the {len(target.own):,} val and test images of {target.name},"
      " the others for being of their groups"
    )
  return np.unique(np.concatenate(out)), tuple(notes)


def near(pool: Images, target: Images, kept: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Rows of the pool, and of the target, that are near to each other; from `kept` or into it."""
  file = kept / f"audit-{_key(pool, target)}.npz"
  if not file.is_file():
    near, theirs = _compared(pool, target)
    kept.mkdir(0o700, parents=True, exist_ok=True)
    partial = file.with_suffix(f".{uuid.uuid4().hex}.partial")
    with partial.open("wb") as stream:
      np.savez(stream, near=near, theirs=theirs)
    partial.replace(file)
  found = np.load(file, allow_pickle=False)
  return found["near"], found["theirs"]


def _key(*both: Images) -> str:
  digest = hashlib.sha256(str(_VERSION).encode())
  for images in both:
    digest.update(f"{images.rows.content} {images.decoded.read(images.own[:1]).shape}".encode())
    digest.update(images.own.astype(np.int64).tobytes())
  return digest.hexdigest()[:32]


def _compared(pool: Images, target: Images) -> tuple[np.ndarray, np.ndarray]:
  mine, theirs = (np.setdiff1d(i.own, list(i.decoded.unreadable)) for i in (pool, target))
  thumbs = np.concatenate([_thumbs(pool.decoded, mine), _thumbs(target.decoded, theirs)])
  parts = np.repeat([0, 1], [len(mine), len(theirs)])
  pairs = duplicates.pairs(duplicates.hashes(thumbs), lambda rows: thumbs[rows], parts)
  return mine[np.unique(pairs.left)], theirs[np.unique(pairs.right) - len(mine)]


def _thumbs(decoded: cache.Decoded, own: np.ndarray) -> np.ndarray:
  cuts = np.arange(_CHUNK, len(own), _CHUNK)
  return np.concatenate([duplicates.thumbnails(decoded.read(some)) for some in np.split(own, cuts)])
