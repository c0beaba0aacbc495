"""Weights from files: of Keras, torchvision, timm and our own, with every tensor accounted for.

Needs neither TensorFlow nor PyTorch, and runs nothing that a file holds. A file of ours is
safetensors, beside which a JSON file of the same name, the manifest, says where the weights came
from and which preprocessing they were trained with; `python -m medjax.models.pretrained` makes one
of any other.

Grey images and a network of three channels: the modes `torch` and `caffe` of `medjax.pixels` make
of a grey image the three channels that its colours would be, so the first kernel is taken as it is
and the result is that on the same image in colour, borders included. With one channel it could not
be: padding puts zeros around normalised channels, which are three different greys. The modes
`unit`, `tf` and `stats` treat channels alike; there the first kernel's channels are added up for an
image of one, and shared out among n, which is exact too. `stats` treats channels alike where its
constants are the same for all of them; where they differ, the same padding stands in the way, and
such a file is refused for images of another number of channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import os
import pathlib

import numpy as np
import safetensors.numpy

from medjax import contract, settings, trees
from medjax.models.pretrained import files, fitting, manifests, names

SUFFIXES = tuple(files.READERS)

_HEAD = "params/head/classes/bias"  # one number a class


def save(
  path: pathlib.Path, params: contract.Tree, stats: contract.Tree, manifest: manifests.Manifest
) -> None:
  """Writes weights as safetensors, and the manifest beside them.

  Args:
    path: ends in `.safetensors`; appears once it is whole.
    params, stats: of a network. manifest: see `manifests.describe`.

  Raises:
    ValueError: for another ending.
  """
  if path.suffix != ".safetensors":
    raise ValueError(f"weights are written as safetensors: name {path.with_suffix('.safetensors')}")
  flat = trees.flatten({"params": params, "stats": stats})
  tensors = {name: np.asarray(leaf, order="C") for name, leaf in flat.items()}
  manifests.write(path, manifest)
  partial = path.with_suffix(".partial")
  safetensors.numpy.save_file(tensors, partial)
  os.replace(partial, path)


def load(path: pathlib.Path) -> tuple[contract.Tree, contract.Tree, manifests.Manifest]:
  """Parameters, statistics and manifest of a file that `save` wrote.

  Raises:
    FileNotFoundError: the file or its manifest is missing.
    ValueError: it is damaged, or another's.
  """
  found, manifest = files.read(path), manifests.read(path)
  if found.kind != "medjax":
    raise ValueError(f"{path} is a file of {found.kind}: `transfer` takes those")
  if manifest is None:
    lost = manifests.beside(path).name
    raise FileNotFoundError(f"{path} has lost its manifest: put {lost} beside it")
  tree = trees.unflatten(found.arrays)
  return tree.get("params", {}), tree.get("stats", {}), manifest


def classes(path: pathlib.Path, cfg: settings.Model) -> int:
  """How many classes the network `cfg` in a weight file tells apart; 0 of an encoder alone.

  Raises:
    FileNotFoundError, ValueError: as `transfer`.
  """
  found = files.read(path)
  candidates = names.of(found.kind, cfg, (_HEAD,))(_HEAD)
  return next((found.arrays[name].size for name in candidates if name in found.arrays), 0)


def transfer(
  target: contract.Tree, path: pathlib.Path, cfg: settings.Model, allow: Sequence[str] = ()
) -> tuple[contract.Tree, trees.Account]:
  """Fills a network's tensors from a weight file.

  The head may be new, for another number of classes; the encoder must be in the file as a whole.

  Args:
    target: `{"params": ..., "stats": ...}` of the network `cfg`, arrays or their shapes and types.
    path: the file; types in `SUFFIXES`.
    allow: patterns, as in a shell, of the file's tensors that may be left over or have another
      shape, such as `predictions/*`, the 1,000 classes of Keras's networks.

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
  shapes = {at: np.shape(leaf) for at, leaf in ours.items()}
  _check_constants(found, path, cfg, shapes)
  fit = fitting.fit(found, cfg, shapes)
  if problem := fit.problem(allow):
    raise ValueError(f"{path} does not fit {cfg.name}: {problem}")
  filled = {at: np.asarray(value, ours[at].dtype) for at, value in fit.values().items()}
  return trees.unflatten(ours | filled), fit.account()


def _check_preprocess(kind: files.Kind, path: pathlib.Path, cfg: settings.Model) -> None:
  """Raises ValueError where the pixels would not be what the weights were trained with."""
  manifest, ours = manifests.read(path), names.network(cfg).preprocess
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


def _check_constants(
  found: files.Tensors, path: pathlib.Path, cfg: settings.Model, shapes: Mapping[str, fitting.Shape]
) -> None:
  """Raises ValueError where no kernel of other channels could give the same on a grey image."""
  if names.network(cfg).preprocess != "stats":
    return
  for at in (at for at in found.arrays if fitting.INPUT in at and at in shapes):
    value, (channels,) = found.arrays[at], shapes[at]
    if value.size != channels and not np.allclose(value, value[0], rtol=1e-6, atol=0):
      raise ValueError(
        f"{path} standardises its {value.size} channels by different numbers, {at} = "
        f"{value.tolist()}, so its weights do not adapt to images of {channels}: set "
        f"data.channels={value.size}"
      )
