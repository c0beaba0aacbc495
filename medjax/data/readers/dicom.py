"""DICOM: pydicom decodes; here stored values become what a viewer shows, and persons stay behind.

Nothing of a header leaves but codes of fixed lists, numbers that describe pixels, and salted
hashes. Neither do the texts of pydicom's errors and warnings, which quote headers.
"""

from __future__ import annotations

from collections.abc import Iterator
import io
import logging
import re
from typing import Any
import warnings

import numpy as np
import pydicom
from pydicom import pixels as pydicom_pixels
from pydicom import uid
from pydicom.pixels import decoders

from medjax import settings
from medjax.data.readers import dicom_terms, dicom_values, frame

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_SAMPLES = {  # a pixel; what pydicom hands out of YBR is RGB
  "MONOCHROME1": 1,
  "MONOCHROME2": 1,
  "PALETTE COLOR": 1,
  "RGB": 3,
  "YBR_FULL": 3,
  "YBR_FULL_422": 3,
  "YBR_ICT": 3,
  "YBR_RCT": 3,
}
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")

# Both quote headers.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module="pydicom")
if "imagecodecs" not in decoders.JPEGExtended12BitDecoder.available_plugins:
  decoders.JPEGExtended12BitDecoder.add_plugin(
    "imagecodecs", ("medjax.data.readers.jpeg12", "decode_frame")
  )


def frames(data: bytes, cfg: settings.Reading, salt: bytes) -> Iterator[frame.Frame]:
  """Decodes the frames that `cfg.frames` chooses, as a viewer shows them.

  Yields:
    Grey of up to 8 bits that needs no window as uint8, and RGB of 8 bits; all else as uint16.

  Raises:
    frame.Unreadable: with the reason.
  """
  header = _header(data)
  try:
    count = _checked(header)
    about = _about(header, salt)
    chosen = frame.chosen(count, cfg.frames)
    for index, stored in zip(chosen, stored_frames(header, chosen), strict=True):
      pixels, steps = dicom_values.shown(stored, header, index, cfg.window)
      yield frame.made(index, pixels, about, steps)
  except (frame.Unreadable, MemoryError):
    raise
  except Exception as error:  # pydicom and its plug-ins raise whatever they stumble over
    raise frame.Unreadable(f"damaged or unknown DICOM pixels: {_told(error)}") from None


def stored_frames(header: pydicom.Dataset, indices: range) -> Iterator[np.ndarray]:
  """Frames [H, W] or [H, W, 3] as pydicom decodes them, YBR turned to RGB, nothing else done."""
  return pydicom_pixels.iter_pixels(header, indices=indices)


def _header(data: bytes) -> pydicom.Dataset:
  try:
    header = pydicom.dcmread(io.BytesIO(data), force=True)
    _complete(header)
    return header
  except Exception as error:  # pydicom raises whatever it stumbles over, and quotes the header
    raise frame.Unreadable(f"damaged DICOM header ({type(error).__name__})") from None


def _complete(header: pydicom.Dataset) -> None:
  """Files without a preamble do not name their transfer syntax, but it shows."""
  if "TransferSyntaxUID" not in header.file_meta:
    implicit, little = header.original_encoding
    native = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    header.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else native


def _checked(header: pydicom.Dataset) -> int:
  """The number of frames, once it is sure that there are pixels of a kind and size to decode."""
  if not any(keyword in header for keyword in _PIXELS):
    raise frame.Unreadable(f"DICOM without pixels ({_kind(header)})")
  frame.check_size(int(header.get("Rows") or 0), int(header.get("Columns") or 0))
  samples = int(header.get("SamplesPerPixel") or 1)
  if samples != _SAMPLES.get(header.get("PhotometricInterpretation")):
    raise frame.Unreadable(f"DICOM of {samples} samples a pixel of an unknown kind of colour")
  return max(1, int(header.get("NumberOfFrames") or 1))


def _kind(header: pydicom.Dataset) -> str:
  """What the file is by its class, in the standard's words."""
  named = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
  return _name(named) if named else "no class"


def _name(value: str) -> str:
  """A unique identifier's name in the standard; others are not repeated."""
  name = uid.UID(value).name
  return "a class that is not in the standard" if name == value else name


def _about(header: pydicom.Dataset, salt: bytes) -> frame.About:
  def text(keyword: str) -> str:
    return str(header.get(keyword) or "")

  return frame.About(
    format="DICOM",
    modality=dicom_terms.modality(text("Modality")),
    body_part=dicom_terms.body_part(text("BodyPartExamined")),
    bits=int(header.get("BitsStored") or header.get("BitsAllocated") or 0),
    patient=frame.keyed(salt, "patient", text("PatientID")),
    study=frame.keyed(salt, "study", text("StudyInstanceUID")),
    series=frame.keyed(salt, "series", text("SeriesInstanceUID")),
    steps=(f"decoded from {_name(header.file_meta.TransferSyntaxUID)}",),
  )


def _told(error: Exception) -> str:
  """An error of decoding in one short line, without what it quotes."""
  told: Any = _QUOTED.sub("...", " ".join(str(error).split()))
  return told[:200] or type(error).__name__
