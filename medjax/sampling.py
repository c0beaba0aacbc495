"""Images from a generator: the same ones for the same seed, on any number of devices."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from medjax import mesh as mesh_lib
from medjax.objectives import base

AT_ONCE = 64  # images

# (state as it is evaluated, key, numbers [n], labels [n]) -> uint8 images [n, H, W, C]
Sample = Callable[[base.TrainState, jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Painter:
  """A generator that is ready to run; made by `make`.

  Attributes:
    sample: compiled for `count` images. mesh: that they are cut over. key: on it, of the seed.
    count: images at a time.
  """

  sample: Sample
  mesh: Mesh
  key: jax.Array
  count: int

  def __call__(self, state: base.TrainState, labels: np.ndarray) -> np.ndarray:
    """Images [n, H, W, C] uint8.

    Args:
      state: on the mesh, as it is evaluated.
      labels: [n] int, the classes that are asked for; 0 of a generator that knows none. The i-th
        image depends on the seed, on i and on its label, and on no other.
    """
    images = [self._some(state, labels, start) for start in range(0, len(labels), self.count)]
    return np.concatenate(images)[: len(labels)]

  def _some(self, state: base.TrainState, labels: np.ndarray, start: int) -> np.ndarray:
    own = np.resize(labels[start : start + self.count], self.count).astype(np.int32)
    numbers = np.arange(start, start + self.count, dtype=np.int32)
    inputs = mesh_lib.put(self.mesh, (numbers, own), mesh_lib.cut())
    return np.asarray(mesh_lib.fetch(self.sample(state, self.key, *inputs)))


def make(objective: base.Sampler, mesh: Mesh, state: Any, seed: int) -> Painter:
  """Compiles a generator.

  Args:
    objective: whose generator it is. mesh: to run on.
    state: the structure of a state as it is evaluated. seed: of the latents.
  """
  count = mesh_lib.padded(AT_ONCE, mesh)
  whole, cut = mesh_lib.REPLICATED, mesh_lib.cut()

  def sample(state: Any, key: jax.Array, numbers: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.round(objective.sample(state, key, numbers, labels) * 255).astype(jnp.uint8)

  program = mesh_lib.mapped(sample, mesh, (whole, whole, cut, cut), cut)
  numbers = mesh_lib.like(mesh, np.zeros(count, np.int32), cut)
  key = mesh_lib.put(mesh, jax.random.key(seed))
  compiled = program.lower(mesh_lib.like(mesh, state), key, numbers, numbers).compile()
  return Painter(compiled, mesh, key, count)


def by_class(count: int, classes: int) -> np.ndarray:
  """[count] labels: as many of every class, class after class."""
  return np.arange(count) * max(classes, 1) // count
