"""The device mesh, and the one way a per-replica function is mapped over it.

A step is written for one replica with collectives over `contract.AXIS`, then mapped here by
`jit(shard_map(...))`, which is what `jax.pmap` itself has become. Automatic sharding is never used:
around a grouped convolution it gathers the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from medjax import cluster, contract

REPLICATED = PartitionSpec()
_ON_CPU = 2  # devices; more cores to try more of them on were not at hand


def divide_cpu() -> None:
  """Has JAX show the CPU as two devices, which work beside each other, where it has two cores.

  To be called before JAX is asked for a device. What somebody else has asked for (`XLA_FLAGS`,
  `jax_num_cpu_devices`) stays. XLA leaves a core idle in small convolutions: on two cores the steps
  of the quickstart were 1.4 times as fast on two devices (three times in turns with
  `XLA_FLAGS=--xla_force_host_platform_device_count=1`, stages cut to 16 and 64 steps: `python -m
  medjax.main --config=configs/quickstart.py --config.stages.pretrain.train.length="16 steps"` ...).
  """
  by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  asked = by_flag or jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
  if asked or len(os.sched_getaffinity(0)) < _ON_CPU:
    return
  with contextlib.suppress(RuntimeError):  # JAX has its devices already
    jax.config.update("jax_num_cpu_devices", _ON_CPU)


def make(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A one-axis mesh over `devices`, by default all of them."""
  return Mesh(np.asarray(devices or jax.devices()), (contract.AXIS,))


def cut(axis: int = 0) -> PartitionSpec:
  """The spec of an array whose dimension `axis` is cut over the devices."""
  return PartitionSpec(*[None] * axis, contract.AXIS)


def padded(size: int, mesh: Mesh) -> int:
  """The smallest multiple of the number of devices that holds `size` slots."""
  return -(-size // mesh.size) * mesh.size


def put(mesh: Mesh, tree: Any, spec: PartitionSpec = REPLICATED) -> Any:
  """Copies a tree of host arrays to the mesh: to every device, or cut by `spec`.

  Of several processes each has the whole, and fills its own devices.
  """
  sharding = NamedSharding(mesh, spec)
  if cluster.processes() == 1:
    return jax.device_put(tree, sharding)

  def one(leaf: Any) -> jax.Array:
    if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
      return jax.random.wrap_key_data(
        one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
      )
    host = np.asarray(jax.device_get(leaf))
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype))
    return jax.make_array_from_callback(host.shape, sharding, host.__getitem__)

  # `device_put` would first compare the values of all processes, every time, over the network.
  with jax.transfer_guard_host_to_device("allow"):
    return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
  """Host copies of a tree of arrays; rows on devices of other processes come over the network."""

  def one(leaf: jax.Array) -> np.ndarray:
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
      return jax.device_get(leaf)
    return multihost_utils.process_allgather(leaf, tiled=True)

  return jax.device_get(tree) if cluster.processes() == 1 else jax.tree.map(one, tree)


def own(mesh: Mesh, size: int) -> np.ndarray:
  """Positions of `size` slots, cut over the devices, that lie on this process's devices."""
  here = [device.process_index == jax.process_index() for device in mesh.devices.flat]
  return np.flatnonzero(np.repeat(here, size // mesh.size))


def put_own(mesh: Mesh, tree: Any, spec: PartitionSpec = REPLICATED) -> Any:
  """Copies to the mesh what every process has of it; one process has everything.

  Args:
    mesh: of the devices of all processes.
    tree: of host arrays: those slots that are this process's `own`, or all where nothing is cut.
    spec: how the whole is cut.
  """
  if cluster.processes() == 1:
    return put(mesh, tree, spec)
  sharding = NamedSharding(mesh, spec)
  with jax.transfer_guard_host_to_device("allow"):  # this call is as explicit as `device_put`
    return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, a), tree)


def put_each(mesh: Mesh, shape: tuple[int, ...], device: Callable[[int], np.ndarray]) -> jax.Array:
  """An array whose first dimension is cut, made on the host one device's share at a time.

  Args:
    mesh: over which it is cut.
    shape: of the whole.
    device: number of a device in the mesh -> its share; asked for this process's devices alone.
  """
  share = shape[0] // mesh.size

  def of(index: Any) -> np.ndarray:
    return device((index[0].start or 0) // share)

  return jax.make_array_from_callback(shape, NamedSharding(mesh, cut()), of)


def like(mesh: Mesh, tree: Any, spec: PartitionSpec = REPLICATED) -> Any:
  """Shapes and types of what `put` would make of a tree of arrays, to compile for."""
  sharding = NamedSharding(mesh, spec)

  def one(leaf: Any) -> jax.ShapeDtypeStruct:
    dtype = jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)
    return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

  return jax.tree.map(one, tree)


def mapped(
  fn: Callable,
  mesh: Mesh,
  in_specs: Any,
  out_specs: Any,
  donate: tuple[int, ...] = (),
) -> jax.stages.Wrapped:
  """Jits `fn`, written for one replica, over the mesh.

  Args:
    fn: a function of arrays whose collectives name `contract.AXIS`.
    mesh: from `make`.
    in_specs, out_specs: a `PartitionSpec` (or tree prefix of them) an argument and result.
    donate: positions of arguments whose buffers the result may take over.

  Returns:
    A jitted function of global arrays. `check_vma=False` keeps pmap's meaning of gradients: local
    to the replica until the function itself reduces them.
  """
  inner = jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  return jax.jit(inner, donate_argnums=donate)
