"""`python -m medjax.main --config=configs/x.py --workdir=runs/x [--config.key=value ...]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import signal
import sys

from medjax import command, place, runs

STOPPED = 75  # exit status of a run that a signal ended and that the same command continues
_LINES = 12


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medjax.main", description="Trains and evaluates medical-image classifiers."
  )
  parser.add_argument("--config", help="config file, or FILE:ARG such as configs/x.py:smoke")
  parser.add_argument("--workdir", type=pathlib.Path, help="folder of the run; default runs/CONFIG")
  parser.add_argument("--task", default="train", help=f"one of {', '.join(runs.TASKS)}")
  parser.add_argument("--coordinator", default="", help="HOST:PORT of process 0, of several")
  parser.add_argument("--processes", type=int, default=0, help="how many run together")
  parser.add_argument("--process", type=int, default=-1, help="which of them this is, from 0")
  parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
  parser.epilog = (
    "--config.KEY=VALUE overrides a setting, e.g. --config.optimizer.lr=3e-4. Several processes"
    " find each other by themselves under SLURM (srun) and Open MPI."
  )
  return parser


def _overrides(rest: Sequence[str]) -> list[str]:
  for word in rest:
    if not word.startswith("--config."):
      raise ValueError(f"unknown flag {word}; --help lists the flags")
  return [word.removeprefix("--config.") for word in rest]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a task; returns the exit status: 0 done, 1 an error told on stderr, 75 stopped."""
  args, rest = _parser().parse_known_args(argv)
  command.collect_rarely()
  # Outside the training loop a SIGTERM ends the run like Ctrl-C: what is saved is whole.
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    where = place.found(args.coordinator, args.processes, args.process)
    runs.start(args.task, args.config, args.workdir, _overrides(rest), where)
  except KeyboardInterrupt as stop:
    print(f"stopped{stop}; the same command goes on from the last checkpoint", flush=True)
    return STOPPED
  except Exception as error:  # every error ends here, told in a few lines
    if args.debug:
      raise
    text = error.args[0] if isinstance(error, KeyError) else error
    lines = f"error: {text or type(error).__name__}".splitlines()[:_LINES]
    print("\n".join(lines), file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
