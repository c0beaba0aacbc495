"""Windows of an order on the host, for a streamed feed of images that are read in blocks."""

from __future__ import annotations

from concurrent import futures
import threading

import numpy as np

from medjax.data import catalogue
from medjax.data.feed import fetching, memory
from medjax.data.feed import order as order_lib


class Windows:
  """Reads each window once, in the order in which its images lie, one window ahead.

  At most three of them are held: batches are asked for by several threads, some steps apart.
  """

  def __init__(self, part: catalogue.Part, order: order_lib.Order, slots: np.ndarray):
    """Starts with none.

    Args:
      part: what to read. order: in windows. slots: those whose images are wanted.
    """
    self._part, self._order, self._slots = part, order, slots
    self._windows = order.streams[0]  # those of all shards start and end together
    numbers = np.arange(len(order.members))[:, None]
    shards = order.by_slot(np.broadcast_to(numbers, (len(numbers), order.each)))[slots]
    self._shards, self._shard_of_slot = np.unique(shards, return_inverse=True)
    self._pool, self._lock = memory.Pool(), threading.Lock()
    self._reader = futures.ThreadPoolExecutor(1)
    self._held: dict[int, futures.Future[np.ndarray]] = {}

  def fill(self, step: int, out: np.ndarray) -> None:
    """Writes the images of a step's slots to `out` [b, H, W, C]; any number of threads at once."""
    positions = np.arange(step * self._order.each, (step + 1) * self._order.each)
    every = (len(self._order.members), 1)
    runs = self._windows.run_at(positions)
    offsets = positions - self._windows.start(runs)
    run_of, offset = (self._order.by_slot(np.tile(a, every))[self._slots] for a in (runs, offsets))
    for run in np.unique(runs).tolist():
      images, here = self._window(run), run_of == run
      places = self._shard_of_slot[here] * (len(images) // len(self._shards)) + offset[here]
      out[here] = images[places]

  def close(self) -> None:
    """Ends the thread."""
    self._reader.shutdown(cancel_futures=True)

  def _window(self, run: int) -> np.ndarray:
    with self._lock:
      self._held = {number: held for number, held in self._held.items() if number > run - 2}
      for wanted in (run, run + 1):
        if wanted not in self._held:
          self._held[wanted] = self._reader.submit(self._read, wanted)
      held = self._held[run]
    return held.result()

  def _read(self, run: int) -> np.ndarray:
    members, streams = self._order.members, self._order.streams
    rows = [members[shard][streams[shard].run(run)] for shard in self._shards]
    return fetching.in_order(self._part, np.concatenate(rows), self._pool)
