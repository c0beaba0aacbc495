"""The door of a command line: what went wrong is told in a line, and has a status."""

from __future__ import annotations

from collections.abc import Callable
import gc
import pathlib
import sys

_OBJECTS = 100_000  # made and kept between two searches for cycles; Python's own choice is less


def collect_rarely() -> None:
  """Has Python search seldom for cycles of objects, of which tracing a step makes many that stay.

  Else every start goes through all of them several times, and finds next to nothing.
  """
  gc.set_threshold(_OBJECTS)


def status(run: Callable[[], int | None], debug: bool = False) -> int:
  """Runs a command; the status that it returns, or 1 for an error, which is told on stderr.

  Args:
    run: the command. debug: whether errors are raised, with where they come from.
  """
  collect_rarely()
  try:
    return run() or 0
  except (ValueError, KeyError, OSError, RuntimeError, ImportError) as error:
    if debug:
      raise
    print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
    return 1


def check_empty(out: pathlib.Path) -> None:
  """Raises FileExistsError where something is in the folder that a command is to fill."""
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise FileExistsError(f"{out} is not empty: give --out another folder, or move it away")
