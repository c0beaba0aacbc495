"""Integer pixels to floats, and the preprocessing that pretrained networks expect.

Two steps that never mix: `to_float` undoes the file's integer type, `normalise` is the network's
own first layer. Between the two, images are floats in [0, 1]: what augmentation works on.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Constants = jax.Array | np.ndarray | tuple[float, ...] | None

# Channel constants of the ImageNet networks; torch's are RGB on [0, 1], caffe's BGR on [0, 255].
_TORCH_MEAN = (0.485, 0.456, 0.406)
_TORCH_STD = (0.229, 0.224, 0.225)
_CAFFE_MEAN = (103.939, 116.779, 123.68)


def to_float(images: jax.Array, dtype: jax.typing.DTypeLike | None = None) -> jax.Array:
  """Scales unsigned integers to [0, 1] by the largest value of their type.

  Args:
    images: uint8 or uint16, any shape.
    dtype: of the result; by default JAX's own (float64 under `JAX_ENABLE_X64`, else float32).

  Raises:
    ValueError: for any other type: floats have no known range.
  """
  if images.dtype not in (np.uint8, np.uint16):
    raise ValueError(f"images are {images.dtype}: to_float takes uint8 or uint16 pixels")
  return images.astype(dtype or jnp.result_type(float)) / np.iinfo(images.dtype).max


def _unit(images: jax.Array, mean: Constants, std: Constants) -> jax.Array:
  del mean, std
  return images


def _tf(images: jax.Array, mean: Constants, std: Constants) -> jax.Array:
  del mean, std
  return images * 2 - 1


def _torch(images: jax.Array, mean: Constants, std: Constants) -> jax.Array:
  del mean, std
  return _standardised(images, _TORCH_MEAN, _TORCH_STD)


def _caffe(images: jax.Array, mean: Constants, std: Constants) -> jax.Array:
  del mean, std
  return images[..., ::-1] * 255 - jnp.asarray(_CAFFE_MEAN, images.dtype)


def _stats(images: jax.Array, mean: Constants, std: Constants) -> jax.Array:
  if mean is None or std is None:
    raise ValueError("preprocess 'stats' needs the mean and deviation of the training pixels")
  return _standardised(images, mean, std)


def _standardised(images: jax.Array, mean: Constants, std: Constants) -> jax.Array:
  return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


_MODES: dict[str, Callable] = {
  "unit": _unit,
  "tf": _tf,
  "torch": _torch,
  "caffe": _caffe,
  "stats": _stats,
}
_BY_COLOUR = ("torch", "caffe")


def normalise(
  mode: str, images: jax.Array, mean: Constants = None, std: Constants = None
) -> jax.Array:
  """Applies one of the preprocessing modes; the result has the dtype of `images`.

  | mode | result, of x in [0, 1] |
  |---|---|
  | `unit` | x |
  | `tf` | 2x - 1 |
  | `torch` | (x - m) / s with the ImageNet constants of torchvision, by colour |
  | `caffe` | 255x in BGR order, less the ImageNet means, by colour |
  | `stats` | (x - mean) / std |

  Args:
    mode: one of the above.
    images: [..., C] floats in [0, 1], RGB or grey. Of grey ones, the modes with constants by colour
      make three channels, those of the same image in RGB.
    mean, std: [C], on [0, 1]; only `stats` reads them.

  Returns:
    [..., C]; or [..., 3] of grey images with `torch` and `caffe`.

  Raises:
    KeyError: for an unknown mode.
    ValueError: for `torch` or `caffe` with neither one nor three channels, and for `stats` without
      its constants.
  """
  if mode not in _MODES:
    raise KeyError(f"unknown preprocess {mode!r}: choose one of {', '.join(_MODES)}")
  if mode in _BY_COLOUR and images.shape[-1] not in (1, 3):
    raise ValueError(
      f"preprocess {mode!r} is defined on RGB and grey, the images have {images.shape[-1]} "
      "channels: set data.channels=3, or model.preprocess to unit, tf or stats"
    )
  return _MODES[mode](images, mean, std)
