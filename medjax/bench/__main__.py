"""`python -m medjax.bench [--quick] [--rows 1,2,start_up]`."""

from __future__ import annotations

from collections.abc import Sequence
import pathlib
import subprocess
import sys

from medjax import command
from medjax.bench import options

CHECKOUT = pathlib.Path(__file__).parents[2]


def start(checkout: pathlib.Path, argv: Sequence[str]) -> int:
  """Runs the measurements of a checkout in their own environment; their status.

  Raises:
    FileNotFoundError: medjax lies where there is no checkout around it.
  """
  script = checkout / "tests/peers/run.sh"
  if not script.is_file():
    raise FileNotFoundError(
      f"{checkout} is no checkout of medjax: it has no tests/peers/run.sh, and the bench comes "
      "with the repository alone. Clone it and start ./tests/peers/run.sh bench.py there"
    )
  return subprocess.run([str(script), "bench.py", *argv]).returncode


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; its status."""
  argv = sys.argv[1:] if argv is None else argv
  options.parse(argv)  # says what is wrong before an environment is made for it
  return command.status(lambda: start(CHECKOUT, argv))


if __name__ == "__main__":
  sys.exit(main())
