"""`python -m medjax.generate WORKDIR --out FOLDER (--per-class N | --balance SHARE)`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import sys

import numpy as np

from medjax import command, generate


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medjax.generate",
    description="Images of a trained generator, for training parts alone (data.generated=FOLDER).",
  )
  add = parser.add_argument
  add("workdir", type=pathlib.Path, help="folder of the run that trained the generator")
  add("--out", type=pathlib.Path, required=True, help="folder for the images")
  amount = parser.add_mutually_exclusive_group(required=True)
  amount.add_argument("--per-class", type=int, metavar="N", help="images of every class")
  amount.add_argument(
    "--balance",
    type=float,
    metavar="SHARE",
    help="as many of each class as bring it up to this share of the largest, such as 0.5",
  )
  add("--stage", default="", help="stage with the generator, where several have one")
  add("--seed", type=int, default=0, help="which images (default: 0)")
  add(
    "--judge", type=pathlib.Path, help="stage folder of a classifier that compares them with real"
  )
  return parser


def _counts(args: argparse.Namespace, maker: generate.Generator) -> list[int]:
  """Images of each class."""
  if args.balance is None:
    return [args.per_class] * max(1, len(maker.classes))
  if not maker.classes:
    raise ValueError("--balance needs a generator of classes (gan_cond): give --per-class instead")
  return generate.balancing(maker.bench.splits.info.class_counts, args.balance)


def _run(args: argparse.Namespace) -> None:
  command.check_empty(args.out)
  maker = generate.opened(args.workdir, args.stage)
  counts = _counts(args, maker)
  labels = np.repeat(np.arange(len(counts)), counts)
  images = maker.images(labels, args.seed)
  told = generate.judged(maker, images, labels, args.judge) if args.judge else {}
  generate.write(maker, images, labels, args.out, {"seed": args.seed} | told)
  for name, value in told.items():
    print(f"{name}: {value}")
  if told.get("memorised"):
    print(f"WARNING: {told['copies']:.0%} of the images repeat training images: do not use them")
  print(f"{len(images):,} images in {args.out}")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; its status."""
  args = _parser().parse_args(argv)
  return command.status(lambda: _run(args))


if __name__ == "__main__":
  sys.exit(main())
