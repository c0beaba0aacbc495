"""Images: where they come from, how they are dealt to parts, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import csv
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from medjax import contract, settings
from medjax.data import cache, census, duplicates, external, generated, overlap, patience, splits
from medjax.data import catalogue as catalogue_lib
from medjax.data import metadata as metadata_lib
from medjax.data.datasets import (
  breakhis,
  chest_xray_kermany,
  chestxray14,
  collections,
  covid_ct,
  eyepacs,
  files,
  ham10000,
  image_folder,
  isic_malignant_benign,
  malaria_cells,
  medmnist,
  mnist,
  npz,
  oct_kermany,
  paper,
  phantom,
  prepared,
  table,
  zip_folder,
)

PAPERS: dict[type[settings.Data], paper.Paper] = {
  settings.CovidCT: covid_ct.PAPER,
  settings.ChestXrayKermany: chest_xray_kermany.PAPER,
  settings.OctKermany: oct_kermany.PAPER,
  settings.HAM10000: ham10000.PAPER,
  settings.IsicMalignantBenign: isic_malignant_benign.PAPER,
  settings.EyePACS: eyepacs.PAPER,
  settings.MalariaCells: malaria_cells.PAPER,
  settings.BreakHis: breakhis.PAPER,
  settings.ChestXray14: chestxray14.PAPER,
  settings.MNIST: mnist.PAPER,
  settings.MedMNIST: medmnist.PAPER,
}

DATASETS: dict[type[settings.Data], Callable[[Any], catalogue_lib.Catalogue]] = {
  settings.Phantom: phantom.catalogue,
  settings.ImageFolder: image_folder.catalogue,
  settings.Table: table.catalogue,
  settings.Npz: npz.catalogue,
  settings.ZipFolder: zip_folder.catalogue,
  settings.Tfds: prepared.catalogue,
  settings.Collection: collections.catalogue,
  **{kind: found.catalogue for kind, found in PAPERS.items()},
}

_HELD = ("resident", "split")  # feeds whose devices hold all images


def make(
  cfg: settings.Data,
  quarantine: pathlib.Path | None = None,
  apart: Sequence[settings.Data] = (),
) -> catalogue_lib.Splits:
  """Makes a set ready to be fed: listed, dealt, looked at, checked.

  The split is made before the images are decoded, so that neither a mistake in it costs a decoding
  nor a damaged file moves other images to other parts. Every image is decoded once, the first time;
  what came of it is kept under `cfg.cache`. Where groups turn out to share a picture, they count as
  one, and the split is made once more.

  Args:
    cfg: the set's settings, one of the types of `DATASETS`.
    quarantine: the file that lists what cannot be read (tab-separated: id, reason); where all can
      be read, an old one is removed.
    apart: sets whose val and test images the training part must not show; see `overlap`.

  Raises:
    FileNotFoundError, KeyError: what the settings name is not there.
    ValueError: the set is empty, has blank or unknown labels, lacks a class in a part, has a group
      in two parts, or more unreadable files than `cfg.max_unreadable`.
    OSError: the cache or the quarantine cannot be written.
  """
  _check_frames(cfg)
  rows = _listed(cfg)
  parts = splits.deal(rows, cfg.split)
  splits.check(rows, parts, cfg.split)
  feed, why = _feed(cfg, len(rows))
  decoded = cache.load(rows, cfg)
  named, rows = rows.groups, splits.joined(rows, decoded.pictures)
  dealt = splits.deal(rows, cfg.split)
  leak = splits.check(rows, dealt, cfg.split)
  parts = splits.thinned(rows, dealt, cfg.split)
  less = splits.thinning(rows, dealt, parts)
  if cfg.split.rest == "unlabelled":
    rows, parts = splits.without_labels(rows, dealt, parts), dealt.copy()
  spare = parts == ""
  parts[list(decoded.unreadable)] = ""
  audited = _audited(rows, decoded, parts, cfg, apart) if apart else ()
  quarantined = tuple((rows.ids[row], reason) for row, reason in decoded.unreadable.items())
  if quarantine is not None:
    _write_quarantine(quarantined, quarantine)
  _check_share(quarantined, len(rows), cfg.max_unreadable, quarantine)
  splits.check_classes(rows, parts, cfg.split)
  twice = splits.conflicts(rows, decoded.pictures)
  left = f"{len(quarantined)} unreadable files are left out" if quarantined else ""
  encoder = _encoder(rows, parts == "train")
  known = None if encoder is None else encoder(rows.metadata)
  found = catalogue_lib.Splits(
    parts={
      name: _part(rows, np.flatnonzero(parts == name), name, feed, decoded, known, cfg.patience)
      for name in contract.PARTS
      if name in parts
    },
    info=_info(rows, parts == "train", cfg, decoded.moments, encoder),
    leaky=bool(leak),
    feed=feed,
    table=_title(rows, cfg) + splits.table(rows, parts),
    quarantined=quarantined,
    census=census.of(
      np.array(named),
      np.array(rows.groups),
      _gone(parts, list(decoded.unreadable), spare),
      {
        "groups in two parts": leak,
        "pictures under two labels": twice,
        **(
          {"near-duplicates of what other stages are scored on": " ".join(audited)} if apart else {}
        ),
      },
    ),
    notes=tuple(note for note in (*rows.notes, left, less, *audited, leak, twice, why) if note),
  )
  generated.refuse_as_real(cfg.root, found.parts)
  return generated.added(found, cfg) if cfg.generated else found


def beside(
  found: catalogue_lib.Splits, cfg: settings.Data, tests: Sequence[settings.Data]
) -> catalogue_lib.Splits:
  """A set with further test sets beside its parts, each a part under its name (`settings.named`).

  Nothing of them is learnt: their classes, by name, and their metadata are brought to what the
  training part has. They are audited against the train and val parts as `split.leaks` of each says.

  Args:
    found: from `make`. cfg: its settings. tests: settings of the further sets.

  Raises:
    ValueError: other classes, pixels or metadata, unreadable files, or images that were learnt.
    FileNotFoundError, KeyError, OSError: as `make`.
  """
  if not tests:
    return found
  ids = [found.parts[name].ids for name in ("train", "val") if name in found.parts]
  learnt = _looked_at(cfg, cfg.name, np.concatenate(ids))
  for name, other in zip(settings.named(tests), tests, strict=True):
    found = _with_test(found, learnt, cfg, name, external.fitting(other, found.info))
  return found


def _with_test(
  found: catalogue_lib.Splits,
  learnt: overlap.Images,
  ours: settings.Data,
  name: str,
  cfg: settings.Data,
) -> catalogue_lib.Splits:
  _check_frames(cfg)
  external.check_pixels(cfg, ours, name)
  generated.refuse_as_real(cfg.root, [name])
  rows = external.relabelled(_listed(cfg), found.info, name)
  decoded = cache.load(rows, cfg)
  unreadable = [(rows.ids[row], reason) for row, reason in decoded.unreadable.items()]
  _check_share(unreadable, len(rows), cfg.max_unreadable, None)
  known = external.encoded(rows, found.info, name)
  own = np.setdiff1d(external.scored(rows, cfg), list(decoded.unreadable))
  rows = splits.joined(rows, decoded.pictures)
  part = _part(rows, own, name, "streamed", decoded, known, cfg.patience)
  seen = _looked_at(cfg, name, part.ids)
  alike = isinstance(cfg, settings.Table) and isinstance(ours, settings.Table)
  leak = external.leak(learnt, seen, alike, cfg.split.leaks, pathlib.Path(cfg.cache).expanduser())
  return external.added(found, part, leak, rows.synthetic, len(unreadable))


def _looked_at(cfg: settings.Data, name: str, ids: np.ndarray) -> overlap.Images:
  """Some images of a set, of a size at which different pictures can be told apart."""
  cfg = dataclasses.replace(cfg, image_size=max(cfg.image_size, duplicates.SIDE))
  rows = _listed(cfg)
  return overlap.Images(name, rows, cache.load(rows, cfg), np.flatnonzero(np.isin(rows.ids, ids)))


def _listed(cfg: settings.Data) -> catalogue_lib.Catalogue:
  """Every image of a set, with the labels that the settings ask for."""
  rows = DATASETS[type(cfg)](cfg)
  return catalogue_lib.by_source(rows) if cfg.target == "source" else rows


def _audited(
  rows: catalogue_lib.Catalogue,
  decoded: cache.Decoded,
  parts: np.ndarray,
  cfg: settings.Data,
  apart: Sequence[settings.Data],
) -> tuple[str, ...]:
  """Takes out of the training part what other sets are scored on; says how much that was."""
  targets = [_scored(other) for other in dict.fromkeys(apart)]
  pool = overlap.Images(cfg.name, rows, decoded, np.flatnonzero(parts == "train"))
  gone, notes = overlap.shown(pool, targets, pathlib.Path(cfg.cache).expanduser())
  parts[gone] = ""
  return notes


def _scored(cfg: settings.Data) -> overlap.Images:
  """The val and test images of a set, dealt as `make` deals them."""
  rows = DATASETS[type(cfg)](cfg)
  decoded = cache.load(rows, cfg)
  parts = splits.deal(splits.joined(rows, decoded.pictures), cfg.split)
  own = np.flatnonzero((parts == "val") | (parts == "test"))
  return overlap.Images(cfg.name, rows, decoded, own)


def _gone(parts: np.ndarray, unreadable: list[int], spare: np.ndarray) -> dict[str, np.ndarray]:
  """Why images are in no part -> [n] bool which; that all could be read is said, too."""
  broken = np.zeros(len(parts), bool)
  broken[unreadable] = True
  shown = (parts == "") & ~broken & ~spare
  reasons = {"left out by data.split.fraction": spare, "too like what others are scored on": shown}
  return {"could not be read": broken} | {why: mask for why, mask in reasons.items() if mask.any()}


def _check_frames(cfg: settings.Data) -> None:
  """Raises ValueError where frames are asked for that a set of one image a file would leave out."""
  if cfg.reading.frames != "middle":
    raise ValueError(
      f"data.reading.frames={cfg.reading.frames}: this set takes one image of a file, the middle"
      " frame. For more, make a collection of them: python -m medjax.data prepare FOLDER --out OUT"
      f" --frames {cfg.reading.frames}, and train on it with --config.data.name=collection"
    )


def _feed(cfg: settings.Data, images: int) -> tuple[catalogue_lib.Kind, str]:
  """The feed that the settings and the size call for, and the reason in words."""
  gigabytes = cache.gigabytes(images, cfg)
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


def _encoder(rows: catalogue_lib.Catalogue, training: np.ndarray) -> metadata_lib.Encoder | None:
  """Of metadata, by what the training part alone holds; None where there are none."""
  if not rows.fields:
    return None
  return metadata_lib.fit([rows.metadata[row] for row in np.flatnonzero(training)], rows.fields)


def _part(
  rows: catalogue_lib.Catalogue,
  own: np.ndarray,
  name: str,
  feed: catalogue_lib.Kind,
  decoded: cache.Decoded,
  known: np.ndarray | None,
  seconds: float,
) -> catalogue_lib.Part:
  """The rows `own` of the set; `known` are the metadata of all."""
  read = patience.limited(decoded.read, seconds, decoded.where)
  return catalogue_lib.Part(
    name=name,
    ids=np.array(rows.ids)[own],
    groups=np.array(rows.groups)[own],
    labels=rows.labels[own],
    fetch=lambda row: read(own[[row]])[0],
    images=decoded.read(own) if feed in _HELD else None,
    metadata=None if known is None else known[own],
    fetch_many=lambda wanted: read(own[wanted]),
    sets=None if rows.sets is None else rows.sets[own],
    facts=catalogue_lib.facts(rows, own),
  )


def _info(
  rows: catalogue_lib.Catalogue,
  training: np.ndarray,
  cfg: settings.Data,
  moments: np.ndarray,
  encoder: metadata_lib.Encoder | None,
) -> contract.DataInfo:
  """`moments` are [n, 2, C] sums of pixels and of their squares; integers, hence exact."""
  size = int(training.sum())
  pixels = size * cfg.image_size**2
  top = int(np.iinfo(cache.dtype(cfg)).max)
  first, second = moments[training].astype(object).sum(0)  # Python's integers: no overflow below
  deviation = (pixels * second - first**2).astype(float) ** 0.5
  return contract.DataInfo(
    classes=rows.classes,
    image_shape=(cfg.image_size, cfg.image_size, cfg.channels),
    class_counts=tuple(rows.members[training].sum(0).tolist()),
    train_size=size,
    mean=tuple((first.astype(float) / (top * pixels)).tolist()),
    std=tuple((deviation / (top * pixels)).tolist()),
    metadata=0 if encoder is None else encoder.width,
    encoding=() if encoder is None else encoder.described(),
    reading={} if rows.reading is None else dataclasses.asdict(rows.reading),
    synthetic=rows.synthetic,
    multi_label=rows.multi_label,
    target=cfg.target,
  )


def _title(rows: catalogue_lib.Catalogue, cfg: settings.Data) -> str:
  kept = "" if cfg.split.fraction == 1 else f", split.fraction={cfg.split.fraction:g}"
  return f"{cfg.name}{' (synthetic)' if rows.synthetic else ''}, {len(rows):,} images{kept}\n"
