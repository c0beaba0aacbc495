"""What an audit holds against one another: the images of folders, collections and listed sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent import futures
import dataclasses
import itertools
import os
import pathlib
import re
import tempfile
from typing import NamedTuple

import numpy as np

from medjax.data import catalogue as catalogue_lib
from medjax.data import collection, duplicates, isolation, readers, sources
from medjax.data.audit import leaks
from medjax.data.duplicates import fingerprints

_TEXTS = ("id", "path", "part", "label", "group", "patient", "sha256", "pixels_sha256")

SECONDS = 60.0  # for one file
GIGABYTES = 4.0  # for one worker


@dataclasses.dataclass(frozen=True)
class Evidence:
  """Images with all that is compared of them.

  Attributes:
    images: what they are.
    thumbs_of: rows -> their thumbnails, uint8 [k, 64, 64].
    unreadable: (name, reason) of what is not among them.
  """

  images: leaks.Images
  thumbs_of: duplicates.ThumbsOf
  unreadable: tuple[tuple[str, str], ...] = ()


class File(NamedTuple):
  """A file to be looked at: where it lies, what users know it by, and what is said of it."""

  source: pathlib.Path
  entry: sources.Entry
  name: str
  part: str
  label: str
  group: str


def listed(given: str, part: str, pattern: str = "") -> list[File]:
  """The files of one part: a folder, an archive or an image; what is no image by name is left out.

  Args:
    given: its path, which the names of its images begin with.
    part: its name.
    pattern: finds the group in a file's name, by its first group or as a whole. Where it fits
      nothing, the group of a file is the patient in its DICOM header, or none.

  Raises:
    FileNotFoundError: there is no such path.
    ValueError: it holds no image.
  """
  source = pathlib.Path(given)
  entries = [entry for entry in sources.walk(source) if not entry.is_clutter]
  if not entries:
    raise ValueError(f"no image in {given}: name folders, archives or images")
  groups = [_group(entry.path, pattern) for entry in entries]
  inside = os.path.join(given, "") if source.is_dir() else given.removesuffix(source.name)
  return [
    File(source, entry, inside + entry.path, part, entry.path.rpartition("/")[0].split("/")[0], g)
    for entry, g in zip(entries, groups, strict=True)
  ]


def _group(path: str, pattern: str) -> str:
  match = re.search(pattern, path.rpartition("/")[2]) if pattern else None
  return "" if match is None else next(filter(None, match.groups()), match[0])


def of_files(files: Sequence[File], workers: int) -> Evidence:
  """Decodes every file, in worker processes with limits of time and memory."""
  contents = sources.contents((file.source, file.entry) for file in files)
  results = isolation.decoded(contents, _looked, workers, SECONDS, GIGABYTES)
  looks = ((result.value, result.reason) for result in results)
  names = np.array([file.name for file in files])
  return _gathered(
    names,
    looks,
    parts=np.array([file.part for file in files]),
    labels=np.array([file.label for file in files]),
    groups=np.array([file.group for file in files]),
  )


def of_catalogue(
  rows: catalogue_lib.Catalogue, parts: np.ndarray, root: str, threads: int
) -> Evidence:
  """Decodes every image of a listed set.

  Args:
    rows: the set. Of a multi-label image, all classes together are the label.
    parts: [n] str, of `splits.deal`.
    root: what the names begin with.
    threads: that decode.
  """
  with futures.ThreadPoolExecutor(threads) as pool:
    return _gathered(
      np.array([os.path.join(root, name) for name in rows.ids]),
      pool.map(lambda row: _outcome(rows, row), range(len(rows))),
      parts=parts,
      labels=np.array(
        ["|".join(itertools.compress(rows.classes, mine)) for mine in rows.members], str
      ),
      groups=np.where(np.array(rows.groups) == np.array(rows.ids), "", np.array(rows.groups)),
    )


def of_collection(given: str, part: str) -> Evidence:
  """The images of a prepared collection, which are not decoded anew.

  Args:
    given: its folder, which the names of its images begin with.
    part: its name; if empty, each image has the part that the manifest tells.
  """
  opened = collection.open(given)
  columns = {name: opened.table[name].to_numpy(zero_copy_only=False) for name in _TEXTS}
  texts = {name: values.astype(str) for name, values in columns.items()}
  names = np.where(texts["path"] == "", texts["id"], texts["path"])
  images = leaks.Images(
    names=np.char.add(os.path.join(given, ""), names),
    parts=np.full(len(opened), part) if part else texts["part"],
    labels=texts["label"],
    groups=np.where(texts["group"] == "", texts["patient"], texts["group"]),
    files=texts["sha256"].astype("S64"),
    pixels=texts["pixels_sha256"].astype("S64"),
    hashes=opened.table["phash"].to_numpy().view(np.uint64),
  )
  return Evidence(images, lambda rows: duplicates.thumbnails(opened.read(rows)))


def joined(every: Sequence[Evidence]) -> Evidence:
  """Several pieces of evidence as one, in their order."""
  columns = {
    field.name: np.concatenate([getattr(one.images, field.name) for one in every])
    for field in dataclasses.fields(leaks.Images)
  }
  ends = np.cumsum([len(one.images) for one in every])

  def thumbs_of(rows: np.ndarray) -> np.ndarray:
    pieces = np.split(rows, np.searchsorted(rows, ends[:-1]))  # rows come sorted
    starts = [0, *ends[:-1]]
    return np.concatenate(
      [
        one.thumbs_of(piece - start)
        for one, piece, start in zip(every, pieces, starts, strict=True)
        if len(piece)
      ]
    )

  unreadable = itertools.chain.from_iterable(one.unreadable for one in every)
  return Evidence(leaks.Images(**columns), thumbs_of, tuple(unreadable))


def _looked(data: bytes | str) -> fingerprints.Fingerprint:
  if isinstance(data, str):
    raise readers.Unreadable(data)
  return fingerprints.of(data)


_Outcome = tuple[fingerprints.Fingerprint | None, str]  # or the reason for none


def _outcome(rows: catalogue_lib.Catalogue, row: int) -> _Outcome:
  try:
    return fingerprints.of(rows.read(row)), ""
  except (OSError, readers.Unreadable) as error:
    return None, str(error)


def _gathered(names: np.ndarray, looks: Iterator[_Outcome], **known: np.ndarray) -> Evidence:
  """Puts together what is known of the images that could be read; thumbnails wait on disk."""
  with tempfile.TemporaryFile() as file:  # mapped, it lives as long as it is needed
    shape = (len(names), duplicates.SIDE, duplicates.SIDE)
    thumbs = np.memmap(file, np.uint8, "w+", shape=shape)
  digests, patients = np.zeros((2, len(names)), "S64"), np.zeros(len(names), "S32")
  unreadable = {}
  for row, (look, reason) in enumerate(looks):
    if look is None:
      unreadable[row] = reason
    else:
      digests[:, row], thumbs[row] = (look.file, look.pixels), look.thumb
      patients[row] = look.patient
  kept = np.delete(np.arange(len(names)), list(unreadable))
  known["groups"] = np.where(known["groups"] == "", patients.astype(str), known["groups"])
  images = leaks.Images(
    names=names[kept],
    files=digests[0, kept],
    pixels=digests[1, kept],
    hashes=duplicates.hashes(thumbs)[kept],
    **{name: values[kept] for name, values in known.items()},
  )
  refused = tuple((str(names[row]), reason) for row, reason in unreadable.items())
  return Evidence(images, lambda rows: np.asarray(thumbs[kept[rows]]), refused)
