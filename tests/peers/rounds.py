"""Libraries in processes of their own, timed in turn, so that all see the same machine."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

_SETTLING = 0.3  # seconds
HERE = pathlib.Path(__file__).parent
_ALIKE = {"KERAS_BACKEND": "jax"}
# Device -> environment of every process. On a GPU several of them share its memory.
ON = {
  "cpu": _ALIKE | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""},
  "gpu": _ALIKE | {"JAX_PLATFORMS": "cuda", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
}


class Failed(RuntimeError):
  """A process ended, or does not do the work that the others do."""


@dataclasses.dataclass(frozen=True)
class Work:
  """What the process of a side does, see `worker`.

  Attributes:
    run: a round of it. about: what it says of itself, JSON types.
    before: what comes before a round and is not timed: uses up what was read ahead.
    peak: most memory held since the start, in MB; None for that of the process.
  """

  run: Callable[[], object]
  about: dict
  peak: Callable[[], int] | None = None
  before: Callable[[], object] = lambda: None


@dataclasses.dataclass
class Side:
  """A library in one of its settings.

  Attributes:
    library, variant: what runs. process: where. about: what it says of itself, see `worker`.
    seconds: a step, of each round. peak: most memory held in the rounds, in MB.
  """

  library: str
  variant: str
  process: subprocess.Popen
  about: dict
  seconds: list[float] = dataclasses.field(default_factory=list)
  peak: int = 0

  @property
  def name(self) -> str:
    return f"{self.library} ({self.variant})"

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)

  def __str__(self) -> str:
    return f"{self.median:.3f} ({min(self.seconds):.3f} to {max(self.seconds):.3f})"


def start(
  stack: contextlib.ExitStack, module: str, library: str, variant: str, options: dict
) -> Side:
  """Starts a worker and waits until it has compiled; `stack` ends it.

  Args:
    stack: of processes. module: with `side(library, variant, options)`, which gives a `Work`.
    library, variant: what is to run. options: `device`, `precision` and what the module takes.

  Raises:
    Failed: the process ended.
  """
  command = [sys.executable, str(HERE / "worker.py"), module, library, variant]
  command += [json.dumps(options)]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
  process = stack.enter_context(subprocess.Popen(command, env=environment(**options), **pipes))
  stack.callback(process.kill)
  return Side(library, variant, process, _answer(process))


def environment(device: str = "cpu", precision: str = "", **rest) -> dict[str, str]:
  """Of a process: which device it has, and whether JAX has float64."""
  del rest
  wide = {"JAX_ENABLE_X64": "1"} if precision == "float64" else {}
  return os.environ | ON[device] | wide


def alternate(sides: list[Side], count: int, steps: int) -> None:
  """Asks every side once a round; who comes first moves on by one from round to round.

  Between two sides is a pause, in which the threads of the first fill what they read ahead: else
  they would do so at the second's expense.
  """
  for number in range(count):
    first = number % len(sides)
    for side in sides[first:] + sides[:first]:
      time.sleep(_SETTLING)
      print(file=side.process.stdin)
      answer = _answer(side.process)
      side.seconds.append(answer["seconds"] / steps)
      side.peak = answer["peak"]


def best(sides: list[Side]) -> dict[str, Side]:
  """Library -> its side with the smallest median."""
  slowest_first = sorted(sides, key=lambda side: side.median, reverse=True)
  return {side.library: side for side in slowest_first}


def alone(module: str, options: dict, **env: str) -> dict:
  """What a module's `main(options)` returns, run in a process of its own.

  Raises:
    Failed: it ended otherwise; its error is on stderr.
  """
  lines = "import json, sys, importlib as i; o = json.loads(sys.argv[2]); "
  lines += "print(json.dumps(i.import_module(sys.argv[1]).main(o)))"
  command = [sys.executable, "-c", lines, module, json.dumps(options)]
  path = {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
  done = subprocess.run(
    command, env=environment(**options) | path | env, stdout=subprocess.PIPE, text=True
  )
  if done.returncode:
    raise Failed(f"{module} ended with {done.returncode}: its error is above")
  return json.loads(done.stdout.splitlines()[-1])


def _answer(process: subprocess.Popen) -> dict:
  line = process.stdout.readline()
  if not line:
    said = " ".join(process.args[2:5])
    raise Failed(f"{said} ended with {process.wait()}: its error is above")
  return json.loads(line)
