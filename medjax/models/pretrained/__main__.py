"""`python -m medjax.models.pretrained FILE --model=NAME --out=x.safetensors`: one of ours of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib
import sys

import jax
import jax.numpy as jnp

from medjax import config as config_lib
from medjax import contract, models, settings, trees
from medjax.models import net as net_lib
from medjax.models import pretrained
from medjax.models.pretrained import manifests

_OVERRIDES = ("--config.model.", "--config.init_allow=")


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m medjax.models.pretrained",
    description=(
      "Writes the weights of a file of Keras, torchvision or timm as safetensors, and beside them "
      "a manifest of their source, licence, preprocessing and classes."
    ),
  )
  parser.add_argument("file", type=pathlib.Path, help=f"one of {', '.join(pretrained.SUFFIXES)}")
  parser.add_argument("--model", required=True, help="network that the weights are of")
  parser.add_argument("--out", type=pathlib.Path, required=True, help="file to write, .safetensors")
  parser.add_argument("--licence", default="", help="of the weights, in their giver's words")
  parser.add_argument("--classes", default="", help="names in the order of the logits: a,b,c")
  parser.add_argument(
    "--size", type=int, default=224, help="side of the images, where shapes depend"
  )
  parser.epilog = "--config.model.KEY=VALUE sets the network, e.g. --config.model.preprocess=torch"
  return parser


def _stage(model: str, rest: Sequence[str]) -> settings.Stage:
  """The network, and which of the file's tensors may be left over."""
  for word in rest:
    if not word.startswith(_OVERRIDES):
      raise ValueError(f"unknown flag {word}; --help lists the flags")
  overrides = (word.removeprefix("--config.") for word in rest)
  return config_lib.parse({}, [f"model={model}", *overrides]).stages[0]


def _shapes(cfg: settings.Model, classes: int, size: int) -> contract.Tree:
  """Tensors of the network for colour images, without their values."""
  names = tuple(map(str, range(max(classes, 1))))
  half = (0.5, 0.5, 0.5)
  info = contract.DataInfo(names, (size, size, 3), (1,) * len(names), len(names), half, half)
  net = models.make(cfg, info, net_lib.Execution())
  images = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  return {"params": params, "stats": stats}


def _convert(args: argparse.Namespace, stage: settings.Stage) -> str:
  """Writes the file; returns what became of every tensor. Those that are new are not written."""
  count = pretrained.classes(args.file, stage.model)
  names = tuple(filter(None, args.classes.split(",")))
  if names and len(names) != count:
    raise ValueError(f"--classes names {len(names)}, {args.file} tells {count} apart")
  target = _shapes(stage.model, count, args.size)
  moved, account = pretrained.transfer(target, args.file, stage.model, stage.init_allow)
  known, _ = trees.split(moved, lambda path: path not in account.new)
  about = manifests.describe(args.file, stage.model, names, args.licence)
  pretrained.save(args.out, known.get("params", {}), known.get("stats", {}), about)
  beside = manifests.beside(args.out).name
  return f"{account}\n{args.out}, with {beside}: preprocess={about.preprocess}, {count} classes"


def main(argv: Sequence[str] | None = None) -> int:
  """Converts a file; returns the exit status: 0 done, 1 an error told on stderr."""
  args, rest = _parser().parse_known_args(argv)
  try:
    print(_convert(args, _stage(args.model, rest)))
  except (KeyError, OSError, ValueError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
