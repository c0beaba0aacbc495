"""Fits a training step into the memory of a device, by XLA's own analysis of the compiled program.

The step is compiled as configured. Where that takes more than there is, programs of the same
mathematics are compiled until one fits: micro-batches, as far as they leave every batch-norm group
whole, and inner maps that are computed twice. Only rounding tells them apart. What was chosen is
kept with the stage, so that a resumed run begins with it.
"""

from __future__ import annotations

import dataclasses
import json
import math

from jax.sharding import Mesh

from medjax import cluster, settings, trees, wiring
from medjax.data import feed as feed_lib

FILE = "memory.json"  # of a stage for which something else than configured was chosen
_ROOM = 0.9  # of what a device says it has, for a step; evaluation and waiting batches need some
_FEW = 8  # images a device: smaller micro-batches are the last that are tried
# Of each image's own slot alone, see `base.reduced_gradients`.
_SEPARABLE = (settings.Supervised, settings.Rotation)


@dataclasses.dataclass(frozen=True)
class Plan:
  """How a step is computed: `optimizer.accumulate` and `train.remat`."""

  accumulate: int
  remat: bool


def fitted(bench: wiring.Bench, step: int) -> tuple[feed_lib.Feed, wiring.Program]:
  """The feed of the train part from a step on, and the training step compiled to fit.

  All processes call this, and do as the lead does.

  Raises:
    ValueError: nothing fits; tells the least that was found.
  """
  feed, known = bench.shuffled(step), plans(bench.stage, bench.mesh.size, _group(bench))
  most, first = _agreed(bench, known)
  found: dict[Plan, int] = {}
  for plan in dict.fromkeys([first, *known]):
    revised = bench.revised(plan.accumulate, plan.remat)
    program = revised.program(feed, step)
    found[plan] = program.memory
    if found[plan] <= most:
      break
  else:
    raise ValueError(_refusal(bench, found, most))
  bench.say(_told(bench, plan, found[plan], most))
  if len(found) > 1:
    _keep(bench, plan)
  if plan.accumulate != bench.stage.optimizer.accumulate:  # slots lie otherwise on the devices
    feed.close()
    feed = revised.shuffled(step)
    program = dataclasses.replace(program, feed=feed)
  return feed, program


def plans(stage: settings.Stage, devices: int, group: int) -> list[Plan]:
  """The plan that is configured, then others with its mathematics, in the order to try them.

  Micro-batches come first, as they add no arithmetic; then maps that are computed twice; then
  micro-batches of very few images.

  Args:
    stage: its settings. devices: that a batch is cut over.
    group: slots of a batch that are normalised together; 1 where each is by itself.
  """
  asked, size = Plan(stage.optimizer.accumulate, stage.train.remat), stage.train.batch_size
  more = range(asked.accumulate + 1, size + 1)
  counts = [asked.accumulate, *(n for n in more if _equal(stage, n, devices, group))]
  every = [Plan(n, remat) for n in counts for remat in sorted({asked.remat, True})]
  return sorted(every, key=lambda p: (size < _FEW * p.accumulate * devices, p.remat, p.accumulate))


def _equal(stage: settings.Stage, accumulate: int, devices: int, group: int) -> bool:
  """Whether so many micro-batches leave every slot its image, its partner and its group."""
  micro, left = divmod(stage.train.batch_size, accumulate)
  each, over = divmod(micro, devices)
  if left or over or micro % group or (each % group and group % each):
    return False
  mixed = getattr(stage.objective, "mixup", 0) or getattr(stage.objective, "cutmix", 0)
  if mixed and each % 2:
    return False
  return isinstance(stage.objective, _SEPARABLE) and stage.data.feeding.shards == 1


def _group(bench: wiring.Bench) -> int:
  """Slots of a batch that are normalised together; see `plans`."""
  cfg = bench.stage.train
  moving = any(path.endswith("/var") for path in trees.flatten(bench.shapes.stats))
  if not moving or cfg.freeze_stats:
    return 1
  return cfg.bn_group or cfg.batch_size // bench.stage.optimizer.accumulate


def _agreed(bench: wiring.Bench, known: list[Plan]) -> tuple[float, Plan]:
  """The bytes of a device that a step may take, and the plan to begin with: those of the lead."""

  def own() -> bytes:
    most, plan = _limit(bench.mesh, bench.stage.train.memory_gb), _kept(bench, known)
    return json.dumps([most, known.index(plan)]).encode()

  most, number = json.loads(cluster.told(own))
  return most, known[number]


def _limit(mesh: Mesh, memory_gb: float) -> float:
  """As stated, or of what this process's devices say they have; infinite where they do not."""
  if memory_gb:
    return memory_gb * 1e9
  told = [(device.memory_stats() or {}).get("bytes_limit") for device in mesh.local_devices]
  return _ROOM * min((size for size in told if size), default=math.inf)


def _devices(mesh: Mesh) -> str:
  return f"{mesh.size} x {mesh.devices.flat[0].device_kind}"


def _kept(bench: wiring.Bench, known: list[Plan]) -> Plan:
  """What an earlier start chose on such devices, if it is among the known; else as configured."""
  try:
    kept = json.loads((bench.folder / FILE).read_text(encoding="utf-8"))
    plan = Plan(kept["accumulate"], kept["remat"])
  except (OSError, ValueError, KeyError, TypeError):
    return known[0]  # what is kept is of no use, and what is chosen now takes its place
  return plan if kept.get("devices") == _devices(bench.mesh) and plan in known else known[0]


def _keep(bench: wiring.Bench, plan: Plan) -> None:
  chosen = {"devices": _devices(bench.mesh), **dataclasses.asdict(plan)}
  partial = bench.folder / f"{FILE}.partial"
  partial.write_text(json.dumps(chosen) + "\n", encoding="utf-8")
  partial.replace(bench.folder / FILE)


def _told(bench: wiring.Bench, plan: Plan, taken: int, most: float) -> str:
  room = "" if math.isinf(most) else f" of {most / 1e9:.3g}"
  return f"memory: {taken / 1e9:.3g}{room} GB a device with {_words(bench, plan)}"


def _words(bench: wiring.Bench, plan: Plan) -> str:
  cut = f" in {plan.accumulate} micro-batches" if plan.accumulate > 1 else ""
  twice = ", inner maps computed twice (remat)" if plan.remat else ""
  return f"batch {bench.stage.train.batch_size}{cut}{twice}"


def _refusal(bench: wiring.Bench, found: dict[Plan, int], most: float) -> str:
  least = min(found, key=found.__getitem__)
  stated = bench.stage.train.memory_gb
  source = f"train.memory_gb={stated:g}" if stated else "what the device has, less a tenth"
  return (
    f"stage {bench.stage.name!r}: a device has {most / 1e9:.3g} GB for a step ({source}), and the"
    f" least of {len(found)} programs takes {found[least] / 1e9:.3g} GB, with"
    f" {_words(bench, least)}. Set {_advice(bench)}"
  )


def _advice(bench: wiring.Bench) -> str:
  """What would make a step smaller."""
  train = bench.stage.train
  ways = {
    f"train.bn_group={_FEW} (micro-batches need small groups)": _group(bench) > _FEW
    and isinstance(bench.stage.objective, _SEPARABLE),
    "data.feed=streamed (the images lie on the devices)": bench.splits.feed != "streamed",
    "train.precision=bfloat16": train.precision != "bfloat16",
    "train.batch_size or data.image_size lower": True,
  }
  return ", or ".join(way for way, helps in ways.items() if helps)
