"""Groups of examples that share batch-norm statistics, inside one device or over several.

A group is a run of consecutive slots of the global batch, of a fixed length. Neither its members
nor its statistics depend on how many devices there are. Slots that only pad the batch belong to a
group but count for nothing in it.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math

import flax.struct
import jax
from jax import flatten_util, lax
import jax.numpy as jnp

from medjax import contract


@flax.struct.dataclass
class Groups:
  """The groups that one device has a part in; made by `make`.

  Attributes:
    mask: [G, n] 1 for examples, 0 for padding, of this device's slots cut in its G groups.
    count: [G] examples of each group, on all devices that share it.
    axis: mesh axis over which devices reduce, None where there is only one.
    sharing: devices whose one group is the same, as tuples of their positions; None where a group
      is all devices'; () where each device has groups of its own.
  """

  mask: jax.Array
  count: jax.Array
  axis: str | None = flax.struct.field(pytree_node=False)
  sharing: tuple[tuple[int, ...], ...] | None = flax.struct.field(pytree_node=False)

  def split(self, x: jax.Array) -> jax.Array:
    """[b, ...] as [G, n, ...]."""
    return x.reshape(*self.mask.shape, *x.shape[1:])

  def moments(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of each group's examples and positions.

    Args:
      x: [b, ..., C].

    Returns:
      Two [G, C] arrays in at least float32; 0 for a group of padding alone.
    """
    x = self.split(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    inner = tuple(range(1, x.ndim - 1))
    kept = x * self.mask.reshape(*self.mask.shape, *[1] * (x.ndim - 2))
    values = jnp.maximum(self.count * math.prod(x.shape[2:-1]), 1)[:, None]  # [G, 1]
    sums, squares = self._shared(kept.sum(inner), (kept * x).sum(inner))  # [G, C] each
    mean = sums / values
    return mean, jnp.maximum(squares / values - mean**2, 0)

  def over_groups(self, values: jax.Array) -> jax.Array:
    """Mean of [G, C] values of this device's groups, those of padding alone left out: [C]."""
    return (values * self._filled[:, None]).sum(0) / jnp.maximum(self._filled.sum(), 1)

  def over_devices(self, tree: contract.Tree) -> contract.Tree:
    """Mean of `over_groups` results over all devices' groups: one all-reduce for a whole tree."""
    if self.axis is None or self.sharing is None:
      return tree  # one group: all devices already hold the same
    flat, restore = flatten_util.ravel_pytree(tree)
    weight = self._filled.sum()[None]
    sums = lax.psum(jnp.concatenate([flat * weight, weight]), self.axis)
    return restore(sums[:-1] / jnp.maximum(sums[-1], 1))

  @property
  def _filled(self) -> jax.Array:
    return (self.count > 0).astype(self.count.dtype)  # [G]

  def _shared(self, *sums: jax.Array) -> Sequence[jax.Array]:
    """Sums over the devices that share a group, in one all-reduce; none where groups are own."""
    if self.axis is None or self.sharing == ():
      return sums
    joined = jnp.concatenate(sums, axis=-1)
    totals = lax.psum(joined, self.axis, axis_index_groups=self.sharing)
    return jnp.split(totals, len(sums), axis=-1)


def make(mask: jax.Array, size: int, axis: str | None) -> Groups:
  """Cuts a device's slots into its groups.

  Args:
    mask: [b] of this device's slots, 0 for padding.
    size: slots of a group; 0 makes the whole global batch one group.
    axis: the mesh axis that the global batch is cut over, None outside a mesh.

  Raises:
    ValueError: where groups of this size neither fill a device nor are whole devices.
  """
  slots, devices = mask.shape[0], 1 if axis is None else lax.axis_size(axis)
  inside, sharing = _layout(slots, devices, size)
  mask = mask.reshape(inside, -1)
  groups = Groups(mask, mask.sum(1), axis if devices > 1 else None, sharing)
  return dataclasses.replace(groups, count=groups._shared(groups.count)[0])


def _layout(slots: int, devices: int, size: int) -> tuple[int, tuple[tuple[int, ...], ...] | None]:
  """Number of groups that a device has a part in, and which devices share theirs."""
  if size in (0, slots * devices):
    return 1, None
  if 0 < size <= slots and slots % size == 0:
    return slots // size, ()
  if size > slots and size % slots == 0 and (slots * devices) % size == 0:
    run = size // slots
    return 1, tuple(tuple(range(i, i + run)) for i in range(0, devices, run))
  raise ValueError(
    f"batch-norm groups of {size} do not fit a global batch of {slots * devices} slots, {slots} on "
    f"each of {devices} device(s): set train.bn_group to 0 (the global batch), to a divisor of "
    f"{slots}, or to a multiple of {slots} that divides {slots * devices}"
  )
