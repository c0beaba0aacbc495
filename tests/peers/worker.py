"""One library in a process of its own, which trains whenever it is asked to.

  python worker.py torch channels_last quadsnet_exact 4

says on stdout, a line of JSON each: first what it runs, then for every line on stdin the seconds of
so many steps, and the most memory that the process has held while it trained, in MB: with the
library and the images, without what only the compiler needed. Whatever libraries print goes to
stderr.

A library's module has `versions()` and `make(task, variant, steps)`, which gives a
`problem.Trainer`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import math
import os
import pathlib
import sys
import time

import problem

_PROCESS = pathlib.Path("/proc/self")


def main(library: str, variant: str, network: str, steps: str) -> None:
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  module, task = importlib.import_module(f"in_{library}"), problem.task(network)
  about = {"versions": module.versions()}
  if task.same_kernels:
    about["loss"] = module.make(task.without_dropout, variant, problem.CHECKED_STEPS).run()
  trainer = module.make(task, variant, int(steps))
  trainer.run()  # compiles
  _forget_peak()
  trainer.run()  # takes back the memory that it trains in
  print(json.dumps(about | {"parameters": trainer.parameters}), file=answers)
  for _ in sys.stdin:
    print(json.dumps({"seconds": _seconds(trainer), "peak": _peak()}), file=answers)


def _seconds(trainer: problem.Trainer) -> float:
  start = time.perf_counter()
  loss = trainer.run()
  if not math.isfinite(loss):
    raise FloatingPointError(f"the loss is {loss}")
  return time.perf_counter() - start


def _forget_peak() -> None:
  """Gives free memory back to the system, and counts the most memory held from now on."""
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  (_PROCESS / "clear_refs").write_text("5")


def _peak() -> int:
  lines = (_PROCESS / "status").read_text().splitlines()
  held = next(line for line in lines if line.startswith("VmHWM"))
  return int(held.split()[1]) // 1024


if __name__ == "__main__":
  main(*sys.argv[1:])
