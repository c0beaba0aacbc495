"""NIfTI and MGH volumes, turned to RAS and cut into slices as radiologists look at them."""

from __future__ import annotations

from collections.abc import Iterator
import gzip
import io
import itertools
import logging
import math
from typing import Any

import nibabel
from nibabel import orientations
import numpy as np

from medjax import settings
from medjax.data.readers import contents, frame, windows

_PIECE = 2**20
_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
# What nibabel says of a damaged header may quote it.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)


def frames(data: bytes, cfg: settings.Reading) -> Iterator[frame.Frame]:
  """Cuts slices as `cfg.axis` and `cfg.frames` say, from the left, posterior or inferior on.

  A series of volumes counts on, volume after volume; its middle is the middle slice of its middle
  volume. The patient's right is on the left of axial and coronal slices, anterior on the left of
  sagittal ones, and up is anterior in axial and superior in the others.

  Raises:
    frame.Unreadable: with the reason.
  """
  try:
    yield from _slices(_image(data), cfg)
  except (frame.Unreadable, MemoryError):
    raise
  except Exception as error:  # nibabel raises whatever it stumbles over, and quotes the header
    raise frame.Unreadable(f"damaged volume ({type(error).__name__})") from None


def _image(data: bytes) -> Any:
  """An image of nibabel, its header read and its size checked, its voxels not read yet."""
  if data.startswith(contents.GZIP):
    data = _unpacked(data)
  kind = "mgh" if data.startswith(contents.MGH) else contents.nifti(data)
  if not kind:
    raise frame.Unreadable("gzip of something else than NIfTI or MGH")
  if kind == "pair":
    raise frame.Unreadable("a NIfTI header without its voxels: join .hdr and .img to one .nii")
  large = nibabel.Nifti2Image if data[4:7] == b"n+2" else nibabel.Nifti1Image
  image = (nibabel.MGHImage if kind == "mgh" else large).from_bytes(data)
  _check(image.shape, image.get_data_dtype())
  return image


def _unpacked(data: bytes) -> bytes:
  unpacked = bytearray()
  with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
    while piece := file.read(_PIECE):  # a larger read would take its memory before it knew the need
      unpacked += piece
      if len(unpacked) > frame.MAX_BYTES:
        raise frame.Unreadable(f"unpacks to more than the limit of {frame.MAX_BYTES:,} bytes")
  return bytes(unpacked)


def _check(shape: tuple[int, ...], dtype: np.dtype) -> None:
  size = " x ".join(f"{side:,}" for side in shape)
  if not shape or min(shape) < 1:
    raise frame.Unreadable(f"no voxels: {size}")
  if math.prod(shape[:3]) * max(4, dtype.itemsize) > frame.MAX_BYTES:
    raise frame.Unreadable(f"{size} voxels, above the limit of {frame.MAX_BYTES:,} bytes")
  if dtype.kind not in "iufV" or (dtype.kind == "V" and dtype.names != ("R", "G", "B")):
    raise frame.Unreadable(f"voxels of kind {dtype} are no grey values")


def _slices(image: Any, cfg: settings.Reading) -> Iterator[frame.Frame]:
  turned = orientations.io_orientation(image.affine)
  if np.isnan(turned).any():
    raise frame.Unreadable("its header does not tell how the axes lie in the patient")
  axis = _AXES[cfg.axis]
  slices = (*image.shape, 1, 1)[int(np.flatnonzero(turned[:, 0] == axis)[0])]
  for volume, indices in itertools.groupby(_indices(image, slices, cfg), lambda i: i // slices):
    values = orientations.apply_orientation(_values(image, volume), turned)
    shown, steps = _shown(values, image, cfg)
    about = _about(image, (f"turned to RAS, {cfg.axis} slice", *steps))
    for index in indices:
      cut = _upright(np.take(shown, index % slices, axis), axis)
      yield frame.made(index, cut, about)


def _about(image: Any, steps: tuple[str, ...]) -> frame.About:
  dtype = image.get_data_dtype()
  bits = 8 if dtype.kind == "V" else 8 * dtype.itemsize
  kind = "MGH" if isinstance(image, nibabel.MGHImage) else "NIfTI"
  return frame.About(format=kind, bits=bits, steps=steps)


def _indices(image: Any, slices: int, cfg: settings.Reading) -> range:
  volumes = math.prod(image.shape[3:])
  if cfg.frames == "middle":
    middle = volumes // 2 * slices + slices // 2
    return range(middle, middle + 1)
  return frame.chosen(volumes * slices, cfg.frames)


def _values(image: Any, volume: int) -> np.ndarray:
  """[X, Y, Z] scaled as the header says, or of colour as stored, of one volume of a series."""
  place = np.unravel_index(volume, image.shape[3:], order="F") if image.ndim > 3 else ()
  values = np.asanyarray(image.dataobj[(..., *map(int, place))])
  return values.reshape((*values.shape, 1, 1)[:3])


def _shown(
  values: np.ndarray, image: Any, cfg: settings.Reading
) -> tuple[np.ndarray, tuple[str, ...]]:
  """A volume as [X, Y, Z, C] of grey or colour, and the steps taken."""
  if values.dtype.names:
    return np.stack([values[name] for name in "RGB"], axis=-1), ()
  low, high, words = _window(values, image, cfg)
  return windows.linear(values, low, high)[..., None], (words,)


def _window(values: np.ndarray, image: Any, cfg: settings.Reading) -> tuple[float, float, str]:
  """Values that become black and white, and how they were found."""
  if cfg.window in windows.HOUNSFIELD:
    return *windows.HOUNSFIELD[cfg.window], windows.named(cfg.window)
  if cfg.window == "file" and isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is one as well
    low, high = float(image.header["cal_min"]), float(image.header["cal_max"])
    if high > low:
      return low, high, "window of the header"
  percentile = cfg.window != "full"
  return *windows.extent(values, percentile), windows.spanned(percentile)


def _upright(cut: np.ndarray, axis: int) -> np.ndarray:
  """A slice of a RAS volume [first axis, second axis, C] -> [rows, columns, C] as looked at."""
  return cut[::-1, ::-1].swapaxes(0, 1)
