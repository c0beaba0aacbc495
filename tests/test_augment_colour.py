"""Changes of colour against `colorsys`, and stains taken apart by hand in NumPy."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import augment, settings

LUMA = np.array([0.299, 0.587, 0.114])
# Ruifrok & Johnston 2001, table 1: haematoxylin, eosin, DAB in red, green, blue.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def _images(count=200, size=4, low=0.1, high=0.9, seed=0):
  rng = np.random.default_rng(seed)
  return rng.uniform(low, high, (count, size, size, 3)).astype(np.float32)


def _augmented(cfg, images):
  slots = jnp.arange(len(images), dtype=jnp.int32)
  return np.asarray(jax.jit(augment.make(cfg))(jax.random.key(0), jnp.asarray(images), slots))


def _hsv(images):
  pixels = images.reshape(-1, 3).astype(float)
  return np.array([colorsys.rgb_to_hsv(*pixel) for pixel in pixels]).reshape(images.shape)


def test_hue_turns_every_pixel_of_an_image_alike_and_nothing_else():
  images = _images()
  before, after = (_hsv(x) for x in (images, _augmented(settings.Augment(hue=0.1), images)))
  np.testing.assert_allclose(after[..., 1:], before[..., 1:], atol=1e-5)
  turns = (after[..., 0] - before[..., 0] + 0.5) % 1 - 0.5
  one = np.median(turns, axis=(1, 2))
  np.testing.assert_allclose(turns, np.broadcast_to(one[:, None, None], turns.shape), atol=1e-4)
  assert -0.1 <= one.min() < -0.09 and 0.09 < one.max() <= 0.1


def test_hue_leaves_greys_and_knows_the_corners_of_the_circle():
  """Half a turn makes each pure colour its complement."""
  corners = np.array([[r, g, b] for r in (0, 1) for g in (0, 1) for b in (0, 1)], np.float32)
  shades = tuple(jnp.asarray(corners.T[:, None]))
  turned = np.asarray(augment._turned(shades, jnp.float32(0.5)))[0]
  grey = (corners == corners[:, :1]).all(1)
  np.testing.assert_allclose(turned[grey], corners[grey], atol=1e-6)
  np.testing.assert_allclose(turned[~grey], 1 - corners[~grey], atol=1e-6)


def test_saturation_moves_pixels_along_the_line_to_their_grey():
  images = _images(low=0.4, high=0.6)
  found = _augmented(settings.Augment(saturation=0.2), images)
  grey = (images @ LUMA)[..., None]
  factors = ((found - grey) * (images - grey)).sum((1, 2, 3)) / ((images - grey) ** 2).sum(
    (1, 2, 3)
  )
  expected = grey + factors[:, None, None, None] * (images - grey)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  assert 0.8 <= factors.min() + 1e-4 < 0.82 and 1.18 < factors.max() <= 1.2 + 1e-4


def test_colours_go_as_often_as_asked():
  images = _images(1000)
  found = _augmented(settings.Augment(grayscale=0.1), images)
  grey = np.isclose(found, (images @ LUMA)[..., None], atol=1e-6).all(axis=(1, 2, 3))
  kept = (found == images).all(axis=(1, 2, 3))
  assert (grey | kept).all() and 0.07 < grey.mean() < 0.13


def test_jitter_changes_all_of_light_and_colour_or_nothing():
  cfg = dict(brightness=0.1, contrast=0.2, saturation=0.2, hue=0.1)
  images = _images(1000, low=0.4, high=0.6)
  always = _augmented(settings.Augment(**cfg), images)
  found = _augmented(settings.Augment(**cfg, jitter=0.8), images)
  kept = (found == images).all(axis=(1, 2, 3))
  np.testing.assert_allclose(found[~kept], always[~kept], atol=1e-6)
  assert 0.16 < kept.mean() < 0.24


def test_stains_are_multiplied_and_shifted_one_by_one():
  """Optical densities are taken apart by the inverse of the stains' matrix; a line fits each."""
  stains = np.random.default_rng(0).uniform(0.05, 0.4, (200, 8, 8, 3))
  images = (10 ** -(stains @ STAINS)).astype(np.float32)
  found = _augmented(settings.Augment(stain=0.05), images)
  after = -np.log10(found.astype(float)) @ np.linalg.inv(STAINS)
  fits = np.array(
    [
      [np.polyfit(stains[i, ..., k].ravel(), after[i, ..., k].ravel(), 1) for k in range(3)]
      for i in range(len(images))
    ]
  )  # [200, 3, (factor, shift)]
  lines = fits[:, None, None, :, 0] * stains + fits[:, None, None, :, 1]
  np.testing.assert_allclose(after, lines, atol=1e-4)
  off = fits - [1, 0]
  assert (np.abs(off) <= 0.0502).all()
  assert (off.min(0) < -0.045).all() and (off.max(0) > 0.045).all()
  off = off.reshape(len(off), -1)
  assert np.abs(np.corrcoef(off.T) - np.eye(6)).max() < 0.25  # six draws of their own


def test_black_and_white_are_stained_within_bounds():
  corners = np.array([0, 1], np.float32)[:, None, None, None] * np.ones((2, 2, 2, 3), np.float32)
  found = _augmented(settings.Augment(stain=0.2), corners)
  assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
  assert found[0].max() < 0.1 and found[1].min() > 0.3


@pytest.mark.parametrize("name", ["saturation", "hue", "grayscale", "stain"])
def test_colours_of_grey_images_are_refused_by_name(name):
  change = augment.make(settings.Augment(**{name: 0.1}))
  with pytest.raises(ValueError, match=rf"augment\.{name} is about colours, .* 1 channel"):
    change(jax.random.key(0), jnp.zeros((2, 4, 4, 1)), jnp.arange(2))


@pytest.mark.parametrize("name", ["simclr_stain"])
def test_colour_policies_keep_to_the_unit_interval_and_differ_by_slot(name):
  image = np.broadcast_to(_images(1, 16), (4, 16, 16, 3))
  found = _augmented(settings.VARIANTS[settings.Augment][name], image)
  assert found.min() >= 0 and found.max() <= 1
  assert len({one.tobytes() for one in found}) == 4


def test_settings_of_colour_leave_the_other_draws():
  images = _images(8, 16)
  turned = _augmented(settings.Augment(rotation=30, hflip=True), images)
  both = _augmented(settings.Augment(rotation=30, hflip=True, grayscale=1.0), images)
  np.testing.assert_allclose(both, np.repeat((turned @ LUMA)[..., None], 3, -1), atol=1e-5)
