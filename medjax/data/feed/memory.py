"""Memory for pixels on their way to the devices, used again and again: fresh pages are dear."""

from __future__ import annotations

from typing import Any
import weakref

import numpy as np

_ALIGNED = 64  # bytes; the CPU backend takes over an array that starts so, and copies any other


class Pool:
  """Arrays whose memory comes back when nobody holds them, or a view of them, any more.

  A device may hold one for as long as its own array lives, so no one else can tell when it is free.
  """

  def __init__(self):
    self._free: dict[int, list[np.ndarray]] = {}  # by size in bytes

  def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array to be filled."""
    size = int(np.prod(shape)) * dtype.itemsize
    free = self._free.setdefault(size, [])
    memory = free.pop() if free else np.empty(size + _ALIGNED, np.uint8)
    lent = _Lent(memory, size)
    weakref.finalize(lent, free.append, memory)
    return np.asarray(lent).view(dtype).reshape(shape)


class _Lent:
  """What all views of a lent array hold on to."""

  def __init__(self, memory: np.ndarray, size: int):
    address: Any = memory.ctypes.data
    start = address + -address % _ALIGNED
    self.__array_interface__ = {
      "data": (start, False),
      "shape": (size,),
      "typestr": "|u1",
      "version": 3,
    }
