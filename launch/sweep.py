#!/usr/bin/env python3
"""Command lines of a sweep: a run for each point of a grid, with a workdir named by its values.

  ./launch/sweep.py --config=configs/x.py --root=runs/lr optimizer.lr=1e-4,3e-4 --seeds=3
  ./launch/sweep.py ... --submit=local      # one after the other, here
  ./launch/sweep.py ... --submit=sbatch     # as an array job of launch/slurm.sbatch
  ./launch/sweep.py ... --gather            # what came of it: a table, and ROOT/sweep.csv

Each KEY=A,B,C is an axis; `--zip KEY=A,B OTHER=C,D` moves two keys together along one. A comma
inside brackets or quotes parts nothing. `--config.KEY=VALUE` holds for every run. Started again,
the same sweep goes on with what is not finished. Needs Python alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
import csv
import hashlib
import itertools
import json
import os
import pathlib
import re
import shlex
import signal
import statistics
import subprocess
import sys
from typing import Any, NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
TABLE, STUDIES = "sweep.csv", "sweep_study.csv"
_STOPPED = 75  # exit status of a run that a signal ended
_LONGEST = 120  # characters of a workdir's name
_REPEATS = ("seed", "data.split.fold")  # keys over which the terminal shows means

Point = dict[str, str]  # key -> value as typed


class Run(NamedTuple):
  """A point of the grid and its workdir."""

  point: Point
  workdir: pathlib.Path


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="launch/sweep.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add("axes", nargs="*", metavar="KEY=A,B,C", help="an axis of the grid")
  add("--zip", nargs="+", action="append", default=[], metavar="KEY=A,B", help="keys as one axis")
  add("--seeds", type=int, default=0, metavar="N", help="seed=0 to N-1")
  add("--folds", type=int, default=0, metavar="N", help="N grouped folds, each tested once")
  add("--config", default="", help="config file of every run")
  add("--root", type=pathlib.Path, required=True, help="folder of the workdirs")
  todo = parser.add_mutually_exclusive_group()
  todo.add_argument("--submit", choices=("local", "sbatch"), help="start the runs")
  todo.add_argument("--gather", action="store_true", help="read what the runs have left")
  add("--program", default=str(HERE / "local.sh"), help="starts a run (default: launch/local.sh)")
  add("--sbatch", default="", metavar="'OPTIONS'", help="more options for sbatch")
  return parser


def split(values: str) -> list[str]:
  """Parts at commas that stand in no brackets and no quotes: `(4,8),(8,16)` is two."""
  parts, depth, quote = [""], 0, ""
  for sign in values:
    if quote or sign in "'\"":
      quote = "" if sign == quote else quote or sign
    depth += 0 if quote else (sign in "([{") - (sign in ")]}")
    if sign == "," and not depth and not quote:
      parts.append("")
    else:
      parts[-1] += sign
  if "" in parts or depth or quote:
    raise ValueError(f"{values!r}: values are parted by commas, and brackets and quotes are closed")
  return parts


def _axis(words: Iterable[str]) -> list[Point]:
  """The points of an axis: one key, or several that move together."""
  columns: dict[str, list[str]] = {}
  for word in words:
    key, equals, values = word.partition("=")
    if not key or not equals or key.startswith("-"):
      raise ValueError(f"{word} is no axis: write KEY=A,B,C, such as optimizer.lr=1e-4,3e-4")
    if key in columns:
      raise ValueError(f"{key} is there twice")
    columns[key] = split(values)
  if len({len(values) for values in columns.values()}) > 1:
    lengths = ", ".join(f"{len(values)} of {key}" for key, values in columns.items())
    raise ValueError(f"--zip moves keys together, but there are {lengths}")
  return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _folds(count: int) -> list[Point]:
  mode = {"data.split.mode": "grouped", "data.split.folds": str(count)}
  folded = mode | {"data.split.folded": "test"}
  return [folded | {"data.split.fold": str(fold)} for fold in range(count)]


def points(args: argparse.Namespace) -> list[Point]:
  """The grid, the first axis slowest; raises ValueError for a key that is on two axes."""
  axes = [_axis([word]) for word in args.axes] + [_axis(words) for words in args.zip]
  axes += [_folds(args.folds)] * (args.folds > 0)
  axes += [[{"seed": str(seed)} for seed in range(args.seeds)]] * (args.seeds > 0)
  keys = [key for axis in axes for key in axis[0]]
  if twice := {key for key in keys if keys.count(key) > 1}:
    raise ValueError(f"{', '.join(sorted(twice))} is on two axes")
  merged = [
    dict(pair for part in parts for pair in part.items()) for parts in itertools.product(*axes)
  ]
  return merged if axes else []


def _moving(grid: Sequence[Point]) -> list[str]:
  """Keys that are not the same everywhere."""
  return [key for key in grid[0] if len(grid) == 1 or len({point[key] for point in grid}) > 1]


def runs(grid: Sequence[Point], root: pathlib.Path) -> list[Run]:
  """A workdir for each point, named by what moves; raises ValueError for a point that is twice."""
  if len({tuple(point.items()) for point in grid}) < len(grid):
    raise ValueError("a value is given twice, so that two runs would be the same")
  moving = _moving(grid) if grid else []
  leaves = [key.rpartition(".")[2] for key in moving]
  short = [
    leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(moving, leaves, strict=True)
  ]
  return [Run(point, root / _name(short, [point[key] for key in moving])) for point in grid]


def _name(keys: Sequence[str], values: Sequence[str]) -> str:
  """`lr=1e-4,seed=0`; where that is too long or no file's name, a part of it with a hash."""
  whole = ",".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
  safe = re.sub(r"[^\w.,=+-]+", "_", whole)[:_LONGEST]
  return safe if safe == whole else f"{safe}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def arguments(run: Run, config: str, fixed: Sequence[str]) -> list[str]:
  """What follows `python -m medjax.main`."""
  moved = [f"--config.{key}={value}" for key, value in run.point.items()]
  return [f"--config={config}", f"--workdir={run.workdir}", *fixed, *moved]


def _local(program: str, lines: Sequence[Sequence[str]]) -> int:
  """Runs one after the other; a failed one does not keep the others back, a stopped one does."""
  failed, going = 0, _Going()
  for number, line in enumerate(lines, 1):
    print(f"\nrun {number} of {len(lines)}: {line[1]}", flush=True)
    status = going.ended([*shlex.split(program), *line])
    if going.asked or status == _STOPPED:
      return _STOPPED
    failed += status != 0
  if failed:
    print(f"error: {failed} of {len(lines)} runs failed", file=sys.stderr)
  return int(failed > 0)


class _Going:
  """Hands signals on to the run that goes, which then saves its state, and waits for it.

  Attributes:
    asked: whether a signal came, be it between two runs.
  """

  def __init__(self) -> None:
    self.asked = self._early = False
    self._process: subprocess.Popen | None = None
    signal.signal(signal.SIGINT, self._ask)
    signal.signal(signal.SIGTERM, self._ask)

  def _ask(self, number: int, frame: Any) -> None:
    del frame
    self.asked = True
    if self._process is None:
      self._early = True
    elif number != signal.SIGINT:  # Ctrl-C reaches it by itself, as everything in the terminal
      self._process.terminate()

  def ended(self, command: Sequence[str]) -> int:
    """The exit status of a program, once it is over."""
    self._process = subprocess.Popen(command)
    if self._early:  # a second signal would end it unsaved, so that each is handed on once
      self._process.terminate()
    status = self._process.wait()
    self._process = None
    return status


def _sbatch(root: pathlib.Path, options: str, lines: Sequence[Sequence[str]]) -> int:
  """Writes a line a run and submits an array job over them."""
  text = "".join("\t".join(line) + "\n" for line in lines)
  if text.count("\t") + text.count("\n") != sum(map(len, lines)):
    raise ValueError("values with tabs or line breaks cannot be handed to an array job")
  # By its content: an array that still waits must not find the lines of a later sweep.
  file = root / f"runs-{hashlib.sha256(text.encode()).hexdigest()[:8]}.tsv"
  root.mkdir(0o700, parents=True, exist_ok=True)
  file.write_text(text)
  array = f"--array=0-{len(lines) - 1}"
  command = ["sbatch", array, *shlex.split(options), str(HERE / "slurm.sbatch"), f"@{file}"]
  print(shlex.join(command), flush=True)
  checkout = {"MEDJAX_ROOT": str(HERE.parent)}
  return subprocess.run(command, env=checkout | os.environ, check=False).returncode


def _found(root: pathlib.Path) -> list[Run]:
  """The workdirs that are there."""
  return [Run({}, config.parent) for config in sorted(root.glob("*/config.json"))]


def _rows(run: Run) -> Iterator[dict[str, Any]]:
  """What a run found: a row for each stage that was tested, or one that says how far it is."""
  start = {"run": run.workdir.name, **run.point}
  page = run.workdir / "report.json"
  if not page.is_file():
    begun = (run.workdir / "config.json").is_file()
    yield {**start, "state": "unfinished" if begun else "missing"}
    return
  report = json.loads(page.read_text(encoding="utf-8"))
  for stage in report["stages"]:
    if test := stage["test"]:
      primary = report["primary"]
      bounds = {key: test["metrics"][primary][key] for key in ("value", "low", "high")}
      others = {name: found["value"] for name, found in test["metrics"].items() if name != primary}
      told = {"stage": stage["name"], "images": test["images"], "metric": primary}
      yield {**start, "state": "finished", **told, **bounds, **others}


def _studies(run: Run) -> Iterator[dict[str, Any]]:
  """The arms of a run that is a study."""
  file = run.workdir / "study_summary.csv"
  if file.is_file():
    with file.open(newline="", encoding="utf-8") as stream:
      yield from ({"run": run.workdir.name, **run.point, **row} for row in csv.DictReader(stream))


def _write(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  names = dict.fromkeys(name for row in rows for name in row)
  partial = path.with_suffix(".partial")
  with partial.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, list(names))
    writer.writeheader()
    writer.writerows(rows)
  partial.replace(path)


def _line(row: dict[str, Any]) -> str:
  if row["state"] != "finished":
    return f"{row['run']}  {row['state']}"
  value, low, high = (_number(row[key]) for key in ("value", "low", "high"))
  return f"{row['run']}  {row['stage']}  {row['metric']} {value} ({low} to {high})"


def _number(value: float | None) -> str:
  return "none" if value is None else f"{value:.3f}"


def _means(rows: Iterable[dict[str, Any]], keys: Sequence[str]) -> Iterator[str]:
  """Over seeds and folds, a line for each setting of the other keys and each stage."""
  groups: dict[tuple[str, ...], list[float]] = {}
  others = [key for key in keys if key not in _REPEATS]
  for row in rows:
    if row.get("value") is not None and len(others) < len(keys):
      name = (*(f"{key}={row[key]}" for key in others), row["stage"], row["metric"])
      groups.setdefault(name, []).append(row["value"])
  for name, values in groups.items():
    spread = f", spread {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    yield f"{'  '.join(name)}  mean {statistics.fmean(values):.3f} of {len(values)}{spread}"


def gather(root: pathlib.Path, swept: Sequence[Run]) -> int:
  """Writes and prints the tables; 1 where a run is missing or not finished."""
  if not root.is_dir():
    raise FileNotFoundError(f"there is no folder {root}: --root is where the workdirs lie")
  rows = [row for run in swept for row in _rows(run)]
  if not rows:
    raise FileNotFoundError(f"{root} holds no workdir of a tested run")
  studies = [row for run in swept for row in _studies(run)]
  _write(root / TABLE, rows)
  if studies:
    _write(root / STUDIES, studies)
  keys = _moving([run.point for run in swept])
  print(*map(_line, rows), *_means(rows, keys), sep="\n")
  left = [row["run"] for row in rows if row["state"] != "finished"]
  print(f"\n{len(swept) - len(left)} of {len(swept)} runs are finished: {root / TABLE}")
  return int(bool(left))


def _run(args: argparse.Namespace, fixed: Sequence[str], strays: Sequence[str]) -> int:
  if strays:
    raise ValueError(f"unknown flag {strays[0]}; --help lists the flags")
  grid = points(args)
  if args.gather:
    return gather(args.root, runs(grid, args.root) if grid else _found(args.root))
  if not grid or not args.config:
    raise ValueError(
      "say what to sweep: --config=configs/x.py --root=runs/x optimizer.lr=1e-4,3e-4"
    )
  lines = [arguments(run, args.config, fixed) for run in runs(grid, args.root)]
  if args.submit == "local":
    return _local(args.program, lines)
  if args.submit == "sbatch":
    return _sbatch(args.root, args.sbatch, lines)
  print(*(shlex.join([*shlex.split(args.program), *line]) for line in lines), sep="\n")
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; its status."""
  words = sys.argv[1:] if argv is None else list(argv)
  # Apart, since argparse takes `--config.train.length=4 steps` for an axis, by its space.
  fixed = [word for word in words if word.startswith("--config.")]
  args, strays = _parser().parse_known_args([word for word in words if word not in fixed])
  try:
    return _run(args, fixed, strays)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
  sys.exit(main())
