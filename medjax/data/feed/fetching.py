"""Rows of a part as arrays on the host: pixels into memory that is there, labels beside them."""

from __future__ import annotations

import numpy as np

from medjax import contract
from medjax.data import catalogue
from medjax.data.feed import memory

_TOGETHER = 64  # images read at a time into a table


def columns(part: catalogue.Part) -> dict[str, np.ndarray]:
  """What a batch holds of an image besides its pixels: [n, ...] each."""
  multi_label = part.labels.ndim > 1
  found = {contract.LABEL: np.asarray(part.labels, np.float32 if multi_label else np.int32)}
  if part.metadata is not None:
    found[contract.METADATA] = np.asarray(part.metadata, np.float32)
  return found


def pixels(part: catalogue.Part, rows: np.ndarray) -> np.ndarray:
  """[m, H, W, C] of rows [m], which are at least one."""
  if part.images is not None:
    return part.images[rows]
  first = one(part, int(rows[0])) if part.fetch_many is None else many(part, rows[:1])[0]
  out = np.empty((len(rows), *first.shape), first.dtype)
  fill(part, rows, out)
  return out


def in_order(part: catalogue.Part, rows: np.ndarray, pool: memory.Pool) -> np.ndarray:
  """The same, read in the order in which they lie where they are not in memory."""
  first = pixels(part, rows[:1])[0]
  out = pool.empty((len(rows), *first.shape), first.dtype)
  if part.images is not None:
    fill(part, rows, out)
    return out
  lying = np.argsort(rows, kind="stable")
  for start in range(0, len(rows), _TOGETHER):  # some at a time: never a second copy of all
    some = lying[start : start + _TOGETHER]
    out[some] = pixels(part, rows[some])
  return out


def fill(part: catalogue.Part, rows: np.ndarray, out: np.ndarray) -> None:
  """Writes the pixels of rows [m] to `out` [m, H, W, C].

  Raises:
    ValueError: an image cannot be read; its id is in the text.
  """
  if part.images is not None:
    # Rows are never out of range; any other mode would take a copy first.
    np.take(part.images, rows, axis=0, out=out, mode="clip")
  elif part.fetch_many is not None:
    out[:] = many(part, rows)
  else:
    for place, row in enumerate(rows):
      out[place] = one(part, int(row))


class Kept:
  """The images of a part that is not in memory, read once each and kept; any number of threads."""

  def __init__(self, part: catalogue.Part):
    """Starts with none; memory is taken as images come."""
    self._part = part
    first = pixels(part, np.zeros(1, int))[0]
    self._images = np.empty((len(part), *first.shape), first.dtype)
    self._known = np.zeros(len(part), bool)

  def fill(self, rows: np.ndarray, out: np.ndarray) -> None:
    """Writes the pixels of rows [m] to `out` [m, H, W, C]; see `fill` for what it raises."""
    new = np.unique(rows[~self._known[rows]])
    if len(new):
      self._images[new] = pixels(self._part, new)
      self._known[new] = True  # only now may another thread take them
    np.take(self._images, rows, axis=0, out=out, mode="clip")


def one(part: catalogue.Part, row: int) -> np.ndarray:
  """[H, W, C] of a row, decoded."""
  try:
    return part.fetch(row)
  except Exception as error:  # whatever a decoder raises, the user must learn which file it was
    raise ValueError(f"cannot read {part.ids[row]}: {error}") from error


def many(part: catalogue.Part, rows: np.ndarray) -> np.ndarray:
  """[m, H, W, C] of rows [m], read together."""
  assert part.fetch_many is not None
  try:
    return part.fetch_many(rows)
  except Exception as error:
    names = f"{part.ids[rows[0]]} ... {part.ids[rows[-1]]}"
    raise ValueError(f"cannot read one of {len(rows)} images, {names}: {error}") from error
