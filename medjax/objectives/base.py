"""What every objective is, and the parts that all of them are made of.

A step is written for one replica, which sees its own part of the global batch. Losses are summed
over examples and gradients over replicas, then divided by the number of examples on all of them: a
mean of the replicas' means would be wrong wherever a batch is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable
import zlib

import flax.struct
import jax
from jax import flatten_util, lax
import jax.numpy as jnp
import numpy as np

from medjax import contract, optim, pixels, trees
from medjax.models import net as net_lib

# In `TrainState.extra`, each {"params": ..., "stats": ...}: what is evaluated in the place of the
# weights, and what an objective learns to predict.
AVERAGE, TARGET = "average", "target"


class TrainState(flax.struct.PyTreeNode):
  """All that training changes: plain nested dicts of arrays.

  Attributes:
    step: int32, steps done.
    params: what the gradient is taken of. stats: running statistics of batch norm, and constants.
    opt_state: of the optimiser.
    extra: what is kept besides: moving averages of params and stats under `AVERAGE` and `TARGET`.
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
    self, state: TrainState, batch: contract.Batch, key: jax.Array, lr: jax.Array
  ) -> tuple[TrainState, contract.Metrics]:
    """One replica's step, with collectives over `contract.AXIS`.

    Args:
      state: the same on all replicas.
      batch: this replica's slots of the global batch.
      key: of this step, the same on all replicas. lr: its learning rate, likewise.

    Returns:
      The state after it and its metrics, "loss" among them, both the same on all replicas.
    """

  def forward(self, state: TrainState, batch: contract.Batch) -> contract.Outputs:
    """What the network says, without randomness or collectives."""

  def recalibrate(self, state: TrainState, batch: contract.Batch) -> contract.Tree:
    """`state.stats` with batch-norm statistics of the global batch alone, as `forward` sees it."""


@runtime_checkable
class Sampler(Protocol):
  """An objective that learns to make images."""

  def sample(
    self, state: TrainState, key: jax.Array, numbers: jax.Array, labels: jax.Array
  ) -> jax.Array:
    """Images [n, H, W, C] in [0, 1], without collectives.

    Args:
      state: as it is evaluated.
      key, numbers: [n] int32; an image is a function of both, of its label and the state, whatever
        others are made beside it.
      labels: [n] int32, the classes that are asked for; for a generator that knows some.
    """


def named(key: jax.Array, name: str) -> jax.Array:
  """The key of one use of randomness: adding a use does not change the others."""
  return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def initial_state(
  net: net_lib.Net,
  optimizer: optim.Optimizer,
  image_shape: tuple[int, int, int],
  key: jax.Array,
) -> TrainState:
  """A state at step 0 with random weights."""
  params, stats = net.init(named(key, "init"), jnp.zeros((1, *image_shape)))
  return started(optimizer, params, stats, optimizer.init(params))


def started(
  optimizer: optim.Optimizer, params: contract.Tree, stats: contract.Tree, opt_state: Any
) -> TrainState:
  """A state at step 0 with these weights, which are where the moving average starts."""
  extra = {AVERAGE: {"params": params, "stats": stats}} if optimizer.ema else {}
  return TrainState(jnp.zeros((), jnp.int32), params, stats, opt_state, extra)


def with_weights(state: TrainState, params: contract.Tree, stats: contract.Tree) -> TrainState:
  """A state at step 0 with other weights, in its moving averages too."""
  weights = {"params": params, "stats": stats}
  averages = {name: weights for name in (AVERAGE, TARGET) if name in state.extra}
  extra = {**state.extra, **averages}
  return state.replace(**weights, extra=extra)


def with_floats(batch: contract.Batch) -> contract.Batch:
  """The batch with its pixels in [0, 1]."""
  return {**batch, contract.IMAGE: pixels.to_float(batch[contract.IMAGE])}


def reduced_gradients(
  fn: Callable[[contract.Tree, contract.Batch], tuple[jax.Array, tuple[contract.Metrics, Any]]],
  optimizer: optim.Optimizer,
  params: contract.Tree,
  batch: contract.Batch,
) -> tuple[contract.Tree, contract.Metrics, Any]:
  """Gradients and metrics of the mean over all examples of the global batch, in one all-reduce.

  With `optimizer.accumulate` the batch goes through `fn` in micro-batches, one after the other,
  whose sums are added up. That changes memory, not the mathematics, as long as no loss looks
  beyond its example and no batch-norm group beyond its micro-batch.

  Args:
    fn: (params, batch) -> (losses [n], (other metrics [n] by name, tree of arrays)). Where it
      gathers from other replicas, gradients flow back to them.
    optimizer: says which parameters to differentiate by.
    params: all of them, the same on all replicas.
    batch: this replica's; 0 in its mask for slots that do not count.

  Returns:
    Gradients of the parameters that learn and metrics ("loss", the others and "grad_norm"), the
    same on all replicas, and what else `fn` returned, its mean over the micro-batches.
  """
  learning, fixed = optimizer.split(params)

  def total(learning, batch):
    losses, (metrics, rest) = fn(trees.merge(learning, fixed), batch)
    mask = batch[contract.MASK].astype(losses.dtype)
    sums = {name: jnp.sum(mask * values) for name, values in {"loss": losses, **metrics}.items()}
    return sums["loss"], (sums, mask.sum(), rest)

  def summed(batch):
    (_, (sums, count, rest)), grads = jax.value_and_grad(total, has_aux=True)(learning, batch)
    return grads, sums, count, rest

  *sums, rest = _accumulated(summed, batch, optimizer.accumulate)
  grads, metrics = _means(*sums)
  norm = jnp.linalg.norm(flatten_util.ravel_pytree(grads)[0])
  return grads, {**metrics, "grad_norm": norm}, rest


def _accumulated(summed: Callable, batch: contract.Batch, parts: int) -> tuple:
  """(..., rest) of `summed` over `parts` micro-batches: sums added up, the mean of the rest."""
  if parts == 1:
    return summed(batch)
  micro = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
  shapes = jax.eval_shape(summed, jax.tree.map(lambda x: x[0], micro))
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  add = lambda total, part: jax.tree.map(jnp.add, total, summed(part))  # noqa: E731
  *sums, rest = lax.scan(lambda total, part: (add(total, part), None), zeros, micro)[0]
  return *sums, jax.tree.map(lambda total: total / parts, rest)


def _means(grads: contract.Tree, metrics: contract.Metrics, count: jax.Array) -> list:
  """Both sums over the replicas, divided by the count over all: one flat all-reduce a dtype.

  The vector is cut into leaves last: an operation on it is one kernel to compile and to start, one
  on a tree is hundreds. XLA joins again what `optim` and the norm put together of the pieces.
  """
  leaves, structure = jax.tree.flatten([grads, metrics, count])
  vectors = {}
  for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
    alike = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
    vector, restore = flatten_util.ravel_pytree([leaves[i] for i in alike])
    vector = lax.psum(vector, contract.AXIS) if lax.axis_size(contract.AXIS) > 1 else vector
    vectors[dtype] = vector, restore, alike
  total = vectors[count.dtype][0][-1]
  for dtype, (vector, restore, alike) in vectors.items():
    for i, leaf in zip(alike, restore(vector / total.astype(dtype)), strict=True):
      leaves[i] = leaf
  return jax.tree.unflatten(structure, leaves)[:2]


def updated(
  state: TrainState,
  optimizer: optim.Optimizer,
  grads: contract.Tree,
  stats: contract.Tree,
  lr: jax.Array,
) -> TrainState:
  """The state one step later."""
  params, opt_state = optimizer.apply(grads, state.opt_state, state.params, lr)
  return advanced(state.replace(params=params, stats=stats, opt_state=opt_state), optimizer)


def advanced(state: TrainState, optimizer: optim.Optimizer) -> TrainState:
  """The state whose weights have moved, a step on; the moving average follows."""
  step, extra = state.step + 1, dict(state.extra)
  if AVERAGE in extra:
    values = {"params": state.params, "stats": state.stats}
    extra[AVERAGE] = optimizer.averaged(extra[AVERAGE], values, step)
  return state.replace(step=step, extra=extra)


def evaluated(state: TrainState) -> TrainState:
  """The state as it is evaluated: its moving average, where it keeps one, in the weights' place."""
  if AVERAGE not in state.extra:
    return state
  extra = {name: value for name, value in state.extra.items() if name != AVERAGE}
  return state.replace(**state.extra[AVERAGE], extra=extra)


def embedded(net: net_lib.Net, state: TrainState, batch: contract.Batch) -> contract.Outputs:
  """What `Objective.forward` gives of a net without a classifier of the data's labels."""
  result, _ = net.apply(state.params, state.stats, with_floats(batch), train=False)
  return contract.Outputs(None, result.embedding)


def batch_statistics(net: net_lib.Net, state: TrainState, batch: contract.Batch) -> contract.Tree:
  """Batch-norm statistics of a batch as evaluation sees it: no augmentation, no dropout."""
  apply, images = net.apply, with_floats(batch)
  return apply(state.params, state.stats, images, train=True, momentum=0.0)[1]
