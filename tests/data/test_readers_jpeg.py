"""What stands before the pixels of a JPEG file, where its orientation is looked for."""

import io

import numpy as np
from PIL import Image, ImageOps
import pytest
from trees_of_files import encoded

from medjax.data import readers
from medjax.data.readers import contents


@pytest.fixture(scope="module")
def turned() -> bytes:
  """A file whose EXIF tells that it lies on its side."""
  gradient = np.add.outer(np.arange(24), 3 * np.arange(40)).astype(np.uint8)
  exif = Image.Exif()
  exif[0x0112] = 6
  return encoded(Image.fromarray(gradient), "JPEG", exif=exif)


def test_the_header_ends_where_the_first_scan_begins(turned):
  header = contents.jpeg_header(turned)
  assert turned[len(header) :].startswith(b"\xff\xda") and header.count(b"\xff\xda") == 0
  assert header + turned[len(header) :] == turned and b"Exif\0" in header


@pytest.mark.parametrize("held", [b"\xff\xda", b"\xff\xda\0\0 and \xff\xd9"])
def test_a_profile_that_holds_the_mark_of_a_scan_hides_no_orientation(turned, held):
  profile = b"ICC_PROFILE\0\1\1" + held
  segment = b"\xff\xe2" + (2 + len(profile)).to_bytes(2, "big") + profile
  data = turned[:2] + segment + turned[2:]
  want = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  assert want.size == (24, 40)
  np.testing.assert_array_equal(readers.decode(data)[..., 0], np.asarray(want))


@pytest.mark.parametrize(
  "damaged", [b"", b"\xff\xd8", b"\xff\xd8\xff\xe1", b"\xff\xd8\xff\xe1\0\0x"]
)
def test_of_segments_that_do_not_add_up_all_is_looked_at(damaged, turned):
  assert contents.jpeg_header(damaged) == damaged
  assert contents.jpeg_header(turned[:60]) == turned[:60]
