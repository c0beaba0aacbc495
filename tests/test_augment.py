"""Augmentation against SciPy's interpolation; draws read back from images of coordinates."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest
from scipy import ndimage

from medjax import augment, settings
from medjax import mesh as mesh_lib

SIZE = 33
PRESETS = settings.VARIANTS[settings.Augment]
KERAS = settings.Augment(rotation=20, shift=0.1, zoom=0.2, hflip=True, vflip=True)


def _images(count=6, size=SIZE, channels=1, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.random((count, size, size, channels), np.float32))


def _augmented(cfg, images, slots=None, seed=0):
  slots = jnp.arange(len(images), dtype=jnp.int32) if slots is None else slots
  return jax.jit(augment.make(cfg))(jax.random.key(seed), images, slots)


def _coordinates(cfg, count=400, size=SIZE):
  """Where each result's pixels were read, [count, 2, size, size], from the centre in pixels.

  Images whose values are their own coordinates come out as the coordinates that were sampled.
  """
  ramp = jnp.arange(size, dtype=jnp.float32) / (size - 1)
  image = jnp.stack(jnp.meshgrid(ramp, ramp, indexing="ij"), axis=-1)
  sampled = _augmented(cfg, jnp.broadcast_to(image, (count, *image.shape)))
  return (np.moveaxis(np.asarray(sampled), -1, 1) - 0.5) * (size - 1)


def _matrices(cfg, count=400, size=SIZE):
  """The affine maps, [count, 2, 3], fitted to the pixels that were read inside the image."""
  at = np.arange(size) - (size - 1) / 2
  grid = np.stack([*np.meshgrid(at, at, indexing="ij"), np.ones((size, size))], axis=-1)
  fits = []
  for read in _coordinates(cfg, count, size):
    inside = (np.abs(read) < (size - 1) / 2 - 0.01).all(axis=0)
    fits.append(np.linalg.lstsq(grid[inside], read[:, inside].T, rcond=None)[0].T)
  return np.stack(fits)


def _by_scipy(image, matrix):
  size = image.shape[0]
  at = np.arange(size) - (size - 1) / 2
  grid = np.stack(np.meshgrid(at, at, indexing="ij"))
  read = np.einsum("ij,jhw->ihw", matrix[:, :2], grid) + matrix[:, 2, None, None] + (size - 1) / 2
  channels = [
    ndimage.map_coordinates(image[..., c], read, order=1, mode="nearest")
    for c in range(image.shape[-1])
  ]
  return np.stack(channels, axis=-1)


def test_nothing_to_do_returns_the_very_input():
  images = _images()
  assert augment.make(PRESETS["none"])(jax.random.key(0), images, jnp.arange(6)) is images


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
  ("matrix", "expected"),
  [
    ([[1, 0, 0], [0, 1, 0]], lambda x: x),
    ([[1, 0, 0], [0, -1, 0]], lambda x: x[:, ::-1]),
    ([[-1, 0, 0], [0, 1, 0]], lambda x: x[::-1]),
    ([[0, -1, 0], [1, 0, 0]], lambda x: np.rot90(x, -1)),
    ([[1, 0, 0], [0, 1, 2]], lambda x: np.concatenate([x[:, 2:], x[:, -1:], x[:, -1:]], 1)),
  ],
  ids=["identity", "hflip", "vflip", "quarter turn", "shift"],
)
def test_whole_pixel_warps_are_exact(matrix, expected, size):
  image = _images(1, size, 3)[0]
  warped = augment.warp(image, jnp.asarray(matrix, jnp.float32))
  np.testing.assert_array_equal(warped, expected(np.asarray(image)))


def test_keras_transform_composed_by_hand_equals_scipy():
  """Keras: rotation . shift . zoom about the centre, rows first, then the flips."""
  image = np.asarray(_images(1, SIZE, 3)[0], np.float64)
  angle, (ty, tx), (zy, zx) = np.deg2rad(35), (2.3, -1.7), (0.8, 1.15)
  rotation = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
  shift = [[1, 0, ty], [0, 1, tx], [0, 0, 1]]
  matrix = (rotation @ np.array(shift) @ np.diag([zy, zx, 1]))[:2]
  offset = matrix[:, 2] + 16 - matrix[:, :2] @ [16, 16]
  expected = [
    ndimage.affine_transform(image[..., c], matrix[:, :2], offset, order=1, mode="nearest")
    for c in range(3)
  ]
  with jax.enable_x64(True):
    warped = augment.warp(jnp.asarray(image), jnp.asarray(matrix))
  np.testing.assert_allclose(np.moveaxis(warped, -1, 0), expected, atol=1e-12)


@pytest.mark.parametrize("cfg", [KERAS, PRESETS["ham_aug"], settings.Augment(crop_area=(0.2, 1))])
def test_whole_augmenter_is_one_bilinear_warp(cfg):
  images = _images(12, SIZE, 2)
  matrices = _matrices(cfg, 12)
  for image, matrix, result in zip(images, matrices, _augmented(cfg, images), strict=True):
    np.testing.assert_allclose(result, _by_scipy(np.asarray(image), matrix), atol=2e-4)


def test_keras_draws_stay_in_their_ranges_and_fill_them():
  matrices = _matrices(KERAS)
  linear, offset = matrices[:, :, :2], matrices[:, :, 2]
  flips = np.sign(np.linalg.det(linear))
  zooms = np.linalg.norm(linear, axis=1)  # of columns: [count, 2]
  np.testing.assert_allclose(
    np.einsum("nij,nij->n", linear[:, :, :1], linear[:, :, 1:]), 0, atol=1e-3
  )
  assert 0.8 <= zooms.min() < 0.82 and 1.18 < zooms.max() <= 1.2001
  assert abs(np.corrcoef(zooms.T)[0, 1]) < 0.15
  vertical, horizontal = np.sign(linear[:, 0, 0]), np.sign(linear[:, 1, 1])
  np.testing.assert_array_equal(vertical * horizontal, flips)
  assert 0.4 < (vertical < 0).mean() < 0.6 and 0.4 < (horizontal < 0).mean() < 0.6
  angles = np.rad2deg(np.arctan(linear[:, 1, 0] / linear[:, 0, 0]))
  assert np.abs(angles).max() <= 20.01 and angles.min() < -18 and angles.max() > 18
  turned_back = offset * np.cos(np.deg2rad(angles))[:, None]
  turned_back += offset[:, ::-1] * np.sin(np.deg2rad(angles))[:, None] * [1, -1]
  assert 3 < np.abs(turned_back).max() <= 3.301


def test_crops_lie_inside_the_image_with_the_asked_area_and_ratio():
  cfg = settings.Augment(crop_area=(0.3, 0.7), crop_ratio=(3 / 4, 4 / 3))
  matrices = _matrices(cfg, size=65)
  sides, centres = np.abs(matrices[:, [0, 1], [0, 1]]), matrices[:, :, 2] / 65
  np.testing.assert_allclose(matrices[:, [0, 1], [1, 0]], 0, atol=1e-4)
  assert (np.abs(centres) + sides / 2 <= 0.5 + 1e-4).all()
  areas, ratios = sides.prod(axis=1), sides[:, 1] / sides[:, 0]
  assert 0.3 <= areas.min() + 1e-4 < 0.32 and 0.68 < areas.max() <= 0.7 + 1e-4
  assert 0.75 <= ratios.min() + 1e-4 < 0.77 and 1.3 < ratios.max() <= 4 / 3 + 1e-4
  assert abs(np.log(ratios).mean()) < 0.03


@pytest.mark.parametrize("name", ["cxr_safe", "simclr_gray", "simclr_xray", "pretext_gray"])
def test_chest_presets_never_mirror(name):
  cfg = settings.Augment(
    **{
      key: getattr(PRESETS[name], key)
      for key in ("rotation", "shift", "zoom", "hflip", "vflip", "crop_area", "crop_ratio")
    }
  )
  diagonal = _matrices(cfg)[:, [0, 1], [0, 1]]
  assert (diagonal > 0).all()


def test_brightness_adds_one_number_an_image():
  images = 0.4 + 0.2 * _images(200)
  added = np.asarray(_augmented(settings.Augment(brightness=0.3), images) - images)
  np.testing.assert_allclose(added.std(axis=(1, 2, 3)), 0, atol=1e-6)
  assert -0.3 <= added.min() < -0.28 and 0.28 < added.max() <= 0.3 + 1e-6


def test_contrast_stretches_about_the_mean():
  images = 0.4 + 0.2 * _images(200)
  result = np.asarray(_augmented(settings.Augment(contrast=0.5), images))
  before = np.asarray(images)
  np.testing.assert_allclose(result.mean((1, 2, 3)), before.mean((1, 2, 3)), atol=1e-6)
  factor = result.std((1, 2, 3)) / before.std((1, 2, 3))
  assert 0.5 <= factor.min() + 1e-4 < 0.52 and 1.48 < factor.max() <= 1.5 + 1e-4


def test_light_stays_in_the_unit_interval():
  result = _augmented(settings.Augment(brightness=0.9, contrast=0.9), _images(50))
  assert result.min() == 0 and result.max() == 1


def test_gamma_is_one_exponent_an_image():
  images = 0.1 + 0.8 * _images(200)
  result = _augmented(settings.Augment(gamma=(0.7, 1.4)), images)
  exponents = np.log(np.asarray(result)) / np.log(np.asarray(images))
  assert np.ptp(exponents, axis=(1, 2, 3)).max() < 1e-3
  assert 0.7 <= exponents.min() + 1e-4 < 0.72 and 1.38 < exponents.max() <= 1.4 + 1e-4


def test_inversion_is_the_exact_negative_as_often_as_asked():
  images = _images(1000, 4)
  result = np.asarray(_augmented(settings.Augment(invert=0.1), images))
  negative = (result == 1 - np.asarray(images)).all(axis=(1, 2, 3))
  kept = (result == np.asarray(images)).all(axis=(1, 2, 3))
  assert (negative | kept).all()
  assert 0.07 < negative.mean() < 0.13


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_equals_scipy_gaussian(channels):
  images = _images(2, 21, channels)
  result = _augmented(settings.Augment(blur=1.0, blur_sigma=(1.5, 1.5)), images)
  expected = ndimage.gaussian_filter(np.asarray(images), 1.5, mode="nearest", radius=5, axes=(1, 2))
  np.testing.assert_allclose(result, expected, atol=1e-6)


def test_blur_leaves_the_other_half_as_it_was():
  images = _images(400, 8)
  result = np.asarray(_augmented(settings.Augment(blur=0.5), images))
  kept = (result == np.asarray(images)).all(axis=(1, 2, 3))
  assert 0.42 < kept.mean() < 0.58


def test_noise_has_its_deviation_and_its_share():
  images = jnp.full((400, 16, 16, 1), 0.5)
  added = np.asarray(_augmented(settings.Augment(noise=0.3, noise_sigma=0.05), images)) - 0.5
  deviation = added.std(axis=(1, 2, 3))
  noisy = deviation > 0
  assert 0.23 < noisy.mean() < 0.37
  assert abs(deviation[noisy].mean() - 0.05) < 1e-3


def test_randomness_goes_with_the_slot():
  images = jnp.broadcast_to(_images(1), (5, SIZE, SIZE, 1))
  order = np.array([3, 0, 4, 1, 2])
  straight = np.asarray(_augmented(PRESETS["simclr_gray"], images))
  permuted = _augmented(PRESETS["simclr_gray"], images, jnp.asarray(order, jnp.int32))
  np.testing.assert_array_equal(permuted, straight[order])
  distinct = {image.tobytes() for image in straight}
  assert len(distinct) == 5


def test_devices_change_nothing(mesh):
  images, slots = _images(24, 16), jnp.arange(24, dtype=jnp.int32)
  cfg = PRESETS["simclr_gray"]
  specs = (PartitionSpec(), mesh_lib.cut(), mesh_lib.cut())
  mapped = mesh_lib.mapped(augment.make(cfg), mesh, specs, mesh_lib.cut())
  result = mapped(jax.random.key(0), images, slots)
  np.testing.assert_allclose(result, _augmented(cfg, images), atol=1e-6)


def test_one_setting_leaves_the_draws_of_the_others():
  images = _images(8)
  both = _augmented(settings.Augment(rotation=30, invert=0.5), images)
  turned = _augmented(settings.Augment(rotation=30), images)
  same = np.isclose(both, turned, atol=1e-6).all(axis=(1, 2, 3))
  negative = np.isclose(both, 1 - turned, atol=1e-6).all(axis=(1, 2, 3))
  assert (same | negative).all() and same.any() and negative.any()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_is_kept(dtype):
  with jax.enable_x64(True):
    images = _images(2, 8).astype(dtype)
    assert _augmented(PRESETS["simclr_gray"], images).dtype == dtype


def test_neutral_steps_leave_no_operations():
  trace = jax.make_jaxpr(augment.make(settings.Augment(brightness=0.1)))
  text = str(trace(jax.random.key(0), _images(), jnp.arange(6)))
  assert "gather" not in text and "erf_inv" not in text and " pow " not in text


@pytest.mark.parametrize(
  "cfg",
  [
    settings.Augment(gamma=(0, 1)),
    settings.Augment(blur_sigma=(2, 1)),
    settings.Augment(crop_area=(0.5, 1.5)),
  ],
)
def test_impossible_bounds_are_named(cfg):
  with pytest.raises(ValueError, match=r"augment\.(gamma|blur_sigma|crop_area) is"):
    augment.make(cfg)


def test_cutout_paints_a_square_about_any_pixel_in_the_mean():
  """Of 10 pixels about a middle that is uniform over 33; the edge cuts off what lies outside."""
  images = _images(400)
  found = np.asarray(_augmented(settings.Augment(cutout=0.3), images))
  painted = (found != images).all(-1)
  np.testing.assert_allclose(
    found, np.where(painted[..., None], images.mean((1, 2), keepdims=True), images), atol=1e-6
  )
  rows, columns = painted.any(2), painted.any(1)
  np.testing.assert_array_equal(painted, rows[:, :, None] & columns[:, None])
  for side in (rows, columns):
    first, count = side.argmax(1), side.sum(1)
    assert (np.abs(np.diff(side.astype(int), axis=1)).sum(1) <= 2).all() and count.max() == 10
    whole = (first > 0) & (first + count < SIZE)
    assert (count[whole] == 10).all() and whole.mean() == pytest.approx(22 / SIZE, abs=0.08)


def test_a_cutout_larger_than_the_image_is_refused():
  with pytest.raises(ValueError, match=r"augment\.cutout is 1\.5"):
    augment.make(settings.Augment(cutout=1.5))
