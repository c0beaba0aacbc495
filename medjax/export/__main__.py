"""`python -m medjax.export MODEL --out DIR [--onnx] [--fold]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import sys
from typing import Any

from medjax import artifact, command, export, trained
from medjax.export import program
from medjax.metrics import operating


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medjax.export",
    description="A trained classifier as files that run without medjax.",
  )
  add = parser.add_argument
  add("model", type=pathlib.Path, help="a run's workdir, a stage's folder in it, or a checkpoint")
  add("--out", type=pathlib.Path, required=True, help="folder for the files, new or empty")
  add("--stage", default="", help="of a workdir; default: its last classifier")
  add("--onnx", action="store_true", help="write model.onnx too, for other tools and MATLAB")
  add("--fold", action="store_true", help="take batch norms up into the convolutions before them")
  add("--debug", action="store_true", help="show the whole trace of an error")
  return parser


def source(model: pathlib.Path, stage: str = "") -> tuple[program.Source, dict[str, Any]]:
  """The classifier that MODEL means, and where it came from, without this machine's paths."""
  found = trained.opened(model, stage, "plain")
  folder = found.folder.resolve()
  place = pathlib.Path(found.place).resolve().relative_to(folder).as_posix()
  origin = {"run": folder.parent.name, "stage": folder.name, "checkpoint": place}
  return program.Source(found.stage, found.info, found.state, operating.read(found.folder)), origin


def _run(args: argparse.Namespace) -> None:
  command.check_empty(args.out)
  classifier, origin = source(args.model, args.stage)
  if args.onnx:
    print("converting in .venv-onnx beside launch/, which the first time is made: about 1 GB")
  about = export.write(args.out, classifier, origin, args.fold, args.onnx)
  if args.fold:
    norms = about["batch_norms"]
    print(f"{norms['folded']} of {norms['found']} batch norms folded")
  if classifier.stage.eval.augment:
    print("evaluation averages several views of an image; the files look at it once, as it is")
  for name, file in about["files"].items():
    print(f"{file['bytes']:>13,} bytes  {args.out / name}")
  print(f"checked against {args.out / artifact.MANIFEST}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; its status."""
  args = _parser().parse_args(argv)
  return command.status(lambda: _run(args), args.debug)


if __name__ == "__main__":
  sys.exit(main())
