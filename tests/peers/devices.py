"""Counts the collectives of a training step on eight devices, and its work on each of them.

The devices are fake ones; what is counted is the compiled program, which is the same on real ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import problem
import results
import rounds
import training_step

from medjax.bench import options as options_lib

DEVICES, IMAGES = 8, 2  # images on each
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
MOST_REDUCED = 4


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Every network, a process each."""
  flag = f"--xla_force_host_platform_device_count={DEVICES}"
  for network in asked.networks or training_step.QUICK[: 2 if asked.quick else None]:
    found = rounds.alone("devices", dict(network=network, side=asked.size), XLA_FLAGS=flag)
    shared = f"work a device on {DEVICES} devices, by that of one with as many images"
    yield [
      results.figure(
        "devices",
        network,
        f"{name} of a step on {DEVICES} devices",
        count,
        f"<= {MOST_REDUCED if name == 'all-reduce' else 0}",
      )
      for name, count in found["collectives"].items()
    ] + [results.figure("devices", network, shared, found["work"], "<= 1.02")]


def main(options: dict) -> dict:
  """Counts, in the process of a network; batch-norm groups lie inside a device."""
  task = problem.task(options["network"], options["side"], IMAGES)
  one, all_of_them = (compiled(task, devices, IMAGES) for devices in (1, DEVICES))
  flops = [program.cost_analysis()["flops"] for program in (all_of_them, one)]
  return {"collectives": collectives(all_of_them), "work": flops[0] / flops[1]}


def compiled(task: problem.Task, devices: int, images: int):
  """A step on so many of the devices that are there, with so many images on each, compiled."""
  import in_medjax
  import jax
  import jax.numpy as jnp
  import numpy as np

  from medjax import contract
  from medjax import mesh as mesh_lib

  labels = np.arange(devices * images, dtype=np.int32) % problem.CLASSES
  made = in_medjax.objective(task, labels, problem.CLASSES, 1, bn_group=images)
  mesh, whole = mesh_lib.make(jax.devices()[:devices]), mesh_lib.REPLICATED
  step = mesh_lib.mapped(made.step, mesh, (whole, mesh_lib.cut(), whole, whole), whole)
  batch = {
    contract.IMAGE: np.zeros((len(labels), task.side, task.side, task.channels), np.uint8),
    contract.LABEL: labels,
    contract.MASK: np.ones(len(labels), np.float32),
    contract.SLOT: np.arange(len(labels), dtype=np.int32),
  }
  state = jax.eval_shape(made.init, jax.random.key(0))
  return step.lower(state, batch, jax.random.key(1), jnp.float32(1)).compile()


def collectives(program) -> dict[str, int]:
  """How many of each kind a compiled program has."""
  lines = program.as_text().splitlines()
  return {
    name: sum(f" {name}(" in line or f" {name}-start(" in line for line in lines)
    for name in COLLECTIVES
  }
