"""A plug-in of pydicom for JPEG of 12 bits a sample, which its free decoders do not know."""

from __future__ import annotations

import imagecodecs
import numpy as np
from pydicom import uid

_END = b"\xff\xd9"  # end of image; libjpeg itself makes up what is missing before it

DECODER_DEPENDENCIES = {uid.JPEGExtended12Bit: ("imagecodecs",)}  # pydicom asks for this name


def is_available(syntax: str) -> bool:
  """Whether frames of this transfer syntax can be decoded."""
  return syntax in DECODER_DEPENDENCIES


def decode_frame(encoded: bytes, runner: object) -> bytes:
  """Samples of one frame as little-endian uint16; raises ValueError where it is another kind."""
  if _END not in encoded[-4:]:  # padded to an even length
    raise ValueError("JPEG cut off before its end")
  samples = imagecodecs.jpeg8_decode(encoded)
  if samples.dtype != np.uint16:
    raise ValueError("JPEG of 8 bits")
  return samples.astype("<u2").tobytes()
