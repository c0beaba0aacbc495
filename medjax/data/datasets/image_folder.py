"""A folder of class folders: `root/[train|val|test/]class/**/image`."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import re

import numpy as np

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files, patients


def catalogue(cfg: settings.ImageFolder) -> catalogue_lib.Catalogue:
  """Lists the images below `cfg.root`; the class is the name of the folder they lie in.

  Folders named train, val or test right below the root are the parts; beside them no class folder
  may stand. Hidden files, Thumbs.db and documents are passed over by name and told. Linked files
  and folders are followed.

  Raises:
    FileNotFoundError: no such folder.
    ValueError: no images, images outside class folders, empty class folders, fewer than two
      classes, parts beside classes, or a group pattern that does not fit.
  """
  root = files.root(cfg.root, "a folder of class folders")
  if not root.is_dir():
    raise ValueError(f"data.root={root} is a file: image_folder needs a folder of class folders")
  names, notes = files.without_clutter(files.walk(root))
  parted = _is_parted(root)
  _check_layout(root, names, depth=2 if parted else 1)
  folders = [pathlib.PurePosixPath(name).parts for name in names]
  labels = [folder[1] if parted else folder[0] for folder in folders]
  classes = _classes(root, parted, labels)
  paths = [root / name for name in names]
  groups, told = patients.grouped(_groups(names, cfg.group_pattern), names, paths)
  return catalogue_lib.Catalogue(
    ids=tuple(names),
    groups=groups,
    labels=files.index(labels, classes),
    parts=np.array([folder[0] if parted else "" for folder in folders]),
    classes=classes,
    read=lambda row: paths[row].read_bytes(),
    content=catalogue_lib.fingerprint(paths),
    notes=(*notes, *told),
    sources=tuple(labels),
  )


def _folders(place: pathlib.Path) -> list[str]:
  return sorted(p.name for p in place.iterdir() if p.is_dir() and not files.is_clutter(p.name))


def _is_parted(root: pathlib.Path) -> bool:
  folders = _folders(root)
  others = [name for name in folders if name not in contract.PARTS]
  if len(others) == len(folders):
    return False
  if others:
    raise ValueError(
      f"{root} holds the parts {[n for n in folders if n in contract.PARTS]} and beside them"
      f" {files.some(others)}: name parts train, val and test, and put class folders inside them"
    )
  return True


def _check_layout(root: pathlib.Path, names: Sequence[str], depth: int) -> None:
  if not names:
    raise ValueError(f"no image below {root}: expected {root}/[train|val|test/]CLASS/IMAGE")
  loose = [name for name in names if name.count("/") < depth]
  if loose:
    raise ValueError(
      f"{len(loose)} files lie in no class folder: {files.some(loose)}."
      f" Expected {root}/[train|val|test/]CLASS/IMAGE"
    )


def _classes(root: pathlib.Path, parted: bool, labels: Sequence[str]) -> tuple[str, ...]:
  places = [root / part for part in _folders(root)] if parted else [root]
  classes = sorted({name for place in places for name in _folders(place)})
  empty = sorted(set(classes) - set(labels))
  if empty:
    raise ValueError(f"class folders without an image below {root}: {files.some(empty)}")
  files.need_classes(classes, str(root))
  return tuple(classes)


def _groups(names: Sequence[str], pattern: str) -> tuple[str, ...]:
  if not pattern:
    return tuple(names)
  try:
    found = [re.search(pattern, pathlib.PurePosixPath(name).name) for name in names]
  except re.error as error:
    raise ValueError(f"data.group_pattern={pattern!r} is no regular expression: {error}") from None
  missed = [name for name, match in zip(names, found, strict=True) if match is None]
  if missed:
    raise ValueError(
      f"data.group_pattern={pattern!r} fits no part of {len(missed)} file names:"
      f" {files.some(missed)}"
    )
  return tuple(m[1] if m.re.groups else m[0] for m in found if m)
