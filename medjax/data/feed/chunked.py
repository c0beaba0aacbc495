"""A feed of which two windows lie on the devices; the next one is read while one is trained on."""

from __future__ import annotations

from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from medjax import contract
from medjax.data import catalogue
from medjax.data.feed import order as order_lib
from medjax.data.feed import resident as resident_lib
from medjax.data.feed import tickets

ODD = "odd"  # [b] bool, whether the image lies in the window of odd number

Table = dict[str, jax.Array]


class Chunked(resident_lib.Split):
  """Every device has two windows of its own virtual shards, one of even and one of odd number.

  What a ticket draws lies in one window or, where it straddles them, in two. As soon as a window is
  past, the next but one is read in the background and takes its place.
  """

  def __init__(
    self, part: catalogue.Part, order: order_lib.Order, plan: tickets.Plan, position: int
  ):
    if not order.local:
      raise ValueError(
        "a chunked feed needs an order in windows: set data.feeding.block to the images that are"
        " read together, such as 256"
      )
    self._part = part
    self._windows = order.streams[0]  # those of all shards start and end together
    self._reader: futures.ThreadPoolExecutor | None = None
    self._tables: dict[int, futures.Future[Table]] = {}  # window -> its images, or their coming
    super().__init__(part, order, plan, position)

  def load(self, part: catalogue.Part) -> contract.Tree:
    """Puts the window of the first step on the devices."""
    self.longest = int(np.diff(self._windows.starts).max())
    first = self._kept(self._touched(range(self.position, self.position + 1)))[0]
    return {"even": first, "odd": first}

  def next(self, k: int) -> tickets.Ticket:
    """Waits until the windows of the next k steps are on the devices; puts their places there."""
    touched = self._touched(self.plan.steps_from(self.position, k))
    self.resident = {}  # or a third window would lie there until the next one is
    tables = self._kept(touched)
    even = touched[0] % 2 == 0
    self.resident = {"even": tables[0 if even else -1], "odd": tables[-1 if even else 0]}
    return super().next(k)

  def like(self, k: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a ticket of k steps looks like."""
    self._touched(
      range(self.position, self.position + k)
    )  # now rather than when the run is under way
    return super().like(k)

  def batches(self, steps: range) -> tickets.Arrays:
    """Beside rows, slots and masks: which window, and the place in it."""
    positions = np.arange(steps.start * self.order.each, steps.stop * self.order.each)
    runs = self._windows.run_at(positions)
    offsets = positions - self._windows.start(runs)
    places = resident_lib.by_device(self._every(offsets), self.longest, self.order, self.plan)
    odd = self.plan.laid(self.order.by_slot(self._every(runs % 2))).astype(bool)
    return {**self.plan.batches(steps), resident_lib.PLACE: places, ODD: odd}

  def _every(self, values: np.ndarray) -> np.ndarray:
    """[k * B/V] as [k, V, B/V]: all shards are at the same place of the same window."""
    each = values.reshape(-1, 1, self.order.each)
    return np.repeat(each, len(self.order.members), axis=1)

  def take(self, resident: contract.Tree, ticket: tickets.Ticket) -> contract.Batch:
    """The images of a step, each from its window."""
    places, odd = ticket[resident_lib.PLACE], ticket[ODD]

    def chosen(one: jax.Array, other: jax.Array) -> jax.Array:
      return jnp.where(odd.reshape(-1, *[1] * (one.ndim - 1)), one, other)

    both = (resident_lib.taken(resident[name], places) for name in ("odd", "even"))
    return {
      **resident_lib.without(ticket, resident_lib.PLACE, ODD),
      **jax.tree.map(chosen, *both),
    }

  def close(self) -> None:
    """Ends the thread and lets go of the pixels."""
    if self._reader is not None:
      self._reader.shutdown(cancel_futures=True)
    self._reader, self._tables = None, {}
    super().close()

  def _touched(self, steps: range) -> range:
    """The windows of some steps: one, or two that follow each other."""
    start, stop = steps.start * self.order.each, steps.stop * self.order.each
    first, last = self._windows.run_at(np.array([start, stop - 1])).tolist()
    touched = range(first, last + 1)
    if len(touched) > 2:
      raise ValueError(
        f"{len(steps)} steps draw {(stop - start) * len(self.order.members)} images, more than a"
        f" window's {self.longest * len(self.order.members)}: set data.feeding.window higher, or"
        " train.steps_per_dispatch lower"
      )
    return touched

  def _kept(self, touched: range) -> list[Table]:
    """The windows of a ticket, waited for; lets go of those before, and sends for the next one."""
    wanted = range(touched.start, touched.start + 2)
    self._tables = {window: table for window, table in self._tables.items() if window in wanted}
    if self._reader is None:
      self._reader = futures.ThreadPoolExecutor(1)
    for window in wanted:
      if window not in self._tables:
        self._tables[window] = self._reader.submit(self._read, window)
    return [self._tables[window].result() for window in touched]

  def _read(self, window: int) -> Table:
    shards = zip(self.order.members, self.order.streams, strict=True)
    rows = tuple(members[stream.run(window)] for members, stream in shards)
    return self.table(self._part, rows)
