"""`python -m medjax.data prepare SOURCE... --out DIR`: a mixed tree to a prepared collection."""

from __future__ import annotations

import argparse
import pathlib

from medjax.data import arguments as arguments_lib
from medjax.data.collection import beam, making, pseudonyms
from medjax.data.collection import plan as plan_lib


def arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  add = parser.add_argument
  add("sources", nargs="+", metavar="SOURCE", type=pathlib.Path, help="folder, archive or file")
  add("--out", required=True, metavar="DIR", type=pathlib.Path, help="the collection's folder")
  arguments_lib.add_shape(parser)
  arguments_lib.add_workers(parser, "processes")
  add(
    "--salt",
    metavar="TEXT|FILE",
    help="goes into every hash that stands for a path or a person; prefer a file: other users see"
    " a text among the running processes (default: made at random, kept beside the collection)",
  )
  add(
    "--keep-paths",
    action="store_true",
    help="write paths to the manifest, instead of to a sources.tsv for the owner alone",
  )
  add("--seconds", type=float, default=120.0, help="what reading a file may take (default: 120)")
  add("--gigabytes", type=float, default=6.0, help="memory that it may take (default: 6)")
  add(
    "--max-unreadable",
    type=float,
    default=0.9,
    metavar="SHARE",
    help="end with status 1 where more than this share of the files cannot be read; the collection"
    " is made all the same (default: 0.9)",
  )
  add("--runner", help="an Apache Beam runner such as DirectRunner, instead of --workers")
  add(
    "--runner-option",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="an option of Beam, such as direct_num_workers=4; once for each",
  )
  arguments_lib.add_reading(parser)


def run(args: argparse.Namespace) -> int:
  """Makes the collection; 0, or 1 where too large a share of the files is in quarantine.

  Raises:
    FileNotFoundError, ValueError, OSError: with what to type instead.
  """
  plan = _plan(args)
  if args.runner:
    made = beam.by_runner(args.runner, args.runner_option)
  else:
    made = making.by_processes(args.workers)
  counts = making.make(plan, made)
  print(
    f"{counts['found']:,} files = {counts['read']:,} read + {counts['passed_over']:,} passed over,"
    f" no images by name + {counts['quarantined']:,} in quarantine\n{counts['images']:,} images,"
    f" {counts['exact_of']:,} equal to an earlier one, {counts['near_of']:,} near to one;"
    f" {counts['crowded']:,} with too many candidates to look at all\n"
    f"{plan.folder}"
  )
  share = counts["quarantined"] / max(1, counts["read"] + counts["quarantined"])
  if share > args.max_unreadable:
    print(
      f"{share:.1%} of the files that may be images cannot be read; the reasons are in"
      f" {plan.folder / 'quarantine.tsv'}. To accept that: --max-unreadable {share + 0.0005:.3f}"
    )
  return int(share > args.max_unreadable)


def _plan(args: argparse.Namespace) -> plan_lib.Plan:
  for source in args.sources:
    if not source.exists():
      raise FileNotFoundError(f"{source} does not exist: name a folder, an archive or an image")
  if args.size < 1:
    raise ValueError(f"--size {args.size}: give the height and width in pixels, such as 224")
  for name in ("seconds", "gigabytes"):
    if getattr(args, name) <= 0:
      raise ValueError(f"--{name} {getattr(args, name):g}: give more than 0")
  args.out.mkdir(parents=True, exist_ok=True)
  return plan_lib.Plan(
    folder=args.out.absolute(),
    sources=tuple(source.absolute() for source in args.sources),
    size=args.size,
    channels=arguments_lib.CHANNELS[args.channels],
    reading=arguments_lib.reading(args),
    salt=pseudonyms.kept(args.out) if args.salt is None else pseudonyms.given(args.salt),
    keep_paths=args.keep_paths,
    seconds=args.seconds,
    gigabytes=args.gigabytes,
  )
