"""Training in medjax, as a stage of a run does it: resident data, K steps a dispatch."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import statistics
from typing import Any

import jax
import numpy as np
import problem

from medjax import augment, contract, models, objectives, optim, settings, trees
from medjax import mesh as mesh_lib
from medjax import train as train_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib
from medjax.models import net as net_lib

_UNCHANGED = settings.Augment()
mesh_lib.divide_cpu()  # as a run does


def versions() -> dict[str, str]:
  kind = jax.devices()[0].device_kind
  return {"jax": jax.__version__ if kind == "cpu" else f"{jax.__version__}, {kind}"}


@dataclasses.dataclass
class Parts:
  """A network in training: what steps are made of, and how far they are."""

  objective: Any
  feed: feed_lib.Feed
  mesh: jax.sharding.Mesh
  state: Any
  key: jax.Array

  def lrs(self, k: int) -> jax.Array:
    return mesh_lib.put(self.mesh, np.full(k, problem.LEARNING_RATE))


def make(task: problem.Task, variant: str, steps: int) -> problem.Trainer:
  """Trains in a variant: `K steps a dispatch`, perhaps with `plain convolutions`, or `called`.

  `called` is the bare step, called from Python once a batch.
  """
  made = parts(task, steps, "plain" if "plain" in variant else "")
  by_call = variant.startswith("called")
  k = 1 if by_call else int(variant.split()[0])
  dispatch = (called if by_call else train_lib.dispatcher)(
    made.objective, made.feed.take, made.mesh
  )

  def losses() -> list[float]:
    made.feed.position, found = 0, []
    while made.feed.position < steps:
      some = min(k, steps - made.feed.position)
      ticket = made.feed.next(some)
      resident, lrs = made.feed.resident, made.lrs(some)
      made.state, metrics = dispatch(made.state, resident, ticket, lrs, made.key)
      found.append(metrics["loss"])
    return np.concatenate(jax.device_get(found)).tolist()

  count = trees.count(made.state.params)
  run = lambda: statistics.fmean(losses())  # noqa: E731
  return problem.Trainer(count, run, losses, peak if task.device == "gpu" else None)


def called(objective: Any, take: Callable, mesh: jax.sharding.Mesh) -> jax.stages.Wrapped:
  """Like `train.dispatcher` for one step, but without a loop around it."""

  def one(state, resident, tickets, lrs, key):
    batch = take(resident, jax.tree.map(lambda leaf: leaf[0], tickets))
    key = jax.random.fold_in(key, state.step)
    state, metrics = objective.step(state, batch, key, lrs[0])
    return state, jax.tree.map(lambda leaf: leaf[None], metrics)

  whole = mesh_lib.REPLICATED
  specs = whole, whole, mesh_lib.cut(1), whole, whole
  return mesh_lib.mapped(one, mesh, specs, (whole, whole), donate=(0,))


def parts(task: problem.Task, steps: int, form: str = "") -> Parts:
  """What a task is trained with, on `steps` batches; `form` of convolutions, else the device's."""
  mesh = mesh_lib.make()
  part = _part(task, *task.data(steps))
  made = objective(task, part.labels, problem.CLASSES, steps, form)
  feed = feed_lib.training(part, task.batch, 0, mesh, "resident")
  state = jax.jit(made.init)(jax.random.key(0))
  if task.same_kernels:
    state = state.replace(params=_with_kernels(state.params))
  key = mesh_lib.put(mesh, jax.random.key(0))
  return Parts(made, feed, mesh, mesh_lib.put(mesh, state), key)


def objective(
  task: problem.Task,
  labels: np.ndarray,
  classes: int,
  steps: int,
  form: str = "",
  learning: settings.Objective | None = None,
  change: settings.Augment = _UNCHANGED,
  bn_group: int = 0,
) -> Any:
  """How a task is learnt; by default as the libraries beside medjax learn it."""
  info = contract.DataInfo(
    classes=tuple(map(str, range(classes))),
    image_shape=(task.side, task.side, task.channels),
    class_counts=tuple(np.bincount(labels, minlength=classes).tolist()),
    train_size=len(labels),
    mean=(0.5,) * task.channels,
    std=(0.3,) * task.channels,
  )
  adam = settings.Adam(lr=problem.LEARNING_RATE, eps=problem.EPSILON, schedule="constant", clip=0.0)
  form = form or ("cpu" if jax.default_backend() == "cpu" else "plain")
  dtype = "bfloat16" if task.precision == "bfloat16" else "float32"
  execution = net_lib.Execution(form, dtype, bn_group, axis=contract.AXIS)
  learning = learning or settings.Supervised(loss=task.loss, class_weights="none")
  net = models.make(task.cfg, info, execution, getattr(learning, "projector", None))
  return objectives.make(learning, net, optim.make(adam, steps, 0), augment.make(change), info)


def peak() -> int:
  """Most memory held on the device, in MB."""
  return jax.devices()[0].memory_stats()["peak_bytes_in_use"] // 2**20


def _part(task: problem.Task, images: np.ndarray, labels: np.ndarray) -> catalogue.Part:
  """The images, laid so that the first epoch's shuffled order is the one that others see."""
  ids = np.arange(len(images)).astype(str)
  part = catalogue.Part("train", ids, ids, labels, images.__getitem__, images)
  feed = feed_lib.training(part, task.batch, 0, mesh_lib.make(), "resident")
  order = np.concatenate([feed.rows(step) for step in range(len(images) // task.batch)])
  place = np.argsort(order)
  return dataclasses.replace(part, images=images[place], labels=labels[place])


def _with_kernels(params: contract.Tree) -> contract.Tree:
  flat = trees.flatten(params)
  kernels = {p: problem.kernel(p, x.shape) for p, x in flat.items() if p.endswith("kernel")}
  kernels = {path: value.astype(flat[path].dtype) for path, value in kernels.items()}
  return trees.unflatten(flat | kernels)
