"""Initial kernels of a whole net from one draw of random numbers.

Linen would draw each kernel by itself, and every draw costs XLA's CPU compiler some tenths of a
second: a net of fifty kernels then waits longer for its weights than for its first step. Modules
therefore declare kernels as zeros, and the seam fills them from one vector.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math

import jax
from jax import lax

from medjax import contract, trees


@dataclasses.dataclass(frozen=True)
class KernelInit:
  """A distribution of kernels: independent numbers, scaled by the kernel's fans.

  Attributes:
    draw: (key, size) to that many numbers of variance 1.
    variance: (fan in, fan out) to the variance of a kernel's numbers.
    elsewhere: beginnings of parameter paths below which another distribution holds.
  """

  draw: Callable[[jax.Array, int], jax.Array]
  variance: Callable[[int, int], float]
  elsewhere: tuple[tuple[str, KernelInit], ...] = ()

  def at(self, path: str) -> KernelInit:
    """The distribution of the kernel at a path."""
    return next((own for start, own in self.elsewhere if path.startswith(f"{start}/")), self)


def _uniform(key: jax.Array, size: int) -> jax.Array:
  return jax.random.uniform(key, (size,), minval=-math.sqrt(3), maxval=math.sqrt(3))


def _cut_normal(key: jax.Array, size: int) -> jax.Array:
  deviation = 0.87962566103423978  # of a standard normal cut at -2 and 2
  return jax.random.truncated_normal(key, -2, 2, (size,)) / deviation


# Glorot & Bengio 2010, Keras's default; He et al. 2015, cut at two deviations as Keras does.
GLOROT_UNIFORM = KernelInit(_uniform, lambda fan_in, fan_out: 2 / (fan_in + fan_out))
HE_NORMAL = KernelInit(_cut_normal, lambda fan_in, fan_out: 2 / fan_in)
HE_UNIFORM = KernelInit(_uniform, lambda fan_in, fan_out: 2 / fan_in)


def with_kernels(params: contract.Tree, key: jax.Array, kernel_init: KernelInit) -> contract.Tree:
  """`params` with each leaf named `kernel`, [..., in, out], drawn from `kernel_init`."""
  flat = trees.flatten(params)
  paths = sorted(path for path in flat if path.split("/")[-1] == "kernel")
  kernels = {path: kernel_init.at(path) for path in paths}
  draws = dict.fromkeys([kernel_init.draw, *(own.draw for own in kernels.values())])
  for number, draw in enumerate(draws):
    drawn = {path: flat[path].shape for path, own in kernels.items() if own.draw is draw}
    unscaled = _drawn(draw, jax.random.fold_in(key, number) if number else key, drawn)
    for path, kernel in unscaled.items():
      flat[path] = kernel * math.sqrt(kernels[path].variance(*_fans(kernel.shape)))
  return trees.unflatten(flat)


def _drawn(
  draw: Callable[[jax.Array, int], jax.Array], key: jax.Array, shapes: dict[str, tuple[int, ...]]
) -> dict[str, jax.Array]:
  """Arrays of these shapes, from one draw."""
  numbers = draw(key, sum(map(math.prod, shapes.values())))
  numbers = lax.optimization_barrier(numbers)  # else each kernel draws all over again
  arrays, start = {}, 0
  for path, shape in shapes.items():
    end = start + math.prod(shape)
    arrays[path] = lax.slice(numbers, (start,), (end,)).reshape(shape)
    start = end
  return arrays


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
  """Inputs that reach an output, and outputs that an input reaches."""
  *window, inputs, outputs = shape
  return math.prod(window) * inputs, math.prod(window) * outputs
