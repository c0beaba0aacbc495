"""Times training steps of nets for grey images of 28 pixels, where calls cost as much as sums."""

from __future__ import annotations

from collections.abc import Iterator

import results
import training_step

from medjax.bench import options as options_lib

NETWORKS = ("mednet_8", "pneumonia_cnn")
SIDES = (
  ("medjax", "4 steps a dispatch"),
  ("medjax", "32 steps a dispatch"),
  ("keras", "1 step an execution"),
  ("keras", "32 steps an execution"),
  ("torch", "contiguous"),
  ("torch", "channels_last"),
  ("torch", "contiguous, 1 thread"),
)
WANTED = {"keras": ">= 5", "torch": ">= 2"}


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Every network."""
  for network in asked.networks or NETWORKS:
    yield training_step.compared("small", network, SIDES, WANTED, asked, steps=32)
