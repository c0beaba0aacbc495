"""Libraries in processes of their own, timed in turn, so that all see the same machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

_SETTLING = 0.3  # seconds
WORKER = pathlib.Path(__file__).with_name("worker.py")
ON_CPU = {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "CUDA_VISIBLE_DEVICES": ""}


@dataclasses.dataclass
class Side:
  """A library in one of its settings.

  Attributes:
    library, variant: what runs. process: where. about: what it says of itself, see `worker`.
    seconds: a step, of each round. peak: most memory held in the rounds, in MB.
  """

  library: str
  variant: str
  process: subprocess.Popen
  about: dict
  seconds: list[float] = dataclasses.field(default_factory=list)
  peak: int = 0

  @property
  def name(self) -> str:
    return f"{self.library} ({self.variant})"

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)

  def __str__(self) -> str:
    return f"{self.median:.3f} ({min(self.seconds):.3f} to {max(self.seconds):.3f})"


def start(
  stack: contextlib.ExitStack, library: str, variant: str, network: str, steps: int
) -> Side:
  """Starts a worker and waits until it has compiled; `stack` ends it."""
  command = [sys.executable, str(WORKER), library, variant, network, str(steps)]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
  process = stack.enter_context(subprocess.Popen(command, env=os.environ | ON_CPU, **pipes))
  stack.callback(process.kill)
  return Side(library, variant, process, _answer(process))


def alternate(sides: list[Side], count: int, steps: int) -> None:
  """Asks every side once a round; who comes first moves on by one from round to round.

  Between two sides is a pause, in which the threads of the first fill what they read ahead: else
  they would do so at the second's expense.
  """
  for number in range(count):
    first = number % len(sides)
    for side in sides[first:] + sides[:first]:
      time.sleep(_SETTLING)
      print(file=side.process.stdin)
      answer = _answer(side.process)
      side.seconds.append(answer["seconds"] / steps)
      side.peak = answer["peak"]


def best(sides: list[Side]) -> dict[str, Side]:
  """Library -> its side with the smallest median."""
  slowest_first = sorted(sides, key=lambda side: side.median, reverse=True)
  return {side.library: side for side in slowest_first}


def _answer(process: subprocess.Popen) -> dict:
  line = process.stdout.readline()
  if not line:
    raise SystemExit(f"{process.args} ended with {process.wait()}: its error is above")
  return json.loads(line)
