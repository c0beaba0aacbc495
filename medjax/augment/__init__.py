"""Random changes of images, made on the device inside the training step.

An example's randomness is a function of the step's key and of the example's slot in the global
batch, so any number of devices sees the same pixels. Steps whose setting is neutral are left out
when the function is made, and every setting has draws of its own: switching one off does not change
what the others do.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medjax import settings

_LUMA = (0.299, 0.587, 0.114)  # shares of red, green and blue in grey (ITU-R BT.601)
# Optical densities of haematoxylin, eosin and DAB in red, green and blue (Ruifrok & Johnston 2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_DARKEST = 1 / 255  # of pixels, that their optical density be finite

# (key of this step and use, images [b, H, W, C] in [0, 1], slots [b] int32) -> images alike
Augmenter = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class Draws(NamedTuple):
  """One example's uniform draws from [0, 1), one for each thing that is random about it."""

  rotation: jax.Array
  shift_y: jax.Array
  shift_x: jax.Array
  zoom_y: jax.Array
  zoom_x: jax.Array
  hflip: jax.Array
  vflip: jax.Array
  crop_area: jax.Array
  crop_ratio: jax.Array
  crop_y: jax.Array
  crop_x: jax.Array
  brightness: jax.Array
  contrast: jax.Array
  gamma: jax.Array
  invert: jax.Array
  blur: jax.Array
  blur_sigma: jax.Array
  noise: jax.Array
  saturation: jax.Array
  hue: jax.Array
  jitter: jax.Array
  grayscale: jax.Array
  cutout_y: jax.Array
  cutout_x: jax.Array


def make(cfg: settings.Augment) -> Augmenter:
  """Builds the augmentation that `cfg` asks for.

  The order is: one affine warp (Keras ImageDataGenerator semantics, then a random resized crop of
  its result, composed), stains, brightness and contrast, saturation and hue, grayscale, gamma,
  inversion, blur, noise, cutout.

  Returns:
    A function (key, images, slots) -> images. Images are [b, H, W, C] floats in [0, 1] and keep
    their dtype; slots are [b] int32. If `cfg` changes nothing, it returns its input itself.

  Raises:
    ValueError: for bounds that are not positive or not in order.

  Example:
    >>> augmenter = augment.make(settings.Augment(rotation=10, shift=0.05, zoom=0.1))
    >>> images = augmenter(key, images, batch[contract.SLOT])
  """
  _check_bounds(cfg)
  steps = [functools.partial(step, cfg) for wanted, step in _STEPS if wanted(cfg)]
  if not steps:
    return lambda key, images, slots: images

  def one(key: jax.Array, image: jax.Array) -> jax.Array:
    draw_key, noise_key = jax.random.split(key)
    draws = Draws(*jax.random.uniform(draw_key, (len(Draws._fields),), image.dtype))
    for step in steps:
      image = step(draws, noise_key, image)
    return image

  def augmenter(key: jax.Array, images: jax.Array, slots: jax.Array) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, slots)
    wide = images.astype(jnp.promote_types(images.dtype, jnp.float32))
    return jax.vmap(one)(keys, wide).astype(images.dtype)

  return augmenter


def _check_bounds(cfg: settings.Augment) -> None:
  for name in ("crop_area", "crop_ratio", "gamma", "blur_sigma"):
    low, high = getattr(cfg, name)
    if not 0 < low <= high:
      raise ValueError(f"augment.{name} is ({low}, {high}): write (low, high), both above 0")
  if cfg.crop_area[1] > 1:
    raise ValueError(f"augment.crop_area is {cfg.crop_area}: a crop keeps a share of at most 1")
  if not 0 <= cfg.cutout <= 1:
    raise ValueError(f"augment.cutout is {cfg.cutout}: it is a share of the image's sides, 0 to 1")


def warp(image: jax.Array, matrix: jax.Array) -> jax.Array:
  """Samples an image at affinely moved positions: bilinear, the nearest pixel beyond the edge.

  Args:
    image: [H, W, C].
    matrix: [2, 3]. The result's pixel p is read at `matrix[:, :2] @ p + matrix[:, 2]`, both as
      (row, column) in pixels from the image's centre.
  """
  centre_y, centre_x = (image.shape[0] - 1) / 2, (image.shape[1] - 1) / 2
  rows = jnp.arange(image.shape[0], dtype=image.dtype)[:, None] - centre_y
  columns = jnp.arange(image.shape[1], dtype=image.dtype) - centre_x
  at_y, at_x = (m[0] * rows + m[1] * columns + m[2] for m in matrix)  # [H, W] each
  sample = functools.partial(
    jax.scipy.ndimage.map_coordinates,
    coordinates=[at_y + centre_y, at_x + centre_x],
    order=1,
    mode="nearest",
  )
  return jax.vmap(sample, in_axes=-1, out_axes=-1)(image)


def _warp(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  del key
  size = jnp.asarray(image.shape[:2], image.dtype)
  return warp(image, _matrix(cfg, draws, size))


def _matrix(cfg: settings.Augment, draws: Draws, size: jax.Array) -> jax.Array:
  """The map from the result's pixels to the image's, as `warp` takes it: turn(scale p + shift)."""
  angle = jnp.deg2rad(_within(draws.rotation, cfg.rotation))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  turn = jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
  shift = size * _within(jnp.stack([draws.shift_y, draws.shift_x]), cfg.shift)
  zoom = 1 + _within(jnp.stack([draws.zoom_y, draws.zoom_x]), cfg.zoom)
  flip = jnp.stack([_sign(draws.vflip, cfg.vflip), _sign(draws.hflip, cfg.hflip)])
  crop_scale, crop_centre = _crop(cfg, draws, size)
  shift += zoom * flip * crop_centre
  # Products with a 2x2 matrix are written out: a matrix unit would round pixels' positions.
  linear = turn * (zoom * flip * crop_scale)
  return jnp.concatenate([linear, (turn * shift).sum(axis=1, keepdims=True)], axis=1)


def _crop(cfg: settings.Augment, draws: Draws, size: jax.Array) -> tuple[jax.Array, jax.Array]:
  """A box inside the image: its sides as shares of the image's, its centre in pixels from it.

  The ratio (width by height) is relative to the image's own. Sides that would be longer than the
  image are cut to it.
  """
  area = _between(draws.crop_area, cfg.crop_area)
  low, high = cfg.crop_ratio
  root = jnp.exp(_between(draws.crop_ratio, (math.log(low), math.log(high))) / 2)
  scale = jnp.minimum(jnp.sqrt(area) * jnp.stack([1 / root, root]), 1)
  free = size * (1 - scale) / 2
  return scale, free * _within(jnp.stack([draws.crop_y, draws.crop_x]), 1)


def _light(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  """Adds the brightness, then stretches the contrast about the image's mean."""
  del key
  mean = image.mean()
  contrast = 1 + _within(draws.contrast, cfg.contrast)
  brightness = _within(draws.brightness, cfg.brightness)
  lit = jnp.clip((image - mean) * contrast + mean + brightness, 0, 1)
  return _jittered(cfg, draws, lit, image)


def _jittered(
  cfg: settings.Augment, draws: Draws, changed: jax.Array, image: jax.Array
) -> jax.Array:
  if cfg.jitter == 1:
    return changed
  return jnp.where(draws.jitter < cfg.jitter, changed, image)


def _stain(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  """Stains a slide more or less in each of its colours (Tellez et al. 2018, section II-C).

  The way from pixels to stains, their change and the way back are one affine map of densities.
  """
  del draws
  draw = jax.random.uniform(jax.random.fold_in(key, 0), (2, len(_STAINS)), image.dtype)
  factor, added = _within(draw, cfg.stain)
  stains = jnp.asarray(_STAINS, image.dtype)
  apart = jnp.asarray(np.linalg.inv(_STAINS), image.dtype)
  density = [-jnp.log10(jnp.maximum(shade, _DARKEST)) for shade in _shades(image, "stain")]
  matrix = (apart[:, :, None] * (1 + factor)[:, None] * stains).sum(1)  # [3, 3], as in `_matrix`
  offset = (added[:, None] * stains).sum(0)
  stained = [
    sum(m * d for m, d in zip(column, density, strict=True)) + shift
    for column, shift in zip(matrix.T, offset, strict=True)
  ]
  return jnp.clip(10 ** -jnp.stack(stained, axis=-1), 0, 1)


def _colour(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  """Moves the pixels from or towards their grey, then along the colour circle."""
  del key
  changed = image
  if cfg.saturation:
    grey = _grey(image, "saturation")
    factor = 1 + _within(draws.saturation, cfg.saturation)
    changed = jnp.clip(grey + (image - grey) * factor, 0, 1)
  if cfg.hue:
    changed = _turned(_shades(changed, "hue"), _within(draws.hue, cfg.hue))
  return _jittered(cfg, draws, changed, image)


def _turned(shades: tuple[jax.Array, ...], turn: jax.Array) -> jax.Array:
  """Red, green and blue [H, W] of another hue, by a share of the circle of HSV (Smith 1978)."""
  red, green, blue = shades
  high = jnp.maximum(jnp.maximum(red, green), blue)
  chroma = high - jnp.minimum(jnp.minimum(red, green), blue)
  sixths = jnp.where(
    high == red,
    green - blue,
    jnp.where(high == green, blue - red, red - green),
  ) / jnp.where(chroma > 0, chroma, 1)
  sixths += jnp.where(high == red, 0, jnp.where(high == green, 2, 4)) + 6 * turn
  away = [(start + sixths) % 6 for start in (5, 3, 1)]
  turned = [high - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1) for k in away]
  return jnp.stack(turned, axis=-1)


def _grayscale(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  del key
  return jnp.where(draws.grayscale < cfg.grayscale, _grey(image, "grayscale"), image)


def _grey(image: jax.Array, name: str) -> jax.Array:
  """[H, W, 1]."""
  red, green, blue = (w * shade for w, shade in zip(_LUMA, _shades(image, name), strict=True))
  return (red + green + blue)[..., None]


def _shades(image: jax.Array, name: str) -> tuple[jax.Array, ...]:
  """Red, green and blue, [H, W] each: a last dimension of 3 would leave vector units idle."""
  if image.shape[-1] != 3:
    raise ValueError(
      f"augment.{name} is about colours, and the images have {image.shape[-1]} channel(s): set "
      f"augment.{name}=0, or data.channels=3"
    )
  return tuple(image[..., channel] for channel in range(3))


def _gamma(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  del key
  return image ** _between(draws.gamma, cfg.gamma)


def _invert(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  del key
  return jnp.where(draws.invert < cfg.invert, 1 - image, image)


def _blur(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  """Separable Gaussian, cut off at three of the largest deviations; the edge is repeated."""
  del key
  radius = math.ceil(3 * cfg.blur_sigma[1])
  taps = jnp.arange(-radius, radius + 1, dtype=image.dtype)
  kernel = jax.nn.softmax(-(taps**2) / (2 * _between(draws.blur_sigma, cfg.blur_sigma) ** 2))
  kernel = jnp.where(draws.blur < cfg.blur, kernel, taps == 0)
  for axis, stride in ((0, 1), (1, image.shape[2])):
    image = _correlate(image, kernel, axis, stride)
  return image


def _correlate(image: jax.Array, kernel: jax.Array, axis: int, stride: int) -> jax.Array:
  """Correlates [H, W, C] with an odd [k] along rows (stride 1) or columns (stride C)."""
  width = [(0, 0)] * image.ndim
  width[axis] = (len(kernel) // 2,) * 2
  # Rows of W * C numbers: with C alone as the last dimension a CPU's vector units stay idle.
  padded = jnp.pad(image, width, mode="edge")
  rows = padded.reshape(len(padded), -1)
  length = image.shape[axis] * stride
  blurred = sum(
    tap * jax.lax.slice_in_dim(rows, i * stride, i * stride + length, axis=axis)
    for i, tap in enumerate(kernel)
  )
  return blurred.reshape(image.shape)


def _noise(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  sigma = jnp.where(draws.noise < cfg.noise, cfg.noise_sigma, 0).astype(image.dtype)
  flat = image.reshape(-1)  # vectorises where a last dimension of C does not
  noisy = flat + sigma * jax.random.normal(key, flat.shape, image.dtype)
  return jnp.clip(noisy, 0, 1).reshape(image.shape)


def _cutout(cfg: settings.Augment, draws: Draws, key: jax.Array, image: jax.Array) -> jax.Array:
  """Paints a square about any pixel in the image's mean (DeVries & Taylor 2017, section 3.1)."""
  del key
  rows, columns = (
    _hidden(draw, length, cfg.cutout)
    for draw, length in zip((draws.cutout_y, draws.cutout_x), image.shape[:2], strict=True)
  )
  return jnp.where((rows[:, None] & columns)[..., None], image.mean((0, 1)), image)


def _hidden(draw: jax.Array, length: int, share: float) -> jax.Array:
  """[length] bool, True in a run of `share` of the length, cut off where it leaves the image."""
  side = round(share * length)
  start = jnp.floor(draw * length) - side // 2
  at = jnp.arange(length)
  return (start <= at) & (at < start + side)


_STEPS: tuple[tuple[Callable[[settings.Augment], bool], Callable], ...] = (
  (
    lambda cfg: (
      bool(cfg.rotation or cfg.shift or cfg.zoom or cfg.hflip or cfg.vflip)
      or cfg.crop_area != (1, 1)
      or cfg.crop_ratio != (1, 1)
    ),
    _warp,
  ),
  (lambda cfg: cfg.stain > 0, _stain),
  (lambda cfg: bool(cfg.brightness or cfg.contrast), _light),
  (lambda cfg: bool(cfg.saturation or cfg.hue), _colour),
  (lambda cfg: cfg.grayscale > 0, _grayscale),
  (lambda cfg: cfg.gamma != (1, 1), _gamma),
  (lambda cfg: cfg.invert > 0, _invert),
  (lambda cfg: cfg.blur > 0, _blur),
  (lambda cfg: cfg.noise > 0, _noise),
  (lambda cfg: cfg.cutout > 0, _cutout),
)


def _between(draw: jax.Array, bounds: tuple[float, float]) -> jax.Array:
  """A draw from [0, 1) moved to between the bounds."""
  low, high = bounds
  return low + (high - low) * draw


def _within(draw: jax.Array, limit: float) -> jax.Array:
  """A draw from [0, 1) moved to within +- limit."""
  return _between(draw, (-limit, limit))


def _sign(draw: jax.Array, flipped: bool) -> jax.Array:
  """-1 for half of the draws if `flipped`, else 1."""
  return jnp.where(flipped & (draw < 0.5), -1, 1).astype(draw.dtype)
