"""What the sets share: finding image files, naming what was passed over, labels to numbers."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
import csv
import difflib
import os
import pathlib
import re

import numpy as np

_CLUTTER = {"thumbs.db", "desktop.ini"}
_NO_IMAGE = {
  ".txt",
  ".csv",
  ".tsv",
  ".json",
  ".xml",
  ".md",
  ".html",
  ".pdf",
  ".zip",
  ".xlsx",
  ".py",
}


def root(path: str, kind: str, setting: str = "data.root") -> pathlib.Path:
  """The existing path that a setting names; `kind` says in the error what it should be."""
  if not path:
    raise ValueError(f"{setting} is empty: name the {kind} with --config.{setting}=PATH")
  found = pathlib.Path(path).expanduser()
  if not found.exists():
    raise FileNotFoundError(f"{setting}={path} does not exist: it must be {kind}")
  return found


def downloaded(path: str, title: str, download: str) -> pathlib.Path:
  """The existing folder of a public set; `download` says in the error how to get it."""
  return root(path, f"the folder of {title}.\n{download}")


def need(root: pathlib.Path, download: str, *names: str) -> pathlib.Path:
  """The first of `names` that is there below the folder of a public set."""
  found = next((root / name for name in names if (root / name).exists()), None)
  if found is None:
    raise FileNotFoundError(f"{root} holds no {' and no '.join(names)}.\n{download}")
  return found


def images(folder: pathlib.Path) -> list[pathlib.Path]:
  """The images that lie in a folder itself, by name, sorted."""
  return sorted(p for p in folder.iterdir() if not is_clutter(p.name) and not p.is_dir())


def by_name(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name -> file, over all folders below `root`; of two with one name the first in their order."""
  return {path.name: path for path in (root / name for name in reversed(walk(root)))}


def listed(
  table: pathlib.Path, names: Iterable[str], found: Mapping[str, pathlib.Path], download: str
) -> list[pathlib.Path]:
  """The files that a table of a public set names; all must be there."""
  names = list(names)
  lost = [name for name in names if name not in found]
  if lost:
    raise FileNotFoundError(
      f"{len(lost)} of {len(names)} images that {table} names are missing: {some(lost)}.\n"
      f"{download}"
    )
  return [found[name] for name in names]


def rows(table: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a public set's CSV, by the names in its header."""
  with table.open(newline="", encoding="utf-8-sig") as stream:
    return list(csv.DictReader(stream))


def key(pattern: str, name: str) -> tuple[str, ...]:
  """The groups of a pattern that every file's name of a public set begins with, in lower case."""
  match = re.match(pattern, name, re.IGNORECASE)
  if match is None:
    raise ValueError(f"{name} is not named as the set's authors do, by the pattern {pattern}")
  return tuple((group or "").lower() for group in match.groups())


def is_clutter(name: str) -> bool:
  """Whether a path's name alone says that it is no image: hidden files, thumbnails, documents."""
  steps = pathlib.PurePosixPath(name)
  hidden = any(step.startswith(".") or step == "__MACOSX" for step in steps.parts)
  return hidden or steps.name.lower() in _CLUTTER or steps.suffix.lower() in _NO_IMAGE


def walk(folder: pathlib.Path) -> list[str]:
  """Paths of all files below a folder, relative to it, sorted; links are followed, loops not."""
  found = []
  for place, folders, names in os.walk(folder, followlinks=True):
    above = pathlib.Path(place).absolute().parents
    if os.path.islink(place) and os.path.realpath(place) in map(os.path.realpath, above):
      folders.clear()
      continue
    found += [pathlib.Path(place, name).relative_to(folder).as_posix() for name in names]
  return sorted(found)


def without_clutter(names: Iterable[str]) -> tuple[list[str], tuple[str, ...]]:
  """Splits names into those of images and a note about the rest (none if there is no rest)."""
  names = list(names)
  images = [name for name in names if not is_clutter(name)]
  passed = collections.Counter(pathlib.PurePosixPath(n).name for n in names if is_clutter(n))
  if not passed:
    return images, ()
  shown = ", ".join(f"{name} ({count})" for name, count in passed.most_common(5))
  return images, (f"passed over {passed.total()} files that are no images by name: {shown}",)


def some(items: Sequence[object], shown: int = 4) -> str:
  """The first few of `items`, and how many more there are: for errors."""
  text = ", ".join(str(item) for item in items[:shown])
  return text + (f" and {len(items) - shown} more" if len(items) > shown else "")


def suggestion(name: str, known: Iterable[str]) -> str:
  """A question that names the nearest of `known`, with a blank before it; or nothing."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f" Did you mean {near[0]!r}?" if near else ""


def need_classes(classes: Sequence[str], where: str) -> None:
  """Refuses fewer than two classes."""
  if len(classes) < 2:
    named = f"only one class, {classes[0]!r}" if classes else "no class"
    raise ValueError(f"{where} holds {named}: a classifier needs at least two")


def index(names: Sequence[str], classes: Sequence[str]) -> np.ndarray:
  """[n] int32, each name's place in `classes`; every name must be there."""
  place = {name: label for label, name in enumerate(classes)}
  return np.array([place[name] for name in names], np.int32)
