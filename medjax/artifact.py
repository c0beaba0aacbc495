"""An exported classifier as a folder: its files, their manifest, and opening it.

The manifest says what the classifier takes and gives, and holds the SHA-256 of every file beside
it and of itself. So a folder that was damaged or changed is refused by the name of the file. That
is no signature: whoever can write the folder can write a manifest that fits.

Only `model.jaxexport` is needed to score images, and JAX alone to run it; `opened` adds the checks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np

from medjax import contract, settings
from medjax.metrics import operating

MANIFEST = "manifest.json"
PROGRAM = "model.jaxexport"  # `jax.export.deserialize` reads it
WEIGHTS = "weights.safetensors"
ONNX = "model.onnx"

KEY = "medjax_export"  # of the manifest: by which an exported folder is known; version of its form
VERSION = 1
_OWN = "manifest_sha256"  # of the manifest as it is with zeros in this place
_ZEROS = "0" * 64


class Artifact:
  """An exported classifier that is ready for images; scores as `medjax.predict` wants them.

  Attributes:
    manifest: all that is kept of it.
    classes: names of the K columns of scores.
    image_shape: (height, width, channels) of its images.
    reading: from a file's values to pixels, as in training.
    multi_label: whether an image may have several of the classes, or none.
    encoding: how metadata become numbers, see `contract.DataInfo`; empty where it takes none.
    operating: its temperature, which `scores` holds already, and its thresholds.
  """

  def __init__(self, manifest: Mapping[str, Any], program: bytes):
    """Reads the program; it is compiled once for every size of a batch that comes."""
    from jax import export  # only here: a run of training needs none

    self.manifest = manifest
    self.classes = tuple(manifest["classes"])
    height, width, channels = manifest["inputs"][contract.IMAGE]["shape"][1:]
    self.image_shape: tuple[int, int, int] = (height, width, channels)
    self.reading = settings.Reading(**manifest["reading"])
    self.multi_label: bool = manifest["multi_label"]
    self.encoding: Sequence[contract.Encoding] = tuple(manifest["encoding"])
    self.operating = operating.of(manifest["operating"])
    self._program = jax.jit(export.deserialize(bytearray(program)).call)

  def scores(self, images: np.ndarray, metadata: np.ndarray | None = None) -> np.ndarray:
    """Scores [b, K] after the temperature, float64.

    Args:
      images: [b, H, W, C] uint8, or uint16 where `reading.depth` is 16.
      metadata: [b, M] float32, for a classifier that takes them.
    """
    given = (images,) if metadata is None else (images, np.asarray(metadata, np.float32))
    return np.asarray(self._program(*given), np.float64)


def is_one(folder: pathlib.Path) -> bool:
  """Whether a folder is an exported classifier, whole or not."""
  if not (folder / MANIFEST).is_file():
    return False
  return f'"{KEY}"' in (folder / MANIFEST).read_text(encoding="utf-8", errors="replace")


def opened(folder: pathlib.Path) -> Artifact:
  """Opens an exported classifier.

  Raises:
    FileNotFoundError: it is none, or a file of it is missing.
    ValueError: a file is not what was exported, or a newer medjax exported it.
  """
  manifest = verified(folder)
  return Artifact(manifest, _checked(folder, PROGRAM, manifest["files"][PROGRAM]["sha256"]))


def verified(folder: pathlib.Path) -> dict[str, Any]:
  """The manifest of an exported classifier, once every file was found to be as it was exported.

  Raises:
    FileNotFoundError, ValueError: see `opened`.
  """
  if not is_one(folder):
    raise FileNotFoundError(
      f"{folder} is no exported classifier: it has no {MANIFEST} that python -m medjax.export wrote"
    )
  text = (folder / MANIFEST).read_bytes()
  manifest = _read(folder, text)
  for name, about in manifest["files"].items():
    _checked(folder, name, about["sha256"])
  return manifest


def _read(folder: pathlib.Path, text: bytes) -> dict[str, Any]:
  """The manifest of its text, which holds the digest of itself."""
  try:
    manifest: dict[str, Any] = json.loads(text)
    own = manifest[_OWN]
  except (ValueError, KeyError, TypeError) as error:
    raise _changed(folder, MANIFEST) from error
  if manifest.get(KEY) != VERSION:
    raise ValueError(
      f"{folder / MANIFEST} has form {manifest.get(KEY)} of an export, and this medjax reads form"
      f" {VERSION}: export the model anew, or take the medjax that wrote it"
    )
  if hashlib.sha256(text.replace(str(own).encode(), _ZEROS.encode())).hexdigest() != own:
    raise _changed(folder, MANIFEST)
  return manifest


def _checked(folder: pathlib.Path, name: str, digest: str) -> bytes:
  """What is in a file, which has this digest."""
  if not (folder / name).is_file():
    raise FileNotFoundError(f"{folder / name} is missing, and {MANIFEST} lists it: export it anew")
  found = (folder / name).read_bytes()
  if hashlib.sha256(found).hexdigest() != digest:
    raise _changed(folder, name)
  return found


def _changed(folder: pathlib.Path, name: str) -> ValueError:
  return ValueError(
    f"{folder / name} is not the file that was exported: it was damaged or changed on the way. Get"
    " the folder again, or export the model anew"
  )


def write(folder: pathlib.Path, about: Mapping[str, Any], names: Sequence[str]) -> None:
  """Writes the manifest of files that are in the folder already.

  Args:
    folder: of the export. about: all that is to be kept beside the digests, JSON types.
    names: of the files.
  """
  files = {}
  for name in names:
    content = (folder / name).read_bytes()
    files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
  kept = {KEY: VERSION, **about, "files": files, _OWN: _ZEROS}
  text = json.dumps(kept, indent=2) + "\n"
  digest = hashlib.sha256(text.encode()).hexdigest()
  (folder / MANIFEST).write_text(text.replace(_ZEROS, digest), encoding="utf-8")
