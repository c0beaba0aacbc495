"""The JSON file beside weights of ours: where they came from, and what they must be fed."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from medjax import settings
from medjax.models.pretrained import names


@dataclasses.dataclass(frozen=True)
class Manifest:
  """What must be known of a weight file beside its tensors.

  Attributes:
    source: name of the file that the weights came from. sha256: of that file.
    licence: under which it was given, in its giver's words.
    preprocess: mode of `pixels.normalise` that the weights were trained with.
    classes: names, in the order of the logits; empty where unknown.
    model: the network's settings, in JSON's types.
  """

  source: str
  sha256: str
  licence: str
  preprocess: str
  classes: tuple[str, ...]
  model: dict[str, Any]


def describe(
  source: pathlib.Path, cfg: settings.Model, classes: Sequence[str] = (), licence: str = ""
) -> Manifest:
  """The manifest of a network whose weights came from the file `source`."""
  with source.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  model = json.loads(json.dumps(dataclasses.asdict(cfg)))
  preprocess = names.network(cfg).preprocess
  return Manifest(source.name, digest, licence, preprocess, tuple(classes), model)


def beside(path: pathlib.Path) -> pathlib.Path:
  """Where the manifest of a weight file is."""
  return path.with_suffix(".json")


def write(path: pathlib.Path, manifest: Manifest) -> None:
  """Writes the manifest beside the weight file `path`."""
  beside(path).write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")


def read(path: pathlib.Path) -> Manifest | None:
  """The manifest beside a file of ours; None where there is none, as beside foreign files.

  Raises:
    ValueError: it is no manifest.
  """
  if path.suffix != ".safetensors" or not beside(path).is_file():
    return None
  try:
    found = Manifest(**json.loads(beside(path).read_text()))
  except (TypeError, ValueError) as error:
    raise ValueError(f"{beside(path)} is no manifest of weights: {error}") from error
  return dataclasses.replace(found, classes=tuple(found.classes))


def adopted(cfg: settings.Model, manifest: Manifest) -> settings.Model:
  """The settings with the preprocessing that the weights were trained with."""
  preprocess: Any = manifest.preprocess
  network = dataclasses.replace(names.network(cfg), preprocess=preprocess)
  if isinstance(cfg, settings.SoftAttention) and isinstance(network, settings.Backbone):
    return dataclasses.replace(cfg, backbone=network)
  return network
