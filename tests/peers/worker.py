"""One library in a process of its own, which works whenever it is asked to.

  python worker.py training_step torch channels_last '{"network": "mednet", "steps": 4}'

says on stdout, a line of JSON each: first what it runs, with the seconds of the first round, in
which libraries compile; then for every line on stdin the seconds of a round, and the most memory
that it has held in the rounds, in MB: with the library and the images, without what only the
compiler needed. Whatever libraries print goes to stderr.

A module has `side(library, variant, options)`, which gives a `rounds.Work`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import pathlib
import sys
import time

import rounds

_PROCESS = pathlib.Path("/proc/self")


def main(module: str, library: str, variant: str, options: str) -> None:
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  work = importlib.import_module(module).side(library, variant, json.loads(options))
  first = _seconds(work)  # compiles
  _forget_peak()
  work.run()  # takes back the memory that it works in
  print(json.dumps(work.about | {"first": first}), file=answers)
  for _ in sys.stdin:
    print(json.dumps({"seconds": _seconds(work), "peak": (work.peak or _peak)()}), file=answers)


def _seconds(work: rounds.Work) -> float:
  work.before()
  start = time.perf_counter()
  work.run()
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
