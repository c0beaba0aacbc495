"""MNIST: handwritten digits, 28x28 (LeCun et al. 1998)."""

from __future__ import annotations

from collections.abc import Iterator
import functools
import gzip
import pathlib
import zlib

import numpy as np

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files, paper

CLASSES = tuple(str(digit) for digit in range(10))
CITATION = """@article{lecun1998gradient,
  title={Gradient-based learning applied to document recognition},
  author={LeCun, Yann and Bottou, Leon and Bengio, Yoshua and Haffner, Patrick},
  journal={Proceedings of the IEEE}, volume={86}, number={11}, pages={2278--2324}, year={1998}}"""
LICENCE = "CC BY-SA 3.0"
DOWNLOAD = """\
Get the four files of "The MNIST database of handwritten digits" by Yann LeCun, Corinna Cortes
and Christopher Burges, packed or not, and name their folder with --config.data.root=FOLDER:
  FOLDER/train-images-idx3-ubyte.gz  FOLDER/train-labels-idx1-ubyte.gz
  FOLDER/t10k-images-idx3-ubyte.gz  FOLDER/t10k-labels-idx1-ubyte.gz"""
TRAPS = (
  "Writers are not told, so that every image is its own group; those of train and test differ."
)


def examples(cfg: settings.MNIST) -> Iterator[catalogue_lib.Example]:
  """Reads the files; an id is part and row.

  Raises:
    FileNotFoundError: one of the four is missing.
    ValueError: one is damaged.
  """
  root = files.downloaded(cfg.root, "MNIST", DOWNLOAD)
  for part, prefix in (("train", "train"), ("test", "t10k")):
    file = _file(root, f"{prefix}-images", "idx3-ubyte")
    images, labels = _idx(file), _idx(_file(root, f"{prefix}-labels", "idx1-ubyte"))
    if len(images) != len(labels):
      raise ValueError(f"{file} holds {len(images)} images, and there are {len(labels)} labels")
    for row, label in enumerate(labels):
      load = functools.partial(images.__getitem__, row)
      yield catalogue_lib.Example(f"{part}/{row}", file, CLASSES[label], part=part, load=load)


def _file(root: pathlib.Path, name: str, kind: str) -> pathlib.Path:
  """Some unpacked copies have a dot before the kind."""
  names = (f"{name}-{kind}.gz", f"{name}-{kind}", f"{name}.{kind}")
  return files.need(root, DOWNLOAD, *names)


def _idx(file: pathlib.Path) -> np.ndarray:
  """The uint8 array of an idx file: zeros, type, number of axes, their lengths, values."""
  try:
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(f"{file} is damaged: {error}") from error
  axes = data[3] if data[:3] == b"\0\0\x08" else 0
  start = 4 + 4 * axes
  shape = np.frombuffer(data[4:start], ">u4").astype(int)
  if not axes or len(data) != start + shape.prod():
    raise ValueError(f"{file} is damaged, or no idx file of bytes")
  return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


PAPER = paper.Paper(examples, lambda _: CLASSES, CITATION, LICENCE, DOWNLOAD, TRAPS)
