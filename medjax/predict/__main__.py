"""`python -m medjax.predict MODEL INPUT... --out predictions.csv`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import pathlib
import sys

from medjax import command, explain, predict
from medjax.data import arguments, inputs, progress
from medjax.explain import filling, folder
from medjax.predict import known as known_lib
from medjax.predict import scoring
from medjax.predict import table as table_lib


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medjax.predict",
    description="Scores image files: a row an input, path,predicted,score_<class>,error.",
  )
  add = parser.add_argument
  add("model", type=pathlib.Path, metavar="MODEL", help="workdir, stage, checkpoint or export")
  add(
    "inputs",
    nargs="+",
    metavar="INPUT",
    help="image, folder, zip or tar archive, quoted pattern such as 'scans/**/*.dcm', or - for"
    " names on standard input, a line each",
  )
  add("--out", type=pathlib.Path, required=True, metavar="FILE.csv", help="the table")
  add(
    "--and",
    dest="others",
    action="append",
    default=[],
    type=pathlib.Path,
    metavar="MODEL",
    help="a further model; the scores are the mean of all; once for each",
  )
  add("--stage", default="", help="of a workdir, where it is not the last classifier")
  add(
    "--metadata",
    type=pathlib.Path,
    metavar="FILE.csv",
    help="what is known of patients, for a network that was trained with it: a column `image` and"
    " those of the training set",
  )
  add(
    "--maps",
    type=pathlib.Path,
    metavar="FOLDER",
    help="also where the network looked, as by python -m medjax.explain; a new folder",
  )
  add("--resume", action="store_true", help="complete a table that was cut off")
  size = arguments.at_least_one
  add("--batch-size", type=size, default=predict.BATCH, help=f"(default: {predict.BATCH})")
  arguments.add_workers(parser, "processes that decode")
  add("--debug", action="store_true", help="show the traceback of an error")
  return parser


def _run(args: argparse.Namespace) -> None:
  inputs.check(args.inputs)
  models = [args.model, *args.others]
  predictor = predict.opened(models, args.stage, args.batch_size)
  known = known_lib.given(args.metadata, predictor.scorers)
  maps = _maps(args.maps, predictor.scorers) if args.maps else None
  about = {"models": [str(model.resolve()) for model in models], "stage": args.stage}
  with (
    inputs.listed(inputs.walk(args.inputs)) as listing,
    table_lib.Table(args.out, predictor.classes, about, args.resume) as table,
  ):
    before = sum(table.done.values())
    left = _without(listing, table)
    batches = predict.rows(predictor, left, known, args.workers)
    for batch in progress.told(batches, len(listing), "files", before, len):
      table.add(batch)
    _tell(len(listing), table, args.out)
    if maps:
      filling.fill(*maps, listing, args.workers, known)
      print(maps[0].close())


def _maps(
  out: pathlib.Path, scorers: Sequence[scoring.Scorer]
) -> tuple[folder.Folder, explain.Explainer]:
  """Where maps go, and what makes them: by Grad-CAM, of the predicted class."""
  (only, *others) = scorers
  if others or not isinstance(only, scoring.Network):
    raise ValueError("--maps looks into one network of a run: give one MODEL, and no exported one")
  opened = only.opened
  title = f"Where {opened.folder.parent.name} looks: gradcam"
  made = explain.Explainer(opened)
  return folder.Folder(out, title, f"Stage {opened.stage.name}, checkpoint {opened.place}."), made


def _without(listing: inputs.Listing, table: table_lib.Table) -> Iterator[inputs.Input]:
  """The inputs that have no row yet; a file that is named twice has two."""
  done = table.done.copy()
  for each in listing:
    if done[each.path]:
      done[each.path] -= 1
    else:
      yield each


def _tell(count: int, table: table_lib.Table, out: pathlib.Path) -> None:
  failed = f", {table.failed:,} of them with an error instead of scores" if table.failed else ""
  print(f"{count:,} rows in {out}{failed}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; its status, 0 also where single files could not be read."""
  args = _parser().parse_args(argv)
  try:
    return command.status(lambda: _run(args), args.debug)
  except KeyboardInterrupt:
    print("stopped; the same command with --resume goes on", file=sys.stderr)
    return 130


if __name__ == "__main__":
  sys.exit(main())
