"""What a file is, by its first bytes; those that are none of these are left to Pillow."""

from __future__ import annotations

GZIP, MGH = b"\x1f\x8b", b"\0\0\0\1"


def is_dicom(data: bytes) -> bool:
  """Whether this is DICOM, with its preamble or, as some scanners write it, without."""
  bare = data[:2] in (b"\2\0", b"\10\0") and data[3:4] == b"\0" and len(data) > 132
  return data[128:132] == b"DICM" or bare


def is_volume(data: bytes) -> bool:
  """Whether this is NIfTI-1, NIfTI-2 or MGH, or gzip, which holds no other image."""
  return data.startswith((GZIP, MGH)) or nifti(data) != ""


def is_array(data: bytes) -> bool:
  """Whether this is .npy or a zip file, such as .npz."""
  return data.startswith((b"\x93NUMPY", b"PK\3\4"))


def nifti(data: bytes) -> str:
  """`single`, `pair` (a header whose voxels are in another file), or empty where it is no NIfTI."""
  magic = data[4:8] if data[4:7] in (b"n+2", b"ni2") else data[344:348]
  return {b"n+1\0": "single", b"n+2\0": "single", b"ni1\0": "pair", b"ni2\0": "pair"}.get(magic, "")


def jpeg_header(data: bytes) -> bytes:
  """What comes before the pixels of a JPEG file; all of one whose segments do not add up."""
  end = 2
  while data[end : end + 1] == b"\xff" and data[end + 1 : end + 2] != b"\xda":
    end += 2 + int.from_bytes(data[end + 2 : end + 4], "big")
  return data[:end] if data[end : end + 2] == b"\xff\xda" else data
