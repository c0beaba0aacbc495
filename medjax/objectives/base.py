"""What every objective is, and the parts that all of them are made of.

A step is written for one replica, which sees its own part of the global batch. Losses are summed
over examples and gradients over replicas, then divided by the number of examples on all of them: a
mean of the replicas' means would be wrong wherever a batch is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol
import zlib

import flax.struct
import jax
from jax import flatten_util, lax
import jax.numpy as jnp
import numpy as np
import optax

from medjax import contract, pixels
from medjax.models import net as net_lib


class TrainState(flax.struct.PyTreeNode):
  """All that training changes: plain nested dicts of arrays.

  Attributes:
    step: int32, steps done.
    params: what the gradient is taken of. stats: running statistics of batch norm, and constants.
    opt_state: of the optimiser.
    extra: what an objective keeps besides.
  """

  step: jax.Array
  params: contract.Tree
  stats: contract.Tree
  opt_state: Any
  extra: contract.Tree


class Objective(Protocol):
  """What a training step is. Batches hold integer pixels; all methods are pure."""

  def init(self, key: jax.Array) -> TrainState:
    """A state at step 0 with random weights."""

  def step(
    self, state: TrainState, batch: contract.Batch, key: jax.Array
  ) -> tuple[TrainState, contract.Metrics]:
    """One replica's step, with collectives over `contract.AXIS`.

    Args:
      state: the same on all replicas.
      batch: this replica's slots of the global batch.
      key: of this step, the same on all replicas.

    Returns:
      The state after it and its metrics, "loss" among them, both the same on all replicas.
    """

  def forward(self, state: TrainState, batch: contract.Batch) -> contract.Outputs:
    """What the network says, without randomness or collectives."""

  def recalibrate(self, state: TrainState, batch: contract.Batch) -> contract.Tree:
    """`state.stats` with batch-norm statistics of the global batch alone, as `forward` sees it."""


def named(key: jax.Array, name: str) -> jax.Array:
  """The key of one use of randomness: adding a use does not change the others."""
  return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def initial_state(
  net: net_lib.Net,
  tx: optax.GradientTransformation,
  image_shape: tuple[int, int, int],
  key: jax.Array,
) -> TrainState:
  """A state at step 0 with nothing extra."""
  params, stats = net.init(named(key, "init"), jnp.zeros((1, *image_shape)))
  return TrainState(jnp.zeros((), jnp.int32), params, stats, tx.init(params), {})


def with_floats(batch: contract.Batch) -> contract.Batch:
  """The batch with its pixels in [0, 1]."""
  return {**batch, contract.IMAGE: pixels.to_float(batch[contract.IMAGE])}


def reduced_gradients(
  fn: Callable[[contract.Tree], tuple[jax.Array, tuple[contract.Metrics, Any]]],
  params: contract.Tree,
  mask: jax.Array,
) -> tuple[contract.Tree, contract.Metrics, Any]:
  """Gradients and metrics of the mean over all examples of the global batch, in one all-reduce.

  Args:
    fn: params -> (losses [n], (other metrics [n] by name, anything)). Where it gathers from other
      replicas, gradients flow back to them.
    params: where to differentiate, the same on all replicas.
    mask: [n] 0 for slots that do not count.

  Returns:
    Gradients and metrics ("loss", the others and "grad_norm"), the same on all replicas, and
    what else `fn` returned.
  """

  def total(params):
    losses, (metrics, rest) = fn(params)
    sums = {name: jnp.sum(mask * values) for name, values in metrics.items()}
    return jnp.sum(mask * losses), (sums, rest)

  (loss, (sums, rest)), grads = jax.value_and_grad(total, has_aux=True)(params)
  count = mask.sum(dtype=loss.dtype)
  grads, sums, count = _all_reduced((grads, {"loss": loss, **sums}, count))
  grads, metrics = jax.tree.map(lambda total: total / count, (grads, sums))
  return grads, {**metrics, "grad_norm": optax.tree.norm(grads)}, rest


def _all_reduced(tree: contract.Tree) -> contract.Tree:
  """Sums every leaf over the replicas: one flat all-reduce a dtype."""
  if lax.axis_size(contract.AXIS) == 1:
    return tree
  leaves, structure = jax.tree.flatten(tree)
  for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
    alike = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
    flat, restore = flatten_util.ravel_pytree([leaves[i] for i in alike])
    for i, leaf in zip(alike, restore(lax.psum(flat, contract.AXIS)), strict=True):
      leaves[i] = leaf
  return jax.tree.unflatten(structure, leaves)


def updated(
  state: TrainState,
  tx: optax.GradientTransformation,
  grads: contract.Tree,
  stats: contract.Tree,
) -> TrainState:
  """The state one step later."""
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  return state.replace(step=state.step + 1, params=params, stats=stats, opt_state=opt_state)


def batch_statistics(net: net_lib.Net, state: TrainState, batch: contract.Batch) -> contract.Tree:
  """Batch-norm statistics of a batch as evaluation sees it: no augmentation, no dropout."""
  apply, images = net.apply, with_floats(batch)
  return apply(state.params, state.stats, images, train=True, momentum=0.0)[1]
