"""From an order of rows to batches on the mesh: the same batches bit for bit, whatever holds them.

`order` says which rows a step has, `tickets` into which slots of which device they go, and a feed
brings them there: `resident` and `split` feeds hold all pixels on the devices and send rows, a
`chunked` one holds two windows of them, a `streamed` one reads in threads and sends pixels. A feed
goes on from a global step and has no other state.

The copy to the devices is explicit, K steps at a time, and `take` gives the images of a step inside
the mapped function. With several processes, each reads and copies what its own devices hold.
Evaluation sees an image once, so its feed is always streamed.
"""

from __future__ import annotations

import sys
from typing import Protocol

import jax
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from medjax import contract, settings
from medjax.data import catalogue
from medjax.data.feed import chunked, resident, streamed, tickets
from medjax.data.feed import order as order_lib

Ticket = tickets.Ticket
_SHUFFLED = settings.Feeding()


class Feed(Protocol):
  """Batches in a fixed order, K steps at a time.

  Attributes:
    resident: arrays on the devices that `take` needs, cut by `spec`; empty when streamed. Those of
      a ticket are there after `next`: a chunked feed changes them.
    spec: how `resident` is cut.
    position: the next step; may be set at any time, and costs a feed what it read ahead.
  """

  resident: contract.Tree
  spec: PartitionSpec
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

  def take(self, resident: contract.Tree, ticket: Ticket) -> contract.Batch:
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
  cfg: settings.Feeding = _SHUFFLED,
  pairs: bool = False,
) -> Feed:
  """An endless feed.

  Args:
    part: the images.
    batch_size: B, of the global batch; where the devices do not divide it, masked slots follow.
    seed: of the order, at least 0.
    mesh: to put batches on.
    kind: what holds the pixels. `resident` needs `part.images`; `split` and `chunked` need virtual
      shards for every device, `chunked` also an order in blocks.
    position: the step to go on from.
    threads: that read, when streamed; 0 means one a core.
    accumulate: micro-batches of a batch: every device has an equal run of slots of each, one
      micro-batch after the other.
    cfg: the order. pairs: slots 2i and 2i + 1 hold two images of one group.

  Raises:
    ValueError: settings that do not go together, or not with the part or the devices.
  """
  groups = part.groups if pairs else None
  order = order_lib.make(
    len(part), batch_size, seed, cfg, accumulate, part.labels, part.sets, groups
  )
  plan = tickets.Plan(order.rows, tickets.layout(batch_size, accumulate, mesh), sys.maxsize, mesh)
  if kind == "resident":
    return resident.Resident(part, plan, position)
  if kind == "split":
    return resident.Split(part, order, plan, position)
  if kind == "chunked":
    return chunked.Chunked(part, order, plan, position)
  return streamed.Streamed(part, plan, position, threads, order, cfg.memory_gb)


def sequential(part: catalogue.Part, batch_size: int, mesh: Mesh, threads: int = 0) -> Feed:
  """A feed of every row once, in the part's order; masked slots fill up the last batch."""
  steps = -(-len(part) // batch_size)
  every = np.full((steps, batch_size), -1)
  every.flat[: len(part)] = np.arange(len(part))

  def rows(steps: range) -> np.ndarray:
    return every[steps.start : steps.stop]

  plan = tickets.Plan(rows, tickets.layout(batch_size, 1, mesh), steps, mesh)
  return streamed.Streamed(part, plan, 0, threads)
