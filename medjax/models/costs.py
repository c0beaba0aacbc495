"""What a network costs, found by tracing it: nothing is computed, and no array is made."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
from jax.extend import core
import jax.numpy as jnp

from medjax import contract, trees
from medjax.models import net as net_lib

_CONSTANTS = "/input/"  # in their paths


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one image's way through a network, in inference.

  Attributes:
    total: parameters and moving statistics. trainable: parameters.
    macs: multiply-accumulates of its layers, which are the convolutions and the matrix products.
    depth: layers on the longest way from the image to the logits.
  """

  total: int
  trainable: int
  macs: int
  depth: int


def of(net: net_lib.Net, image_shape: tuple[int, int, int]) -> Costs:
  """Costs of a network for one image [H, W, C].

  Raises:
    ValueError: as the network does, for images that it cannot take.
  """
  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  # One trace of the initialisation has the forward pass in it, and the shapes of all tensors.
  program, tensors = jax.make_jaxpr(net.init, return_shape=True)(jax.random.key(0), images)
  params, stats = counted(*tensors)
  layers = _Layers()
  layers.add(program.jaxpr, [0] * len(program.jaxpr.invars))
  trainable = trees.count(params)
  return Costs(trainable + trees.count(stats), trainable, layers.macs, layers.depth)


def counted(params: contract.Tree, stats: contract.Tree) -> tuple[contract.Tree, contract.Tree]:
  """What `Net.init` gives, without the constants of the preprocessing."""
  moving = {path: leaf for path, leaf in trees.flatten(stats).items() if _CONSTANTS not in path}
  return params, trees.unflatten(moving)


class _Layers:
  """A sum over the layers of a program, and the longest chain of them."""

  def __init__(self):
    self.macs = self.depth = 0

  def add(self, program: Any, depths: list[int]) -> list[int]:
    """Walks a program whose inputs lie so deep; returns how deep its outputs do."""
    known = dict(zip(program.invars, depths, strict=True))
    for step in program.eqns:
      found = self._step(step, _depths(step.invars, known))
      known.update(zip(step.outvars, found, strict=True))
    return _depths(program.outvars, known)

  def _step(self, step: Any, depths: list[int]) -> list[int]:
    for inner in core.jaxprs_in_params(step.params):
      if len(inner.invars) == len(depths):  # a call; the sum inside a reduction takes others
        return self.add(inner, depths)
    macs = _macs(step)
    self.macs += macs
    depth = max(depths, default=0) + (macs > 0)
    self.depth = max(self.depth, depth)
    return [depth] * len(step.outvars)


def _depths(variables: Sequence[Any], known: dict[Any, int]) -> list[int]:
  """Of the inputs of a step; constants lie on the surface."""
  return [0 if isinstance(one, core.Literal) else known.get(one, 0) for one in variables]


def _macs(step: Any) -> int:
  """Multiply-accumulates of one operation; 0 for all but convolutions and matrix products."""
  if step.primitive.name == "conv_general_dilated":
    kernel, numbers = step.invars[1].aval.shape, step.params["dimension_numbers"]
    return step.outvars[0].aval.size * math.prod(kernel) // kernel[numbers.rhs_spec[0]]
  if step.primitive.name == "dot_general":
    (contracted, _), _ = step.params["dimension_numbers"]
    shape = step.invars[0].aval.shape
    return step.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
  return 0
