"""Generated images: a folder with an account of where they come from, for training parts alone.

`FOLDER/CLASS/NUMBER.png` and `FOLDER/generated.json`, which says by what they were made, and names
the images that the generator had learnt from by digests of their ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from medjax import settings
from medjax.data import cache
from medjax.data import catalogue as catalogue_lib
from medjax.data.collection import listing
from medjax.data.datasets import files

ACCOUNT = listing.GENERATED
_GROUP = "generated"


def digests(ids: Iterable[str]) -> list[str]:
  """What stands for ids of images in an account, sorted."""
  return sorted(hashlib.sha256(name.encode()).hexdigest()[:16] for name in ids)


def account(folder: pathlib.Path) -> dict[str, Any]:
  """What is told of a folder of generated images.

  Raises:
    FileNotFoundError: nothing is told, so that it may be anything.
  """
  place = folder / ACCOUNT
  if not place.is_file():
    raise FileNotFoundError(
      f"data.generated={folder} holds no {ACCOUNT}: make such a folder with python -m "
      "medjax.generate WORKDIR --out FOLDER"
    )
  return json.loads(place.read_text())


def refuse_as_real(root: str, parts: Iterable[str]) -> None:
  """Raises ValueError where a folder of generated images is a set of its own with val or test."""
  folder = pathlib.Path(root).expanduser()
  if root and (folder / ACCOUNT).is_file() and set(parts) - {"train"}:
    raise ValueError(
      f"data.root={root} holds generated images, on which nothing can be validated or tested: name "
      "real images there and these with data.generated, or set data.split.val=0 and "
      "data.split.test=0"
    )


def added(found: catalogue_lib.Splits, cfg: settings.Data) -> catalogue_lib.Splits:
  """The set with the images of `cfg.generated` in its training part.

  Raises:
    FileNotFoundError: no such folder, or one without its account.
    ValueError: classes that the set does not have, more generated than real images, or a generator
      that has seen images of the set's val or test part.
  """
  _check_fits(cfg, found)
  folder = files.root(cfg.generated, "a folder of generated images", "data.generated")
  told = account(folder)
  _check_unseen(found, set(told["learnt_from"]), folder)
  rows = catalogue_lib.of(_examples(folder, found.info.classes), found.info.classes)
  train = found.parts["train"]
  if len(rows) > len(train):
    raise ValueError(
      f"data.generated={folder} holds {len(rows):,} images for {len(train):,} real ones: at most "
      "half of a training part may be generated. Generate fewer"
    )
  decoded = cache.load(rows, cfg)
  if decoded.unreadable:
    raise ValueError(f"{len(decoded.unreadable)} of the images in {folder} cannot be read")
  counts = np.array(found.info.class_counts) + rows.members.sum(0)
  info = dataclasses.replace(
    found.info, class_counts=tuple(counts.tolist()), train_size=len(train) + len(rows)
  )
  note = f"train holds {len(rows):,} generated images besides, by {told['run']} ({folder})"
  return dataclasses.replace(
    found,
    parts={**found.parts, "train": _joined(train, rows, decoded.read)},
    info=info,
    notes=(*found.notes, note),
  )


def _check_unseen(found: catalogue_lib.Splits, seen: set[str], folder: pathlib.Path) -> None:
  for name in set(found.parts) - {"train"}:
    shown = seen & set(digests(found.parts[name].ids))
    if shown:
      raise ValueError(
        f"the generator of data.generated={folder} has learnt from {len(shown):,} images that are "
        f"in {name} here: train it on the same split (data.split)"
      )


def _examples(folder: pathlib.Path, classes: tuple[str, ...]) -> Iterator[catalogue_lib.Example]:
  strange = sorted({p.name for p in folder.iterdir() if p.is_dir()} - set(classes))
  if strange:
    raise ValueError(f"{folder} holds the classes {strange}, the set has {', '.join(classes)}")
  for name in classes:
    for path in sorted((folder / name).glob("*.png")):
      place = f"{_GROUP}/{name}/{path.name}"
      yield catalogue_lib.Example(place, path, name, group=place, part="train")


def _joined(
  part: catalogue_lib.Part, rows: catalogue_lib.Catalogue, read: catalogue_lib.FetchMany
) -> catalogue_lib.Part:
  """The rows of a part, and after them those of the generated images."""
  real, n = len(part), len(rows)

  def fetch(row: int) -> np.ndarray:
    return part.fetch(row) if row < real else read(np.array([row - real]))[0]

  whole = dataclasses.replace(
    part,
    ids=np.concatenate([part.ids, rows.ids]),
    groups=np.concatenate([part.groups, rows.groups]),
    labels=np.concatenate([part.labels, rows.labels]),
    fetch=fetch,
    fetch_many=None,
    facts={},  # nothing is known of a patient who never lived
  )
  if part.images is None:
    return whole
  return dataclasses.replace(whole, images=np.concatenate([part.images, read(np.arange(n))]))


def _check_fits(cfg: settings.Data, found: catalogue_lib.Splits) -> None:
  """Refuses sets whose images tell more than generated ones can."""
  several = {
    "metadata": found.info.metadata,
    "several labels an image": found.info.multi_label,
    "several sets": found.parts["train"].sets is not None,
  }
  for what, there in several.items():
    if there:
      raise ValueError(f"data.generated={cfg.generated} does not go with {what}: leave it empty")
