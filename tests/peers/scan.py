"""Times a step inside `lax.scan` beside the same step called from Python."""

from __future__ import annotations

from collections.abc import Iterator

import results
import training_step

from medjax.bench import options as options_lib

SIDES = (("medjax", "4 steps a dispatch"), ("called", "called from Python"))
WANTED = {"called": ">= 0.909"}  # in the loop at most 1.1 times as long
NETWORKS = ("quadsnet", "mednet", "mobilenet_v2")


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Every network."""
  for network in asked.networks or (NETWORKS[:1] if asked.quick else NETWORKS):
    yield training_step.compared("scan", network, SIDES, WANTED, asked, steps=4)
