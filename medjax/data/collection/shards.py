"""One shard: its files read, looked at and written; the unit of work and of resumption."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import hashlib
import itertools
import json
import os
import signal
from typing import NamedTuple

import numpy as np

from medjax.data import duplicates, isolation, readers, sources
from medjax.data.collection import listing, manifest, pseudonyms, records
from medjax.data.collection import plan as plan_lib
from medjax.data.duplicates import fingerprints


class Look(NamedTuple):
  """One image: pixels [size, size, 1 or 3], `duplicates.thumbnails`, the manifest's row of it."""

  pixels: np.ndarray
  thumb: np.ndarray
  row: dict[str, object]


Outcome = list[Look] | str  # of a file: its images, or why there are none


@dataclasses.dataclass(frozen=True)
class Counts:
  """Of source files; `found` is the sum of `read`, `passed_over` and `quarantined`.

  Attributes:
    found: all files, members of archives among them.
    read: those that gave images. images: what they gave.
    passed_over: no images by their names.
    quarantined: those that could not be read.
  """

  found: int = 0
  read: int = 0
  images: int = 0
  passed_over: int = 0
  quarantined: int = 0

  def __add__(self, other: Counts) -> Counts:
    sums = {n: getattr(self, n) + getattr(other, n) for n in dataclasses.asdict(self)}
    return Counts(**sums)


def write(job: tuple[plan_lib.Plan, int]) -> Counts:
  """Makes a shard in this process, which ends when a file takes longer than `plan.seconds`."""
  plan, shard = job
  files = listing.read(plan, shard)
  return _store(plan, shard, files, _outcomes(plan, _wanted(files)))


def write_apart(plan: plan_lib.Plan, shard: int) -> Counts:
  """Makes a shard, each file in a worker with limits: what ends a worker costs one file."""
  files = listing.read(plan, shard)
  jobs = ((plan, file) for file in _wanted(files))
  results = isolation.decoded(jobs, _looked_apart, 1, plan.seconds, plan.gigabytes, chunk=1)
  return _store(plan, shard, files, (r.reason or r.value or [] for r in results))


def counted(plan: plan_lib.Plan, shard: int) -> Counts:
  """What a finished shard counted."""
  return Counts(**json.loads(plan.refusals(shard).read_text())["counts"])


def quarantined(plan: plan_lib.Plan, shard: int) -> list[tuple[str, str]]:
  """(path, reason) of the files of a finished shard that could not be read."""
  pairs = json.loads(plan.refusals(shard).read_text())["quarantined"]
  return [(path, reason) for path, reason in pairs]


def _wanted(files: list[listing.Listed]) -> list[listing.Listed]:
  return [file for file in files if not file.entry.refused and not file.entry.is_clutter]


def _outcomes(plan: plan_lib.Plan, files: list[listing.Listed]) -> Iterator[Outcome]:
  """Reads files one after the other; archives stay open while their members are read."""
  for source, group in itertools.groupby(files, lambda file: file.source):
    with sources.Reader(plan.sources[source]) as reader:
      for file in group:
        # Nothing else stops a decoder written in C: the signal is not handled, so it kills.
        signal.setitimer(signal.ITIMER_REAL, plan.seconds)
        outcome = _outcome(plan, reader, file.entry)
        signal.setitimer(signal.ITIMER_REAL, 0)
        yield outcome


def _looked_apart(job: tuple[plan_lib.Plan, listing.Listed]) -> Outcome:
  plan, (source, entry) = job
  with sources.Reader(plan.sources[source]) as reader:
    return _outcome(plan, reader, entry)


def _outcome(plan: plan_lib.Plan, reader: sources.Reader, entry: sources.Entry) -> Outcome:
  try:
    return _looks(plan, reader.read(entry))
  except (OSError, readers.Unreadable) as error:
    return str(error)


def _looks(plan: plan_lib.Plan, data: bytes) -> list[Look]:
  """All chosen frames of a file: one that fails costs the file, so that counts stay plain."""
  digest = hashlib.sha256(data).hexdigest()
  return [_look(plan, frame, digest) for frame in readers.frames(data, plan.reading, plan.salt)]


def _look(plan: plan_lib.Plan, frame: readers.Frame, digest: str) -> Look:
  # One grey channel is the same picture, and a third of the work.
  pixels, about = fingerprints.plain(frame.pixels), frame.about
  channels = plan.channels or (3 if about.colour else 1)
  fitted = readers.fit(pixels, plan.size, channels, plan.reading)
  row: dict[str, object] = {
    "sha256": digest,
    "frame": frame.index,
    "pixels_sha256": fingerprints.digest(pixels),
    "colour": about.colour,
    "modality": about.modality,
    "body_part": about.body_part,
    "height": about.height,
    "width": about.width,
    "bits": about.bits,
    "patient": about.patient,
    "study": about.study,
    "series": about.series,
  }
  # Of the image at its own size: what is near does not hang on the size of the collection.
  return Look(np.ascontiguousarray(fitted), duplicates.thumbnails(pixels), row)


def _store(
  plan: plan_lib.Plan, shard: int, files: list[listing.Listed], outcomes: Iterator[Outcome]
) -> Counts:
  """Writes records and what is known of them; rows last: their file says that all is done."""
  rows: list[dict[str, object]] = []
  thumbs: list[np.ndarray] = []
  refusals: list[tuple[str, str]] = []
  passed_over = 0
  with records.writing(records.path(plan.folder, shard)) as write_record:
    for file in files:
      if file.entry.is_clutter and not file.entry.refused:
        passed_over += 1
        continue
      outcome = file.entry.refused or next(outcomes)
      if isinstance(outcome, str):
        refusals.append((file.entry.path, outcome))
        continue
      for look in outcome:
        rows.append(_named(plan, file, look.row) | {"shard": shard, "row": len(rows)})
        thumbs.append(look.thumb)
        write_record(look.pixels.tobytes())
  counts = Counts(
    found=len(files),
    read=len(files) - passed_over - len(refusals),
    images=len(rows),
    passed_over=passed_over,
    quarantined=len(refusals),
  )
  pictures = np.array(thumbs, np.uint8).reshape(-1, duplicates.SIDE, duplicates.SIDE)
  with records.replacing(plan.thumbnails(shard)) as partial:
    partial.write_bytes(pictures.tobytes())
  with records.replacing(plan.refusals(shard)) as partial:
    told = {"counts": dataclasses.asdict(counts), "quarantined": refusals}
    partial.write_text(json.dumps(told))
  hashes = duplicates.hashes(pictures).view(np.int64)  # Parquet's readers know signed ones best
  with records.replacing(plan.rows(shard)) as partial:
    manifest.write(partial, rows, hashes)
  return counts


def _named(plan: plan_lib.Plan, file: listing.Listed, row: dict[str, object]) -> dict[str, object]:
  """A row with what names the image: never its path, unless that was asked for."""
  path = file.entry.path
  key = pseudonyms.key(plan.salt, file.source, path)
  # Parquet holds text: of a path that is none, the odd bytes are written out.
  shown = os.fsencode(path).decode(errors="backslashreplace") if plan.keep_paths else ""
  names = {"id": f"{key}-{row['frame']}", "source": file.source, "key": key, "path": shown}
  return row | names | {"label": "", "group": "", "part": ""}
