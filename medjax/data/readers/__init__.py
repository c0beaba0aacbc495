"""Bytes to pixels: every file format and colour mode becomes what the config asks for.

The content tells the format, never the file's name. One road for all, so that neither mode nor
format stays visible to a network: decode, window, turn upright, prepare, put on black where
transparent, resize, recolour, 8 bits or 16. Arrays that are already pixels join after the decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

import numpy as np
from PIL import Image

from medjax import settings
from medjax.data.readers import arrays, contents, fitting, frame, preparation, raster

About = frame.About
Frame = frame.Frame
Unreadable = frame.Unreadable
keyed = frame.keyed
to_8_bit = fitting.to_8_bit
VERSION = f"3, Pillow {Image.__version__}"  # of the pixels made here: decoded caches carry it

_READING = settings.Reading()


def frames(data: bytes, cfg: settings.Reading = _READING, salt: bytes = b"") -> Iterator[Frame]:
  """Reads the frames of a file that `cfg.frames` chooses, one after the other.

  Args:
    data: the bytes of a PNG, JPEG, BMP, TIFF, DICOM, NIfTI, MGH, npy or npz file; NIfTI and MGH may
      be gzipped.
    cfg: how values become pixels.
    salt: goes into the hashes of patient, study and series.

  Yields:
    Frames at their own size, windowed, upright and prepared.

  Raises:
    Unreadable: with the reason, at the first frame that fails.
  """
  if not data:
    raise Unreadable("empty file (0 bytes)")
  for found in _found(data, cfg, salt):
    pixels, steps = preparation.prepare(found.pixels, cfg)
    about = dataclasses.replace(found.about, steps=(*found.about.steps, *steps))
    yield Frame(found.index, pixels, about)


def _found(data: bytes, cfg: settings.Reading, salt: bytes) -> Iterator[Frame]:
  if contents.is_dicom(data):
    from medjax.data.readers import dicom  # a second of imports that photographs do not need

    return dicom.frames(data, cfg, salt)
  if contents.is_volume(data):
    from medjax.data.readers import volumes  # likewise

    return volumes.frames(data, cfg)
  return arrays.frames(data) if contents.is_array(data) else raster.frames(data, cfg)


def decode(data: bytes, cfg: settings.Reading = _READING) -> np.ndarray:
  """The pixels of the first frame that `cfg.frames` chooses, as `frames` gives them.

  Raises:
    Unreadable: with the reason.
  """
  return next(frames(data, cfg)).pixels


def read(
  source: bytes | np.ndarray, size: int, channels: int, cfg: settings.Reading = _READING
) -> np.ndarray:
  """Reads one image; of a file of several frames the first that `cfg.frames` chooses.

  Args:
    source: the bytes of a file as `frames` takes them, or pixels as `fit` takes them.
    size: height and width wanted.
    channels: 1 (grey) or 3 (RGB).
    cfg: how values become pixels.

  Returns:
    [size, size, channels], uint8, or uint16 where `cfg.depth` is 16.

  Raises:
    Unreadable: with the reason, when the bytes are damaged or no such image.
  """
  if isinstance(source, np.ndarray):
    pixels, _ = preparation.prepare(fitting.checked(source), cfg)
  else:
    pixels = decode(source, cfg)
  return fit(pixels, size, channels, cfg)


def fit(
  pixels: np.ndarray, size: int, channels: int, cfg: settings.Reading = _READING
) -> np.ndarray:
  """Brings pixels to the size, colour and depth that the config asks for.

  Transparent pixels are composited on black, the background of radiographs and CT. Bilinear with
  antialias: the triangle is widened when shrinking. Grey is the Rec. 601 luminance. 16 bits become
  8 by division by 257 with rounding, never by clipping, and only after the resize; where `depth` is
  16, 8 bits become 16 before it.

  Args:
    pixels: uint8 or uint16, [H, W] or [H, W, C]; C from 1 to 4: grey, grey and alpha, RGB, RGBA.
    size: height and width wanted.
    channels: 1 or 3.
    cfg: `resize` and `depth` are read. `stretch` ignores the aspect ratio, `smart` keeps it and
      pads with black.

  Returns:
    [size, size, channels], uint8, or uint16 where `cfg.depth` is 16.

  Raises:
    Unreadable: pixels of another kind or none.
  """
  return fitting.fit(pixels, size, channels, cfg)
