"""Weight files of Keras 2 and 3, read without Keras: tensors named `layer/weight`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import io
import itertools
import json
import pathlib
import re
from typing import Any
import zipfile

import h5py
import jax.numpy as jnp
import numpy as np

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"  # members of a .keras archive

# Keras 3 numbers a layer's weights in the order in which Keras 2 named them. A batch norm of three
# has no scale.
_AFFINE = ("kernel", "bias")
_ORDER = {
  "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
  "separable_conv2d": ("depthwise_kernel", "pointwise_kernel", "bias"),
  "depthwise_conv2d": _AFFINE,
  "conv2d": _AFFINE,
  "dense": _AFFINE,
  "normalization": ("mean", "variance", "count"),
}
_KERAS_1 = {"W": "kernel", "b": "bias"}
_STATE = ("optimizer", "seed_generator")  # groups that hold no weights of a layer


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Tensors of a `.keras` archive, or of an HDF5 file of a whole model or its weights alone.

  Layers that Keras numbered by itself, such as `conv2d_94`, are numbered anew from `conv2d` on:
  where Keras begins depends on what was built before. Slashes in a layer's name become `_`.

  Raises:
    KeyError, OSError, ValueError, zipfile.BadZipFile: the file is damaged, or does not name layers.
  """
  if path.suffix == ".keras":
    return _renumbered(_archived(path))
  with h5py.File(path) as file:
    return _renumbered(_unique(_weights(file, {})))


def _archived(path: pathlib.Path) -> dict[str, np.ndarray]:
  with zipfile.ZipFile(path) as archive:
    layers = json.loads(archive.read(_CONFIG))["config"]["layers"]
    with h5py.File(io.BytesIO(archive.read(_WEIGHTS))) as file:
      return _unique(_weights(file, _groups(layers)))


def _groups(layers: list[dict[str, Any]]) -> dict[str, str]:
  """Group of the weight file -> the layer's name: Keras 3 numbers groups by the layer's class."""
  numbers: dict[str, Iterator[int]] = {}
  found = {}
  for layer in layers:
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", layer["class_name"]).lower()
    number = next(numbers.setdefault(kind, itertools.count()))
    found[f"layers/{kind}_{number}" if number else f"layers/{kind}"] = layer["config"]["name"]
  return found


def _weights(file: h5py.File, groups: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
  root = file.get("model_weights", file)
  layers = _texts(root, "layer_names")
  return _named(root, layers) if layers else _numbered(file, groups)


def _texts(group: h5py.Group, name: str) -> list[str]:
  """An attribute that lists names; a long one is cut into `name0`, `name1`, ..."""
  parts = itertools.takewhile(group.attrs.__contains__, (f"{name}{i}" for i in itertools.count()))
  found = [text for part in (name, *parts) for text in group.attrs.get(part, ())]
  return [text.decode() if isinstance(text, bytes) else str(text) for text in found]


def _named(root: h5py.Group, layers: list[str]) -> Iterator[tuple[str, np.ndarray]]:
  """The layout of Keras 2: a group a layer, whose weights have names."""
  for layer in layers:
    weights = _texts(root[layer], "weight_names")
    owners = {weight.rpartition("/")[0] for weight in weights}
    for weight in weights:
      owner, _, name = weight.partition(":")[0].rpartition("/")
      holder = owner if len(owners) > 1 else layer  # of a model inside a model
      if old := re.search(r"_([Wb])(_\d+)?$", name):
        name = _KERAS_1[old[1]]
      yield f"{holder.replace('/', '_')}/{name}", root[layer][weight][()]


def _numbered(file: h5py.File, groups: Mapping[str, str]) -> Iterator[tuple[str, np.ndarray]]:
  """The layout of Keras 3: a group a layer, named by its class, whose weights have numbers."""
  found: list[str] = []
  file.visit(found.append)
  for path in found:
    group, _, last = path.rpartition("/")
    if last != "vars" or not len(file[path]) or any(state in path for state in _STATE):
      continue
    layer = file[path].attrs.get("name") or groups.get(group)
    if not layer:
      raise ValueError(
        f"{path} does not say which layer it is of, as in files of the first Keras 3: "
        "save the model whole, as .keras"
      )
    names = _weight_names(group, len(file[path]))
    for number, name in enumerate(names):
      yield f"{layer.replace('/', '_')}/{name}", _array(file[path][str(number)])


def _weight_names(group: str, count: int) -> tuple[str, ...]:
  kind = re.sub(r"_\d+$", "", group.rpartition("/")[2])
  if kind == "batch_normalization":
    return _ORDER[kind][-count:]
  numbers = tuple(map(str, range(count)))
  return _ORDER.get(kind, ())[:count] + numbers[len(_ORDER.get(kind, ())) :]


def _array(stored: h5py.Dataset) -> np.ndarray:
  """HDF5 has no bfloat16: Keras stores its bytes and says so."""
  array = stored[()]
  return array.view(jnp.bfloat16) if stored.attrs.get("dtype") == "bfloat16" else array


def _unique(weights: Iterator[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
  found: dict[str, np.ndarray] = {}
  for name, array in weights:
    if name in found:
      raise ValueError(f"tensor {name} is there twice: two layers have one name")
    found[name] = array
  return found


def _renumbered(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Layers that Keras named by their class, numbered from the first of them on."""
  layers = {name.rpartition("/")[0] for name in arrays}
  names: dict[str, str] = {}
  for kind in _ORDER:
    automatic = [layer for layer in layers if re.fullmatch(rf"{kind}(_\d+)?", layer)]
    automatic.sort(key=lambda layer: int(layer.rpartition("_")[2]) if layer[-1].isdigit() else 0)
    names |= {layer: f"{kind}_{i}" if i else kind for i, layer in enumerate(automatic)}
  parts = ((name.rpartition("/"), array) for name, array in arrays.items())
  return {f"{names.get(layer, layer)}/{leaf}": array for (layer, _, leaf), array in parts}
