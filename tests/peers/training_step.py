"""Times a training step in medjax, Keras on JAX and PyTorch, in one alternating run.

  ./tests/peers/run.sh training_step.py

On CPU: batch 16, 64 pixels (Inception-V3: 96, as its strides leave nothing of 64), float32, Adam,
softmax cross-entropy (QuadSNet: margin loss and dropout, as in its paper), no augmentation. One
network follows the other; the libraries take turns. A library runs in every setting worth trying,
and its best one counts, in time and in memory. Backbones are those of Keras and timm, which has no
NASNet Mobile; timm's ResNet-50 has its strides moved to where the others have them.

Before that the numbers of trained parameters are compared; where PyTorch has others, `problem` says
why. QuadSNet and MedNet are trained for two steps from the same kernels without dropout, and the
mean of their losses must be the same; that the backbones are the same is for `tests/models` to
hold.

A peak is the most memory that a process has held in the rounds, library included, compiler not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
import contextlib
import itertools
import os
import pathlib
import platform
import shlex
import sys
import time

import problem
import rounds

SIDES = (
  ("medjax", "4 steps a dispatch"),
  ("keras", "1 step an execution"),
  ("keras", "4 steps an execution"),
  ("torch", "contiguous"),
  ("torch", "channels_last"),
)
NETWORKS = tuple(name for name in problem.PARAMETERS if name != "quadsnet")  # it is there on demand
MISSING = {("torch", "nasnet_mobile")}
# How many times as fast as a peer medjax is to be.
TARGETS = {"keras": 1.2, "torch": 0.7}
DEPTHWISE_TARGETS = TARGETS | {"keras": 3.0}
DEPTHWISE = {"quadsnet_exact", "quadsnet", "mobilenet_v2", "nasnet_mobile"}
# Found are 2e-5. A learning rate 1.1 times as large makes 1.2e-3, a leaky ReLU of 0.01 in QuadSNet
# 8e-4 and in MedNet's blocks 1.7e-3.
SAME_LOSS = 1e-4
COLUMNS = (
  "network",
  "medjax, s a step",
  "Keras, s a step",
  "medjax is times as fast",
  "PyTorch, s a step",
  "medjax is times as fast",
  "medjax, peak MB",
  "Keras, peak MB",
  "PyTorch, peak MB",
)


def main() -> None:
  asked = _asked()
  print(_circumstances(), flush=True)
  measured = {network: _measured(network, asked) for network in asked.networks}
  print(f"\n{_versions(itertools.chain(*measured.values()))}")
  print(f"Medians of {asked.rounds} rounds of {asked.steps} steps, fastest and slowest round:")
  print(_row(COLUMNS))
  print(_row(["---"] * len(COLUMNS)))
  for network, sides in measured.items():
    print(_row(_cells(network, rounds.best(sides))))


def _asked() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--networks", nargs="+", choices=problem.PARAMETERS, default=NETWORKS)
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=4, help="of every side in a round")
  return parser.parse_args()


def _circumstances() -> str:
  script, *arguments = sys.argv
  command = ["./tests/peers/run.sh", pathlib.Path(script).name, *arguments]
  return (
    f"command: {shlex.join(command)}\n"
    f"machine: {os.cpu_count()} x {_processor()}, load {os.getloadavg()[0]:.1f} before\n"
    f"python {platform.python_version()}"
  )


def _processor() -> str:
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor()


def _measured(network: str, asked: argparse.Namespace) -> list[rounds.Side]:
  """Runs all rounds of a network; its processes end with it."""
  began = time.monotonic()
  print(f"{network} compiles", end="", flush=True)
  with contextlib.ExitStack() as stack:
    wanted = [side for side in SIDES if (side[0], network) not in MISSING]
    sides = [rounds.start(stack, *side, network, asked.steps) for side in wanted]
    print(f" for {time.monotonic() - began:.0f} s, {_same_work(network, sides)}", flush=True)
    rounds.alternate(sides, asked.rounds, asked.steps)
  print("\n".join(f"  {side.name:30} {side}, peak {side.peak} MB" for side in sides), flush=True)
  return sides


def _same_work(network: str, sides: list[rounds.Side]) -> str:
  """Says what all sides train.

  Raises:
    SystemExit: a side trains another network, or the same one to another effect.
  """
  counts = {side.library: side.about["parameters"] for side in sides}
  for library, count in counts.items():
    expected = problem.parameters(library, network)
    if count != expected:
      raise SystemExit(f"{library} trains {count:,} parameters of {network}, not {expected:,}")
  said = f"trained parameters: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"
  losses = [side.about["loss"] for side in sides if "loss" in side.about]
  if not all(abs(loss - losses[0]) < SAME_LOSS for loss in losses):
    raise SystemExit(f"{network} has other losses from the same kernels: {losses}")
  return said if not losses else f"{said}; losses {min(losses):.6f} to {max(losses):.6f}"


def _versions(sides: Iterable[rounds.Side]) -> str:
  found = {name: text for side in sides for name, text in side.about["versions"].items()}
  return ", ".join(map(" ".join, found.items()))


def _cells(network: str, best: dict[str, rounds.Side]) -> list[str]:
  targets = DEPTHWISE_TARGETS if network in DEPTHWISE else TARGETS
  compared = [cell for peer, target in targets.items() for cell in _compared(best, peer, target)]
  peaks = [str(best[name].peak) if name in best else "none" for name in ("medjax", *targets)]
  return [network, str(best["medjax"]), *compared, *peaks]


def _compared(best: dict[str, rounds.Side], peer: str, target: float) -> tuple[str, str]:
  """A peer's seconds, and how many times as fast medjax is: of the medians, and round by round."""
  if peer not in best:
    return "none", "none"
  ours, theirs = best["medjax"], best[peer]
  ratio = theirs.median / ours.median
  each = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
  return str(theirs), f"{ratio:.2f} ({min(each):.2f} to {max(each):.2f}), target {target}"


def _row(cells: Sequence[str]) -> str:
  return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
  main()
