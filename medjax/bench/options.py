"""What can be measured, and how it is asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import pathlib


@dataclasses.dataclass(frozen=True)
class Row:
  """Something to measure.

  Attributes:
    number: by which it may be asked for; "" where it has but a name. name: the other way.
    says: what is measured. devices: what it is measured on, if it is not named.
  """

  number: str
  name: str
  says: str
  devices: tuple[str, ...] = ("cpu",)


ROWS = (
  Row("1", "training", "training step beside Keras on JAX and PyTorch"),
  Row("2", "depthwise", "depthwise convolutions with both gradients beside lax.conv and PyTorch"),
  Row("3", "scan", "a step inside lax.scan beside the same step called from Python"),
  Row("4", "small", "nets for 28 pixels beside Keras and PyTorch"),
  Row("5", "feeds", "training from images, resident and streamed, beside the step alone"),
  Row("6", "loader", "feeds beside PyTorch's DataLoader and Grain, JPEG files beside one core"),
  Row("7", "devices", "collectives and work a device of a step on eight devices"),
  Row("8", "start_up", "first and second start of the quickstart, up to its first steps"),
  Row("9", "resnet50", "training step of ResNet-50, 224 pixels", ("gpu",)),
  Row("10", "backbones", "training step of nets of many branches, 224 pixels", ("gpu",)),
  Row("11", "branches", "training step of QuadSNet and MedNet, also in plain form", ("gpu",)),
  Row("12", "pretraining", "SimCLR beside supervised training of as many views", ("gpu",)),
  Row("13", "overheads", "checkpoints and metrics beside bare steps", ("cpu", "gpu")),
  Row("", "growth", "a step as images, classes and devices grow"),
  Row("", "bounds", "a step's share of what this machine's arithmetic and memory allow"),
  Row("", "curves", "the same losses of all libraries over fifty steps, in float64"),
)
BY_NAME = {row.name: row for row in ROWS}
_BY_WORD = BY_NAME | {row.number: row for row in ROWS if row.number}


@dataclasses.dataclass(frozen=True)
class Asked:
  """What one call measures.

  Attributes:
    rows: names. device: `cpu` or `gpu`. quick: fewer networks and steps.
    networks: of the rows of training steps; none for each row's own.
    size, batch: pixels and images of a batch; 0 for each row's own. precision: the same, if empty.
    rounds: of every side. steps: of every side in a round; 0 for each row's own. out: folder.
  """

  rows: tuple[str, ...]
  device: str
  quick: bool
  networks: tuple[str, ...]
  size: int
  batch: int
  precision: str
  rounds: int
  steps: int
  out: pathlib.Path | None


def parser() -> argparse.ArgumentParser:
  """The options of `python -m medjax.bench`."""
  made = argparse.ArgumentParser(
    prog="python -m medjax.bench",
    description="Measures medjax beside Keras on JAX and PyTorch, all on this machine, in turns. "
    "The first call makes an environment for them, tests/peers/.venv.",
    epilog="rows:\n" + "\n".join(f"  {row.number:>2} {row.name:12} {row.says}" for row in ROWS),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = made.add_argument
  add("--quick", action="store_true", help="fewer networks and steps: within 45 min on two cores")
  add("--rows", type=_rows, default=(), help="numbers or names, such as 1,2,start_up")
  add("--device", choices=("cpu", "gpu"), default="cpu", help="(default: cpu)")
  add("--networks", nargs="+", default=(), metavar="NAME", help="instead of a row's own")
  add("--size", type=_count, default=0, metavar="PIXELS", help="instead of a row's own")
  add("--batch", type=_count, default=0, metavar="N", help="instead of a row's own")
  add("--precision", choices=("float32", "bfloat16"), default="", help="instead of a row's own")
  add("--rounds", type=_count, default=5, help="of every side, in turns (default: 5)")
  add("--steps", type=_count, default=0, metavar="N", help="of a side in a round")
  add("--out", type=pathlib.Path, help="folder of CSV and plots (default: tests/peers/results)")
  return made


def parse(argv: Sequence[str]) -> Asked:
  """What a command line asks for; without `--rows`, what its device has rows for."""
  args = parser().parse_args(argv)
  own = tuple(row.name for row in ROWS if args.device in row.devices)
  return Asked(**vars(args) | {"rows": args.rows or own, "networks": tuple(args.networks)})


def _rows(text: str) -> tuple[str, ...]:
  words = [word.strip() for word in text.split(",") if word.strip()]
  if not words or (unknown := [word for word in words if word not in _BY_WORD]):
    known = ", ".join(f"{row.number} {row.name}".strip() for row in ROWS)
    said = f"no row {unknown[0]!r}" if words else "no row is named"
    raise argparse.ArgumentTypeError(f"{said}; there are {known}")
  return tuple(dict.fromkeys(_BY_WORD[word].name for word in words))


def _count(text: str) -> int:
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
  return int(text)
