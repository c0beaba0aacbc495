"""From finished shards to a finished collection: one pass over the hashes, then the tables."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa

from medjax.data import duplicates
from medjax.data.collection import listing, manifest, pseudonyms, records, shards
from medjax.data.collection import plan as plan_lib


def finish(plan: plan_lib.Plan, total: int, seal: str) -> dict[str, int]:
  """Marks duplicates, writes manifest, quarantine and description, and clears up.

  Args:
    plan: the collection's; all its shards are finished.
    total: how many files were listed.
    seal: of settings, salt and list.

  Returns:
    The counts of `shards.Counts`; how many images are `exact_of` and `near_of` another; how many
    are `crowded`, with more candidates for near ones than were looked at.
  """
  numbers = range(listing.shards(total))
  rows = [plan.rows(shard) for shard in numbers]
  table = manifest.columns(rows, ["id", "pixels_sha256", "phash", "colour"])
  channels = plan.channels or (3 if np.any(_numpy(table, "colour")) else 1)
  marks, crowded = _marks(table, _thumbnails(plan, numbers, len(table)))
  with records.replacing(plan.folder / manifest.FILE) as partial:
    manifest.join(partial, rows, marks)
  refused = (pair for shard in numbers for pair in shards.quarantined(plan, shard))
  pseudonyms.write_quarantine(plan.folder, refused)
  if not plan.keep_paths:
    _write_sources(plan, numbers)
  counts = dataclasses.asdict(sum((shards.counted(plan, n) for n in numbers), shards.Counts()))
  counts |= {name: int(np.count_nonzero(_numpy(marks, name) != "")) for name in manifest.MARKS}
  counts["crowded"] = crowded
  for partial in (plan.folder / "shards").glob("*.partial"):  # of runs that were killed
    partial.unlink()
  _describe(plan, channels, counts, seal)
  shutil.rmtree(plan.unfinished)
  return counts


def _numpy(table: pa.Table, name: str) -> np.ndarray:
  return table[name].to_numpy(zero_copy_only=False)


def _thumbnails(plan: plan_lib.Plan, numbers: range, count: int) -> np.ndarray:
  """uint8 [n, 64, 64] of all images, mapped from disk: candidates are looked up at random."""
  shape = (count, duplicates.SIDE, duplicates.SIDE)
  with plan.thumbnails().open("wb") as joined:
    for shard in numbers:
      with plan.thumbnails(shard).open("rb") as part:
        shutil.copyfileobj(part, joined)
  return (
    np.memmap(plan.thumbnails(), np.uint8, "r", shape=shape) if count else np.zeros(shape, "u1")
  )


def _marks(table: pa.Table, thumbnails: np.ndarray) -> tuple[pa.Table, int]:
  """For each image the id of the first that is equal, or near, to it; "" for that first one.

  Near goes through any number of steps. The number is that of crowded images.
  """
  exact = first_equal(_numpy(table, "pixels_sha256"))
  kept = np.unique(exact)
  hashes = _numpy(table, "phash").view(np.uint64)
  pairs = duplicates.pairs(hashes[kept], lambda rows: thumbnails[kept[rows]])
  near = kept[first_joined(len(kept), pairs.left, pairs.right)]
  near = near[np.searchsorted(kept, exact)]
  columns = [
    _named(table["id"], exact, np.arange(len(exact))),
    _named(table["id"], near, exact),
  ]
  return pa.table(columns, names=manifest.MARKS), pairs.crowded


def _named(ids: pa.ChunkedArray, first: np.ndarray, own: np.ndarray) -> pa.Array:
  """The ids of [n] images, "" where they are the [n] images themselves."""
  named = ids.combine_chunks().take(pa.array(first, mask=first == own))
  return named.fill_null("")


def first_equal(digests: np.ndarray) -> np.ndarray:
  """[n] int64: for each of [n] texts the place of the first that is the same."""
  _, first, inverse = np.unique(digests.astype("S64"), return_index=True, return_inverse=True)
  return first[inverse]


def first_joined(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
  """[count] int64: for each node the smallest that edges lead to, over any number of steps."""
  smallest = np.arange(count)
  while True:
    before = smallest.copy()
    both = np.minimum(smallest[left], smallest[right])
    np.minimum.at(smallest, left, both)
    np.minimum.at(smallest, right, both)
    smallest = smallest[smallest]
    if np.array_equal(before, smallest):
      return smallest


def _write_sources(plan: plan_lib.Plan, numbers: range) -> None:
  """The way back from keys to paths."""
  with pseudonyms.private(plan.folder / "sources.tsv") as file:
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(("key", "source", "path"))
    for shard in numbers:
      for source, entry in listing.read(plan, shard):
        writer.writerow((pseudonyms.key(plan.salt, source, entry.path), source, entry.path))


def _describe(plan: plan_lib.Plan, channels: int, counts: dict[str, int], seal: str) -> None:
  """The description is what makes the collection finished, so it comes last."""
  described = plan.described() | {
    "stored_channels": channels,
    "depth": plan.reading.depth,
    "synthetic": False,
    "counts": counts,
    "seal": seal,
  }
  with records.replacing(plan.folder / plan_lib.DESCRIPTION) as partial:
    partial.write_text(json.dumps(described, indent=2) + "\n")
