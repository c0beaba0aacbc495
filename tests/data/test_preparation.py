"""Steps on the host, before the resize, of files of pixels that are grey, colour or transparent."""

import io

import numpy as np
import pytest
from scipy import ndimage

from medjax import settings
from medjax.data import readers


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def _prepared(pixels, **steps):
  file = io.BytesIO()
  np.save(file, pixels)
  (found,) = readers.frames(file.getvalue(), settings.Reading(**steps))
  return found


@pytest.mark.parametrize("step", [{}, {"median": 3}, {"clahe": 2.0}, {"crop_markers": True}])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_grey_that_is_stored_as_colour_is_prepared_as_grey(rng, depth, step):
  grey = rng.integers(0, np.iinfo(depth).max // 2, (60, 60, 1), dtype=depth)
  grey[3:9, 3:9] = np.iinfo(depth).max  # a marker
  want = _prepared(grey, **step).pixels
  np.testing.assert_array_equal(_prepared(np.repeat(grey, 3, axis=2), **step).pixels, want)
  assert want.shape == (60, 60, 1)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_median_takes_single_pixels_away(depth):
  pixels = np.full((9, 9, 3), 50, depth)
  pixels[4, 4] = 200
  found = _prepared(pixels, median=3)
  assert (found.pixels == 50).all()
  assert found.about.steps == ("median filter 3 x 3",)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_gaussian_equals_scipy(rng, depth):
  pixels = rng.integers(0, np.iinfo(depth).max, (40, 40), dtype=depth)
  want = ndimage.gaussian_filter(pixels.astype(float), 1.5, mode="mirror", truncate=4)
  got = _prepared(pixels, gaussian=1.5).pixels[..., 0]
  assert np.abs(got - want).max() <= 0.006 * np.iinfo(depth).max


@pytest.mark.parametrize("tint", [(0,), (20, 0, -15)])
def test_clahe_raises_local_contrast_and_keeps_hue(tint):
  weak = 100 + 9 * np.sin(np.arange(64) / 3)
  pixels = np.broadcast_to((weak[:, None] + tint)[:, None], (64, 64, len(tint))).astype(np.uint8)
  got = _prepared(pixels, clahe=20.0).pixels
  assert got.shape == pixels.shape
  assert np.ptp(got, axis=(0, 1)).min() > 2 * np.ptp(weak)
  hue = np.diff(pixels.astype(int), axis=2)
  np.testing.assert_allclose(np.diff(got.astype(int), axis=2), hue, atol=2)


@pytest.mark.parametrize("shade", [0, 255])
def test_border_is_cropped(rng, shade):
  inner = rng.integers(60, 190, (20, 31, 1), dtype=np.uint8)
  pixels = np.pad(inner, ((3, 5), (7, 2), (0, 0)), constant_values=shade)
  np.testing.assert_array_equal(_prepared(pixels, crop_border=True).pixels, inner)
  flat = np.full((6, 6, 1), shade, np.uint8)
  np.testing.assert_array_equal(_prepared(flat, crop_border=True).pixels, flat)


def test_markers_are_painted_over_and_anatomy_stays():
  pixels = np.full((200, 200), 60, np.uint8)
  pixels[60:140, 60:140] = 250  # large, in the middle
  pixels[100, 5:195] = 250  # bone to both edges
  pixels[45:50, 45:50] = 250  # small, but inside
  pixels[170:198, 150:198] = 250  # near an edge, but large
  want = pixels.copy()
  pixels[10:22, 12:20] = 255  # a letter
  painted = _prepared(pixels, crop_markers=True).pixels[..., 0]
  np.testing.assert_array_equal(painted, want)


def test_steps_on_transparent_images_come_after_compositing():
  pixels = np.full((8, 8, 4), 200, np.uint8)
  pixels[..., 3] = 0
  assert (_prepared(pixels, median=3).pixels == 0).all()


def test_without_settings_nothing_is_prepared(rng):
  pixels = rng.integers(0, 256, (8, 9, 4), dtype=np.uint8)
  found = _prepared(pixels)
  np.testing.assert_array_equal(found.pixels, pixels)
  assert found.about.steps == ()


@pytest.mark.parametrize(
  "wrong",
  [
    {"window": "lungs"},
    {"frames": "every:0:3"},
    {"frames": "first"},
    {"median": 4},
    {"gaussian": -1.0},
    {"clahe": -1.0},
    {"clahe": 2.0, "depth": 16},
  ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
  with pytest.raises(ValueError, match=f"reading.{next(iter(wrong))}"):
    settings.Reading(**wrong)
