"""Memory that is lent again, but never while anyone can still see it."""

import jax
import numpy as np
import pytest

from medjax import mesh as mesh_lib
from medjax.data.feed import memory

UINT8, UINT16 = np.dtype(np.uint8), np.dtype(np.uint16)


@pytest.mark.parametrize("dtype", [UINT8, UINT16])
def test_an_array_is_as_asked_and_aligned(dtype):
  array = memory.Pool().empty((3, 5, 7), dtype)
  assert array.shape == (3, 5, 7) and array.dtype == dtype
  assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous
  array[:] = 7
  assert (array == 7).all()


def test_memory_comes_back_when_the_last_view_is_gone():
  pool = memory.Pool()
  array = pool.empty((4, 1000), UINT8)
  address, view = array.ctypes.data, array[1:3].reshape(-1)
  del array
  other = pool.empty((4, 1000), UINT8)
  assert other.ctypes.data != address
  del view
  assert pool.empty((4, 1000), UINT8).ctypes.data == address
  del other


def test_memory_of_another_size_is_not_lent():
  pool = memory.Pool()
  address = pool.empty((4, 1000), UINT8).ctypes.data
  longer = pool.empty((8, 1000), UINT8)
  same = pool.empty((2, 1000), UINT16)  # 4,000 bytes again
  assert longer.ctypes.data != address
  assert same.ctypes.data == address


@pytest.mark.parametrize("devices", [1, 4])
def test_what_a_device_holds_is_never_written_to(devices):
  """The CPU backend shares the memory it is given; 200 arrays, of which it drops some at random."""
  mesh, pool = mesh_lib.make(jax.devices()[:devices]), memory.Pool()
  rng, held = np.random.default_rng(0), {}
  for number in range(200):
    array = pool.empty((8, 4000), UINT16)
    array[:] = number
    held[number] = mesh_lib.put(mesh, array, mesh_lib.cut())
    del array
    for gone in rng.choice(list(held), len(held) // 3, replace=False).tolist():
      del held[gone]
    for value, there in held.items():
      assert (np.asarray(there) == value).all()


def test_memory_stays_flat():
  pool, addresses = memory.Pool(), set()
  mesh = mesh_lib.make(jax.devices()[:1])
  for _ in range(50):
    array = pool.empty((8, 4000), UINT8)
    addresses.add(array.ctypes.data)
    there = mesh_lib.put(mesh, array)
    del array, there
  assert len(addresses) <= 8
