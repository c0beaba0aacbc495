"""Times a step as images, classes and devices grow: what should cost nothing, and what it does."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import time

import problem
import results
import rounds

from medjax.bench import options as options_lib

NETWORK, STEPS, PER_DISPATCH, DEVICES = "pneumonia_cnn", 32, 4, 8
IMAGES = (1_000, 10_000, 100_000)
CLASSES = (100, 1_000)  # elsewhere 2
MESHES = (2, 4, 8)  # elsewhere 1; they share the same cores, so the time should not grow


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Seconds of a step in every case, in turns."""
  cases = [(f"{count:,} images", count, 2, 1) for count in IMAGES[: 2 if asked.quick else 3]]
  cases += [(f"{count:,} classes", IMAGES[0], count, 1) for count in CLASSES]
  cases += [(f"{count} fake devices", IMAGES[0], 2, count) for count in MESHES]
  options = dict(cases=cases, rounds=asked.rounds, steps=asked.steps or STEPS, side=asked.size)
  flag = f"--xla_force_host_platform_device_count={DEVICES}"
  found = rounds.alone("growth", options, XLA_FLAGS=flag)
  yield [
    results.Measured("growth", NETWORK, results.STEP, results.OURS, name, tuple(values))
    for name, values in found.items()
  ]


def main(options: dict) -> dict:
  """Alternates the cases in one process."""
  task = dataclasses.replace(problem.task(NETWORK, options["side"]), batch=16)
  runs = {name: _run(task, options["steps"], *case) for name, *case in options["cases"]}
  found: dict[str, list[float]] = {name: [] for name in runs}
  for run in runs.values():
    run()  # compiles
  for _ in range(options["rounds"]):
    for name, run in runs.items():
      began = time.perf_counter()
      run()
      found[name].append((time.perf_counter() - began) / options["steps"])
  return found


def _run(task: problem.Task, steps: int, images: int, classes: int, devices: int):
  """Steps of a case, to be run again and again."""
  import in_medjax
  import jax
  import numpy as np

  from medjax import mesh as mesh_lib
  from medjax import train as train_lib
  from medjax.data import catalogue
  from medjax.data import feed as feed_lib

  rng, mesh = np.random.default_rng(0), mesh_lib.make(jax.devices()[:devices])
  pixels = rng.integers(0, 256, (images, task.side, task.side, task.channels), np.uint8)
  labels = (np.arange(images) % classes).astype(np.int32)
  ids = np.arange(images).astype(str)
  part = catalogue.Part("train", ids, ids, labels, pixels.__getitem__, pixels)
  made = in_medjax.objective(task, labels, classes, 1000)
  feed = feed_lib.training(part, task.batch, 0, mesh, "resident")
  dispatch = train_lib.dispatcher(made, feed.take, mesh)
  state = mesh_lib.put(mesh, jax.jit(made.init)(jax.random.key(0)))
  key = mesh_lib.put(mesh, jax.random.key(0))
  lrs = mesh_lib.put(mesh, np.full(PER_DISPATCH, problem.LEARNING_RATE))

  def run() -> None:
    nonlocal state
    for _ in range(steps // PER_DISPATCH):
      ticket = feed.next(PER_DISPATCH)
      state, metrics = dispatch(state, feed.resident, ticket, lrs, key)
    jax.block_until_ready(metrics)

  return run
