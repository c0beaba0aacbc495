"""Weights from files: of Keras, torchvision, timm and our own, with every tensor accounted for.

Needs neither TensorFlow nor PyTorch, and runs nothing that a file holds. A file of ours is
safetensors, beside which a JSON file of the same name, the manifest, says where the weights came
from and which preprocessing they were trained with.

Grey images and a network of three channels: the modes `torch` and `caffe` of `medjax.pixels` make
of a grey image the three channels that its colours would be, so the first kernel is taken as it is
and the result is that on the same image in colour, borders included. With one channel it could not
be: padding puts zeros around normalised channels, which are three different greys. The modes
`unit`, `tf` and `stats` treat channels alike; there the first kernel's channels are added up for an
image of one, and shared out among n: equal on grey images, as long as the constants of `stats` do
not differ between channels.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import fnmatch
import hashlib
import json
import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from medjax import contract, settings, trees
from medjax.models.pretrained import files, names

CLASSIFIERS = names.CLASSIFIERS
SUFFIXES = tuple(files.READERS)

_CHANNELS = (1, 3)  # of the images that weight files are made for
_SHOWN = 3  # problems of a file
_INPUT = "encoder/input/"  # its constants are one number a channel of the images
# Parts of a network that are its task's, not the weight file's.
_OF_THE_TASK = ("head/", _INPUT, "encoder/attention/")


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


def save(
  path: pathlib.Path, params: contract.Tree, stats: contract.Tree, manifest: Manifest
) -> None:
  """Writes weights as safetensors, and the manifest beside them.

  Args:
    path: ends in `.safetensors`; appears once it is whole.
    params, stats: of a network. manifest: see `describe`.

  Raises:
    ValueError: for another ending.
  """
  if path.suffix != ".safetensors":
    raise ValueError(f"weights are written as safetensors: name {path.with_suffix('.safetensors')}")
  flat = trees.flatten({"params": params, "stats": stats})
  tensors = {name: np.asarray(leaf, order="C") for name, leaf in flat.items()}
  _beside(path).write_text(json.dumps(dataclasses.asdict(manifest), indent=2) + "\n")
  partial = path.with_suffix(".partial")
  safetensors.numpy.save_file(tensors, partial)
  os.replace(partial, path)


def load(path: pathlib.Path) -> tuple[contract.Tree, contract.Tree, Manifest]:
  """Parameters, statistics and manifest of a file that `save` wrote.

  Raises:
    FileNotFoundError: the file or its manifest is missing.
    ValueError: it is damaged, or another's.
  """
  found, manifest = files.read(path), read_manifest(path)
  if found.kind != "medjax":
    raise ValueError(f"{path} is a file of {found.kind}: `transfer` takes those")
  if manifest is None:
    raise FileNotFoundError(f"{path} has lost its manifest: put {_beside(path).name} beside it")
  tree = trees.unflatten(found.arrays)
  return tree.get("params", {}), tree.get("stats", {}), manifest


def read_manifest(path: pathlib.Path) -> Manifest | None:
  """The manifest beside a file of ours; None where there is none, as beside foreign files.

  Raises:
    ValueError: it is no manifest.
  """
  beside = _beside(path)
  if path.suffix != ".safetensors" or not beside.is_file():
    return None
  try:
    found = Manifest(**json.loads(beside.read_text()))
  except (TypeError, ValueError) as error:
    raise ValueError(f"{beside} is no manifest of weights: {error}") from error
  return dataclasses.replace(found, classes=tuple(found.classes))


def _beside(path: pathlib.Path) -> pathlib.Path:
  return path.with_suffix(".json")


def adopted(cfg: settings.Model, path: pathlib.Path) -> settings.Model:
  """The settings with the preprocessing that a weight file's manifest names, if it has one."""
  manifest = read_manifest(path)
  if manifest is None:
    return cfg
  preprocess: Any = manifest.preprocess
  network = dataclasses.replace(names.network(cfg), preprocess=preprocess)
  if isinstance(cfg, settings.SoftAttention) and isinstance(network, settings.Backbone):
    return dataclasses.replace(cfg, backbone=network)
  return network


class _Move(NamedTuple):
  """Where a tensor of ours comes from.

  Attributes:
    name: of the tensor in the file, or the one that should be there; empty if no file has it.
    found: the file's tensor, None where it is not there. value: it in our shape, if it fits.
    how: the list of `trees.Account` that it belongs to.
  """

  name: str
  found: np.ndarray | None
  value: np.ndarray | None
  how: str


def transfer(
  target: contract.Tree, path: pathlib.Path, cfg: settings.Model, allow: Sequence[str] = ()
) -> tuple[contract.Tree, trees.Account]:
  """Fills a network's tensors from a weight file.

  The head may be new, for another number of classes; the encoder must be in the file as a whole.

  Args:
    target: `{"params": ..., "stats": ...}`, freshly initialised, of the network `cfg`.
    path: the file; types in `SUFFIXES`.
    allow: patterns, as in a shell, of the file's tensors that may be left over or have another
      shape, such as `predictions/*`, the 1,000 classes of Keras's networks; see `CLASSIFIERS`.

  Returns:
    The filled tree, in the target's types, and the account of every tensor: paths of ours, for what
    is left over the file's names.

  Raises:
    FileNotFoundError: no such file.
    ValueError: it is damaged, holds something else than tensors, or does not fit: names the tensor.
  """
  found = files.read(path)
  _check_preprocess(found.kind, path, cfg)
  ours = trees.flatten(target)
  named = names.of(found.kind, cfg, ours)
  channels = next((leaf.size for at, leaf in ours.items() if _INPUT in at), 0)
  moves = {at: _move(found, named(at), np.shape(leaf), channels) for at, leaf in ours.items()}
  left_over = _left_over(moves, found)
  if problems := _problems(moves, ours, left_over, allow):
    shown = "; ".join(problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise ValueError(
      f"{path} does not fit {cfg.name}: {shown}{more}. Tensors that may be left over are named in "
      f"`allow`, by patterns such as {CLASSIFIERS[0]}"
    )
  values = {at: move.value for at, move in moves.items() if move.value is not None}
  filled = {at: np.asarray(value, ours[at].dtype) for at, value in values.items()}
  return trees.unflatten(ours | filled), _account(moves, left_over)


def _check_preprocess(kind: files.Kind, path: pathlib.Path, cfg: settings.Model) -> None:
  """Raises ValueError where the pixels would not be what the weights were trained with."""
  manifest, ours = read_manifest(path), names.network(cfg).preprocess
  if manifest is not None and manifest.preprocess != ours:
    raise ValueError(
      f"{path} was trained with preprocess={manifest.preprocess!r}, model.preprocess is {ours!r}: "
      "set it to the same"
    )
  if kind == "torch" and ours == "caffe":
    raise ValueError(
      f"{path} is PyTorch's, where no network takes preprocess='caffe': set model.preprocess, in "
      "most cases to torch"
    )


def _move(
  found: files.Tensors, candidates: tuple[str, ...], shape: tuple[int, ...], channels: int
) -> _Move:
  for name in candidates:
    if name in found.arrays:
      value = found.arrays[name]
      value = _channels_last(value) if found.kind == "torch" else value
      if _INPUT in name and value.shape != shape:
        return _Move(name, value, np.broadcast_to(value.mean(), shape), "adapted")
      return _Move(name, value, *_fitted(value, shape, channels))
  return _Move(next(iter(candidates), ""), None, None, "new")


def _channels_last(value: np.ndarray) -> np.ndarray:
  """[F, C, kh, kw] as [kh, kw, C, F], [out, in] as [in, out]."""
  return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _fitted(
  value: np.ndarray, shape: tuple[int, ...], channels: int
) -> tuple[np.ndarray | None, str]:
  """A file's tensor in our shape, and how it became so; `channels` are those of the images."""
  if value.shape == shape or _same_numbers(value.shape, shape):
    return value.reshape(shape), "loaded"
  of_an_image = value.ndim == 4 and value.shape[2] in _CHANNELS
  if of_an_image and (*value.shape[:2], channels, value.shape[3]) == shape:
    return np.broadcast_to(value.sum(axis=2, keepdims=True) / channels, shape), "adapted"
  return None, "new"


def _same_numbers(there: tuple[int, ...], here: tuple[int, ...]) -> bool:
  """A dense layer kept as a 1x1 convolution; or a depthwise kernel, Keras's [kh, kw, C, 1]."""
  depthwise = len(here) == 4 and here[2] == 1 and there == (*here[:2], here[3], 1)
  return depthwise or there == (1, 1, *here)


def _problems(
  moves: dict[str, _Move], ours: dict[str, Any], left_over: list[str], allow: Sequence[str]
) -> list[str]:
  """What does not fit, in words; empty where every tensor has its place."""
  allowed = {name for name in left_over if any(fnmatch.fnmatchcase(name, one) for one in allow)}
  unfit = {
    at: move
    for at, move in moves.items()
    if move.how == "new" and move.name not in allowed and not _may_be_new(at, moves)
  }
  missing = [f"no tensor {m.name} for {at}" for at, m in unfit.items() if m.found is None]
  misshaped = {
    move.name: f"tensor {move.name} is {move.found.shape} there and {np.shape(ours[at])} here"
    for at, move in unfit.items()
    if move.found is not None
  }
  extra = [name for name in left_over if name not in allowed and name not in misshaped]
  return [*misshaped.values(), *missing, *(f"tensor {name} is left over" for name in extra)]


def _may_be_new(at: str, moves: dict[str, _Move]) -> bool:
  """Whether a tensor is of the task, and so is the rest of its layer: half a layer is damage."""
  layer = at.partition("/")[2].rpartition("/")[0] + "/"
  if not names.alone(layer).startswith(_OF_THE_TASK):
    return False
  return all(move.how == "new" for other, move in moves.items() if f"/{layer}" in other)


def _left_over(moves: dict[str, _Move], found: files.Tensors) -> list[str]:
  used = {move.name for move in moves.values() if move.how != "new"}
  return [name for name in found.arrays if name not in used]


def _account(moves: dict[str, _Move], left_over: list[str]) -> trees.Account:
  by_how = {
    how: tuple(at for at, move in moves.items() if move.how == how)
    for how in ("loaded", "adapted", "new")
  }
  return trees.Account(**by_how, left_over=tuple(left_over))
