"""Trains the same networks in all libraries for fifty steps from the same kernels, in float64.

In float32 rounding alone drives losses apart within a few steps, and nothing could be told from it.
In float64 it takes far longer, so libraries that do the same work have the same losses. Keras's
batch norm computes in float32 in a model of float64, too: it is held to its first loss alone.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import importlib

import plots
import problem
import results
import rounds

from medjax.bench import options as options_lib

NETWORKS = ("quadsnet", "mednet")
SIDES = (("medjax", "4 steps a dispatch"), ("keras", "1 step"), ("torch", "contiguous"))
STEPS, SIDE, BATCH = 50, 32, 4
FIRST, ALL = "<= 1e-5", {"torch": "<= 1e-6"}


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Every network: largest difference of a loss from medjax's; draws them over each other."""
  folder = asked.out or rounds.HERE / "results"
  for network in asked.networks or NETWORKS:
    options = dict(network=network, side=asked.size or SIDE, batch=asked.batch or BATCH)
    options |= dict(precision="float64", steps=asked.steps or STEPS)
    losses = {}
    for library, variant in SIDES:
      with contextlib.ExitStack() as stack:
        losses[library] = rounds.start(stack, "curves", library, variant, options).about["losses"]
    title = f"{network}, the same kernels, batches and Adam, float64"
    print(f"drawn: {plots.curves(folder / f'curves-{network}.png', title, losses)}", flush=True)
    ours = losses.pop("medjax")
    yield [
      one for library, theirs in losses.items() for one in _apart(network, library, ours, theirs)
    ]


def _apart(
  network: str, library: str, ours: list[float], theirs: list[float]
) -> list[results.Measured]:
  """How far a library's losses are from ours."""
  apart = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
  found = (
    ("difference of the first loss", apart[0], FIRST),
    (f"largest difference of {len(apart)} losses", max(apart), ALL.get(library, "")),
  )
  return [
    results.Measured("curves", network, what, library, "float64", (value,), wanted=wanted)
    for what, value, wanted in found
  ]


def side(library: str, variant: str, options: dict) -> rounds.Work:
  """What a process of `measure` does: all of it before it is asked anything."""
  options = dict(options)
  network, steps = options.pop("network"), options.pop("steps")
  task = problem.task(network, **options).without_dropout
  trainer = importlib.import_module(f"in_{library}").make(task, variant, steps)
  return rounds.Work(lambda: None, {"losses": trainer.losses()})
