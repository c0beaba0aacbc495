"""Pixels at their own size to the size, colour and depth that the config asks for."""

from __future__ import annotations

import numpy as np
from PIL import Image

from medjax import settings
from medjax.data.readers import frame

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601
_SQUARED = {np.dtype(np.uint8): np.uint16, np.dtype(np.uint16): np.uint32}  # holds a product


def fit(pixels: np.ndarray, size: int, channels: int, cfg: settings.Reading) -> np.ndarray:
  """Composites on black, resizes, recolours, and brings to 8 or 16 bits; see `readers.fit`."""
  pixels = opaque(checked(pixels))
  if cfg.depth == 16:
    pixels = to_16_bit(pixels)
  resized = _whole(pixels, size) if cfg.resize == "smart" else _stretch(pixels, size, size)
  recoloured = _recolour(resized, channels)
  return recoloured if cfg.depth == 16 else to_8_bit(recoloured)


def checked(pixels: np.ndarray) -> np.ndarray:
  """Pixels as [H, W, C], or the error that says what is wrong with them."""
  pixels = pixels[..., None] if pixels.ndim == 2 else pixels
  if pixels.dtype not in _SQUARED or pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
    raise frame.Unreadable(
      f"pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 or uint16 [H, W, 1 to 4]"
    )
  if 0 in pixels.shape:
    raise frame.Unreadable(f"no pixels: {list(pixels.shape)}")
  return pixels


def opaque(pixels: np.ndarray) -> np.ndarray:
  """[H, W, 1 to 4] -> [H, W, 1 or 3]: what is transparent lies on black."""
  if pixels.shape[2] in (1, 3):
    return pixels
  top = np.iinfo(pixels.dtype).max
  wide = pixels.astype(_SQUARED[pixels.dtype])
  return ((wide[..., :-1] * wide[..., -1:] + top // 2) // top).astype(pixels.dtype)


def to_8_bit(pixels: np.ndarray) -> np.ndarray:
  """uint16 -> uint8 by rounding x / 257, so that 0 and 65,535 become 0 and 255; uint8 as it is."""
  if pixels.dtype == np.uint8:
    return pixels
  return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def to_16_bit(pixels: np.ndarray) -> np.ndarray:
  """uint8 -> uint16 by x * 257, so that 0 and 255 become 0 and 65,535; uint16 as it is."""
  return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * np.uint16(257)


def _whole(pixels: np.ndarray, size: int) -> np.ndarray:
  """The longer side becomes `size`; the shorter keeps its proportion, with black on both sides."""
  height, width = (max(1, round(side * size / max(pixels.shape[:2]))) for side in pixels.shape[:2])
  top, left = (size - height) // 2, (size - width) // 2
  square = np.zeros((size, size, pixels.shape[2]), pixels.dtype)
  square[top : top + height, left : left + width] = _stretch(pixels, height, width)
  return square


def _stretch(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  """Pillow's bilinear, which is antialiased; it resizes 16-bit planes only as floats."""
  if pixels.shape[:2] == (height, width):
    return pixels
  if pixels.dtype == np.uint8:
    return _resized(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, height, width)
  planes = [
    _resized(plane.astype(np.float32), height, width) for plane in np.moveaxis(pixels, 2, 0)
  ]
  return np.rint(np.concatenate(planes, axis=2)).astype(pixels.dtype)


def _resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
  image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
  return np.asarray(image).reshape(height, width, -1)


def _recolour(pixels: np.ndarray, channels: int) -> np.ndarray:
  """[H, W, 1 or 3] -> [H, W, channels]."""
  if pixels.shape[2] == channels:
    return pixels
  if channels == 3:
    return np.repeat(pixels, 3, axis=2)
  return np.rint(pixels @ _LUMINANCE)[..., None].astype(pixels.dtype)
