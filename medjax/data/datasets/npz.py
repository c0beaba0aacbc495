"""MedMNIST's layout: `{train,val,test}_{images,labels}` in one .npz file (Yang et al. 2023)."""

from __future__ import annotations

import pathlib
import zipfile
import zlib

import numpy as np

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files

Arrays = dict[str, np.ndarray]  # part -> array


def catalogue(cfg: settings.Npz) -> catalogue_lib.Catalogue:
  """Loads the file that `cfg.root` names. Ids are part and row; classes are the numbers as text.

  Images are uint8 or uint16 [n, H, W] or [n, H, W, C]; labels are integers, [n] or [n, 1].

  Raises:
    FileNotFoundError: no such file.
    ValueError: no .npz, arrays that are missing or unfit, labels that training does not know.
  """
  file = files.root(cfg.root, "an .npz file of MedMNIST's layout")
  images, given = load(file)
  labels_of = {part: labels(given, part, own, file)[:, 0] for part, own in images.items()}
  sizes = [len(images[part]) for part in images]
  classes = tuple(str(k) for k in range(1 + labels_of["train"].max(initial=0)))
  files.need_classes(classes, f"the training part of {file}")
  ids = tuple(f"{part}/{row}" for part in images for row in range(len(images[part])))
  starts = np.cumsum([0, *sizes])
  parts = np.repeat(list(images), sizes)
  return catalogue_lib.Catalogue(
    ids=ids,
    groups=ids,
    labels=_known(np.concatenate(list(labels_of.values())), len(classes), file),
    parts=parts,
    classes=classes,
    read=lambda row: _image(images, starts, row),
    content=catalogue_lib.fingerprint([file]),
    published=True,  # PneumoniaMNIST's train and val share pictures: told, as of any publication
  )


def _image(images: Arrays, starts: np.ndarray, row: int) -> np.ndarray:
  part = np.searchsorted(starts, row, side="right") - 1
  return list(images.values())[part][row - starts[part]]


def load(file: pathlib.Path) -> tuple[Arrays, Arrays]:
  """The images, and the labels as they stand there, of each part that the file has.

  Raises:
    ValueError: no .npz, or one without a training part.
  """
  try:
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
      arrays = dict(archive)
  except (ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error) as error:
    raise ValueError(f"{file} is no readable .npz file: {error}") from None
  present = [part for part in contract.PARTS if f"{part}_images" in arrays]
  if "train" not in present:
    raise ValueError(f"{file} holds {files.some(list(arrays), 8)}, but no train_images")
  images = {part: arrays[f"{part}_images"] for part in present}
  return images, {p: arrays[f"{p}_labels"] for p in present if f"{p}_labels" in arrays}


def labels(
  given: Arrays, part: str, images: np.ndarray, file: pathlib.Path, width: int = 1
) -> np.ndarray:
  """[n, width] int32, the integers of each image of a part.

  Raises:
    ValueError: there are none, or others.
  """
  if part not in given:
    raise ValueError(f"{file} holds {part}_images, but no {part}_labels")
  found = given[part]
  flat = found.reshape(len(found), -1) if len(found) else found.reshape(0, width)
  if flat.shape != (len(images), width) or flat.dtype.kind not in "iu":
    number = "one integer" if width == 1 else f"{width} integers"
    raise ValueError(
      f"{file}: {part}_labels is {found.dtype} {list(found.shape)} for {len(images)} images;"
      f" expected {number} an image"
    )
  return flat.astype(np.int32)


def _known(labels: np.ndarray, classes: int, file: pathlib.Path) -> np.ndarray:
  strange = sorted(set(labels[(labels < 0) | (labels >= classes)].tolist()))
  if strange:
    raise ValueError(
      f"{file}: labels {files.some(strange)} are not in the class list 0 to {classes - 1} of the"
      " training part"
    )
  return labels
