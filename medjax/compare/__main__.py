"""`python -m medjax.compare A B`: two runs, stages or tables of predictions of the same images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import sys

from medjax import command, compare
from medjax.compare import sheet, words


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medjax.compare",
    description="Compares two classifiers by their predictions of the same images.",
  )
  add = parser.add_argument
  kinds = "workdir, folder of a stage, or predictions_<part>.csv"
  add("a", type=pathlib.Path, metavar="A", help=kinds)
  add("b", type=pathlib.Path, metavar="B", help=f"what it is set against: {kinds}")
  add("--stage", default="", help="of workdirs (default: the last with predictions)")
  add("--part", default="test", help="that was scored (default: test)")
  add("--metric", default="", help="that decides (default: what A was chosen by, or auc)")
  add("--resamples", type=int, default=10_000, help="of the bootstrap (default: 10000)")
  add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
  add("--out", type=pathlib.Path, help=f"folder for {sheet.PAGE} and {sheet.RECORD}")
  add("--debug", action="store_true", help="show the traceback of an error")
  return parser


def _run(args: argparse.Namespace) -> None:
  if args.resamples < 1:
    raise ValueError(f"--resamples={args.resamples}: at least 1 is needed, 10000 is usual")
  a, b = (compare.opened(path, args.stage, args.part) for path in (args.a, args.b))
  found = compare.of(a, b, args.metric, args.resamples, args.seed)
  print(words.terminal(found))
  if args.out:
    print(f"\npage: {sheet.write(found, args.out)}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; its status."""
  args = _parser().parse_args(argv)
  return command.status(lambda: _run(args), args.debug)


if __name__ == "__main__":
  sys.exit(main())
