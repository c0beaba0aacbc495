"""`python -m medjax.data show|stats|prepare|audit ...`: a look at images, and work on them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import sys

from medjax import command
from medjax.data import audit, prepare, show, survey

COMMANDS = {
  "audit": (audit, "find what stands in two parts of a split"),
  "prepare": (prepare, "make a collection of shards and a manifest of any files"),
  "show": (show, "lay out images as a network sees them"),
  "stats": (survey, "count and draw what a set is made of"),
}


def main(argv: Sequence[str]) -> int:
  """Runs the command that is named first; its status."""
  parser = argparse.ArgumentParser(prog="python -m medjax.data", description=__doc__)
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  for name, (module, purpose) in COMMANDS.items():
    each = commands.add_parser(name, help=purpose, description=module.__doc__)
    module.arguments(each)
    each.set_defaults(run=module.run)
  args = parser.parse_args(argv)
  return command.status(lambda: args.run(args))


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
