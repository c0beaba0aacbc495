"""Tells which share a step has of what this machine's arithmetic and memory allow.

Work and traffic are XLA's own count of the compiled step; the machine is measured beside it, by a
large product of matrices in the step's precision and by an array that is read and written once. A
share of the memory rate can be above 1: maps that stay in a cache are counted as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import time

import problem
import results
import rounds
import training_step

from medjax.bench import options as options_lib

SHARES = {
  "flops": "share of the best arithmetic rate",
  "bytes accessed": "share of the best memory rate",
}
ORDER, VALUES, STEPS = 2048, 2**26, 4  # of the matrices; of the array; of a round


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Every network."""
  for network in asked.networks or training_step.QUICK[: 2 if asked.quick else None]:
    options = dict(network=network, side=asked.size, batch=asked.batch or problem.BATCH)
    options |= dict(device=asked.device, rounds=asked.rounds, steps=asked.steps or STEPS)
    options["precision"] = asked.precision or "float32"
    found = rounds.alone("bounds", options)
    yield [
      results.Measured("bounds", network, what, results.OURS, "", tuple(values))
      for what, values in found.items()
    ]


def main(options: dict) -> dict:
  """Alternates steps, a product of matrices and a copy, in one process."""
  import in_medjax
  import jax
  import jax.numpy as jnp

  task_options = {name: options[name] for name in ("side", "batch", "device", "precision")}
  task = problem.task(options["network"], **task_options)
  trainer = in_medjax.make(task, "called", options["steps"])
  cost = _cost(in_medjax.parts(task, 1))
  dtype = jnp.bfloat16 if options["precision"] == "bfloat16" else jnp.float32
  matrix = jax.random.normal(jax.random.key(0), (ORDER, ORDER), dtype)
  array = jnp.ones(VALUES)
  product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
  best = {
    "flops": (2 * ORDER**3, lambda: jax.block_until_ready(product(matrix))),
    "bytes accessed": (2 * array.nbytes, lambda: jax.block_until_ready(copy(array))),
  }
  for run in (trainer.run, *(run for _, run in best.values())):
    run()  # compiles
  found: dict[str, list[float]] = {name: [] for name in (*SHARES.values(), results.STEP)}
  for _ in range(options["rounds"]):
    step = _seconds(trainer.run) / options["steps"]
    found[results.STEP].append(step)
    for name, (amount, run) in best.items():
      rate = amount / min(_seconds(run) for _ in range(3))
      found[SHARES[name]].append(cost[name] / step / rate)
  counts = {"GFLOP a step": cost["flops"], "GB a step": cost["bytes accessed"]}
  return found | {what: [count / 1e9] for what, count in counts.items()}


def _cost(made) -> dict[str, float]:
  """XLA's count of one step."""
  import in_medjax

  step = in_medjax.called(made.objective, made.feed.take, made.mesh)
  lowered = step.lower(made.state, made.feed.resident, made.feed.next(1), made.lrs(1), made.key)
  return lowered.compile().cost_analysis()


def _seconds(run: Callable[[], object]) -> float:
  began = time.perf_counter()
  run()
  return time.perf_counter() - began
