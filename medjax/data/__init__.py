"""Images: where they come from, how they are dealt to parts, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import csv
import math
import pathlib
from typing import Any

import numpy as np

from medjax import contract, settings
from medjax.data import cache, readers, splits
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import covid_ct, files, image_folder, npz, phantom, table, zip_folder

DATASETS: dict[type[settings.Data], Callable[[Any], catalogue_lib.Catalogue]] = {
  settings.Phantom: phantom.catalogue,
  settings.ImageFolder: image_folder.catalogue,
  settings.Table: table.catalogue,
  settings.Npz: npz.catalogue,
  settings.CovidCT: covid_ct.catalogue,
  settings.ZipFolder: zip_folder.catalogue,
}


def make(cfg: settings.Data, quarantine: pathlib.Path | None = None) -> catalogue_lib.Splits:
  """Makes a set ready to be fed: listed, dealt, looked at, checked.

  The split is made before the images are decoded, so that neither a mistake in it costs a decoding
  nor a damaged file moves other images to other parts. Every image is decoded once, the first time;
  what came of it is kept under `cfg.cache`.

  Args:
    cfg: the set's settings, one of the types of `DATASETS`.
    quarantine: the file that lists what cannot be read (tab-separated: id, reason); where all can
      be read, an old one is removed.

  Raises:
    FileNotFoundError, KeyError: what the settings name is not there.
    ValueError: the set is empty, has blank or unknown labels, lacks a class in a part, has a group
      in two parts, or more unreadable files than `cfg.max_unreadable`.
    OSError: the cache or the quarantine cannot be written.
  """
  rows = DATASETS[type(cfg)](cfg)
  parts = splits.deal(rows, cfg.split)
  leak = splits.check(rows, parts, cfg.split)
  feed, why = _feed(cfg, len(rows))
  decoded = cache.load(rows, cfg, keep=feed == "resident")
  parts[list(decoded.unreadable)] = ""
  quarantined = tuple((rows.ids[row], reason) for row, reason in decoded.unreadable.items())
  if quarantine is not None:
    _write_quarantine(quarantined, quarantine)
  _check_share(quarantined, len(rows), cfg.max_unreadable, quarantine)
  splits.check_classes(rows, parts, cfg.split)
  left = f"{len(quarantined)} unreadable files are left out" if quarantined else ""
  return catalogue_lib.Splits(
    parts={
      name: _part(rows, parts, name, cfg, decoded) for name in contract.PARTS if name in parts
    },
    info=_info(rows, parts == "train", cfg, decoded.moments),
    leaky=bool(leak),
    feed=feed,
    table=_title(rows, cfg) + splits.table(rows, parts),
    quarantined=quarantined,
    notes=tuple(note for note in (*rows.notes, left, leak, why) if note),
  )


def _feed(cfg: settings.Data, images: int) -> tuple[catalogue_lib.Kind, str]:
  """The feed that the settings and the size call for, and the reason in words."""
  gigabytes = images * cfg.image_size**2 * cfg.channels / 1e9
  size = f"{images:,} images are {gigabytes:.3g} GB decoded"
  if cfg.feed != "auto":
    return cfg.feed, f"feed: {cfg.feed}, as data.feed says ({size})"
  limit = f"data.resident_gb={cfg.resident_gb:g}"
  if gigabytes <= cfg.resident_gb:
    return "resident", f"feed: resident, since {size}, within {limit}"
  return "streamed", f"feed: streamed, since {size}, more than {limit}"


def _write_quarantine(unreadable: Sequence[tuple[str, str]], file: pathlib.Path) -> None:
  file.unlink(missing_ok=True)
  if unreadable:
    with file.open("w", newline="", encoding="utf-8") as stream:
      csv.writer(stream, delimiter="\t").writerows([("id", "reason"), *unreadable])


def _check_share(
  unreadable: Sequence[tuple[str, str]], total: int, most: float, file: pathlib.Path | None
) -> None:
  """Stops when more than the share `most` is unreadable; in a tiny set that may be one file."""
  share = len(unreadable) / total
  if share > most:
    listed = f" (all in {file})" if file else ""
    raise ValueError(
      f"{len(unreadable)} of {total} images cannot be read, a share above data.max_unreadable="
      f"{most:g}: {files.some([f'{name}: {reason}' for name, reason in unreadable])}{listed}."
      " Mend or remove them, or go on without them:"
      f" --config.data.max_unreadable={math.ceil(share * 1000) / 1000:g}"
    )


def _part(
  rows: catalogue_lib.Catalogue,
  parts: np.ndarray,
  name: str,
  cfg: settings.Data,
  decoded: cache.Decoded,
) -> catalogue_lib.Part:
  own = np.flatnonzero(parts == name)
  images = decoded.images
  if images is not None and len(own) < len(images):  # a whole set stays mapped from disk
    images = images[own]
  return catalogue_lib.Part(
    name=name,
    ids=np.array(rows.ids)[own],
    groups=np.array(rows.groups)[own],
    labels=rows.labels[own],
    fetch=lambda row: readers.read(rows.read(int(own[row])), cfg.image_size, cfg.channels),
    images=images,
  )


def _info(
  rows: catalogue_lib.Catalogue, training: np.ndarray, cfg: settings.Data, moments: np.ndarray
) -> contract.DataInfo:
  """`moments` are [n, 2, C] sums of uint8 pixels and of their squares; integers, hence exact."""
  size = int(training.sum())
  pixels = size * cfg.image_size**2
  first, second = moments[training].sum(0).astype(object)  # Python's integers: no overflow below
  deviation = (pixels * second - first**2).astype(float) ** 0.5
  counts = np.bincount(rows.labels[training], minlength=len(rows.classes)) if rows.classes else ()
  return contract.DataInfo(
    classes=rows.classes,
    image_shape=(cfg.image_size, cfg.image_size, cfg.channels),
    class_counts=tuple(map(int, counts)),
    train_size=size,
    mean=tuple((first.astype(float) / (255 * pixels)).tolist()),
    std=tuple((deviation / (255 * pixels)).tolist()),
    synthetic=rows.synthetic,
  )


def _title(rows: catalogue_lib.Catalogue, cfg: settings.Data) -> str:
  return f"{cfg.name}{' (synthetic)' if rows.synthetic else ''}, {len(rows):,} images\n"
