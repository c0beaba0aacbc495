"""Times the first and the second start of the quickstart, up to its first row of the log.

Each pair of starts has a home of its own, so that the first finds nothing that was compiled before.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import results
import rounds

from medjax.bench import options as options_lib

_ROOT = rounds.HERE.parents[1]
PARTS = ("to the first row", "compiling")
SHARE, QUICK_PAIRS = 0.25, 3
CONFIG = "configs/quickstart.py"


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Pairs of starts; the first stage alone is looked at."""
  found: dict[str, list[dict[str, float]]] = {"first start": [], "second start": []}
  for _ in range(min(asked.rounds, QUICK_PAIRS) if asked.quick else asked.rounds):
    with tempfile.TemporaryDirectory() as home:
      for number, name in enumerate(found):
        found[name].append(_started(asked, pathlib.Path(home), pathlib.Path(home) / str(number)))
  yield [
    results.Measured(
      "start_up",
      "quickstart",
      f"{part}, s",
      results.OURS,
      name,
      tuple(start[part] for start in starts),
    )
    for part in PARTS
    for name, starts in found.items()
  ] + [
    results.Measured(
      "start_up",
      "quickstart",
      "compiling in the second start, by that in the first",
      results.OURS,
      "",
      tuple(
        second["compiling"] / first["compiling"]
        for first, second in zip(*found.values(), strict=True)
      ),
      wanted=f"<= {SHARE}",
    )
  ]


def _started(
  asked: options_lib.Asked, home: pathlib.Path, workdir: pathlib.Path
) -> dict[str, float]:
  """Seconds of a start, which is ended at its first row."""
  command = [sys.executable, "-m", "medjax.main", f"--config={CONFIG}", f"--workdir={workdir}"]
  env = rounds.environment(asked.device) | {"HOME": str(home)}
  began, seen = time.perf_counter(), {}
  with contextlib.ExitStack() as stack:
    pipes = dict(stdout=subprocess.PIPE, text=True, cwd=_ROOT, env=env)
    process = stack.enter_context(subprocess.Popen(command, **pipes))
    stack.callback(process.kill)
    for line in process.stdout:
      if match := re.search(r"compiled in ([\d.]+) s", line):
        seen["compiling"] = float(match[1])
      if re.search(r" step \d+/\d+ ", line):
        seen["to the first row"] = time.perf_counter() - began
        break
  if len(seen) < len(PARTS):
    raise rounds.Failed(f"{CONFIG} ended with {process.wait()} before its first row")
  return seen
