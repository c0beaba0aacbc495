"""Weight files of PyTorch, read without PyTorch and without running what a pickle asks for.

Such a file is a zip archive: `data.pkl` says which slice of which storage each tensor is, the
members `data/KEY` are the storages. The pickle is read by an unpickler that knows dicts, numbers,
text and tensors; whatever else it names is an error.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
import io
import math
import pathlib
import pickle
import re
from typing import Any, NamedTuple
import zipfile

import jax.numpy as jnp
import numpy as np

_TYPES: dict[str, Any] = {
  "DoubleStorage": np.float64,
  "FloatStorage": np.float32,
  "HalfStorage": np.float16,
  "BFloat16Storage": jnp.bfloat16,
  "LongStorage": np.int64,
  "IntStorage": np.int32,
  "ShortStorage": np.int16,
  "CharStorage": np.int8,
  "ByteStorage": np.uint8,
  "BoolStorage": np.bool_,
}
_WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys of a training checkpoint
_COUNTER = "num_batches_tracked"  # of batch norm; no weight


class _Slice(NamedTuple):
  """A tensor, told but not read: a strided slice of the storage `key`."""

  type: str
  key: str
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
  """Reads a pickle that names nothing but dicts and tensors."""

  def find_class(self, module: str, name: str) -> Any:
    """What stands for a global; made anew each time, so that a pickle can change nothing here."""
    if module == "torch" and name in _TYPES:
      return name
    known: dict[str, Callable] = {
      "collections.OrderedDict": collections.OrderedDict,
      "torch._utils._rebuild_tensor_v2": lambda storage, *sizes: _Slice(*storage, *sizes[:3]),
      "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    }
    if f"{module}.{name}" not in known:
      raise ValueError(
        f"its pickle asks for {module}.{name}, which is no tensor and is not run: if you trust the "
        "file, load it in PyTorch and torch.save its state_dict alone"
      )
    return known[f"{module}.{name}"]

  def persistent_load(self, pid: Any) -> tuple[str, str]:
    """Type and key of a storage."""
    _, kind, key, *_ = pid
    return kind, key


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Tensors of a `state_dict` that `torch.save` wrote, alone or in a training checkpoint.

  Raises:
    ValueError: the file is damaged, older than PyTorch 1.6, or holds more than tensors.
    zipfile.BadZipFile: the archive is damaged.
  """
  _check_archive(path)
  with zipfile.ZipFile(path) as archive:
    _check_stored(archive)
    root = _root(archive.namelist())
    loaded = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
    order = "<"
    if f"{root}byteorder" in archive.namelist():
      order = {b"little": "<", b"big": ">"}[archive.read(f"{root}byteorder")]
    slices = _state_dict(loaded).items()
    return {name: _array(archive, f"{root}data/", order, name, part) for name, part in slices}


def _check_archive(path: pathlib.Path) -> None:
  with path.open("rb") as file:
    start = file.read(2)
  if start != b"PK":
    raise ValueError(
      "it is no zip archive, as PyTorch writes since 1.6; an older file is a bare pickle, which is "
      "not read: load it in PyTorch and torch.save its state_dict again"
    )


def _check_stored(archive: zipfile.ZipFile) -> None:
  """Raises ValueError for what might unpack to more than the file's own length."""
  if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
    raise ValueError("its members are compressed, so torch.save did not write it")


def _root(members: list[str]) -> str:
  """The folder of the archive that everything is in."""
  found = [name.removesuffix("data.pkl") for name in members if name.split("/")[-1] == "data.pkl"]
  if not found:
    raise ValueError("it has no data.pkl, so torch.save did not write it")
  return found[0]


def _state_dict(loaded: Any) -> dict[str, _Slice]:
  for key in _WRAPPERS:
    if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
      loaded = loaded[key]
  if not isinstance(loaded, dict):
    raise ValueError("it holds no state_dict: torch.save(model.state_dict(), ...) writes one")
  others = [name for name, value in loaded.items() if not isinstance(value, _Slice)]
  if others:
    raise ValueError(f"{others[0]} is no tensor: torch.save the state_dict alone")
  return loaded


def _array(
  archive: zipfile.ZipFile, folder: str, order: str, name: str, part: _Slice
) -> np.ndarray:
  dtype = np.dtype(_TYPES[part.type])
  try:
    storage = np.frombuffer(archive.read(folder + part.key), dtype.newbyteorder(order))
  except (KeyError, ValueError, zipfile.BadZipFile) as error:
    raise ValueError(f"tensor {name}: {error}") from error
  extents = [(n - 1) * stride for n, stride in zip(part.shape, part.strides, strict=True)]
  if min((part.offset, *part.shape, *part.strides)) < 0:
    raise ValueError(f"tensor {name} has negative sizes")
  if 0 in part.shape:
    return np.zeros(part.shape, dtype)
  if part.offset + sum(extents) >= len(storage):
    raise ValueError(f"tensor {name} reaches beyond its storage of {len(storage)} numbers")
  if math.prod(part.shape) > len(storage):  # by strides of 0 a few bytes would fill the memory
    raise ValueError(f"tensor {name} is larger than its storage of {len(storage)} numbers")
  strides = [stride * dtype.itemsize for stride in part.strides]
  view = np.lib.stride_tricks.as_strided(storage[part.offset :], part.shape, strides)
  return view.astype(dtype)


def tidied(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Without what is no weight, and with the names of today.

  The prefix that DataParallel gives goes, and `norm.1` of torchvision's first DenseNets is `norm1`.
  """
  kept = {name: array for name, array in arrays.items() if not name.endswith(_COUNTER)}
  if all(name.startswith("module.") for name in kept):
    kept = {name.removeprefix("module."): array for name, array in kept.items()}
  return {re.sub(r"\b(norm|conv)\.([12])\.", r"\1\2.", name): a for name, a in kept.items()}
