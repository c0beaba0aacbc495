"""What becomes of the images of a set on the way to its parts, and what was looked for there."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses

import numpy as np

SEEN = "equal pictures in different groups"
_NEAR = "not looked for by a run, but by python -m medjax.data audit"


@dataclasses.dataclass(frozen=True)
class Census:
  """Numbers of images and of groups.

  Attributes:
    listed: images and groups, by name, of the set.
    gone: why images are in no part -> images and groups that this took away, in order.
    joined: groups that count as part of another, as they share a picture.
    checks: what was looked for between the parts -> what was found, in words.
  """

  listed: tuple[int, int]
  gone: Mapping[str, tuple[int, int]]
  joined: int
  checks: Mapping[str, str]


def of(
  named: np.ndarray, joined: np.ndarray, gone: Mapping[str, np.ndarray], checks: Mapping[str, str]
) -> Census:
  """Counts.

  Args:
    named: [n] the group of each image of the set, by its name; joined: the same where groups that
      share a picture are one.
    gone: why images are in no part -> [n] bool, which; an image counts for the first reason.
    checks: see `Census`; an empty finding is none.
  """
  groups = len(np.unique(named))
  merged = groups - len(np.unique(joined))
  left, counted = np.ones(len(named), bool), {}
  for reason, which in gone.items():
    before = _size(joined, left)
    left &= ~which
    after = _size(joined, left)
    counted[reason] = (before[0] - after[0], before[1] - after[1])
  told = {
    SEEN: f"{merged:,} groups are joined to another" if merged else "none",
    **{what: found or "none" for what, found in checks.items()},
    "near-duplicates in two parts": _NEAR,
  }
  return Census((len(named), groups), counted, merged, told)


def _size(groups: np.ndarray, which: np.ndarray) -> tuple[int, int]:
  return int(which.sum()), len(np.unique(groups[which]))
