"""Host-side steps on an image at its own size, all off by default."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from medjax import settings
from medjax.data.readers import fitting

_TOLERANCE = 0.02  # of the range: a margin need not be of one shade to the last bit
_BRIGHT = 0.9  # of the range: what a marker has at least
_NEAR = 0.2  # of height and width: a marker lies this near to an edge
_SMALL = 0.02  # of the area: a marker's bounding box is smaller
_TILES = (8, 8)  # of the adaptive equalisation

_Step = Callable[[np.ndarray], np.ndarray]


def prepare(pixels: np.ndarray, cfg: settings.Reading) -> tuple[np.ndarray, tuple[str, ...]]:
  """Takes the steps that the config asks for.

  Args:
    pixels: [H, W, 1 to 4] uint8 or uint16.
    cfg: `crop_border`, `crop_markers`, `median`, `gaussian` and `clahe` are read, in this order.

  Returns:
    The pixels, and each step in words; without any step, the pixels as they were.
  """
  steps = _steps(cfg)
  if steps:
    pixels = np.ascontiguousarray(fitting.opaque(pixels))
  for step in steps.values():
    changed = step(pixels)
    pixels = changed[..., None] if changed.ndim == 2 else changed  # OpenCV drops an axis of 1
  return pixels, tuple(steps)


def _steps(cfg: settings.Reading) -> dict[str, _Step]:
  """What was asked for: words -> step, in order."""
  every: list[tuple[object, str, _Step]] = [
    (cfg.crop_border, "border cropped", _without_border),
    (cfg.crop_markers, "markers painted over", _without_markers),
    (
      cfg.median,
      f"median filter {cfg.median} x {cfg.median}",
      lambda pixels: cv2.medianBlur(pixels, cfg.median),
    ),
    (
      cfg.gaussian,
      f"Gaussian filter, sigma {cfg.gaussian:g}",
      lambda pixels: cv2.GaussianBlur(pixels, (0, 0), cfg.gaussian),
    ),
    (cfg.clahe, f"CLAHE, clip limit {cfg.clahe:g}", lambda pixels: _equalised(pixels, cfg.clahe)),
  ]
  return {words: step for on, words, step in every if on}


def _without_border(pixels: np.ndarray) -> np.ndarray:
  """Cuts off rows, then columns, that are black or white from end to end; never the whole image."""
  rows = _content(pixels.reshape(len(pixels), -1), pixels.dtype)
  pixels = pixels[rows]
  columns = _content(pixels.swapaxes(0, 1).reshape(pixels.shape[1], -1), pixels.dtype)
  return np.ascontiguousarray(pixels[:, columns])


def _content(lines: np.ndarray, dtype: np.dtype) -> slice:
  """From the first to the last of lines [n, values] that is no margin; all where all are."""
  top = np.iinfo(dtype).max
  margin = (lines.max(1) <= _TOLERANCE * top) | (lines.min(1) >= (1 - _TOLERANCE) * top)
  inner = np.flatnonzero(~margin)
  return slice(inner[0], inner[-1] + 1) if inner.size else slice(None)


def _without_markers(pixels: np.ndarray) -> np.ndarray:
  """Paints small bright marks near an edge in the median shade around them; colour is left alone.

  A mark is a connected set of pixels of nearly the highest value, as burnt-in letters are; what is
  as bright but larger, or further inside, is taken for anatomy.
  """
  if pixels.shape[2] != 1:
    return pixels
  bright = (pixels[..., 0] >= _BRIGHT * np.iinfo(pixels.dtype).max).astype(np.uint8)
  boxes = cv2.connectedComponentsWithStats(cv2.dilate(bright, np.ones((3, 3))))[2][1:]
  painted = pixels.copy()
  for left, top, width, height, _ in boxes[_is_marker(boxes, bright.shape)]:
    box = (slice(top, top + height), slice(left, left + width))
    around = (slice(max(0, top - 3), top + height + 3), slice(max(0, left - 3), left + width + 3))
    dark = pixels[around][bright[around] == 0]
    painted[box] = np.median(dark) if dark.size else 0
  return painted


def _is_marker(boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  """Which of boxes [n, (left, top, width, height, area)] are small and near an edge."""
  high, wide = shape
  left, top, width, height = boxes.T[:4]
  right, bottom = wide - left - width, high - top - height
  near = np.minimum(left + width, right + width) <= _NEAR * wide
  near |= np.minimum(top + height, bottom + height) <= _NEAR * high
  return near & (width * height <= _SMALL * high * wide)


def _equalised(pixels: np.ndarray, limit: float) -> np.ndarray:
  """Zuiderveld 1994, on 8 bits as there, since its clip limit means counts of 256 grey values.

  Colour keeps its hue: luminance alone is equalised.
  """
  pixels = fitting.to_8_bit(pixels)
  filter_ = cv2.createCLAHE(limit, _TILES)
  if pixels.shape[2] == 1:
    return filter_.apply(pixels[..., 0])
  split = cv2.cvtColor(pixels, cv2.COLOR_RGB2YCrCb)
  split[..., 0] = filter_.apply(split[..., 0])
  return cv2.cvtColor(split, cv2.COLOR_YCrCb2RGB)
