"""`python -m medjax.data audit PATH...`: what stands in two parts of a split, or under two labels.

Each PATH is a part: a folder, an archive or a prepared collection, such as a pool for pretraining
beside the parts that it is scored on. Of a single PATH the folders train*, val* and test* in it are
the parts; with --set, it is the root of a public set, dealt to its parts as training does it.

Found are pairs of equal files (`bytes`), equal pixels (`pixels`), near-duplicates (`near`), images
of one group (`group`), and pictures under two labels (`label`).
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterator, Sequence
import csv
import dataclasses
import os
import pathlib

import numpy as np

from medjax import data as data_lib
from medjax import page as page_lib
from medjax import settings
from medjax.data import arguments as arguments_lib
from medjax.data import collection, duplicates, splits
from medjax.data.audit import evidence as evidence_lib
from medjax.data.audit import leaks
from medjax.data.datasets import files

# Panels of a paper's page or figure, as COVID-CT names them: 2020.03-p17-91-1.png, 10%2.jpg.
_PANELS = r"^(.+-p\d+)-|^(.+?)(?:_\d+)?%\d+\.\w+$"
_PREFIXES = ("train", "val", "test")
_SHOWN = 200  # pairs of each kind on the page; the table holds all
_TITLES = {
  "bytes": "Equal files",
  "pixels": "Equal pixels in different files",
  "near": "Near-duplicates",
  "group": "Groups in two parts",
  "label": "One picture under two labels",
}


def arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  add = parser.add_argument
  add("paths", nargs="+", metavar="PATH", help="a part: folder, archive or prepared collection")
  add("--out", required=True, metavar="DIR", type=pathlib.Path, help="folder of table and page")
  add(
    "--group-pattern",
    type=arguments_lib.pattern,
    default=_PANELS,
    metavar="REGEX",
    help="on the file's name; its first group (or whole match) is the patient, lesion or source"
    " (default: panels of one published figure; where nothing fits, the patient of a DICOM header)",
  )
  add("--set", metavar="NAME", help="PATH is the root of this set, such as covid_ct")
  arguments_lib.add_workers(parser, "processes that decode")


def run(args: argparse.Namespace) -> int:
  """Writes `pairs.csv` and `audit.html`, and tells how many images cross.

  Raises:
    FileNotFoundError, ValueError, OSError: with what to type instead.
  """
  args.out.mkdir(0o700, parents=True, exist_ok=True)
  evidence = _evidence(args, args.workers)
  found = leaks.find(evidence.images, evidence.thumbs_of)
  crossing = len(leaks.crossing(evidence.images, found))
  lines = _lines(evidence, found)
  _write_pairs(evidence.images, found, args.out / "pairs.csv")
  _write_unreadable(evidence, args.out / "unreadable.csv")
  page = _page(evidence, found, [*lines, f"crossing images: {crossing:,}"], args.out / "audit.html")
  print("\n".join([*lines, str(page), f"crossing images: {crossing}"]))
  return 0


def _evidence(args: argparse.Namespace, workers: int) -> evidence_lib.Evidence:
  if args.set:
    return _of_set(args, workers)
  if len(args.paths) > 1:
    return _of_parts([(path, path) for path in args.paths], args.group_pattern, workers)
  (path,) = args.paths
  if collection.is_collection(path):
    return _of_whole_collection(path)
  return _of_parts(_folders(path), args.group_pattern, workers)


def _of_parts(
  parts: Sequence[tuple[str, str]], pattern: str, workers: int
) -> evidence_lib.Evidence:
  """Of (path, part) each."""
  twice = [path for path, count in collections.Counter(parts).items() if count > 1]
  if twice:
    raise ValueError(f"{twice[0][0]} is named twice: name each part once")
  prepared = [(path, part) for path, part in parts if collection.is_collection(path)]
  plain = [(path, part) for path, part in parts if not collection.is_collection(path)]
  files = [file for path, part in plain for file in evidence_lib.listed(path, part, pattern)]
  every = [evidence_lib.of_files(files, workers)] if files else []
  return evidence_lib.joined(every + [evidence_lib.of_collection(*pair) for pair in prepared])


def _folders(path: str) -> list[tuple[str, str]]:
  """(folder, part) of the parts in one folder."""
  root = pathlib.Path(path)
  if not root.exists():
    raise FileNotFoundError(f"{path} does not exist: name a folder that holds train*, val*, test*")
  names = sorted(child.name for child in root.iterdir() if child.is_dir()) if root.is_dir() else []
  found = [
    (os.path.join(path, name), prefix)
    for prefix in _PREFIXES
    for name in names
    if name.lower().startswith(prefix)
  ]
  if len({part for _, part in found}) < 2:
    raise ValueError(
      f"{path} holds {', '.join(folder for folder, _ in found) or 'none'} of the folders train*,"
      " val* and test*, and an audit needs two parts: name each part as a PATH of its own"
    )
  return found


def _of_whole_collection(path: str) -> evidence_lib.Evidence:
  evidence = evidence_lib.of_collection(path, "")
  if len(set(evidence.images.parts) - {""}) < 2 or "" in evidence.images.parts:
    raise ValueError(f"the collection {path} is of one part: name what to hold it against as well")
  return evidence


def _of_set(args: argparse.Namespace, workers: int) -> evidence_lib.Evidence:
  known = settings.VARIANTS[settings.Data]
  name, _, chosen = args.set.partition(":")
  if name not in known:
    near = files.suggestion(name, known)
    raise ValueError(f"--set {args.set}: no set is called so.{near} There are {', '.join(known)}")
  if len(args.paths) != 1:
    raise ValueError(f"--set {args.set} takes one PATH, the set's root, not {len(args.paths)}")
  which = {"set": chosen} if chosen else {}
  cfg = dataclasses.replace(known[name], root=args.paths[0], **which)
  rows = data_lib.DATASETS[type(cfg)](cfg)
  parts = splits.deal(rows, cfg.split)
  return evidence_lib.of_catalogue(rows, parts, args.paths[0], workers)


def _lines(evidence: evidence_lib.Evidence, found: leaks.Leaks) -> list[str]:
  """What was looked at and found, for people."""
  parts = collections.Counter(evidence.images.parts.tolist())
  lines = [f"{count:,} images in {part}" for part, count in parts.items()]
  if evidence.unreadable:
    lines.append(f"{len(evidence.unreadable):,} files cannot be read: unreadable.csv says why")
  if found.crowded:
    lines.append(
      f"{found.crowded:,} images have more than {duplicates.CROWD:,} near candidates; of those the"
      " rest was not looked at"
    )
  counts = np.bincount(found.kinds, minlength=len(leaks.KINDS))
  return lines + [
    f"{count:,} pairs: {kind}" for kind, count in zip(leaks.KINDS, counts, strict=True)
  ]


def _write_pairs(images: leaks.Images, found: leaks.Leaks, file: pathlib.Path) -> None:
  with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("path_a", "path_b", "kind"))
    kinds = np.array(leaks.KINDS)[found.kinds]
    writer.writerows(zip(images.names[found.left], images.names[found.right], kinds, strict=True))


def _write_unreadable(evidence: evidence_lib.Evidence, file: pathlib.Path) -> None:
  file.unlink(missing_ok=True)
  if evidence.unreadable:
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
      csv.writer(stream).writerows([("path", "reason"), *evidence.unreadable])


def _page(
  evidence: evidence_lib.Evidence, found: leaks.Leaks, lines: Sequence[str], file: pathlib.Path
) -> pathlib.Path:
  page = page_lib.Page("Audit", file)
  for line in lines:
    page.text(line)
  inside = _inside(evidence.images.names)
  page.text(f"Paths below are those in {inside}" if inside else "", class_="soft")
  kinds = [kind for number, kind in enumerate(leaks.KINDS) if number in found.kinds]
  page.links({kind: _TITLES[kind] for kind in kinds})
  for kind in kinds:
    pairs = np.flatnonzero(found.kinds == leaks.KINDS.index(kind))
    page.section(f"{_TITLES[kind]} ({len(pairs):,} pairs)", kind)
    if len(pairs) > _SHOWN:
      page.text(f"The first {_SHOWN}; all are in pairs.csv.", class_="soft")
    page.pictures(_pictures(evidence, found, pairs[:_SHOWN], inside), "pairs")
  return page.write()


def _inside(names: np.ndarray) -> str:
  """The folder that all names begin with, with a slash behind it; or nothing."""
  ends = [min(names.tolist()), max(names.tolist())] if len(names) else [""]
  shared = os.path.commonprefix(ends)  # noqa: RUF071, since it is cut at a slash
  return shared[: shared.rfind("/") + 1]


def _pictures(
  evidence: evidence_lib.Evidence, found: leaks.Leaks, pairs: np.ndarray, inside: str
) -> Iterator[tuple[np.ndarray, str, Sequence[str]]]:
  """Both thumbnails of each pair, side by side."""
  rows, places = np.unique([found.left[pairs], found.right[pairs]], return_inverse=True)
  thumbs, names = evidence.thumbs_of(rows), evidence.images.names[rows]
  gap = np.full((duplicates.SIDE, 4), 255, np.uint8)
  for number, (left, right) in enumerate(places.reshape(2, -1).T, 1):
    both = np.concatenate([thumbs[left], gap, thumbs[right]], axis=1)
    paths = [str(names[row]).removeprefix(inside) for row in (left, right)]
    yield both[..., None], f"pair {number}", paths
