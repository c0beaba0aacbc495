"""What an image is known by: its file's bytes, its pixels at their own size, its small picture."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from medjax.data import duplicates, readers
from medjax.data.readers import fitting, frame


class Fingerprint(NamedTuple):
  """Of one image.

  Attributes:
    file: SHA-256 of the file's bytes (hex), or "" of an image that is no file.
    pixels: that of the pixels; see `digest`.
    thumb: uint8 [64, 64]; see `duplicates.thumbnails`.
    patient: a hash of the patient that a DICOM header names, or "".
  """

  file: str
  pixels: str
  thumb: np.ndarray
  patient: str


def of(source: bytes | np.ndarray) -> Fingerprint:
  """Looks at an image: at the middle one of a file that holds several.

  Args:
    source: the bytes of a file, or pixels as `readers.fit` takes them.

  Raises:
    readers.Unreadable: with the reason.
  """
  if isinstance(source, np.ndarray):
    file, patient, pixels = "", "", fitting.checked(source)
  else:
    found = next(readers.frames(source))
    file, patient, pixels = hashlib.sha256(source).hexdigest(), found.about.patient, found.pixels
  pixels = plain(pixels)
  return Fingerprint(file, digest(pixels), duplicates.thumbnails(pixels), patient)


def plain(pixels: np.ndarray) -> np.ndarray:
  """[H, W, 1 to 4] on black where transparent, and as one channel where there is no colour."""
  pixels = fitting.opaque(pixels)
  return pixels[..., :1] if pixels.shape[2] == 1 or frame.is_grey(pixels) else pixels


def digest(pixels: np.ndarray) -> str:
  """SHA-256 (hex) of shape, type and values of `plain` pixels, whatever file they came from."""
  found = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode())
  found.update(np.ascontiguousarray(pixels).data)
  return found.hexdigest()
