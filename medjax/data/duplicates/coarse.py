"""A cheap look at candidates: which of them cannot correlate enough for a pair.

Take the mean from a picture's pixels and divide by their length. Two such vectors of correlation r
are sqrt(2 - 2 r) apart, and their means over blocks, scaled to be an orthogonal projection, are no
farther apart than that. So no pair is lost by leaving out those whose block means are (the lower
bound of Faloutsos et al. 1994, "Fast subsequence matching in time-series databases").
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_BLOCKS = 8  # along each side
_ROWS = 2**11  # pictures taken in at once
_PAIRS = 2**14  # candidates looked at once: both sides stay in the processor's cache
_ROUNDING = 1e-3  # two points, each off by less than 2**-11 of its length, which is 1 at most


class Points:
  """Block means of many pictures.

  Args:
    count: pictures.
    thumbs_of: rows -> their thumbnails, uint8 [k, side, side].
  """

  def __init__(self, count: int, thumbs_of: Callable[[np.ndarray], np.ndarray]):
    self._thumbs_of = thumbs_of
    self._points = np.empty((count, _BLOCKS**2), np.float16)  # 3 million take 0.4 GB
    self._known = np.zeros(count, bool)

  def may_correlate(
    self, left: np.ndarray, right: np.ndarray, threshold: float, negative: bool
  ) -> np.ndarray:
    """Which candidates may correlate above a threshold; or below minus it where `negative`.

    Args:
      left, right: [m] rows.

    Returns:
      bool [m], True for all that do, and for some that do not.
    """
    self._take_in(left, right)
    limit = (np.sqrt(2 - 2 * threshold) + _ROUNDING) ** 2
    near = np.empty(len(left), bool)
    for start in range(0, len(left), _PAIRS):
      some = slice(start, start + _PAIRS)
      one, other = (self._points[rows[some]].astype(np.float32) for rows in (left, right))
      apart = one + other if negative else one - other
      near[some] = np.einsum("ij,ij->i", apart, apart) <= limit
    return near

  def _take_in(self, left: np.ndarray, right: np.ndarray) -> None:
    """Looks at those pictures that were not looked at before."""
    wanted = np.zeros(len(self._known), bool)
    wanted[left] = wanted[right] = True
    missing = np.flatnonzero(wanted & ~self._known)
    for start in range(0, len(missing), _ROWS):
      rows = missing[start : start + _ROWS]
      self._points[rows] = _projected(self._thumbs_of(rows))
    self._known[missing] = True


def _projected(thumbs: np.ndarray) -> np.ndarray:
  """[k, side, side] -> float32 [k, 64]; zeros for a picture of one grey."""
  count, side, _ = thumbs.shape
  block = side // _BLOCKS
  means = thumbs.reshape(count, _BLOCKS, block, _BLOCKS, block).mean((2, 4), dtype=np.float32)
  means = means.reshape(count, -1)
  means -= means.mean(1, keepdims=True)
  pixels = thumbs.reshape(count, -1).astype(np.float32)
  length = pixels.std(1, keepdims=True) * side
  return means * (block / np.maximum(length, 1e-6))
