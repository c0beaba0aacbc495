"""PNG, JPEG, BMP and TIFF: photographs, screenshots, exports."""

from __future__ import annotations

from collections.abc import Iterator
import io

import cv2
import imagecodecs
import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin
import simplejpeg

from medjax import settings
from medjax.data.readers import contents, frame

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_UPRIGHT = {  # EXIF orientation -> (axes are swapped, then these are mirrored)
  2: (False, (1,)),
  3: (False, (0, 1)),
  4: (False, (0,)),
  5: (True, ()),
  6: (True, (1,)),
  7: (True, (0, 1)),
  8: (True, (0,)),
}
_PLAIN = {"Gray": "GRAY", "YCbCr": "RGB", "RGB": "RGB"}  # kinds of JPEG, and as what they are read
_TURNED = "turned upright by its EXIF orientation"


def frames(data: bytes, cfg: settings.Reading) -> Iterator[frame.Frame]:
  """Decodes a file at its own size and depth, upright by its EXIF orientation.

  Yields:
    One frame, or those of a TIFF of several pages of one size that `cfg.frames` chooses: uint16
    from 16-bit PNG and TIFF, else uint8; C is 1 (grey), 3 (RGB) or 4 (RGBA).

  Raises:
    frame.Unreadable: with the reason.
  """
  plain = _plain_jpeg(data)
  if plain is not None:
    yield plain
    return
  image = _opened(data)
  try:
    pages = _pages(image)
    for page in frame.chosen(pages, cfg.frames):
      if pages > 1:
        image.seek(page)
      yield _page(image, data, page)
  except (frame.Unreadable, MemoryError):
    raise
  except Exception as error:  # the decoders raise whatever they stumble over
    raise frame.Unreadable(f"damaged: {error}") from error


def _plain_jpeg(data: bytes) -> frame.Frame | None:
  """The frame of a whole, upright, grey or RGB JPEG file; None for what Pillow must look at."""
  if not data.startswith(b"\xff\xd8\xff") or b"Exif\0" in contents.jpeg_header(data):
    return None
  try:
    height, width, kind, _ = simplejpeg.decode_jpeg_header(data)
    frame.check_size(height, width)
    if kind not in _PLAIN:
      return None
    pixels = simplejpeg.decode_jpeg(data, _PLAIN[kind])
  except ValueError:  # damage, which Pillow has words for
    return None
  return frame.made(0, pixels, frame.About(format="JPEG"))


def _opened(data: bytes) -> Image.Image:
  """The header alone; pixels are not touched yet."""
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
  except Image.UnidentifiedImageError:
    raise frame.Unreadable(
      f"no {', '.join(FORMATS)} image by its content, nor DICOM, NIfTI, MGH or NumPy"
    ) from None
  except Image.DecompressionBombError as error:
    raise frame.Unreadable(f"too many pixels: {error}") from None
  except Exception as error:  # Pillow raises whatever it stumbles over in a damaged header
    raise frame.Unreadable(f"damaged header: {error}") from error
  frame.check_size(image.height, image.width)
  return image


def _pages(image: Image.Image) -> int:
  """How many pages of one size a file holds."""
  if not isinstance(image, TiffImagePlugin.TiffImageFile):
    return 1
  for page in range(1, image.n_frames):
    first = image.size
    image.seek(page)
    if image.size != first:
      raise frame.Unreadable(
        f"holds {image.n_frames} pages of different sizes: save each as a file of its own"
      )
  image.seek(0)
  return image.n_frames


def _page(image: Image.Image, data: bytes, page: int) -> frame.Frame:
  assert image.format is not None
  about = frame.About(format=image.format, bits=_bits(image, data))
  orientation = _orientation(image, data)
  pixels = _pixels(image, data, page, about.bits)
  steps = (_TURNED,) if orientation in _UPRIGHT else ()
  if image.format != "TIFF":  # those their decoders turn themselves
    pixels = _turned(pixels, orientation)
  return frame.made(page, pixels, about, steps)


def _orientation(image: Image.Image, data: bytes) -> int:
  if image.format == "PNG" and b"eXIf" not in data and b"Raw profile type exif" not in data:
    return 1  # Pillow would decode the whole image to look for it at the end
  return image.getexif().get(ExifTags.Base.Orientation, 1)


def _bits(image: Image.Image, data: bytes) -> int:
  """Bits a sample; Pillow decodes colour of 16 bits to 8 without a word, so the header is asked."""
  if image.format == "PNG":
    return data[24]
  if isinstance(image, TiffImagePlugin.TiffImageFile):
    return max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
  return 1 if image.mode == "1" else 8


def _pixels(image: Image.Image, data: bytes, page: int, bits: int) -> np.ndarray:
  """[H, W, C] by the fastest decoder that gives the pixels that Pillow gives, and knows damage."""
  if image.format == "PNG" and (bits == 16 or (bits == 8 and _is_plain(image))):
    return _layers(imagecodecs.png_decode(data))
  if image.format == "JPEG" and image.mode in ("L", "RGB"):
    return _jpeg(image, data)
  if image.format == "TIFF" and bits == 16:
    image.load()  # OpenCV reports no damage
    return _by_opencv(data, page)
  return _by_pillow(image)


def _is_plain(image: Image.Image) -> bool:
  return image.mode in ("L", "RGB", "RGBA") and "transparency" not in image.info


def _layers(pixels: np.ndarray) -> np.ndarray:
  """[H, W], [H, W, grey and alpha] or more -> [H, W, 1, 3 or 4]."""
  pixels = pixels[..., None] if pixels.ndim == 2 else pixels
  return pixels[..., [0, 0, 0, 1]] if pixels.shape[2] == 2 else pixels


def _jpeg(image: Image.Image, data: bytes) -> np.ndarray:
  """Pillow's pixels; it is asked itself where the faster one finds anything unusual."""
  try:
    return simplejpeg.decode_jpeg(data, "GRAY" if image.mode == "L" else "RGB")
  except ValueError:
    return _by_pillow(image)


def _by_opencv(data: bytes, page: int) -> np.ndarray:
  encoded = np.frombuffer(data, np.uint8)
  _, pages = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=(page, page + 1))
  if len(pages) != 1 or pages[0].dtype != np.uint16:
    raise frame.Unreadable("16-bit pixels of an unknown kind: save as unsigned grey or RGB")
  pixels = pages[0]
  if pixels.ndim == 2:
    return pixels[..., None]
  return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]  # BGR(A) -> RGB(A)


def _by_pillow(image: Image.Image) -> np.ndarray:
  if image.mode[0] in "IF":
    raise frame.Unreadable(
      f"pixels of kind {image.mode!r} have no known range: save as 8 or 16 bit"
    )
  opaque = "L" if image.mode in ("1", "L") else "RGB"
  mode = "RGBA" if image.has_transparency_data else opaque
  pixels = np.asarray(image.convert(mode))
  return pixels[..., None] if mode == "L" else pixels


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
  swapped, mirrored = _UPRIGHT.get(orientation, (False, ()))
  return np.flip(pixels.swapaxes(0, 1) if swapped else pixels, mirrored)
