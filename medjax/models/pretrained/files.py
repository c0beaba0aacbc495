"""Weight files as flat dicts of arrays, whoever wrote them; nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Literal
import zipfile

import numpy as np
import safetensors.numpy

from medjax.models.pretrained import keras_files, torch_files

Kind = Literal["keras", "torch", "medjax"]
Arrays = dict[str, np.ndarray]

OWN = ("params/", "stats/")  # what names of ours begin with


@dataclasses.dataclass(frozen=True)
class Tensors:
  """What a weight file holds.

  Attributes:
    kind: whose names its tensors have. arrays: by those names.
  """

  kind: Kind
  arrays: Arrays


def read(path: pathlib.Path) -> Tensors:
  """Reads a weight file, chosen by its suffix among `READERS`.

  Names are `conv1_conv/kernel` in a file of Keras, `layer1.0.conv1.weight` in one of PyTorch,
  `params/encoder/conv1/conv/kernel` in ours. Safetensors and npz hold either of the last two.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file is damaged, holds something else than tensors, or is of no known type.
  """
  if path.suffix not in READERS:
    raise ValueError(f"{path} is no weight file: give one that ends in {', '.join(READERS)}")
  if not path.is_file():
    raise FileNotFoundError(f"no weight file {path}")
  try:
    arrays = READERS[path.suffix](path)
  except Exception as error:  # each library has its own errors of a damaged file
    raise ValueError(
      f"{path} cannot be read: {error}. Where it is cut short, get it again"
    ) from error
  if path.suffix in _OF_KERAS:
    return Tensors("keras", arrays)
  if any(name.startswith(OWN) for name in arrays):
    return Tensors("medjax", arrays)
  return Tensors("torch", torch_files.tidied(arrays))


def _npz(path: pathlib.Path) -> Arrays:
  with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
    return {name: _member(file, name) for name in file.files}


def _member(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
  try:
    return file[name]
  except (ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"tensor {name}: {error}") from error


_OF_KERAS: dict[str, Callable[[pathlib.Path], Arrays]] = {
  ".keras": keras_files.read,
  ".h5": keras_files.read,
  ".hdf5": keras_files.read,
}
READERS: dict[str, Callable[[pathlib.Path], Arrays]] = {
  **_OF_KERAS,
  ".pth": torch_files.read,
  ".pt": torch_files.read,
  ".safetensors": safetensors.numpy.load_file,
  ".npz": _npz,
}
