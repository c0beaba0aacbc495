"""Which row goes into which slot of which device: what every feed's tickets are made of."""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools

import jax
from jax.sharding import Mesh
import numpy as np

from medjax import contract
from medjax import mesh as mesh_lib
from medjax.data.feed import order as order_lib

Ticket = dict[str, jax.Array]  # K steps: each array is [K, B', ...], cut over the devices along B'
Arrays = dict[str, np.ndarray]
_STAY = (contract.SLOT, contract.MASK)  # are on the mesh already: alike in all but a last batch


@dataclasses.dataclass(frozen=True)
class Plan:
  """Batches as they lie on a mesh.

  Attributes:
    drawn: steps -> rows by slot. slots: [B'] in the devices' order. steps: how many there are.
    mesh: to put batches on.
  """

  drawn: order_lib.Rows
  slots: np.ndarray
  steps: int
  mesh: Mesh
  _there: dict[str, tuple[np.ndarray, jax.Array]] = dataclasses.field(default_factory=dict)

  @functools.cached_property
  def own_slots(self) -> np.ndarray:
    """[b] those of `slots` that lie on this process's devices."""
    return self.slots[mesh_lib.own(self.mesh, len(self.slots))]

  def rows(self, step: int) -> np.ndarray:
    """The part's rows in the batch of a step, [B] or, in a last batch, fewer."""
    rows = self.drawn(range(step, step + 1))[0]
    return rows[rows >= 0]

  def batches(self, steps: range) -> Arrays:
    """Index, slot and mask of this process's slots [k, b], 0 in those without a row."""
    rows = self.laid(self.drawn(steps), nothing=-1)
    return {
      contract.INDEX: np.maximum(rows, 0).astype(np.int32),
      contract.SLOT: np.broadcast_to(self.own_slots, rows.shape),
      contract.MASK: (rows >= 0).astype(jax.dtypes.canonicalize_dtype(float)),
    }

  def batch(self, step: int) -> Arrays:
    """The same for one step, [b]."""
    return {name: value[0] for name, value in self.batches(range(step, step + 1)).items()}

  def laid(self, values: np.ndarray, nothing: int = 0) -> np.ndarray:
    """[k, B] by slot, in the order of this process's slots [k, b]; `nothing` in filling ones."""
    size, slots = values.shape[-1], self.own_slots
    if (slots < size).all():
      return values[:, slots]
    return np.where(slots < size, values[:, np.minimum(slots, size - 1)], nothing)

  def steps_from(self, position: int, k: int) -> range:
    """The next k steps."""
    if position + k > self.steps:
      raise ValueError(
        f"{k} steps asked for at step {position} of {self.steps}: set position = 0 to start again"
      )
    return range(position, position + k)

  def put(self, batches: Arrays, k: int) -> list[Ticket]:
    """Puts this process's slots of some batches, [n k, b, ...], on the mesh as n tickets."""
    starts = range(0, len(batches[contract.INDEX]), k)
    drawn = [{name: a[i : i + k] for name, a in batches.items()} for i in starts]
    there = [{name: self._put_once(name, one[name]) for name in _STAY} for one in drawn]
    others = [{name: a for name, a in one.items() if name not in _STAY} for one in drawn]
    put = mesh_lib.put_own(self.mesh, others, mesh_lib.cut(1))
    return [{**some, **rest} for some, rest in zip(put, there, strict=True)]

  def _put_once(self, name: str, value: np.ndarray) -> jax.Array:
    if name not in self._there or not np.array_equal(self._there[name][0], value):
      self._there[name] = value, mesh_lib.put_own(self.mesh, value, mesh_lib.cut(1))
    return self._there[name][1]

  def like(self, batches: Arrays, k: int) -> dict[str, jax.ShapeDtypeStruct]:
    """What a ticket of `k` batches looks like; of `batches`, only shapes and types matter."""
    whole = {
      name: np.broadcast_to(value[:1, :1], (k, len(self.slots), *value.shape[2:]))
      for name, value in batches.items()
    }
    return mesh_lib.like(self.mesh, whole, mesh_lib.cut(1))


def layout(batch_size: int, parts: int, mesh: Mesh) -> np.ndarray:
  """[B'] the slots in the order in which the devices cut them; those that only fill up come last.

  A micro-batch is a run of the batch's slots, whatever the number of devices.
  """
  size = batch_size // parts
  wide = mesh_lib.padded(size, mesh)
  slots = np.arange(batch_size).reshape(parts, size)
  filling = batch_size + np.arange(parts * (wide - size)).reshape(parts, -1)
  laid = np.concatenate([slots, filling], axis=1).reshape(parts, mesh.size, -1)
  return laid.swapaxes(0, 1).ravel().astype(np.int32)


def stack(batches: Iterable[Arrays]) -> Arrays:
  """K batches of [b, ...] as one of [K, b, ...]."""
  batches = list(batches)
  return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
