"""`python -m medjax.models [--json]` for all networks, `NAME [--size 224]` for one in detail."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import dataclasses
import difflib
import functools
import json
import signal
import sys
from typing import Any

from clu import parameter_overview
import jax
import jax.numpy as jnp

from medjax import command, contract, trees
from medjax.models import costs, zoo
from medjax.models import net as net_lib

_WIDTHS = (50, 12, 12, 15, 6, 10, 8)
_HEADER = ("name", "total", "trainable", "MACs", "depth", "images", "classes", "source of count")

Row = dict[str, Any]


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medjax.models",
    description=(
      "What the networks cost: parameters, with moving statistics and those that learn; of one "
      "image in inference the multiply-accumulates, and the layers on its longest way. "
      "soft_attention/BACKBONE/CUT is without the learnt factor, as in its authors' code."
    ),
  )
  parser.add_argument("name", nargs="?", help="shows this network's tensors and end points")
  parser.add_argument("--size", type=int, help="side of the images; by default the network's own")
  parser.add_argument("--json", action="store_true", help="the same as JSON")
  return parser


def _row(entry: zoo.Entry) -> Row:
  fields = {**vars(entry), **vars(entry.costs())}
  del fields["model"]
  return fields


def _line(row: Row) -> str:
  counts = (f"{row[name]:,}" for name in ("total", "trainable", "macs", "depth"))
  images = f"{row['size']}x{row['size']}x{row['channels']}"
  return _aligned(row["name"], *counts, images, str(row["classes"]), row["source"])


def _aligned(name: str, *cells: str) -> str:
  *numbers, source = cells
  padded = (f"{cell:>{width}}" for cell, width in zip(numbers, _WIDTHS[1:], strict=True))
  return " ".join((f"{name:{_WIDTHS[0]}}", *padded, "", source))


def _details(entry: zoo.Entry) -> Row:
  """Shapes of a network's tensors and end points, by their names."""
  net, shape = entry.make()
  images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  metadata = jax.ShapeDtypeStruct((1, entry.metadata), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  run = functools.partial(net.apply, train=False, endpoints=[net_lib.EVERY])
  batch = {contract.IMAGE: images, contract.METADATA: metadata}
  result, _ = jax.eval_shape(run, params, stats, batch)
  params, stats = costs.counted(params, stats)
  return {"params": params, "stats": stats, "endpoints": result.endpoints}


def _named(name: str, size: int | None) -> zoo.Entry:
  if name not in zoo.ENTRIES:
    versions = [known for known in zoo.ENTRIES if known.startswith(f"{name}/")]
    close = versions or difflib.get_close_matches(name, zoo.ENTRIES, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "without a name all are listed"
    raise KeyError(f"no network is called {name!r}: {hint}")
  entry = zoo.ENTRIES[name]
  return dataclasses.replace(entry, size=size or entry.size)


def _show_all(as_json: bool) -> None:
  if as_json:
    print(json.dumps([_row(entry) for entry in zoo.ENTRIES.values()], indent=2))
    return
  print(_aligned(*_HEADER), flush=True)
  for entry in zoo.ENTRIES.values():
    print(_line(_row(entry)), flush=True)


def _show_one(entry: zoo.Entry, as_json: bool) -> None:
  row, details = _row(entry), _details(entry)
  if as_json:
    shapes = {kind: _flat_shapes(tree) for kind, tree in details.items()}
    print(json.dumps(row | shapes, indent=2))
    return
  print(f"{_aligned(*_HEADER)}\n{_line(row)}\n\nparameters")
  print(parameter_overview.get_parameter_overview(details["params"], include_stats=False))
  print("\nend points, for model.cut and pictures of what the network sees")
  for name, shape in _flat_shapes(details["endpoints"]).items():
    print(f"{name:{_WIDTHS[0]}} {shape}")


def _flat_shapes(tree: contract.Tree) -> dict[str, list[int]]:
  return {path: list(leaf.shape) for path, leaf in trees.flatten(tree).items()}


def main(argv: Sequence[str] | None = None) -> int:
  """Prints what was asked for; its status."""
  args = _parser().parse_args(argv)
  return command.status(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
  if args.name is not None:
    _show_one(_named(args.name, args.size), args.json)
  elif args.size:
    raise ValueError("--size is for one network: name it before, as in `resnet50 --size 64`")
  else:
    _show_all(args.json)


if __name__ == "__main__":
  signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
  sys.exit(main())
