"""From an order of rows to batches on the mesh: resident or streamed, the same batches bit for bit.

Grain makes the order: an epoch is one element of an endless Grain data set, a permutation of the
part's rows drawn from (seed, epoch). Batches are cut from the epochs laid end to end, so that one
may straddle two epochs and nothing is dropped, and the rows of any step are found without those
before it: a feed goes on from a global step and has no other state. (Grain's own `shuffle` takes
microseconds a row, most where rows are few; an epoch as one element takes them once.)

A resident feed holds all pixels on the devices and sends rows; a streamed feed decodes in Grain's
threads and sends pixels. Either way the copy to the devices is explicit, K steps at a time, and
`take` gives the pixels of a step inside the mapped function. Evaluation sees an image once, so its
feed is always streamed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import dataclasses
import functools
import os
import sys
from typing import Protocol

import grain
import jax
from jax.sharding import Mesh
import numpy as np

from medjax import contract
from medjax import mesh as mesh_lib
from medjax.data import catalogue

Ticket = dict[str, jax.Array]  # K steps: each array is [K, B', ...], cut over the devices along B'
Rows = Callable[[int], np.ndarray]  # step -> the part's rows in that step's batch, [B] or fewer


class Feed(Protocol):
  """Batches in a fixed order, K steps at a time.

  Attributes:
    resident: arrays on every device that `take` needs; empty when streamed.
    position: the next step; may be set at any time, and costs a streamed feed what it read ahead.
  """

  resident: dict[str, jax.Array]
  position: int

  def __len__(self) -> int:
    """How many steps there are; `sys.maxsize` where there is no end."""

  def next(self, k: int) -> Ticket:
    """Puts the next `k` steps on the mesh.

    Raises:
      ValueError: past the end, or an image cannot be read; its id is in the text.
    """

  def like(self, k: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a ticket of `k` steps looks like, to compile for it."""

  def take(self, resident: dict[str, jax.Array], ticket: Ticket) -> contract.Batch:
    """One step's batch from its slice of a ticket; pure, for use inside a mapped function."""

  def rows(self, step: int) -> np.ndarray:
    """The part's rows in the batch of a step, [B] or, in a last batch, fewer."""

  def close(self) -> None:
    """Ends the threads and lets go of the devices' memory."""


def training(
  part: catalogue.Part,
  batch_size: int,
  seed: int,
  mesh: Mesh,
  kind: catalogue.Kind,
  position: int = 0,
  threads: int = 0,
  accumulate: int = 1,
) -> Feed:
  """An endless feed of shuffled epochs.

  Args:
    part: the images.
    batch_size: B, of the global batch; where the devices do not divide it, masked slots follow.
    seed: of the order, at least 0.
    mesh: to put batches on.
    kind: `resident` needs `part.images`.
    position: the step to go on from.
    threads: that decode, when streamed; 0 means one a core.
    accumulate: micro-batches of a batch: every device has an equal run of slots of each, one
      micro-batch after the other.
  """
  rows = _shuffled(len(part), batch_size, seed)
  plan = _Plan(rows, _layout(batch_size, accumulate, mesh), sys.maxsize)
  if kind == "resident":
    return _Resident(part, plan, mesh, position)
  return _Streamed(part, plan, mesh, position, threads)


def sequential(part: catalogue.Part, batch_size: int, mesh: Mesh, threads: int = 0) -> Feed:
  """A feed of every row once, in the part's order; masked slots fill up the last batch."""
  every = np.arange(len(part))

  def rows(step: int) -> np.ndarray:
    return every[step * batch_size : (step + 1) * batch_size]

  plan = _Plan(rows, _layout(batch_size, 1, mesh), -(-len(part) // batch_size))
  return _Streamed(part, plan, mesh, 0, threads)


def _layout(batch_size: int, parts: int, mesh: Mesh) -> np.ndarray:
  """[B'] the slots in the order in which the devices cut them; those that only fill up come last.

  A micro-batch is a run of the batch's slots, whatever the number of devices.
  """
  if batch_size % parts:
    raise ValueError(f"optimizer.accumulate={parts} does not divide train.batch_size={batch_size}")
  size = batch_size // parts
  wide = mesh_lib.padded(size, mesh)
  slots = np.arange(batch_size).reshape(parts, size)
  filling = batch_size + np.arange(parts * (wide - size)).reshape(parts, -1)
  laid = np.concatenate([slots, filling], axis=1).reshape(parts, mesh.size, -1)
  return laid.swapaxes(0, 1).ravel().astype(np.int32)


def _shuffled(size: int, batch_size: int, seed: int) -> Rows:
  def permute(_, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(size)

  epochs = grain.MapDataset.range(1).seed(seed).repeat(None).random_map(permute)
  epoch = functools.lru_cache(maxsize=4)(epochs.__getitem__)  # a batch needs one or two of them

  def rows(step: int) -> np.ndarray:
    start, stop = step * batch_size, (step + 1) * batch_size
    touched = range(start // size, -(-stop // size))
    return np.concatenate([epoch(e)[max(0, start - e * size) : stop - e * size] for e in touched])

  return rows


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Which row goes into which slot: `rows`, `slots` in the devices' order [B'], `steps`."""

  rows: Rows
  slots: np.ndarray
  steps: int

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """Index, slot and mask of a step, each [B']; slots without a row have row 0 and mask 0."""
    rows = self.rows(step)
    filled = self.slots < len(rows)
    index = np.where(filled, rows[np.where(filled, self.slots, 0)], 0)
    return {
      contract.INDEX: index.astype(np.int32),
      contract.SLOT: self.slots,
      contract.MASK: filled.astype(jax.dtypes.canonicalize_dtype(float)),
    }

  def steps_from(self, position: int, k: int) -> range:
    """The next k steps."""
    if position + k > self.steps:
      raise ValueError(
        f"{k} steps asked for at step {position} of {self.steps}: set position = 0 to start again"
      )
    return range(position, position + k)


def _like(batch: dict[str, np.ndarray], k: int, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """What `k` batches look like on the mesh."""
  wide = {name: np.broadcast_to(value, (k, *value.shape)) for name, value in batch.items()}
  return mesh_lib.like(mesh, wide, mesh_lib.cut(1))


def _stack(batches: Iterable[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """K batches of [B', ...] as one of [K, B', ...]."""
  batches = list(batches)
  return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


class _Resident:
  """A feed whose pixels and labels lie on every device; tickets only say which rows."""

  def __init__(self, part: catalogue.Part, plan: _Plan, mesh: Mesh, position: int):
    if part.images is None:
      raise ValueError(f"the {part.name} part was not decoded: a resident feed needs its images")
    self._plan, self._mesh = plan, mesh
    self.position = position
    self.rows = plan.rows
    table = {contract.IMAGE: part.images, contract.LABEL: part.labels.astype(np.int32)}
    self.resident = mesh_lib.put(mesh, table)

  def __len__(self) -> int:
    return self._plan.steps

  def next(self, k: int) -> Ticket:
    steps = self._plan.steps_from(self.position, k)
    self.position = steps.stop
    return mesh_lib.put(self._mesh, _stack(map(self._plan.batch, steps)), mesh_lib.cut(1))

  def like(self, k: int) -> dict[str, jax.ShapeDtypeStruct]:
    return _like(self._plan.batch(0), k, self._mesh)

  def take(self, resident: dict[str, jax.Array], ticket: Ticket) -> contract.Batch:
    index = ticket[contract.INDEX]
    rows = {name: a.at[index].get(mode="promise_in_bounds") for name, a in resident.items()}
    return {**ticket, **rows}

  def close(self) -> None:
    self.resident = {}


class _Streamed:
  """A feed that decodes while the devices work; tickets carry the pixels and labels."""

  def __init__(self, part: catalogue.Part, plan: _Plan, mesh: Mesh, position: int, threads: int):
    self._part, self._plan, self._mesh = part, plan, mesh
    self._threads = threads or os.cpu_count() or 1
    self._first = self._fetch(0)  # [H, W, C]; what filling slots show
    self._position = position
    self._ahead: grain.DatasetIterator | None = None
    self.rows = plan.rows
    self.resident: dict[str, jax.Array] = {}

  def __len__(self) -> int:
    return self._plan.steps

  @property
  def position(self) -> int:
    return self._position

  @position.setter
  def position(self, step: int) -> None:
    if step != self._position:
      self.close()
    self._position = step

  def next(self, k: int) -> Ticket:
    steps = self._plan.steps_from(self._position, k)
    if self._ahead is None:
      self._ahead = self._read_ahead(steps)
    ticket = _stack(next(self._ahead) for _ in steps)
    self._position = steps.stop
    return mesh_lib.put(self._mesh, ticket, mesh_lib.cut(1))

  def like(self, k: int) -> dict[str, jax.ShapeDtypeStruct]:
    slots = len(self._plan.slots)
    pixels = {
      contract.IMAGE: np.broadcast_to(self._first, (slots, *self._first.shape)),
      contract.LABEL: np.zeros(slots, np.int32),
    }
    return _like(self._plan.batch(0) | pixels, k, self._mesh)

  def take(self, resident: dict[str, jax.Array], ticket: Ticket) -> contract.Batch:
    del resident
    return dict(ticket)

  def close(self) -> None:
    if self._ahead is not None:
      self._ahead.close()
      self._ahead = None

  def _read_ahead(self, steps: range) -> grain.DatasetIterator:
    """Batches from `steps.start` on, decoded by threads: a whole one by each."""
    # One element is one step: a record an image would cost more Python than small images take.
    # While the devices run one ticket's steps, those of the next must fit into the buffer.
    options = grain.ReadOptions(
      num_threads=self._threads, prefetch_buffer_size=self._threads + 2 * len(steps)
    )
    batches = grain.MapDataset.range(self._plan.steps).map(self._batch)
    return iter(batches[steps.start :].to_iter_dataset(options))

  def _batch(self, step: int) -> dict[str, np.ndarray]:
    batch = self._plan.batch(step)
    index = batch[contract.INDEX]
    labels = self._part.labels[index].astype(np.int32)
    return {
      **batch,
      contract.IMAGE: self._pixels(index, batch[contract.MASK]),
      contract.LABEL: labels,
    }

  def _pixels(self, index: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[B', H, W, C]; filling slots show row 0."""
    if self._part.images is not None:
      return self._part.images[index]
    images = np.broadcast_to(self._first, (len(index), *self._first.shape)).copy()
    for slot in np.flatnonzero(mask):
      images[slot] = self._fetch(index[slot])
    return images

  def _fetch(self, row: int) -> np.ndarray:
    try:
      return self._part.fetch(int(row))
    except Exception as error:  # whatever a decoder raises, the user must learn which file it was
      raise ValueError(f"cannot read {self._part.ids[row]}: {error}") from error
