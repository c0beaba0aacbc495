"""A feed that reads while the devices work; its tickets carry pixels."""

from __future__ import annotations

import os
import threading

import grain
import jax
import numpy as np

from medjax import contract
from medjax import mesh as mesh_lib
from medjax.data import catalogue
from medjax.data.feed import fetching, memory, tickets, windows
from medjax.data.feed import order as order_lib


class Streamed:
  """Threads fill the tickets ahead, a batch each; see `feed.Feed` for what each method does."""

  spec = mesh_lib.REPLICATED

  def __init__(
    self,
    part: catalogue.Part,
    plan: tickets.Plan,
    position: int,
    threads: int,
    order: order_lib.Order | None = None,
    memory_gb: float = 0.0,
  ):
    self._part, self._plan, self._order = part, plan, order
    self._threads = threads or os.cpu_count() or 1
    self._columns = fetching.columns(part)
    self._first = fetching.pixels(part, np.zeros(1, int))[0]  # [H, W, C], what filling slots show
    self._pool = memory.Pool()
    self._position = position
    self._ahead: _Ahead | None = None
    self._windows: windows.Windows | None = None
    small = len(part) * self._first.nbytes <= memory_gb * 1e9
    local = order is not None and order.local
    self._kept = fetching.Kept(part) if part.images is None and small and not local else None
    self.rows = plan.rows
    self.resident: dict[str, jax.Array] = {}

  def __len__(self) -> int:
    return self._plan.steps

  @property
  def position(self) -> int:
    """The next step."""
    return self._position

  @position.setter
  def position(self, step: int) -> None:
    if step != self._position:
      self.close()
    self._position = step

  def next(self, k: int) -> tickets.Ticket:
    """Puts the next k steps on the mesh."""
    steps = self._plan.steps_from(self._position, k)
    if self._ahead is not None and self._ahead.k != k:
      self.close()
    if self._ahead is None:
      self._windows = self._in_windows()
      self._ahead = _Ahead(self, steps, self._threads)
    ticket = next(self._ahead)
    self._position = steps.stop
    return self._plan.put(ticket, k)[0]

  def like(self, k: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a ticket of k steps looks like."""
    first = self._plan.batches(range(1))
    image = self._first[None, None]
    return self._plan.like({**first, **self._labels(first), contract.IMAGE: image}, k)

  def take(self, resident: dict[str, jax.Array], ticket: tickets.Ticket) -> contract.Batch:
    """A step of a ticket, which holds everything."""
    del resident
    return dict(ticket)

  def close(self) -> None:
    """Ends the threads."""
    if self._ahead is not None:
      self._ahead.close()
      self._ahead = None
    if self._windows is not None:
      self._windows.close()
      self._windows = None

  def batch(self, step: int, pixels: np.ndarray) -> tickets.Arrays:
    """A step's batch less its images, which are written to `pixels` [b, H, W, C]."""
    batch = self._plan.batch(step)
    filled = batch[contract.MASK] > 0
    if filled.all():
      self._fill(step, batch[contract.INDEX], pixels)
    else:
      pixels[:] = self._first
      if filled.any():
        own = np.empty((filled.sum(), *self._first.shape), self._first.dtype)
        self._fill(step, batch[contract.INDEX][filled], own)
        pixels[filled] = own
    return {**batch, **self._labels(batch)}

  def _fill(self, step: int, rows: np.ndarray, out: np.ndarray) -> None:
    if self._windows is not None:
      self._windows.fill(step, out)
    elif self._kept is not None:
      self._kept.fill(rows, out)
    else:
      fetching.fill(self._part, rows, out)

  def _in_windows(self) -> windows.Windows | None:
    """What reads in blocks, where the order has them and they are cheaper to read together."""
    if self._order is None or not self._order.local or self._part.fetch_many is None:
      return None
    slots = self._plan.own_slots
    return windows.Windows(self._part, self._order, slots[slots < self._order.batch_size])

  def _labels(self, batch: tickets.Arrays) -> tickets.Arrays:
    index = batch[contract.INDEX]
    return {name: column[index] for name, column in self._columns.items()}

  def pixels(self, k: int) -> np.ndarray:
    """Memory for the images of k batches, [k, b, H, W, C]."""
    shape = (k, len(self._plan.own_slots), *self._first.shape)
    return self._pool.empty(shape, self._first.dtype)


class _Ahead:
  """Tickets of k steps each, from a step on, filled by Grain's threads before they are asked for.

  An element is one step: a record an image would cost more Python than small images take. All steps
  of a ticket write to one array, which goes to the devices as it is.
  """

  def __init__(self, feed: Streamed, steps: range, threads: int):
    self.k = len(steps)
    self._feed, self._first = feed, steps.start
    self._number = 0
    self._pixels: dict[int, np.ndarray] = {}  # ticket -> images of its steps
    self._lock = threading.Lock()
    # While the devices run one ticket's steps, those of the next must fit into the buffer.
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 2 * self.k)
    batches = grain.MapDataset.range(len(feed)).map(self._batch)
    self._batches = iter(batches[steps.start :].to_iter_dataset(options))

  def __next__(self) -> tickets.Arrays:
    ticket = tickets.stack(next(self._batches) for _ in range(self.k))
    ticket[contract.IMAGE] = self._pixels.pop(self._number)
    self._number += 1
    return ticket

  def close(self) -> None:
    self._batches.close()

  def _batch(self, step: int) -> tickets.Arrays:
    number, place = divmod(step - self._first, self.k)
    with self._lock:
      if number not in self._pixels:
        self._pixels[number] = self._feed.pixels(self.k)
      pixels = self._pixels[number]
    with jax.profiler.TraceAnnotation("read"):
      return self._feed.batch(step, pixels[place])
