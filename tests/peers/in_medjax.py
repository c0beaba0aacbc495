"""Training in medjax, as a stage of a run does it: resident data, K steps a dispatch."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import problem

from medjax import augment, contract, models, objectives, optim, settings, trees
from medjax import mesh as mesh_lib
from medjax import train as train_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib
from medjax.models import net as net_lib

PER_DISPATCH = 4


def versions() -> dict[str, str]:
  return {"jax": jax.__version__}


def make(task: problem.Task, variant: str, steps: int) -> problem.Trainer:
  del variant
  mesh = mesh_lib.make()
  part = _part(*task.data(steps))
  objective = _objective(task, part, steps)
  feed = feed_lib.training(part, problem.BATCH, 0, mesh, "resident")
  dispatch = train_lib.dispatcher(objective, feed.take, mesh)
  key = mesh_lib.put(mesh, jax.random.key(0))
  state = jax.jit(objective.init)(jax.random.key(0))
  state = mesh_lib.put(mesh, state.replace(params=_with_kernels(state.params)))

  def run() -> float:
    nonlocal state
    feed.position, losses = 0, []
    while feed.position < steps:
      k = min(PER_DISPATCH, steps - feed.position)
      lrs = mesh_lib.put(mesh, np.full(k, problem.LEARNING_RATE))
      state, metrics = dispatch(state, feed.resident, feed.next(k), lrs, key)
      losses.append(metrics["loss"])
    return float(np.concatenate(jax.device_get(losses)).mean())

  return problem.Trainer(trees.count(state.params), run)


def _objective(task: problem.Task, part: catalogue.Part, steps: int):
  info = contract.DataInfo(
    classes=tuple(map(str, range(problem.CLASSES))),
    image_shape=part.images.shape[1:],
    class_counts=tuple(np.bincount(part.labels, minlength=problem.CLASSES).tolist()),
    train_size=len(part),
    mean=(0.5,) * 3,
    std=(0.3,) * 3,
  )
  adam = settings.Adam(lr=problem.LEARNING_RATE, eps=problem.EPSILON, schedule="constant", clip=0.0)
  form = "cpu" if jax.default_backend() == "cpu" else "plain"
  net = models.make(task.cfg, info, net_lib.Execution(form, axis=contract.AXIS))
  learning = settings.Supervised(loss=task.loss, class_weights="none")
  return objectives.make(
    learning, net, optim.make(adam, steps, 0), augment.make(settings.Augment()), info
  )


def _part(images: np.ndarray, labels: np.ndarray) -> catalogue.Part:
  """The images, laid so that the first epoch's shuffled order is the one that others see."""
  ids = np.arange(len(images)).astype(str)
  part = catalogue.Part("train", ids, ids, labels, images.__getitem__, images)
  feed = feed_lib.training(part, problem.BATCH, 0, mesh_lib.make(), "resident")
  order = np.concatenate([feed.rows(step) for step in range(len(images) // problem.BATCH)])
  place = np.argsort(order)
  return dataclasses.replace(part, images=images[place], labels=labels[place])


def _with_kernels(params: contract.Tree) -> contract.Tree:
  flat = trees.flatten(params)
  kernels = {p: problem.kernel(p, x.shape) for p, x in flat.items() if p.endswith("kernel")}
  return trees.unflatten(flat | kernels)
