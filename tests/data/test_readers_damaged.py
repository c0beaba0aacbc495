"""Damaged files, decoded as `prepare` does it: in worker processes with limits."""

import collections
import gzip
import io

import nibabel
import numpy as np
from PIL import Image
import pytest
from trees_of_files import encoded

from medjax import settings
from medjax.data import isolation, readers

ALL = settings.Reading(frames="all")


def _read(data):
  """What arrives of a file: shape and kind of each frame."""
  found = [(f.pixels.shape, str(f.pixels.dtype)) for f in readers.frames(data, ALL)]
  if not found:
    raise readers.Unreadable("no frames")
  return found


def _arrays(pixels):
  single, packed = io.BytesIO(), io.BytesIO()
  np.save(single, pixels)
  np.savez_compressed(packed, image=pixels)
  return {"npy": single.getvalue(), "npz": packed.getvalue()}


@pytest.fixture(scope="module")
def whole(shared_data):
  """A whole file of each format."""
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
  colour, deep = Image.fromarray(pixels), Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
  volume = nibabel.Nifti1Image(rng.normal(size=(9, 8, 7)).astype(np.float32), np.eye(4))
  dicom = {
    "dicom": "MR_small.dcm",
    "dicom jpeg": "SC_rgb_jpeg_gdcm.dcm",
    "dicom jpeg 12": "JPGExtended.dcm",
    "dicom jpeg-ls": "emri_small_jpeg_ls_lossless.dcm",
    "dicom jpeg 2000": "US1_J2KI.dcm",
    "dicom rle": "SC_rgb_rle_2frame.dcm",
    "dicom deflated": "image_dfl.dcm",
  }
  return {
    "png": encoded(colour, "PNG"),
    "png 16": encoded(deep, "PNG"),
    "jpeg": encoded(colour, "JPEG"),
    "cmyk": encoded(colour.convert("CMYK"), "JPEG"),
    "bmp": encoded(colour, "BMP"),
    "tiff": encoded(colour, "TIFF", compression="tiff_lzw"),
    "tiff 16": encoded(deep, "TIFF"),
    "nifti": volume.to_bytes(),
    "nifti gz": gzip.compress(volume.to_bytes(), mtime=0),
    "mgh": nibabel.MGHImage(volume.get_fdata(dtype=np.float32), np.eye(4)).to_bytes(),
    **_arrays(pixels),
    **{
      kind: next((shared_data / "dicom").rglob(name)).read_bytes() for kind, name in dicom.items()
    },
  }


def _mutated(data, rng):
  """Bytes flipped (most of all in the header), cut, or all gone."""
  what = rng.integers(10)
  if what == 0:
    return b""
  if what < 4:
    return data[: rng.integers(1, len(data))]
  flipped = np.frombuffer(data, np.uint8).copy()
  reach = len(data) if what < 7 else min(len(data), 1000)
  places = rng.integers(0, reach, rng.integers(1, 20))
  flipped[places] ^= rng.integers(1, 256, len(places), dtype=np.uint8)
  return flipped.tobytes()


def _check(whole, each):
  """Decodes `each` mutants of every format, with a whole file after every tenth."""
  rng = np.random.default_rng(0)
  names = list(whole) * each
  jobs = [_mutated(whole[name], rng) for name in names]
  for i in range(9, len(jobs), 10):
    jobs[i] = whole[names[i]]
  results = list(isolation.decoded(jobs, _read, 2, seconds=10.0, gigabytes=2.0))
  assert [r.job for r in results] == jobs
  assert all((r.value is None) == bool(r.reason) for r in results)
  sound = {name: _read(data) for name, data in whole.items()}
  for i in range(9, len(jobs), 10):
    assert (results[i].value, results[i].reason) == (sound[names[i]], ""), names[i]
  refused = collections.Counter(n for n, r in zip(names, results, strict=True) if r.reason)
  assert set(refused) == set(whole)  # of every format some were damaged enough


def test_200_mutated_files_are_read_or_refused_and_the_run_goes_on(whole):
  _check(whole, 12)


@pytest.mark.slow
def test_2000_mutated_files_are_read_or_refused_and_the_run_goes_on(whole):
  _check(whole, 125)
