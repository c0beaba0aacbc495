"""`python -m medjax.explain MODEL INPUT... --method gradcam --out FOLDER`."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
import pathlib
import sys
from typing import Any

from medjax import command, explain, saliency, trained
from medjax.data import arguments, inputs
from medjax.explain import filling, folder
from medjax.predict import known as known_lib


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medjax.explain",
    description="Where a classifier looks: an overlay and a raw map of every image, on one sheet.",
  )
  add = parser.add_argument
  add("model", type=pathlib.Path, metavar="MODEL", help="workdir, stage or checkpoint")
  add("inputs", nargs="+", metavar="INPUT", help="images, as python -m medjax.predict takes them")
  add("--out", type=pathlib.Path, required=True, metavar="FOLDER", help="new folder for the maps")
  add("--method", default="gradcam", help=f"{', '.join(saliency.METHODS)} (default: gradcam)")
  add("--endpoint", default="", metavar="NAME", help="map inside the network (default: the last)")
  add("--set", action="append", default=[], metavar="NAME=VALUE", help=_settings())
  add("--class", dest="class_", default="", metavar="NAME", help="(default: the predicted one)")
  add("--stage", default="", help="of a workdir, where it is not the last classifier")
  add("--metadata", type=pathlib.Path, metavar="FILE.csv", help="see python -m medjax.predict")
  add(
    "--sanity",
    action="store_true",
    help="draw weights anew from the head down, and tell how maps of the first"
    f" {explain.BATCH} images change",
  )
  arguments.add_workers(parser, "processes that decode")
  add("--debug", action="store_true", help="show the traceback of an error")
  return parser


def _settings() -> str:
  """What can be set of the methods, with its default."""
  told = []
  for name in saliency.METHODS:
    known = vars(saliency.make(name)).items()
    fields = ", ".join(f"{key}={value}" for key, value in known if key != "endpoint")
    told += [f"{name}: {fields}"] if fields else []
  return f"a setting of the method; {'; '.join(told)}"


def _options(args: argparse.Namespace) -> dict[str, Any]:
  """The method's settings."""
  options: dict[str, Any] = {"endpoint": args.endpoint} if args.endpoint else {}
  for each in args.set:
    name, found, text = each.partition("=")
    if not found:
      raise ValueError(f"--set {each}: write NAME=VALUE, such as --set steps=128")
    try:
      options[name] = ast.literal_eval(text)
    except (ValueError, SyntaxError):
      options[name] = text  # a word, such as black
  return options


def _target(classes: Sequence[str], name: str) -> int | None:
  """The class that all maps are about; None for that of each image's highest score."""
  if name and name not in classes:
    raise KeyError(f"--class {name}: the network knows {', '.join(classes)}")
  return classes.index(name) if name else None


def _run(args: argparse.Namespace) -> None:
  inputs.check(args.inputs)
  opened = trained.opened(args.model, args.stage)
  explainer = explain.Explainer(opened, args.method, **_options(args))
  target = _target(explainer.classes, args.class_)
  known = known_lib.given(args.metadata, [explainer.network])
  title = f"Where {args.model.resolve().name} looks: {args.method}"
  out = folder.Folder(args.out, title, f"Stage {opened.stage.name}, checkpoint {opened.place}.")
  with inputs.listed(inputs.walk(args.inputs)) as listing:
    first = filling.fill(out, explainer, listing, args.workers, known, target)
  if args.sanity:
    filling.check(out, explainer, first)
  path = out.close()
  print(f"{out.count:,} images explained, {out.failed:,} files without a map\n{path}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; its status, 0 also where single files could not be read."""
  args = _parser().parse_args(argv)
  return command.status(lambda: _run(args), args.debug)


if __name__ == "__main__":
  sys.exit(main())
