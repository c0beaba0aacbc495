"""`python -m medjax.ensemble MODEL MODEL ... --out FOLDER [--weights]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import pathlib
import sys

from medjax import command, compare, contract, evaluate, metrics, phrases
from medjax.chapters import provenance
from medjax.ensemble import scores, weights

SHOWN = ("auc", "macro_f1", "log_loss", "ece")
FILE = "ensemble.json"


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medjax.ensemble",
    description="Several trained networks as one: the means of their scores (seeds; folds are put"
    " together), or with --weights a network of the mean of their weights.",
  )
  add = parser.add_argument
  model = "a workdir, a stage's folder or a checkpoint; without --weights also a predictions_*.csv"
  add("models", type=pathlib.Path, nargs="+", metavar="MODEL", help=model)
  add("--out", type=pathlib.Path, required=True, help="folder for what comes of it")
  add("--stage", default="", help="of every workdir (default: the last with a classifier)")
  add("--part", default="test", help="whose scores are averaged (default: test)")
  add("--weights", action="store_true", help="average weights, into a workdir; needs the images")
  add("--resamples", type=int, default=1000, help="behind the intervals (default: 1000)")
  add("--debug", action="store_true", help="show the traceback of an error")
  return parser


def _run(args: argparse.Namespace) -> None:
  if len(args.models) < 2:
    raise ValueError("an ensemble is of two models or more, such as runs/seed0 runs/seed1")
  command.check_empty(args.out)
  if args.weights:
    folder = weights.average(args.models, args.out, args.stage)
    print(f"a workdir with the mean of the weights: {folder.parent}")
    return
  members = [compare.opened(model, args.stage, args.part) for model in args.models]
  files, tables = [each.path for each in members], [each.table for each in members]
  whole = scores.together(tables)
  args.out.mkdir(0o700, parents=True, exist_ok=True)
  place = args.out / f"predictions_{whole.split}.csv"
  evaluate.write(place, whole)
  _keep(args.out, files)
  _tell([*map(str, files), str(place)], [*tables, whole], args.resamples)


def _keep(out: pathlib.Path, files: Sequence[pathlib.Path]) -> None:
  """Keeps what the ensemble is made of."""
  members = [{"file": str(file.resolve()), "sha256": provenance.of_file(file)} for file in files]
  text = json.dumps({"mean_of_scores": members}, indent=2)
  (out / FILE).write_text(text + "\n", encoding="utf-8")


def _tell(names: Sequence[str], tables: Sequence[contract.Predictions], resamples: int) -> None:
  """Prints the metrics of every member and of the ensemble, which is the last."""
  for name, table in zip(names, tables, strict=True):
    known = metrics.names(len(table.classes), table.multi_label)
    wanted = [metric for metric in SHOWN if metric in known]
    found = metrics.intervals(table, wanted, resamples, seed=0)
    print(f"{name}  {len(table):,} images")
    for metric, interval in found.items():
      print(f"  {metric:10} {phrases.interval(interval)}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; its status."""
  args = _parser().parse_args(argv)
  return command.status(lambda: _run(args), args.debug)


if __name__ == "__main__":
  sys.exit(main())
