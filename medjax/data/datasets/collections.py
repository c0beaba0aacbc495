"""Prepared collections, one or several, as a set to train on."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib

import numpy as np

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib
from medjax.data import collection as collection_lib
from medjax.data.collection import plan
from medjax.data.datasets import files

_MARKS = {"keep": (), "drop_equal": ("exact_of",), "drop_near": ("exact_of", "near_of")}


def catalogue(cfg: settings.Collection) -> catalogue_lib.Catalogue:
  """Lists the images of `cfg.root` and `cfg.more`; the group is the patient where one is known.

  Images that are marked as copies are left out as the settings say; between two collections nothing
  is compared, for which there is `python -m medjax.data audit`.

  Raises:
    FileNotFoundError: no finished collection is there.
    KeyError: no such column of labels, or of what is kept.
    ValueError: collections of different sizes or depths, or blank labels.
  """
  root = files.root(cfg.root, "a prepared collection")
  opened = [collection_lib.open(pathlib.Path(path).expanduser()) for path in (str(root), *cfg.more)]
  _check_alike(opened)
  rows = [_wanted(one, cfg.duplicates) for one in opened]
  sets = np.repeat(np.arange(len(rows), dtype=np.int32), [len(own) for own in rows])
  column = {
    name: np.concatenate([_texts(one, name, own) for one, own in zip(opened, rows, strict=True)])
    for name in ("id", "patient", "pixels_sha256", "phash")
  }
  ids = [f"{number}/{name}" for number, name in zip(sets, column["id"], strict=True)]
  groups = np.where(column["patient"] == "", ids, column["patient"])
  labels, classes = _labelled(cfg, opened, rows)
  read = _reading(opened, rows, sets)
  return catalogue_lib.Catalogue(
    ids=tuple(ids),
    groups=tuple(groups.tolist()),
    labels=labels,
    parts=np.full(len(ids), ""),
    classes=classes,
    read=lambda row: read(np.array([row]))[0],
    content=catalogue_lib.fingerprint([one.folder / plan.DESCRIPTION for one in opened], ids),
    synthetic=any(one.synthetic for one in opened),
    notes=_notes(opened, rows),
    metadata=_kept(cfg, opened, rows),
    sets=sets if len(opened) > 1 else None,
    sources=tuple(s for one, own in zip(opened, rows, strict=True) for s in _sources(one, own)),
    decoded=read,
    shape=(opened[0].size, opened[0].size, max(one.channels for one in opened)),
    dtype=opened[0].dtype,
    reading=opened[0].reading,
    digests=np.where(column["phash"] == "0", "", column["pixels_sha256"]),  # 0 stands for flat
  )


def _check_alike(opened: Sequence[collection_lib.Collection]) -> None:
  looks = {(one.size, one.dtype.itemsize) for one in opened}
  if len(looks) > 1:
    told = ", ".join(f"{o.folder}: {o.size} px, {8 * o.dtype.itemsize} bit" for o in opened)
    raise ValueError(f"collections of different images cannot be mixed: {told}. Prepare one anew")


def _wanted(one: collection_lib.Collection, duplicates: str) -> np.ndarray:
  """Rows of the manifest that are no copies of an earlier one."""
  copies = np.zeros(len(one), bool)
  for mark in _MARKS[duplicates]:
    copies |= _texts(one, mark) != ""
  return np.flatnonzero(~copies)


def _texts(one: collection_lib.Collection, name: str, rows: np.ndarray | None = None) -> np.ndarray:
  """[n] str of a column of the manifest."""
  column = one.table[name].cast("string").to_numpy(zero_copy_only=False).astype(str)
  return column if rows is None else column[rows]


def _labelled(
  cfg: settings.Collection, opened: Sequence[collection_lib.Collection], rows: list[np.ndarray]
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Labels and classes by the column that the settings name."""
  if not cfg.label:
    return np.full(sum(map(len, rows)), contract.UNLABELLED, np.int32), ()
  names = _column("label", cfg.label, opened, rows)
  blank = int((names == "").sum())
  if blank:
    raise ValueError(f"data.label={cfg.label}: {blank:,} of {len(names):,} images have none")
  classes = tuple(np.unique(names).tolist())
  files.need_classes(classes, f"column {cfg.label!r}")
  return files.index(names.tolist(), classes), classes


def _column(
  setting: str, name: str, opened: Sequence[collection_lib.Collection], rows: list[np.ndarray]
) -> np.ndarray:
  """[n] str of the column that a setting names. Raises KeyError where there is none."""
  known = opened[0].table.column_names
  if name not in known:
    raise KeyError(
      f"no column data.{setting}={name!r} in {opened[0].folder}."
      f"{files.suggestion(name, known)} There are {', '.join(known)}"
    )
  return np.concatenate([_texts(one, name, own) for one, own in zip(opened, rows, strict=True)])


def _kept(
  cfg: settings.Collection, opened: Sequence[collection_lib.Collection], rows: list[np.ndarray]
) -> tuple[dict[str, str], ...]:
  """What the settings keep beside the scores, row by row; none where no column is named."""
  columns = [_column("kept", name, opened, rows).tolist() for name in cfg.kept]
  return tuple(dict(zip(cfg.kept, row, strict=True)) for row in zip(*columns, strict=True))


def _sources(one: collection_lib.Collection, rows: np.ndarray) -> list[str]:
  """Modality and body part of each image; where neither is known, which of the sets prepared."""
  known = zip(*(_texts(one, name, rows) for name in ("modality", "body_part")), strict=True)
  numbers = _texts(one, "source", rows)
  return [
    " ".join(words).strip() or f"{one.folder.name}/{number}"
    for words, number in zip(known, numbers, strict=True)
  ]


def _reading(
  opened: Sequence[collection_lib.Collection], rows: list[np.ndarray], sets: np.ndarray
) -> catalogue_lib.FetchMany:
  """Rows [m] of all collections together -> pixels; grey ones repeated where others have colour."""
  places = np.concatenate(rows)
  channels = max(one.channels for one in opened)

  def read(wanted: np.ndarray) -> np.ndarray:
    size = opened[0].size
    pixels = np.empty((len(wanted), size, size, channels), opened[0].dtype)
    for number in np.unique(sets[wanted]):
      chosen = np.flatnonzero(sets[wanted] == number)
      pixels[chosen] = opened[number].read(places[wanted[chosen]])
    return pixels

  return read


def _notes(opened: Sequence[collection_lib.Collection], rows: list[np.ndarray]) -> tuple[str, ...]:
  left = [(one.folder.name, len(one) - len(own)) for one, own in zip(opened, rows, strict=True)]
  return tuple(
    f"{count:,} images of {name} are copies of others and left out" for name, count in left if count
  )
