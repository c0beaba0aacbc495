"""Times a training step in medjax, Keras on JAX and PyTorch, in turns.

  ./tests/peers/run.sh training_step.py

is `bench.py --rows training`. On CPU: batch 16, 64 pixels (the Inceptions: 96, as their strides
leave nothing of 64), float32, Adam, softmax cross-entropy (QuadSNet: margin loss and dropout, as in
its paper), no augmentation. One network follows the other; the libraries take turns. A library runs
in every setting worth trying, and its best one counts, in time and in memory; PyTorch as it is and
compiled count apart. Backbones are those of Keras and timm, which has no NASNet Mobile; timm's
ResNet-50 has its strides moved to where the others have them.

Before that the numbers of trained parameters are compared; where PyTorch has others, `problem` says
why. Networks of our own are trained for two steps from the same kernels without dropout, and the
mean of their losses must be the same, but for `--quick`, which leaves that to `curves` and its
fifty steps; that the backbones are the same is for `tests/models` to hold.

A peak is the most memory that a process has held in the rounds, library included, compiler not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import importlib
import math
import shutil
import sys

import problem
import results
import rounds

from medjax.bench import options as options_lib

COMPILED = "torch_compiled"
_MODULES = {COMPILED: "in_torch", "plain": "in_medjax", "called": "in_medjax"}
SIDES = (
  ("medjax", "4 steps a dispatch"),
  ("keras", "1 step an execution"),
  ("keras", "4 steps an execution"),
  ("torch", "contiguous"),
  ("torch", "channels_last"),
)
COMPILED_SIDE = (COMPILED, "channels_last, compiled")
NETWORKS = (
  "quadsnet_exact",
  "mednet",
  "densenet121",
  "resnet50",
  "mobilenet_v2",
  "inception_v3",
  "nasnet_mobile",
)
QUICK = ("quadsnet", "mednet", "mobilenet_v2", "densenet121")
LARGE = ("densenet121", "inception_resnet_v2", "nasnet_large", "mobilenet_v2")
MISSING = {("torch", "nasnet_mobile"), (COMPILED, "nasnet_mobile")}
DEPTHWISE = {"quadsnet_exact", "quadsnet", "mobilenet_v2", "nasnet_mobile"}
# Found are 2e-5. A learning rate 1.1 times as large makes 1.2e-3, a leaky ReLU of 0.01 in QuadSNet
# 8e-4 and in MedNet's blocks 1.7e-3.
SAME_LOSS = 1e-4


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Row 1."""
  own = QUICK if asked.quick else NETWORKS
  sides = SIDES if asked.quick else _and_compiled(SIDES)
  for network in asked.networks or own:
    wanted = {"keras": ">= 3" if network in DEPTHWISE else ">= 1.2", "torch": ">= 0.7"}
    yield compared("training", network, sides, wanted, asked, steps=4)


def measure_resnet50(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Row 9."""
  yield from _large("resnet50", asked.networks or ("resnet50",), {COMPILED: ">= 1.15"}, asked)


def measure_backbones(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Row 10; one figure is the geometric mean of the others."""
  found = []
  for some in _large("backbones", asked.networks or LARGE, {COMPILED: ">= 1"}, asked):
    found += some
    yield some
  ratios = [pair.ratio for pair in results.compared(found) if pair.theirs.library == COMPILED]
  if ratios:
    what = "times as fast as torch_compiled, geometric mean"
    mean = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
    yield [results.figure("backbones", "all", what, mean, ">= 1.25")]


def measure_branches(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Row 11."""
  plain = (("plain", "16 steps a dispatch, plain convolutions"),)
  wanted = {"plain": ">= 1.5", COMPILED: ">= 1.3"}
  yield from _large("branches", asked.networks or ("quadsnet", "mednet"), wanted, asked, plain)


def _large(
  row: str,
  networks: Sequence[str],
  wanted: dict[str, str],
  asked: options_lib.Asked,
  more: Sequence[tuple[str, str]] = (),
) -> Iterator[list[results.Measured]]:
  """A row for GPUs: 224 pixels, and many steps a call wherever a library can have them."""
  sides = [(library, variant.replace("4 steps", "16 steps")) for library, variant in SIDES]
  sides = [*_and_compiled(sides), *more]
  for network in networks:
    yield compared(row, network, sides, wanted, asked, steps=16, side=224, batch=64)


def _and_compiled(sides: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
  if shutil.which("g++"):
    return *sides, COMPILED_SIDE
  print("torch.compile is left out: it needs g++, which is not there", flush=True)
  return sides


def compared(
  row: str,
  network: str,
  sides: Sequence[tuple[str, str]],
  wanted: dict[str, str],
  asked: options_lib.Asked,
  steps: int,
  side: int = 0,
  batch: int = problem.BATCH,
) -> list[results.Measured]:
  """Runs all rounds of a network; its processes end with it.

  Args:
    row: which it is part of. network: of `problem.PARAMETERS`. sides: (library, variant).
    wanted: of each peer, how many times as fast medjax is to be.
    asked: what stands above `steps` of a side in a round, `side` of images and `batch`.

  Raises:
    rounds.Failed: a side trains another network, or the same one to another effect, or ended.
  """
  steps = asked.steps or steps
  options = dict(
    network=network,
    steps=steps,
    side=asked.size or side,
    batch=asked.batch or batch,
    precision=asked.precision or {"cpu": "float32", "gpu": "bfloat16"}[asked.device],
    device=asked.device,
    checked=not asked.quick,
  )
  with contextlib.ExitStack() as stack:
    there = [pair for pair in sides if (pair[0], network) not in MISSING]
    started = [rounds.start(stack, "training_step", *pair, options) for pair in there]
    print(f"{network}: {_same_work(network, started)}", flush=True)
    rounds.alternate(started, asked.rounds, steps)
  return [
    *results.of_sides(row, network, started, wanted),
    *_of_first_rounds(row, network, started),
  ]


def _of_first_rounds(
  row: str, network: str, sides: Sequence[rounds.Side]
) -> list[results.Measured]:
  """What every side took for its first round, in which it compiles; one value, so no comparison."""
  what = "first round with compiling, s"
  return [
    results.Measured(row, network, what, side.library, side.variant, (side.about["first"],))
    for side in sides
  ]


def side(library: str, variant: str, options: dict) -> rounds.Work:
  """What a process of `compared` does."""
  module = importlib.import_module(_MODULES.get(library, f"in_{library}"))
  options = dict(options)
  network, steps, checked = (options.pop(name) for name in ("network", "steps", "checked"))
  task = problem.task(network, **options)
  about = {"versions": module.versions()}
  if checked and task.same_kernels and task.precision == "float32":
    checked = module.make(task.without_dropout, variant, problem.CHECKED_STEPS)
    about["loss"] = checked.run()
  trainer = module.make(task, variant, steps)

  def run() -> None:
    loss = trainer.run()
    if not math.isfinite(loss):
      raise FloatingPointError(f"the loss is {loss}")

  return rounds.Work(run, about | {"parameters": trainer.parameters}, trainer.peak)


def _same_work(network: str, sides: Sequence[rounds.Side]) -> str:
  """Says what all sides train."""
  counts = {side.library: side.about["parameters"] for side in sides}
  for library, count in counts.items():
    more = problem.more_parameters(library.removesuffix("_compiled"), network)
    if count != (expected := counts["medjax"] + more):
      raise rounds.Failed(f"{library} trains {count:,} parameters of {network}, not {expected:,}")
  said = f"trained parameters: {', '.join(f'{name} {count:,}' for name, count in counts.items())}"
  losses = [side.about["loss"] for side in sides if "loss" in side.about]
  if not all(abs(loss - losses[0]) < SAME_LOSS for loss in losses):
    raise rounds.Failed(f"{network} has other losses from the same kernels: {losses}")
  return said if not losses else f"{said}; losses {min(losses):.6f} to {max(losses):.6f}"


if __name__ == "__main__":
  import bench

  sys.exit(bench.main(["--rows=training", *sys.argv[1:]]))
