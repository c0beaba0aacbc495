"""Which images show the same picture: perceptual hashes, candidates by bands, proof by pixels.

A picture is looked at as 64x64 grey pixels. Its hash holds the signs of the 64 lowest frequencies
of their cosine transform (after Zauner 2010, "Implementation and benchmarking of perceptual image
hash functions", with the sign in place of the median: the negative of a picture then
has exactly the complement of its hash). Two pictures are near-duplicates when their hashes differ
in at most 8 of 64 bits and their pixels correlate above 0.985; a hash alone also joins
different patients.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import cv2
import numpy as np

from medjax.data.duplicates import coarse, hamming

SIDE = 64  # pixels, height and width of what is compared
CORRELATION = 0.985  # that a pair must exceed
FLAT = 1.0  # grey levels: a picture whose pixels deviate less shows nothing that could be compared
CROWD = 1024  # candidates of one image that are looked at; more are told

_LUMA = cv2.COLOR_RGB2GRAY
_SCALE = 2**14  # cosines as integers: sums stay below 2**53, exact in any order on any machine
_PROVEN = 2**11  # pairs whose pixels are held at once
_CACHED = 64  # pictures, as whole numbers of 32 bits, that fit a core's cache

ThumbsOf = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Near-duplicates, sorted; row i of every field is the same pair.

  Attributes:
    left, right: [m] int64 rows of the hashes; left < right.
    correlation: [m] float32 of the 64x64 pixels; negative where one is the other's negative.
    crowded: how many images have so many candidates that not all were looked at.
  """

  left: np.ndarray
  right: np.ndarray
  correlation: np.ndarray
  crowded: int = 0

  def __len__(self) -> int:
    return len(self.left)


def thumbnails(pixels: np.ndarray) -> np.ndarray:
  """What is compared of an image, or of several of one size.

  Args:
    pixels: uint8 or uint16 [H, W, C] or [n, H, W, C]; C is 1 (grey) or 3 (RGB).

  Returns:
    uint8 [64, 64] or [n, 64, 64]: Rec. 601 grey, the mean over areas along a side longer than 64
    pixels, interpolated along a shorter one.
  """
  if pixels.ndim == 4:
    return np.array([thumbnails(image) for image in pixels], np.uint8).reshape(-1, SIDE, SIDE)
  grey = cv2.cvtColor(pixels, _LUMA) if pixels.shape[2] == 3 else pixels[..., 0]
  height, width = grey.shape
  within = (min(width, SIDE), min(height, SIDE))
  small = cv2.resize(np.ascontiguousarray(grey), within, interpolation=cv2.INTER_AREA)
  small = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
  return small if small.dtype == np.uint8 else ((small + np.uint32(128)) // 257).astype(np.uint8)


def hashes(images: np.ndarray) -> np.ndarray:
  """Perceptual hashes of thumbnails.

  Args:
    images: uint8 [n, 64, 64], of `thumbnails`.

  Returns:
    uint64 [n]; 0 for a flat image, which is near to none.
  """
  steps = range(0, len(images), 1024)
  return np.concatenate([np.zeros(0, np.uint64), *(_hashes(images[i : i + 1024]) for i in steps)])


def pairs(
  hashes: np.ndarray, thumbs_of: ThumbsOf, parts: np.ndarray | None = None, most: int = CROWD
) -> Pairs:
  """Finds the near-duplicates, negatives among them.

  Every pair of hashes within 8 bits is a candidate, found by bands (`hamming`). The one exception
  are crowds, such as a hundred thousand nearly black scans: an image looks at `hamming.BUCKET`
  others of a bucket and at `most` candidates, those first that differ least; whom that cuts short
  is counted.

  Args:
    hashes: uint64 [n].
    thumbs_of: rows -> their thumbnails, uint8 [k, 64, 64]; rows come sorted and unique.
    parts: [n]; only pairs of images in different parts are looked for. None: all pairs.
    most: candidates of one image that are looked at.
  """
  search = hamming.Search(hashes, parts, most)
  points = coarse.Points(len(hashes), thumbs_of)
  found = []
  for negative in (False, True):
    for left, right in search.candidates(negative):
      may = points.may_correlate(left, right, CORRELATION, negative)
      found.append(_proven(left[may], right[may], thumbs_of, negative))
  none = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
  left, right, correlation = map(np.concatenate, zip(none, *found, strict=True))
  order = np.lexsort((right, left))
  return Pairs(left[order], right[order], correlation[order], int(search.crowded.sum()))


def correlations(thumbs: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Pearson's correlation of thumbnails, pair by pair; 0 where one of them is of one grey.

  Args:
    thumbs: uint8 [k, 64, 64].
    one, other: [m] rows of it.

  Returns:
    float32 [m]. The sums are of whole numbers, so that every machine finds the same pairs.
  """
  pixels = thumbs.reshape(len(thumbs), SIDE**2)
  cuts = np.arange(_CACHED, len(one), _CACHED)
  blocks = zip(np.split(one, cuts), np.split(other, cuts), strict=True)
  products = np.concatenate([_products(pixels[a], pixels[b]) for a, b in blocks])
  sums, deviation = pixels.sum(1, dtype=np.int64), np.sqrt(_variances(pixels))
  size = deviation[one] * deviation[other]
  shared = SIDE**2 * products - sums[one] * sums[other]
  return np.where(size > 0, shared / np.maximum(size, 1), 0).astype(np.float32)


def _products(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """Of uint8 rows [m, 4096], pair by pair: int64 [m]; a sum of 4096 products fits 32 bits."""
  return np.einsum("ij,ij->i", one.astype(np.int32), other.astype(np.int32)).astype(np.int64)


def _variances(pixels: np.ndarray) -> np.ndarray:
  """Of uint8 rows [n, 4096], times 4096 squared: float [n], exact."""
  blocks = np.split(pixels, np.arange(_CACHED, len(pixels), _CACHED))
  squares = np.concatenate([_products(block, block) for block in blocks])
  return (SIDE**2 * squares - pixels.sum(1, dtype=np.int64) ** 2).astype(float)


def _lowest() -> tuple[np.ndarray, np.ndarray]:
  """(vertical, horizontal) frequency of each bit; bands take turns, lest one hold what is alike."""
  u, v = np.divmod(np.arange(SIDE**2), SIDE)
  bands = len(hamming.BANDS)
  ranked = np.lexsort((u, u * u + v * v))[1:65]  # without the mean
  turns = np.concatenate([ranked[band::bands] for band in range(bands)])
  return u[turns], v[turns]


_U, _V = _lowest()
_PHASES = np.outer(np.arange(_U.max() + 1), 2 * np.arange(SIDE) + 1) * (np.pi / (2 * SIDE))
_COSINES = np.rint(_SCALE * np.cos(_PHASES))  # [frequencies, 64]


def _hashes(images: np.ndarray) -> np.ndarray:
  spectra = _COSINES @ images.astype(np.float64) @ _COSINES.T
  packed = np.packbits(spectra[:, _U, _V] > 0, axis=1, bitorder="little")
  bits = np.ascontiguousarray(packed).view("<u8")[:, 0]
  shows = _variances(images.reshape(-1, SIDE**2)) >= (FLAT * SIDE**2) ** 2
  return np.where(shows, bits, np.uint64(0))


def _proven(
  left: np.ndarray, right: np.ndarray, thumbs_of: ThumbsOf, negative: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The candidates whose pixels correlate, with the correlation."""
  values = [np.zeros(0, np.float32)]
  for start in range(0, len(left), _PROVEN):
    both = np.stack([left[start : start + _PROVEN], right[start : start + _PROVEN]])
    rows, place = np.unique(both, return_inverse=True)
    one, other = place.reshape(both.shape)
    values.append(correlations(thumbs_of(rows), one, other))
  correlation = np.concatenate(values)
  proven = (-correlation if negative else correlation) > CORRELATION
  return left[proven], right[proven], correlation[proven]
