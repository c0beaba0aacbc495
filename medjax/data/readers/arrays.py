"""One image as NumPy saves it: .npy, or .npz with a single array."""

from __future__ import annotations

from collections.abc import Iterator
import io
import math
from typing import IO
import zipfile

import numpy as np

from medjax.data.readers import fitting, frame


def frames(data: bytes) -> Iterator[frame.Frame]:
  """Reads pixels [H, W] or [H, W, 1 to 4], uint8 or uint16.

  Raises:
    frame.Unreadable: with the reason, such as several arrays or pixels of another kind.
  """
  try:
    array = _npz(data) if data[:2] == b"PK" else _npy(io.BytesIO(data))
  except (frame.Unreadable, MemoryError):
    raise
  except Exception as error:  # NumPy and zipfile raise whatever they stumble over
    raise frame.Unreadable(f"damaged: {error}") from error
  pixels = fitting.checked(array)
  yield frame.made(0, pixels, frame.About(format="NumPy", bits=8 * pixels.itemsize))


def _npz(data: bytes) -> np.ndarray:
  with zipfile.ZipFile(io.BytesIO(data)) as archive:
    names = archive.namelist()
    if not names or not all(name.endswith(".npy") for name in names):
      raise frame.Unreadable("a zip archive, not an image: read its members")
    if len(names) > 1:
      raise frame.Unreadable(
        f"holds {len(names)} arrays, a set of images rather than one: read it as data set `npz`"
      )
    with archive.open(names[0]) as member:
      return _npy(member)


def _npy(file: IO[bytes]) -> np.ndarray:
  """Reads an array once its header has said that it is no larger than an image."""
  version = np.lib.format.read_magic(file)
  header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
  shape, fortran, dtype = (header or np.lib.format.read_array_header_2_0)(file)
  frame.check_size(*(*shape, 1)[:2])
  if dtype.hasobject or math.prod(shape) * dtype.itemsize > frame.MAX_BYTES:
    raise frame.Unreadable(f"an array of {dtype} {list(shape)} is no image")
  count = math.prod(shape)
  values = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
  return values.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))
