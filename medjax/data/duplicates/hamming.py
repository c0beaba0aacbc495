"""Which hashes of 64 bits differ in few bits, found without looking at all pairs.

Cut into three bands, two hashes within 8 bits differ in at most 2 bits of some band, so that each
is looked up under its own 22 or 21 bits and those with one or two of them flipped (Norouzi et al.
2012, "Fast search in Hamming space with multi-index hashing").
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import itertools

import numpy as np

BITS = 8  # in which two candidates may differ
BANDS = ((0, 22), (22, 21), (43, 21))  # (lowest bit, bits) of the parts of a hash
BUCKET = 4096  # images of one bucket that one image is held against; more are told

_REACH = BITS // len(BANDS)  # of 8 differing bits, one of three bands holds at most 2
_BLOCK = 2**20  # candidates held at once
_ALL = np.uint64(2**64 - 1)


class Search:
  """Candidates among hashes; counts what each image has met, so that crowds stay cheap.

  Args:
    hashes: uint64 [n]; 0 is a flat image and near to none.
    parts: [n]; only pairs of images in different parts are looked for. None: all pairs.
    most: candidates that one image may have.

  Attributes:
    crowded: [n without flat images] bool, images that `most` or `BUCKET` cut short.
  """

  def __init__(self, hashes: np.ndarray, parts: np.ndarray | None, most: int):
    self._rows = np.flatnonzero(hashes)  # without flat images
    self._hashes = hashes[self._rows]
    self._parts = None if parts is None else np.unique(parts, return_inverse=True)[1][self._rows]
    self._most = most
    self._met = np.zeros(len(self._rows), np.int64)
    self.crowded = np.zeros(len(self._rows), bool)

  def candidates(self, negative: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows (left, right), left < right, whose hashes are within 8 bits; each pair once.

    Few large blocks, each sorted, so that neighbours are read together.

    Args:
      negative: the hash of the one is held against the complement of the other's.
    """
    held: list[tuple[np.ndarray, np.ndarray]] = []
    for block in self._candidates(negative):
      held.append(block)
      if sum(len(left) for left, _ in held) >= _BLOCK:
        yield _sorted(held)
        held = []
    if held:
      yield _sorted(held)

  def _candidates(self, negative: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The bands take turns, so that an image meets those first that differ least."""
    bands = [_Band.of(self._hashes, low, width) for low, width in BANDS]
    for count in range(_REACH + 1):
      for own, band in enumerate(bands):
        for mask in _masks(BANDS[own][1], count, negative):
          for left, right in self._of_buckets(band.order, *band.buckets(mask)):
            yield from self._near(left, right, (count, own), negative)

  def _of_buckets(
    self, order: np.ndarray, places: np.ndarray, first: np.ndarray, counts: np.ndarray
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every image at `places` of the order with `counts` others from `first` on, in blocks."""
    self.crowded[order[places[counts > BUCKET]]] = True
    counts = np.minimum(counts, BUCKET)
    counts[self._met[order[places]] >= self._most] = 0
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(_BLOCK, ends[-1] if len(ends) else 0, _BLOCK))
    for own in np.split(np.arange(len(places)), cuts):
      size = counts[own]
      offsets = np.repeat(first[own] - np.cumsum(size) + size, size)
      yield order[np.repeat(places[own], size)], order[np.arange(len(offsets)) + offsets]

  def _near(
    self, left: np.ndarray, right: np.ndarray, place: tuple[int, int], negative: bool
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Those of the pairs that are candidates; `place` says in how many bits of which band."""
    differ = self._hashes[left] ^ self._hashes[right] ^ (_ALL if negative else np.uint64(0))
    near = np.flatnonzero(np.bitwise_count(differ) <= BITS)
    left, right, differ = left[near], right[near], differ[near]
    new = (
      np.ones(len(near), bool) if self._parts is None else self._parts[left] != self._parts[right]
    )
    count, own = place
    for other, (low, width) in enumerate(BANDS):  # each pair once: where it is first to be found
      if other != own:
        new &= np.bitwise_count(_cut(differ, low, width)) >= count + (other < own)
    if new.any():
      left, right = self._not_crowded(left[new], right[new])
      pair = np.sort(self._rows[np.stack([left, right])], axis=0)
      yield pair[0], pair[1]

  def _not_crowded(self, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without the candidates that an image has too many of; those of one image stand together."""
    starts = np.flatnonzero(np.r_[True, left[1:] != left[:-1]])
    size = np.diff(np.r_[starts, len(left)])
    allowed = np.arange(len(left)) - np.repeat(starts, size) < self._most - self._met[left]
    self.crowded[left[~allowed]] = True
    self._met[left[starts]] += size
    return left[allowed], right[allowed]


def _cut(values: np.ndarray, low: int, width: int) -> np.ndarray:
  """`width` bits of uint64 values from bit `low` on."""
  return (values >> np.uint64(low)) & np.uint64(2**width - 1)


def _masks(width: int, count: int, negative: bool) -> Iterator[int]:
  """What the keys of two candidates may differ by: `count` bits, or all but those."""
  turned = 2**width - 1 if negative else 0
  for bits in itertools.combinations(range(width), count):
    yield sum(1 << bit for bit in bits) ^ turned


@dataclasses.dataclass(frozen=True)
class _Band:
  """One part of all hashes, sorted.

  Attributes:
    order: [n] the images by key, equal hashes side by side.
    keys: [n] int64, in that order.
    starts: [keys that are possible + 1] where the bucket of each key begins.
  """

  order: np.ndarray
  keys: np.ndarray
  starts: np.ndarray

  @classmethod
  def of(cls, hashes: np.ndarray, low: int, width: int) -> _Band:
    keys = _cut(hashes, low, width).astype(np.int64)
    order = np.lexsort((hashes, keys))
    starts = np.concatenate([[0], np.cumsum(np.bincount(keys, minlength=2**width))])
    return cls(order, keys[order], starts)

  def buckets(self, mask: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which others differ from an image by `mask`, each pair once.

    Returns:
      (places, first, counts): the others of the image at `places[i]` of the order are `counts[i]`
      from `first[i]` on.
    """
    if mask == 0:
      places = np.arange(len(self.keys))
      first = places + 1
    else:  # the highest bit that differs is 0 in one of the two: in the one that looks
      places = np.flatnonzero(self.keys & (1 << (mask.bit_length() - 1)) == 0)
      first = self.starts[self.keys[places] ^ mask]
    counts = self.starts[(self.keys[places] ^ mask) + 1] - first
    some = counts > 0
    return places[some], first[some], counts[some]


def _sorted(blocks: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
  left, right = (np.concatenate(rows) for rows in zip(*blocks, strict=True))
  order = np.lexsort((right, left))
  return left[order], right[order]
