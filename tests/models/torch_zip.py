"""Files as `torch.save` writes them, without PyTorch: a zip of a pickle and of raw storages."""

import collections
import io
import pathlib
import pickle
import zipfile

import numpy as np

_STORAGES = {"float32": "FloatStorage", "int64": "LongStorage", "bfloat16": "BFloat16Storage"}


class Global:
  """Something that the pickle names and does not hold."""

  def __init__(self, module: str, name: str):
    self.code = f"c{module}\n{name}\n".encode()


def _plain(value) -> bytes:
  """Opcodes of numbers, text and tuples of those."""
  return pickle.dumps(value, 2)[2:-1]


_EMPTY = Global("collections", "OrderedDict").code + b")R"


def _tensor(array: np.ndarray, key: str, offset: int, total: int) -> bytes:
  kind = Global("torch", _STORAGES[array.dtype.name]).code
  storage = b"(" + _plain("storage") + kind + _plain(key) + _plain("cpu") + _plain(total) + b"tQ"
  strides = tuple(step // array.itemsize for step in array.strides)
  sizes = _plain(offset) + _plain(array.shape) + _plain(strides) + b"\x89"
  return Global("torch._utils", "_rebuild_tensor_v2").code + b"(" + storage + sizes + _EMPTY + b"tR"


def save(path: pathlib.Path, content: dict, cut: str = "") -> None:
  """Writes a nested dict of arrays, numbers, text and `Global`s.

  Arrays that are views of one base share its storage, as in PyTorch. `cut` names a key whose
  storage loses its last bytes.
  """
  storages: dict[int, tuple[str, np.ndarray]] = {}
  short = set()

  def code(value, name="") -> bytes:
    if isinstance(value, dict):
      items = b"".join(_plain(key) + code(item, key) + b"s" for key, item in value.items())
      return (_EMPTY if isinstance(value, collections.OrderedDict) else b"}") + items
    if isinstance(value, np.ndarray):
      base = value if value.base is None else value.base
      key, _ = storages.setdefault(id(base), (str(len(storages)), base))
      offset = value.__array_interface__["data"][0] - base.__array_interface__["data"][0]
      short.update({key} if name == cut else ())
      return _tensor(value, key, offset // value.itemsize, base.size)
    return value.code if isinstance(value, Global) else _plain(value)

  pickled = b"\x80\x02" + code(content) + b"."
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", pickled)
    archive.writestr("archive/byteorder", "little")
    for key, base in storages.values():
      raw = base.tobytes()
      archive.writestr(f"archive/data/{key}", raw[:-4] if key in short else raw)
    archive.writestr("archive/version", "3\n")


def code_in_a_pickle(command: str) -> bytes:
  """A `data.pkl` that runs a shell command where it is unpickled by the usual means."""

  class Runs:
    def __reduce__(self):
      import os

      return os.system, (command,)

  buffer = io.BytesIO()
  pickle.dump({"conv1.weight": Runs()}, buffer, 2)
  return buffer.getvalue()
