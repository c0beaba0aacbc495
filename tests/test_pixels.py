"""Pixels against the formulas worked by hand on single values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import pixels

RGB = np.array([[[255, 128, 0]]], np.uint8)  # one red-orange pixel, [1, 1, 3]


def test_uint8_maps_its_range_onto_the_unit_interval():
  floats = pixels.to_float(jnp.array([0, 51, 255], jnp.uint8))
  np.testing.assert_allclose(floats, [0, 0.2, 1], rtol=2e-7)
  assert floats[2] == 1


def test_uint16_keeps_every_level_apart():
  ramp = np.arange(65536, dtype=np.uint16)
  floats = np.asarray(pixels.to_float(jnp.asarray(ramp)))
  assert len(np.unique(floats)) == 65536
  assert floats[0] == 0 and floats[-1] == 1


def test_floats_are_refused():
  with pytest.raises(ValueError, match="float32: to_float takes uint8 or uint16"):
    pixels.to_float(jnp.zeros(3))


def test_double_precision_stays_double():
  with jax.enable_x64(True):
    floats = pixels.to_float(jnp.asarray(RGB))
    assert floats.dtype == jnp.float64
    assert pixels.normalise("torch", floats).dtype == jnp.float64


@pytest.mark.parametrize(
  ("mode", "expected"),
  [
    ("unit", (1, 128 / 255, 0)),
    ("tf", (1, 128 / 127.5 - 1, -1)),
    ("torch", ((1 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, -0.406 / 0.225)),
    ("caffe", (0 - 103.939, 128 - 116.779, 255 - 123.68)),
  ],
)
def test_modes_on_one_colour_pixel(mode, expected):
  result = pixels.normalise(mode, pixels.to_float(jnp.asarray(RGB)))
  np.testing.assert_allclose(result[0, 0], expected, rtol=1e-5, atol=1e-5)


def test_stats_whitens_the_corpus_it_came_from():
  images = np.random.default_rng(0).random((16, 8, 8, 1), np.float32) * 0.5
  mean, std = images.mean((0, 1, 2)), images.std((0, 1, 2))
  result = np.asarray(pixels.normalise("stats", jnp.asarray(images), mean, std))
  assert abs(result.mean()) < 1e-5
  assert abs(result.std() - 1) < 1e-5


@pytest.mark.parametrize("mode", ["torch", "caffe"])
def test_modes_by_colour_take_grey_as_the_same_image_in_rgb(mode):
  grey = jnp.asarray(np.random.default_rng(0).random((2, 4, 4, 1), np.float32))
  colour = pixels.normalise(mode, jnp.repeat(grey, 3, axis=-1))
  assert colour.shape == (2, 4, 4, 3)
  np.testing.assert_array_equal(pixels.normalise(mode, grey), colour)


@pytest.mark.parametrize("mode", ["torch", "caffe"])
def test_modes_by_colour_refuse_other_channels_and_say_what_to_set(mode):
  with pytest.raises(ValueError, match=r"RGB and grey.*2 channels.*data\.channels=3"):
    pixels.normalise(mode, jnp.zeros((1, 4, 4, 2)))


def test_stats_without_constants_is_refused():
  with pytest.raises(ValueError, match="mean and deviation"):
    pixels.normalise("stats", jnp.zeros((1, 4, 4, 1)))


def test_unknown_mode_lists_the_known_ones():
  with pytest.raises(KeyError, match="unit, tf, torch, caffe, stats"):
    pixels.normalise("imagenet", jnp.zeros((1, 4, 4, 3)))
