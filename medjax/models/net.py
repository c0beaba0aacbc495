"""The seam between networks and everything else: two pure functions on plain nested dicts.

Networks are Flax linen modules. Nothing outside this package sees one: `wrap` turns an encoder and
a head into a `Net`. Weights, running statistics and outputs are plain dicts and arrays, so that the
module library can change behind this file.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Literal, Protocol

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from medjax import contract, ops, trees
from medjax.models import groups as groups_lib
from medjax.models import initial

# The linen collection in which batch norm leaves what it found in this batch.
BATCH_MOMENTS = "batch_moments"


@dataclasses.dataclass(frozen=True)
class Execution:
  """How a net is run; static, and no part of what it computes.

  Attributes:
    form: of convolutions, see `medjax.ops`.
    dtype: of computation; parameters, statistics and results are never less than float32.
    bn_group: examples of the global batch that share batch-norm statistics; 0 is all of them.
    axis: the mesh axis that the batch is cut over; None outside a mesh.
  """

  form: ops.Form = "plain"
  dtype: Literal["float32", "bfloat16"] = "float32"
  bn_group: int = 0
  axis: str | None = None


@flax.struct.dataclass
class Mode:
  """What a layer needs beside its input: the last argument of every module's `__call__`.

  Attributes:
    execution: how the net is run.
    groups: examples that share batch-norm statistics in training; None takes the running ones.
    keys: [b, 2] uint32 that each example's dropout draws from; None leaves dropout out.
  """

  execution: Execution = flax.struct.field(pytree_node=False)
  groups: groups_lib.Groups | None = None
  keys: jax.Array | None = None

  def dtype(self, *arrays: jax.Array) -> jnp.dtype:
    """The type in which a layer computes on these arrays."""
    if self.execution.dtype == "bfloat16":
      return jnp.dtype(jnp.bfloat16)
    return jnp.result_type(*arrays)


@flax.struct.dataclass
class Result:
  """What a net says about a batch, in at least float32.

  Attributes:
    output: [b, K] logits, or [b, D'] projections.
    embedding: [b, D] pooled features, what the head sees.
  """

  output: jax.Array
  embedding: jax.Array


class Apply(Protocol):
  """Type of `Net.apply`."""

  def __call__(
    self,
    params: contract.Tree,
    stats: contract.Tree,
    batch: contract.Batch,
    *,
    train: bool,
    key: jax.Array | None = None,
    momentum: float | None = None,
  ) -> tuple[Result, contract.Tree]:
    """See `Net`."""


@dataclasses.dataclass(frozen=True)
class Net:
  """A network as two pure functions.

  Attributes:
    init: `init(key, images) -> (params, stats)`. Only the shape [b, H, W, C] of images matters.
      Both results are `{"encoder": ..., "head": ...}`; stats have no head where it keeps none.
    apply: `apply(params, stats, batch, train=, key=None, momentum=None) -> (Result, new stats)`.
      The batch's images are floats in [0, 1]; the net normalises them itself. With `train`, batch
      norm takes the statistics of the batch, whose mask it needs, and moves the running ones by
      `momentum` (the net's own where None; 0.0 returns those of this batch). A `key` turns dropout
      on, by the batch's slots. Training without a key is an error unless `momentum` is given:
      statistics estimated for a net without dropout must be taken without it.
  """

  init: Callable[[jax.Array, jax.Array], tuple[contract.Tree, contract.Tree]]
  apply: Apply


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a network's file builds.

  Attributes:
    encoder: called as `(images, mode)`, returns [b, D].
    classifier: called as `(embedding, mode)`, returns [b, K].
    kernel_init: where their kernels are drawn from.
  """

  encoder: nn.Module
  classifier: nn.Module  # with the field `cosine`
  kernel_init: initial.KernelInit


class _Network(nn.Module):
  encoder: nn.Module
  head: nn.Module

  def __call__(self, images: jax.Array, mode: Mode) -> Result:
    embedding = self.encoder(images, mode)
    output = self.head(embedding, mode)
    return Result(_at_least_float32(output), _at_least_float32(embedding))


def wrap(
  encoder: nn.Module,
  head: nn.Module,
  kernel_init: initial.KernelInit,
  execution: Execution,
  bn_momentum: float,
) -> Net:
  """Makes a `Net` of two unbound modules.

  Args:
    encoder, head: see `Parts`; any head that takes the embedding.
    kernel_init: where their kernels are drawn from.
    execution: how to run it.
    bn_momentum: share of the old value that a running statistic keeps at each step.
  """
  network = _Network(encoder, head)

  @jax.jit  # so that the forward pass, whose result nobody reads, is never computed
  def init(key: jax.Array, images: jax.Array) -> tuple[contract.Tree, contract.Tree]:
    variables = network.init(key, images, Mode(execution))
    return initial.with_kernels(variables["params"], key, kernel_init), variables["batch_stats"]

  def apply(params, stats, batch, *, train, key=None, momentum=None):
    variables, images = {"params": params, "batch_stats": stats}, batch[contract.IMAGE]
    if not train:
      return network.apply(variables, images, Mode(execution)), stats
    if key is None and momentum is None:
      raise ValueError("a training step needs a key for dropout: apply(..., train=True, key=key)")
    groups = groups_lib.make(batch[contract.MASK], execution.bn_group, execution.axis)
    keys = None if key is None else _example_keys(key, batch[contract.SLOT])
    mode = Mode(execution, groups, keys)
    result, found = network.apply(variables, images, mode, mutable=[BATCH_MOMENTS])
    moments = groups.over_devices(found.get(BATCH_MOMENTS, {}))
    return result, _moved(stats, moments, bn_momentum if momentum is None else momentum)

  return Net(init, apply)


def _example_keys(key: jax.Array, slots: jax.Array) -> jax.Array:
  """[b, 2] uint32: random words of each slot of the global batch."""
  return jax.vmap(lambda slot: jax.random.bits(jax.random.fold_in(key, slot), (2,)))(slots)


def _moved(stats: contract.Tree, moments: contract.Tree, momentum: float) -> contract.Tree:
  """Running statistics after a batch; what has no moments (the input's constants) stays."""
  flat = trees.flatten(stats)
  for path, value in trees.flatten(moments).items():
    flat[path] = momentum * flat[path] + (1 - momentum) * value
  return trees.unflatten(flat)


def _at_least_float32(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
