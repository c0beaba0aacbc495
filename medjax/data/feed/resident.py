"""Feeds whose pixels lie on the devices for the whole run; tickets only say which rows."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec
import numpy as np

from medjax import contract
from medjax import mesh as mesh_lib
from medjax.data import catalogue
from medjax.data.feed import fetching, memory, tickets
from medjax.data.feed import order as order_lib

PLACE = "place"  # [b] int32, of an image in the table of its device; of tickets, not of batches
_AHEAD = 8  # tickets drawn together: much of a draw is Python that runs once for all of them


class Resident:
  """Every device has all pixels; see `feed.Feed` for what each method does."""

  spec: PartitionSpec = mesh_lib.REPLICATED

  def __init__(self, part: catalogue.Part, plan: tickets.Plan, position: int):
    self.plan, self.position, self.rows = plan, position, plan.rows
    self.pool = memory.Pool()
    self._ahead: dict[range, tickets.Ticket] = {}
    self.resident: contract.Tree = self.load(part)

  def __len__(self) -> int:
    return self.plan.steps

  def load(self, part: catalogue.Part) -> contract.Tree:
    """Puts the part on the devices."""
    if part.images is None:
      raise ValueError(f"the {part.name} part was not decoded: a resident feed needs its images")
    images = fetching.in_order(part, np.arange(len(part)), self.pool)
    table = {contract.IMAGE: images, **fetching.columns(part)}
    return mesh_lib.put_own(self.plan.mesh, table)

  def batches(self, steps: range) -> tickets.Arrays:
    """What a ticket says of some steps."""
    return self.plan.batches(steps)

  def next(self, k: int) -> tickets.Ticket:
    """The rows of the next k steps, on the mesh."""
    steps = self.plan.steps_from(self.position, k)
    self.position = steps.stop
    if steps not in self._ahead:
      self._ahead = self._drawn(steps)
    return self._ahead.pop(steps)

  def _drawn(self, steps: range) -> dict[range, tickets.Ticket]:
    """The tickets of some steps and of those that follow, by their steps."""
    k, first = len(steps), steps.start
    every = range(first, first + _AHEAD * k)
    each = [range(start, start + k) for start in every[::k]]
    return dict(zip(each, self.plan.put(self.batches(every), k), strict=True))

  def like(self, k: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a ticket of k steps looks like."""
    return self.plan.like(self.batches(range(1)), k)

  def take(self, resident: contract.Tree, ticket: tickets.Ticket) -> contract.Batch:
    """The images of a step by their rows."""
    return {**ticket, **taken(resident, ticket[contract.INDEX])}

  def close(self) -> None:
    """Lets go of the pixels."""
    self.resident, self._ahead = {}, {}


class Split(Resident):
  """Every device has the pixels of its own virtual shards, and draws from them alone."""

  spec = mesh_lib.cut()

  def __init__(
    self, part: catalogue.Part, order: order_lib.Order, plan: tickets.Plan, position: int
  ):
    check_shards(order, plan)
    self.order = order
    self.longest = max(map(len, order.members))
    super().__init__(part, plan, position)

  def load(self, part: catalogue.Part) -> contract.Tree:
    """Puts each device's rows on it."""
    return self.table(part, self.order.members)

  def batches(self, steps: range) -> tickets.Arrays:
    """Beside rows, slots and masks: the places in the devices' tables."""
    places = by_device(self.order.places(steps), self.longest, self.order, self.plan)
    return {**self.plan.batches(steps), PLACE: places}

  def take(self, resident: contract.Tree, ticket: tickets.Ticket) -> contract.Batch:
    """The images of a step by their places."""
    return {**without(ticket, PLACE), **taken(resident, ticket[PLACE])}

  def table(self, part: catalogue.Part, rows: tuple[np.ndarray, ...]) -> dict[str, jax.Array]:
    """Pixels and labels of rows of each shard as [V * longest, ...], on the shards' devices."""
    of_device = padded(rows, self.longest).reshape(self.plan.mesh.size, -1)

    def put(read: Callable[[np.ndarray], np.ndarray], one: np.ndarray) -> jax.Array:
      shape = (of_device.size, *one.shape)
      return mesh_lib.put_each(self.plan.mesh, shape, lambda device: read(of_device[device]))

    columns = fetching.columns(part)
    labels = {name: put(column.__getitem__, column[0]) for name, column in columns.items()}
    image = fetching.pixels(part, np.zeros(1, int))[0]
    pixels = put(lambda own: fetching.in_order(part, own, self.pool), image)
    return {contract.IMAGE: pixels, **labels}


def taken(table: dict[str, jax.Array], places: jax.Array) -> dict[str, jax.Array]:
  """Rows of a table on the device."""
  return {name: a.at[places].get(mode="promise_in_bounds") for name, a in table.items()}


def without(ticket: tickets.Ticket, *names: str) -> tickets.Ticket:
  """A ticket less what no batch holds."""
  return {name: value for name, value in ticket.items() if name not in names}


def check_shards(order: order_lib.Order, plan: tickets.Plan) -> None:
  """Raises ValueError where the virtual shards cannot be dealt to the devices."""
  shards, devices = len(order.members), plan.mesh.size
  if shards % devices:
    raise ValueError(
      f"data.feeding.shards={shards} cannot be dealt evenly to {devices} devices: set it to a"
      f" multiple of {devices} that divides the batch, or data.feed='streamed'"
    )


def padded(rows: tuple[np.ndarray, ...], longest: int) -> np.ndarray:
  """[V, longest] rows of each shard; the first of them again where there are fewer."""
  return np.stack([np.resize(shard, longest) for shard in rows])


def by_device(
  places: np.ndarray, longest: int, order: order_lib.Order, plan: tickets.Plan
) -> np.ndarray:
  """[k, b] int32 places in the devices' tables, of [k, V, B/V] places in those of the shards."""
  count = places.shape[1]
  shards = np.arange(count) % (count // plan.mesh.size)  # counted on each device
  by_slot = order.by_slot(shards[:, None] * longest + places)
  return plan.laid(by_slot).astype(np.int32)
