"""Times SimCLR beside supervised training of as many views.

Both train the same network with the same augmentation on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib

import problem
import results
import rounds

from medjax.bench import options as options_lib

NETWORKS = ("resnet50", "mednet")
SIDES = (("medjax", "SimCLR, two views"), ("supervised", "one view of twice the images"))
WANTED = {"supervised": ">= 0.9"}
SIDE, BATCH, STEPS = 224, 64, 8


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Every network; `batch` is that of SimCLR."""
  steps = asked.steps or STEPS
  options = dict(steps=steps, side=asked.size or SIDE, batch=asked.batch or BATCH)
  options["precision"] = asked.precision or {"cpu": "float32", "gpu": "bfloat16"}[asked.device]
  for network in asked.networks or NETWORKS:
    options |= dict(network=network, device=asked.device)
    with contextlib.ExitStack() as stack:
      sides = [rounds.start(stack, "pretraining", *pair, options) for pair in SIDES]
      rounds.alternate(sides, asked.rounds, steps)
    yield results.of_sides("pretraining", network, sides, WANTED)


def side(library: str, variant: str, options: dict) -> rounds.Work:
  """What a process of `measure` does."""
  del variant
  import in_medjax

  simclr = library == "medjax"
  names = ("side", "precision", "device")
  batch = options["batch"] * (1 if simclr else 2)
  task_options = {name: options[name] for name in names}
  task = problem.task(options["network"], batch=batch, **task_options)
  made = in_medjax.parts(task, 1)
  peak = in_medjax.peak if options["device"] == "gpu" else None
  run = _run(made, task, simclr, options["steps"])
  return rounds.Work(run, {"versions": in_medjax.versions()}, peak)


def _run(made, task: problem.Task, simclr: bool, steps: int) -> Callable[[], None]:
  import in_medjax
  import jax
  import numpy as np

  from medjax import mesh as mesh_lib
  from medjax import settings
  from medjax import train as train_lib

  change = settings.VARIANTS[settings.Augment]["simclr_gray"]
  learning = settings.SimCLR() if simclr else None
  labels = np.arange(task.batch, dtype=np.int32) % problem.CLASSES
  objective = in_medjax.objective(
    task, labels, problem.CLASSES, 1000, learning=learning, change=change
  )
  state = mesh_lib.put(made.mesh, jax.jit(objective.init)(jax.random.key(0)))
  dispatch = train_lib.dispatcher(objective, made.feed.take, made.mesh)

  def run() -> None:
    nonlocal state
    for _ in range(steps):
      ticket, lrs = made.feed.next(1), made.lrs(1)
      state, metrics = dispatch(state, made.feed.resident, ticket, lrs, made.key)
    jax.block_until_ready(metrics)

  return run
