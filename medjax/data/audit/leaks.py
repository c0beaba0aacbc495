"""Pictures that stand in two parts of a split, or under two labels, and groups that are cut."""

from __future__ import annotations

import dataclasses

import numpy as np

from medjax.data import duplicates

KINDS = ("bytes", "pixels", "near", "group", "label")  # the first three: only the first that holds
_BYTES, _PIXELS, _NEAR, _GROUP, _LABEL = range(len(KINDS))


@dataclasses.dataclass(frozen=True)
class Images:
  """What is held against one another; row i of every field is the same image.

  Attributes:
    names: [n] str, what users know an image by.
    parts: [n] str, none of them empty.
    labels, groups: [n] str; "" where not known.
    files, pixels: [n] str or bytes, digests of file and pixels; empty where not known.
    hashes: uint64 [n] of `duplicates.hashes`; 0 where flat or not known.
  """

  names: np.ndarray
  parts: np.ndarray
  labels: np.ndarray
  groups: np.ndarray
  files: np.ndarray
  pixels: np.ndarray
  hashes: np.ndarray

  def __len__(self) -> int:
    return len(self.names)


@dataclasses.dataclass(frozen=True)
class Leaks:
  """Pairs of images, sorted; row i of every field is the same pair.

  Attributes:
    left, right: [m] int64 rows of the images; left < right.
    kinds: [m] int, places in `KINDS`. A picture in two parts is `bytes` where the files are equal,
      `pixels` where only what they show is, and else `near`. `group` is a group in two parts and
      `label` one picture under two labels, in one part or in two.
    crowded: images with more near candidates than were looked at; see `duplicates.pairs`.
  """

  left: np.ndarray
  right: np.ndarray
  kinds: np.ndarray
  crowded: int = 0

  def __len__(self) -> int:
    return len(self.left)


def find(images: Images, thumbs_of: duplicates.ThumbsOf) -> Leaks:
  """Finds what stands in two parts or under two labels.

  Of many equal images each is told with the first one of every other part, not with all, so that
  there are not many more pairs than images.

  Args:
    images: what to hold against one another.
    thumbs_of: rows -> their thumbnails, uint8 [k, 64, 64].
  """
  parts, labels = _numbers(images.parts), _numbers(images.labels)
  files, pixels = _numbers(images.files), _numbers(images.pixels)
  near, crowded = _near(images.hashes, pixels, _both(parts, labels), thumbs_of)
  across = parts[near[0]] != parts[near[1]]
  pictures = _strongest(_equal(files, parts), _equal(pixels, parts), near[:, across])
  twice = np.concatenate([_equal(files, labels), _equal(pixels, labels), near], axis=1)
  twice = twice[:, _is_conflict(parts, labels, twice)]
  groups = _equal(_numbers(images.groups), parts)
  found = [pictures, _of_kind(groups, _GROUP), _of_kind(twice, _LABEL)]
  left, right, kinds = np.unique(np.concatenate(found, axis=1), axis=1)
  return Leaks(left, right, kinds, crowded)


def crossing(images: Images, leaks: Leaks) -> np.ndarray:
  """Sorted rows of the images whose picture or group stands in another part as well."""
  across = images.parts[leaks.left] != images.parts[leaks.right]
  return np.unique(np.concatenate([leaks.left[across], leaks.right[across]]))


def _numbers(names: np.ndarray) -> np.ndarray:
  """A number for each name; -1 for the empty one."""
  numbers = np.unique(names, return_inverse=True)[1]
  return np.where(names == np.zeros((), names.dtype), -1, numbers)


def _both(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """A number for each pair of numbers, in the order of the first; both are -1 or more."""
  return one * (other.max(initial=-1) + 2) + other + 1


def _of_kind(pairs: np.ndarray, kind: int) -> np.ndarray:
  """[2, m] -> [3, m], left < right."""
  return np.concatenate([np.sort(pairs, axis=0), np.full((1, pairs.shape[1]), kind)])


def _strongest(*pairs: np.ndarray) -> np.ndarray:
  """Of pairs that several kinds hold for, the first of them: [3, m]."""
  every = np.concatenate([_of_kind(own, kind) for kind, own in enumerate(pairs)], axis=1)
  _, first = np.unique(every[:2], axis=1, return_index=True)
  return every[:, first]


def _equal(keys: np.ndarray, apart: np.ndarray) -> np.ndarray:
  """Each row with the first one of the same key in every other number of `apart`: [2, m].

  What has no key, or no number, is left out.
  """
  rows = np.flatnonzero((keys >= 0) & (apart >= 0))
  keys, apart = keys[rows], apart[rows]
  _, first, own = np.unique(_both(keys, apart), return_index=True, return_inverse=True)
  held = keys[first]  # sorted: a key's places stand together
  start, stop = np.searchsorted(held, keys), np.searchsorted(held, keys, side="right")
  one, place = _spread(start, stop - start)
  other = place != own[one]
  return np.stack([rows[one[other]], rows[first[place[other]]]])


def _spread(start: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(i, start[i] + k) for every i and every k below counts[i]."""
  owners = np.repeat(np.arange(len(counts)), counts)
  return owners, np.arange(len(owners)) + np.repeat(start - np.cumsum(counts) + counts, counts)


def _near(
  hashes: np.ndarray, pixels: np.ndarray, apart: np.ndarray, thumbs_of: duplicates.ThumbsOf
) -> tuple[np.ndarray, int]:
  """Near-duplicates that differ in `apart`, [2, m], and how many images are crowded.

  Of images with equal pixels the first one of each number of `apart` stands for the others.
  """
  alone = pixels.max(initial=-1) + 1 + np.arange(len(pixels))
  shown = np.where(pixels < 0, alone, pixels)
  _, first, own = np.unique(_both(shown, apart), return_index=True, return_inverse=True)
  pairs = duplicates.pairs(
    hashes[first], lambda rows: _in_order(thumbs_of, first[rows]), apart[first]
  )
  members, counts = np.argsort(own, kind="stable"), np.bincount(own, minlength=len(first))
  start = np.cumsum(counts) - counts
  found = [np.zeros((2, 0), np.int64)]
  for one, other in ((pairs.left, pairs.right), (pairs.right, pairs.left)):
    pair, place = _spread(start[one], counts[one])
    found.append(np.stack([members[place], first[other[pair]]]))
  return np.unique(np.sort(np.concatenate(found, axis=1), axis=0), axis=1), pairs.crowded


def _in_order(thumbs_of: duplicates.ThumbsOf, rows: np.ndarray) -> np.ndarray:
  """Whatever stands behind rows reads them best in their own order."""
  ascending, places = np.unique(rows, return_inverse=True)
  return thumbs_of(ascending)[places]


def _is_conflict(parts: np.ndarray, labels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
  """Whether the labels of a pair contradict each other: [m] bool.

  Names of folders mean the same only in parts that both have both.
  """
  left, right = pairs
  used = np.zeros((parts.max(initial=-1) + 1, labels.max(initial=-1) + 2), bool)
  used[parts, labels] = True  # without a label: the last column
  shared = used[parts[left], labels[right]] & used[parts[right], labels[left]]
  known = (labels[left] >= 0) & (labels[right] >= 0)
  return known & shared & (labels[left] != labels[right])
