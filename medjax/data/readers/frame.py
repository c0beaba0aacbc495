"""What every reader hands on: frames, with what is known of them, or the reason for none."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hmac

import cv2
import numpy as np

MAX_PIXELS = 2**27  # of one frame, height times width: 11,585 squared; mammograms have 25 million
MAX_BYTES = 2**32  # of a volume, and of what is unpacked to come to it

_COARSE = 10  # pixels between those of a first look


class Unreadable(ValueError):
  """A file that cannot become pixels; the text is the reason, fit for a list of such files.

  It never holds what a file says of a person.
  """


@dataclasses.dataclass(frozen=True)
class About:
  """What is known of a frame besides its pixels; nothing here names a person.

  Attributes:
    format: `PNG`, `JPEG`, `BMP`, `TIFF`, `DICOM`, `NIfTI`, `MGH` or `NumPy`.
    modality: DICOM's code, such as `CT`, or empty.
    body_part: DICOM's code, such as `CHEST`, or empty.
    bits: significant bits a sample in the file.
    height, width: of the frame, upright, before any preparation.
    colour: whether any pixel is other than grey.
    patient, study, series: salted hashes (hex) of the header's identifiers, or empty.
    steps: what was done to the file's values, in order.
  """

  format: str
  modality: str = ""
  body_part: str = ""
  bits: int = 8
  height: int = 0
  width: int = 0
  colour: bool = False
  patient: str = ""
  study: str = ""
  series: str = ""
  steps: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Frame:
  """One image of a file.

  Attributes:
    index: its place among the file's frames or slices, from 0.
    pixels: [H, W, C] uint8 or uint16 at its own size, ready to be looked at: windowed, upright,
      white is high; C is 1 (grey), 2 (grey and alpha), 3 (RGB, not all of it grey) or 4 (RGBA).
    about: what is known of it.
  """

  index: int
  pixels: np.ndarray
  about: About


def made(index: int, pixels: np.ndarray, about: About, steps: Sequence[str] = ()) -> Frame:
  """A frame whose size and colour are told by its pixels; `steps` follow those of `about`.

  Grey pixels that are stored as RGB become one channel: what comes after takes a third of the work,
  and treats them as any other grey ones.
  """
  height, width, channels = pixels.shape
  colour = channels > 2 and not is_grey(pixels)
  told = dataclasses.replace(
    about, height=height, width=width, colour=colour, steps=(*about.steps, *steps)
  )
  stored_as_rgb = channels == 3 and not colour
  return Frame(index, np.ascontiguousarray(pixels[..., :1]) if stored_as_rgb else pixels, told)


def is_grey(pixels: np.ndarray) -> bool:
  """Whether the first three channels of [H, W, 3 or 4] are equal."""
  few = pixels[::_COARSE, ::_COARSE]  # tells most photographs, for a hundredth of the work
  return _is_grey(few) and _is_grey(pixels)


def _is_grey(pixels: np.ndarray) -> bool:
  red, green, blue, *_ = cv2.split(np.ascontiguousarray(pixels))
  return np.array_equal(red, green) and np.array_equal(green, blue)


def check_size(height: int, width: int) -> None:
  """Refuses a frame without pixels or too large to be decoded safely, before memory is taken."""
  if height < 1 or width < 1:
    raise Unreadable(f"no pixels: {height} x {width}")
  if height * width > MAX_PIXELS:
    raise Unreadable(
      f"{height:,} x {width:,} pixels, above the limit of {MAX_PIXELS:,} for one image"
    )


def chosen(count: int, policy: str) -> range:
  """Which of `count` frames `settings.Reading.frames` asks for, in order."""
  if policy == "all":
    return range(count)
  if policy == "middle":
    return range(count // 2, count // 2 + 1)
  _, step, most = policy.split(":")
  return range(0, count, int(step))[: int(most)]


def keyed(salt: bytes, kind: str, value: str) -> str:
  """A salted hash [32 hex digits] of an identifier, or empty where there is none.

  The same value under another kind or salt gives an unrelated hash (HMAC-SHA-256, RFC 2104).
  """
  if not value.strip():
    return ""
  return hmac.digest(salt, f"{kind}\0{value.strip()}".encode(), "sha256").hex()[:32]
