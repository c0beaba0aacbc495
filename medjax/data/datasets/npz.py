"""MedMNIST's layout: `{train,val,test}_{images,labels}` in one .npz file (Yang et al. 2023)."""

from __future__ import annotations

import pathlib
import zipfile
import zlib

import numpy as np

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files

_Arrays = dict[str, np.ndarray]  # part -> array


def catalogue(cfg: settings.Npz) -> catalogue_lib.Catalogue:
  """Loads the file that `cfg.root` names. Ids are part and row; classes are the numbers as text.

  Images are uint8 or uint16 [n, H, W] or [n, H, W, C]; labels are integers, [n] or [n, 1].

  Raises:
    FileNotFoundError: no such file.
    ValueError: no .npz, arrays that are missing or unfit, labels that training does not know.
  """
  file = files.root(cfg.root, "an .npz file of MedMNIST's layout")
  images, labels = _load(file)
  sizes = [len(images[part]) for part in images]
  classes = tuple(str(k) for k in range(1 + labels["train"].max(initial=0)))
  files.need_classes(classes, f"the training part of {file}")
  ids = tuple(f"{part}/{row}" for part in images for row in range(len(images[part])))
  starts = np.cumsum([0, *sizes])
  parts = np.repeat(list(images), sizes)
  return catalogue_lib.Catalogue(
    ids=ids,
    groups=ids,
    labels=_known(np.concatenate(list(labels.values())), len(classes), file),
    parts=parts,
    classes=classes,
    read=lambda row: _image(images, starts, row),
    content=catalogue_lib.fingerprint([file]),
  )


def _image(images: _Arrays, starts: np.ndarray, row: int) -> np.ndarray:
  part = np.searchsorted(starts, row, side="right") - 1
  return list(images.values())[part][row - starts[part]]


def _load(file: pathlib.Path) -> tuple[_Arrays, _Arrays]:
  try:
    with file.open("rb") as stream, np.load(stream) as archive:
      arrays = dict(archive)
  except (ValueError, TypeError, OSError, zipfile.BadZipFile, zlib.error) as error:
    raise ValueError(f"{file} is no readable .npz file: {error}") from None
  present = [part for part in contract.PARTS if f"{part}_images" in arrays]
  if "train" not in present:
    raise ValueError(f"{file} holds {files.some(list(arrays), 8)}, but no train_images")
  images = {part: arrays[f"{part}_images"] for part in present}
  return images, {part: _labels(arrays, part, file) for part in present}


def _labels(arrays: _Arrays, part: str, file: pathlib.Path) -> np.ndarray:
  """[n] int32."""
  name, images = f"{part}_labels", arrays[f"{part}_images"]
  if name not in arrays:
    raise ValueError(f"{file} holds {part}_images, but no {name}")
  labels = arrays[name]
  flat = labels.reshape(len(labels), -1) if len(labels) else labels.reshape(0, 1)
  if flat.shape != (len(images), 1) or flat.dtype.kind not in "iu":
    raise ValueError(
      f"{file}: {name} is {labels.dtype} {list(labels.shape)} for {len(images)} images; expected"
      " one integer an image"
    )
  return flat[:, 0].astype(np.int32)


def _known(labels: np.ndarray, classes: int, file: pathlib.Path) -> np.ndarray:
  strange = sorted(set(labels[(labels < 0) | (labels >= classes)].tolist()))
  if strange:
    raise ValueError(
      f"{file}: labels {files.some(strange)} are not in the class list 0 to {classes - 1} of the"
      " training part"
    )
  return labels
