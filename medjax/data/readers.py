"""Bytes to pixels: every file format and colour mode becomes what the config asks for.

The content tells the format, never the file's name. One road for all, so that neither mode nor
format stays visible to a network: decode, turn upright, put on black where transparent, stretch,
recolour, 8 bit. Arrays that are already pixels join after the decoding.
"""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

VERSION = f"1, Pillow {Image.__version__}"  # of the pixels made here: decoded caches carry it
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601
_SQUARED = {np.dtype(np.uint8): np.uint16, np.dtype(np.uint16): np.uint32}  # holds a product
_UPRIGHT = {  # EXIF orientation -> (axes are swapped, then these are mirrored)
  2: (False, (1,)),
  3: (False, (0, 1)),
  4: (False, (0,)),
  5: (True, ()),
  6: (True, (1,)),
  7: (True, (0, 1)),
  8: (True, (0,)),
}


class Unreadable(ValueError):
  """An image that cannot become pixels; the text is the reason, fit for a list of such files."""


def read(source: bytes | np.ndarray, size: int, channels: int) -> np.ndarray:
  """Reads one image.

  Args:
    source: the bytes of a PNG, JPEG, BMP or TIFF file, or pixels as `fit` takes them.
    size: height and width wanted.
    channels: 1 (grey) or 3 (RGB).

  Returns:
    uint8 [size, size, channels].

  Raises:
    Unreadable: with the reason, when the bytes are damaged or no such image.
  """
  return fit(source if isinstance(source, np.ndarray) else decode(source), size, channels)


def decode(data: bytes) -> np.ndarray:
  """Decodes a file at its own size and depth, upright by its EXIF orientation.

  Returns:
    [H, W, C]: uint16 from 16-bit PNG and TIFF, else uint8; C is 1 (grey), 3 (RGB) or 4 (RGBA).

  Raises:
    Unreadable: with the reason.
  """
  if not data:
    raise Unreadable("empty file (0 bytes)")
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
  except Image.UnidentifiedImageError:
    raise Unreadable(f"no {', '.join(FORMATS)} image by its content") from None
  except Exception as error:  # Pillow raises whatever it stumbles over in a damaged header
    raise Unreadable(f"damaged header: {error}") from error
  try:
    return _pixels(image, data)
  except Unreadable:
    raise
  except Exception as error:
    raise Unreadable(f"damaged: {error}") from error


def fit(pixels: np.ndarray, size: int, channels: int) -> np.ndarray:
  """Brings pixels to the size, colour and depth that the config asks for.

  Transparent pixels are composited on black, the background of radiographs and CT. Height and width
  are stretched without regard to the aspect ratio, bilinear with antialias (the triangle is
  widened when shrinking). Grey is the Rec. 601 luminance. 16 bits become 8 by division by 257
  with rounding, never by clipping, and only after the stretch.

  Args:
    pixels: uint8 or uint16, [H, W] or [H, W, C]; C from 1 to 4: grey, grey and alpha, RGB, RGBA.
    size: height and width wanted.
    channels: 1 or 3.

  Returns:
    uint8 [size, size, channels].
  """
  pixels = pixels[..., None] if pixels.ndim == 2 else pixels
  if pixels.dtype not in _SQUARED or pixels.ndim != 3 or not 1 <= pixels.shape[2] <= 4:
    raise Unreadable(
      f"pixels are {pixels.dtype} {list(pixels.shape)}, not uint8 or uint16 [H, W, 1 to 4]"
    )
  if 0 in pixels.shape:
    raise Unreadable(f"no pixels: {list(pixels.shape)}")
  if pixels.shape[2] in (2, 4):
    pixels = _on_black(pixels)
  return to_8_bit(_recolour(_stretch(pixels, size), channels))


def to_8_bit(pixels: np.ndarray) -> np.ndarray:
  """uint16 -> uint8 by rounding x / 257, so that 0 and 65,535 become 0 and 255; uint8 as it is."""
  if pixels.dtype == np.uint8:
    return pixels
  return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _pixels(image: Image.Image, data: bytes) -> np.ndarray:
  """[H, W, C] of an opened file; `data` are its bytes."""
  if isinstance(image, TiffImagePlugin.TiffImageFile) and image.n_frames > 1:
    raise Unreadable(f"holds {image.n_frames} pages: save each as a file of its own")
  image.load()  # also where OpenCV follows: it reports no damage
  pixels = _by_opencv(data) if _is_16_bit(image, data) else _by_pillow(image)
  orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
  return _turned(pixels, orientation)  # TIFFs both libraries turn themselves, and `load` says so


def _is_16_bit(image: Image.Image, data: bytes) -> bool:
  """Pillow decodes colour of 16 bits to 8 without a word, so the file's own header is asked."""
  if image.format == "PNG":
    return data[24] == 16
  if isinstance(image, TiffImagePlugin.TiffImageFile):
    return max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))) == 16
  return False


def _by_opencv(data: bytes) -> np.ndarray:
  pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  if pixels is None or pixels.dtype != np.uint16:
    raise Unreadable("16-bit pixels of an unknown kind: save as unsigned grey or RGB")
  if pixels.ndim == 2:
    return pixels[..., None]
  return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]  # BGR(A) -> RGB(A)


def _by_pillow(image: Image.Image) -> np.ndarray:
  if image.mode[0] in "IF":
    raise Unreadable(f"pixels of kind {image.mode!r} have no known range: save as 8 or 16 bit")
  opaque = "L" if image.mode in ("1", "L") else "RGB"
  mode = "RGBA" if image.has_transparency_data else opaque
  pixels = np.asarray(image.convert(mode))
  return pixels[..., None] if mode == "L" else pixels


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
  swapped, mirrored = _UPRIGHT.get(orientation, (False, ()))
  return np.flip(pixels.swapaxes(0, 1) if swapped else pixels, mirrored)


def _on_black(pixels: np.ndarray) -> np.ndarray:
  """[H, W, C + 1] with alpha -> [H, W, C]."""
  top = np.iinfo(pixels.dtype).max
  wide = pixels.astype(_SQUARED[pixels.dtype])
  return ((wide[..., :-1] * wide[..., -1:] + top // 2) // top).astype(pixels.dtype)


def _stretch(pixels: np.ndarray, size: int) -> np.ndarray:
  """Pillow's bilinear, which is antialiased; it resizes 16-bit planes only as floats."""
  if pixels.shape[:2] == (size, size):
    return pixels
  if pixels.dtype == np.uint8:
    return _resized(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels, size)
  planes = [_resized(plane.astype(np.float32), size) for plane in np.moveaxis(pixels, 2, 0)]
  return np.rint(np.concatenate(planes, axis=2)).astype(pixels.dtype)


def _resized(pixels: np.ndarray, size: int) -> np.ndarray:
  image = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR)
  return np.asarray(image).reshape(size, size, -1)


def _recolour(pixels: np.ndarray, channels: int) -> np.ndarray:
  """[H, W, 1 or 3] -> [H, W, channels]."""
  if pixels.shape[2] == channels:
    return pixels
  if channels == 3:
    return np.repeat(pixels, 3, axis=2)
  return np.rint(pixels @ _LUMINANCE)[..., None].astype(pixels.dtype)
