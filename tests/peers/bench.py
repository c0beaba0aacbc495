"""Measures rows of the bench, and keeps what it finds; `python -m medjax.bench` starts it.

  ./tests/peers/run.sh bench.py --quick

prints a line a comparison and a line a figure as they are found, then tables and circumstances, and
writes all of it to `results/<date>-<machine>.csv` with a plot beside it. A row that fails is said,
and the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import datetime
import importlib
import pathlib
import sys
import time

import machine
import results
import rounds

from medjax.bench import options

Measure = Callable[[options.Asked], Iterator[list[results.Measured]]]

RESULTS = pathlib.Path(__file__).with_name("results")
# Row -> module and function in it that measures; by default `measure` of the module of its name.
PLACES = {
  "training": ("training_step", "measure"),
  "resnet50": ("training_step", "measure_resnet50"),
  "backbones": ("training_step", "measure_backbones"),
  "branches": ("training_step", "measure_branches"),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Measures what the command line asks for; 1 where a row failed."""
  asked = options.parse(sys.argv[1:] if argv is None else argv)
  began, now = time.monotonic(), datetime.datetime.now(datetime.UTC)
  about = dict(
    date=now.isoformat(timespec="seconds"),
    machine=f"{machine.told()}, load {machine.load():.1f} before",
    command=machine.command(),
    commit=machine.commit(),
  )
  path = (asked.out or RESULTS) / f"{now:%Y-%m-%d-%H%M}-{machine.word()}.csv"
  found, failed = _measured(asked, path, about)
  print(f"\n{results.markdown(found)}\n")
  print("\n".join(f"{name}: {text}" for name, text in about.items()))
  print("versions: " + "; ".join(sorted({one.versions for one in found if one.versions})))
  print(f"took: {(time.monotonic() - began) / 60:.1f} min")
  if found:
    print(f"kept: {path}{_plotted(path, results.compared(found))}")
  if failed:
    print(f"failed: {', '.join(failed)}: see above", file=sys.stderr)
  return 1 if failed else 0


def _measured(
  asked: options.Asked, path: pathlib.Path, about: dict[str, str]
) -> tuple[list[results.Measured], list[str]]:
  """All that was found, which is on disk too, and the names of the rows that failed."""
  found: list[results.Measured] = []
  failed = []
  for name in asked.rows:
    began = time.monotonic()
    print(f"\n{name}: {options.BY_NAME[name].says}", flush=True)
    try:
      for some in _of(name)(asked):
        found += some
        print(*results.lines(some), sep="\n", flush=True)
        results.write(path, found, about)
    except rounds.Failed as error:
      print(f"{name} failed: {error}", file=sys.stderr, flush=True)
      failed.append(name)
    print(f"{name} took {(time.monotonic() - began) / 60:.1f} min", flush=True)
  return found, failed


def _of(row: str) -> Measure:
  module, function = PLACES.get(row, (row, "measure"))
  return getattr(importlib.import_module(module), function)


def _plotted(path: pathlib.Path, pairs: list[results.Comparison]) -> str:
  """Draws what can be compared; says where."""
  if not pairs:
    return ""
  import plots

  return f" and {plots.ratios(path.with_suffix('.png'), pairs)}"


if __name__ == "__main__":
  sys.exit(main())
