"""Files of every kind that a reader takes, and some that none does, for tests of prediction."""

from collections.abc import Sequence
import io
import pathlib

import nibabel
import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medjax import settings
from medjax.data.datasets import phantom


def phantoms(count: int, side: int) -> list[np.ndarray]:
  """Radiograph-like images, uint8 [side, side]."""
  rows = phantom.catalogue(settings.Phantom(patients=count, image_size=side))
  return [np.squeeze(rows.read(row)) for row in range(count)]


def _saved(pixels: np.ndarray, kind: str) -> bytes:
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, kind)
  return data.getvalue()


def _npy(pixels: np.ndarray) -> bytes:
  data = io.BytesIO()
  np.save(data, pixels)
  return data.getvalue()


def _dicom(pixels: np.ndarray) -> bytes:
  header = Dataset()
  header.file_meta = FileMetaDataset()
  header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
  header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
  header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
  header.Modality, header.PhotometricInterpretation = "DX", "MONOCHROME2"
  header.SamplesPerPixel, header.PixelRepresentation = 1, 0
  header.Rows, header.Columns = pixels.shape
  header.BitsAllocated = header.BitsStored = 8
  header.HighBit = 7
  header.PixelData = pixels.tobytes()
  data = io.BytesIO()
  header.save_as(data, enforce_file_format=True)
  return data.getvalue()


def _nifti(pixels: np.ndarray) -> bytes:
  volume = np.repeat(pixels[..., None], 3, axis=2).astype(np.int16)
  return nibabel.Nifti1Image(volume, np.eye(4)).to_bytes()


KINDS = {
  "png": lambda pixels: _saved(pixels, "PNG"),
  "jpg": lambda pixels: _saved(pixels, "JPEG"),
  "tif": lambda pixels: _saved(pixels.astype(np.uint16) * 257, "TIFF"),
  "bmp": lambda pixels: _saved(np.repeat(pixels[..., None], 3, 2), "BMP"),
  "npy": _npy,
  "dcm": _dicom,
  "nii": _nifti,
}
BROKEN = {
  "cut.png": lambda pixels: _saved(pixels, "PNG")[:200],
  "empty.dcm": lambda pixels: b"",
  "text.jpg": lambda pixels: b"this is no image",
  "cut.nii": lambda pixels: _nifti(pixels)[:500],
}


def write(
  root: pathlib.Path, images: Sequence[np.ndarray], broken_every: int = 0
) -> list[pathlib.Path]:
  """Writes images in turn in every format; every so many of them broken. Their paths, in order."""
  root.mkdir(parents=True, exist_ok=True)
  kinds, wrong = list(KINDS.items()), list(BROKEN.items())
  paths = []
  for i, pixels in enumerate(images):
    ending, make = kinds[i % len(kinds)]
    if broken_every and i % broken_every == broken_every - 1:
      ending, make = wrong[i // broken_every % len(wrong)]
    paths.append(root / f"{i:05d}.{ending}")
    paths[-1].write_bytes(make(pixels))
  return paths
