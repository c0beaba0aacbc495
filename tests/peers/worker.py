"""One library in a process of its own, which trains whenever it is asked to.

  python worker.py torch channels_last quadsnet_exact 4

says on stdout, a line of JSON each: first what it runs, then for every line on stdin the seconds of
so many steps. Whatever libraries print goes to stderr.

A library's module has `versions()` and `make(cfg, variant, steps)`, which gives a
`problem.Trainer`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time

import problem


def main(library: str, variant: str, network: str, steps: str) -> None:
  answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  module = importlib.import_module(f"in_{library}")

  def made(steps: int, dropout: bool) -> problem.Trainer:
    return module.make(problem.network(network, dropout), variant, steps)

  first_loss = made(problem.CHECKED_STEPS, dropout=False).run()
  trainer = made(int(steps), dropout=True)
  trainer.run()  # compiles
  about = {"loss": first_loss, "parameters": trainer.parameters, "versions": module.versions()}
  print(json.dumps(about), file=answers)
  for _ in sys.stdin:
    start = time.perf_counter()
    trainer.run()
    print(json.dumps(time.perf_counter() - start), file=answers)


if __name__ == "__main__":
  main(*sys.argv[1:])
