"""The seam between networks and everything else: two pure functions on plain nested dicts.

Networks are Flax linen modules. Nothing outside this package sees one: `wrap` turns an encoder and
a head into a `Net`. Weights, running statistics and outputs are plain dicts and arrays, so that the
module library can change behind this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, Literal, Protocol

from flax import linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from medjax import contract, ops, trees
from medjax.models import groups as groups_lib
from medjax.models import initial

# Linen collections: what batch norm found in this batch, statistics of weights that this pass has
# moved, the maps that were asked for by name, and logits of parts of a head.
BATCH_MOMENTS = "batch_moments"
ITERATES = "iterates"
ENDPOINTS = "endpoints"
AUXILIARY = "auxiliary"
EVERY = "*"  # asks for all end points


@dataclasses.dataclass(frozen=True)
class Execution:
  """How a net is run; static, and nothing that `init` or evaluation depend on.

  Attributes:
    form: of convolutions, see `medjax.ops`.
    dtype: of computation; parameters, statistics and results are never less than float32.
    bn_group: examples of the global batch that share batch-norm statistics; 0 is all of them.
    axis: the mesh axis that the batch is cut over; None outside a mesh.
    remat: forgets the maps inside a stage's units and computes them again for the gradient.
    freeze_stats: batch norm takes and keeps the running statistics in training too.
  """

  form: ops.Form = "plain"
  dtype: Literal["float32", "bfloat16"] = "float32"
  bn_group: int = 0
  axis: str | None = None
  remat: bool = False
  freeze_stats: bool = False


class Reached(Exception):
  """The forward pass came to the end point at which the network is cut; carries its map."""

  def __init__(self, value: jax.Array):
    super().__init__()
    self.value = value


@flax.struct.dataclass
class Mode:
  """What a layer needs beside its input: the last argument of every module's `__call__`.

  Attributes:
    execution: how the net is run.
    groups: examples that share batch-norm statistics in training; None takes the running ones.
    keys: [b, 2] uint32 that each example's dropout draws from; None leaves dropout out.
    metadata: [b, M] of a head that takes them.
    condition: [b] int32, the class that a conditional layer is asked for.
    offsets: added to the end points of their names; zeros, to differentiate by.
    endpoints: names of the maps to hand out. cut: name of the end point where the pass ends.
  """

  execution: Execution = flax.struct.field(pytree_node=False)
  groups: groups_lib.Groups | None = None
  keys: jax.Array | None = None
  metadata: jax.Array | None = None
  condition: jax.Array | None = None
  offsets: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
  endpoints: tuple[str, ...] = flax.struct.field(pytree_node=False, default=())
  cut: str = flax.struct.field(pytree_node=False, default="")

  def dtype(self, *arrays: jax.Array) -> jnp.dtype:
    """The type in which a layer computes on these arrays."""
    if self.execution.dtype == "bfloat16":
      return jnp.dtype(jnp.bfloat16)
    return jnp.result_type(*arrays)

  def auxiliary(self, module: nn.Module, logits: Sequence[jax.Array]) -> None:
    """Hands out logits [b, K] of parts of a head, in whose compact method this is called."""
    module.sow(AUXILIARY, AUXILIARY, jnp.stack(logits), init_fn=lambda: None, reduce_fn=_newest)

  def endpoint(self, module: nn.Module, name: str, x: jax.Array) -> jax.Array:
    """Names a map: hands it out where asked, adds its offset, ends the pass where it is the cut.

    Args:
      module: in whose compact method this is called. name: distinct in the network. x: the map.

    Returns:
      x, for whatever follows.
    """
    if name in self.offsets:
      x = x + self.offsets[name]
    if name in self.endpoints or EVERY in self.endpoints:
      # A submodule may have the same name; a linen scope must not hold both.
      module.sow(ENDPOINTS, f"@{name}", x, init_fn=lambda: None, reduce_fn=_newest)
    if name == self.cut:
      raise Reached(x)
    return x


def _newest(_: Any, new: jax.Array) -> jax.Array:
  return new


@flax.struct.dataclass
class Result:
  """What a net says about a batch, in at least float32.

  Attributes:
    output: [b, K] logits, or [b, D'] projections.
    embedding: [b, D] pooled features, what the head sees.
    auxiliary: [A, b, K] logits of the head's parts, which a loss may see beside those of the whole;
      None where it has none.
    endpoints: name -> map [b, h, w, C], of those that were asked for.
  """

  output: jax.Array
  embedding: jax.Array
  auxiliary: jax.Array | None = None
  endpoints: dict[str, jax.Array] = flax.struct.field(default_factory=dict)


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
    endpoints: Sequence[str] = (),
    offsets: dict[str, jax.Array] | None = None,
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
      `endpoints` names maps to hand out in the result, `net.EVERY` all of them; `offsets` are added
      to the end points of their names: the gradient by an offset of zeros is that by the map.
    stages: beginnings of parameter paths, or patterns of them where streams run side by side, in
      the order in which an image passes them.
  """

  init: Callable[[jax.Array, jax.Array], tuple[contract.Tree, contract.Tree]]
  apply: Apply
  stages: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Parts:
  """What a network's file builds.

  Attributes:
    encoder: called as `(images, mode)`, returns [b, D].
    classifier: called as `(embedding, mode)`, returns [b, K].
    kernel_init: where their kernels are drawn from.
    stages: names of the encoder's parts, or patterns of them, in the order in which an image passes
      them.
  """

  encoder: nn.Module
  classifier: nn.Module  # with the field `cosine`
  kernel_init: initial.KernelInit
  stages: tuple[str, ...] = ()


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
  stages: Sequence[str] = (),
  metadata: int = 0,
) -> Net:
  """Makes a `Net` of two unbound modules.

  Args:
    encoder, head: see `Parts`; any head that takes the embedding.
    kernel_init: where their kernels are drawn from.
    execution: how to run it.
    bn_momentum: share of the old value that a running statistic keeps at each step.
    stages: see `Parts`. metadata: width of the metadata that the head takes.
  """
  network = _Network(encoder, head)

  @jax.jit  # so that the forward pass, whose result nobody reads, is never computed
  def init(key: jax.Array, images: jax.Array) -> tuple[contract.Tree, contract.Tree]:
    rows = jnp.zeros((len(images), metadata)) if metadata else None
    classes = jnp.zeros(len(images), jnp.int32)
    mode = Mode(execution, metadata=rows, condition=classes)
    variables = network.init(key, images, mode)
    return initial.with_kernels(variables["params"], key, kernel_init), variables["batch_stats"]

  def apply(params, stats, batch, *, train, key=None, momentum=None, endpoints=(), offsets=None):
    if train and key is None and momentum is None:
      raise ValueError("a training step needs a key for dropout: apply(..., train=True, key=key)")
    mode = dataclasses.replace(
      _mode(execution, batch, train, key), offsets=offsets or {}, endpoints=tuple(endpoints)
    )
    variables, images = {"params": params, "batch_stats": stats}, batch[contract.IMAGE]
    collections = [BATCH_MOMENTS, ITERATES, ENDPOINTS, AUXILIARY]
    result, found = network.apply(variables, images, mode, mutable=collections)
    named = _named(found.get(ENDPOINTS, {}), endpoints)
    result = result.replace(endpoints=named, auxiliary=_only(found.get(AUXILIARY, {})))
    if mode.groups is None:
      return result, stats
    moments = mode.groups.over_devices(found.get(BATCH_MOMENTS, {}))
    stats = _moved(stats, moments, bn_momentum if momentum is None else momentum)
    return result, trees.updated(stats, found.get(ITERATES, {}))

  return Net(init, apply, (*(f"encoder/{stage}" for stage in stages), "head"))


def _mode(execution: Execution, batch: contract.Batch, train: bool, key: jax.Array | None) -> Mode:
  metadata, condition = batch.get(contract.METADATA), batch.get(contract.CONDITION)
  if not train:
    return Mode(execution, metadata=metadata, condition=condition)
  keys = None if key is None else _example_keys(key, batch[contract.SLOT])
  if execution.freeze_stats:
    return Mode(execution, None, keys, metadata, condition)
  groups = groups_lib.make(batch[contract.MASK], execution.bn_group, execution.axis)
  return Mode(execution, groups, keys, metadata, condition)


def _named(found: contract.Tree, wanted: Sequence[str]) -> dict[str, jax.Array]:
  """The end points by their own names, wherever in the net they were."""
  named = {path.rpartition("@")[2]: value for path, value in trees.flatten(found).items()}
  missing = [name for name in wanted if name not in named and name != EVERY]
  if missing:
    raise ValueError(
      f"this network has no end point {missing[0]!r}; apply(..., endpoints=[net.EVERY]) has all"
    )
  return named


def _only(found: contract.Tree) -> jax.Array | None:
  """The logits of a head's parts; None where it has handed out none."""
  return next((_at_least_float32(value) for value in trees.flatten(found).values()), None)


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
