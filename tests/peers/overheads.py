"""Times what a run does beside its steps: rows of the log, and checkpoints in the background."""

from __future__ import annotations

from collections.abc import Iterator
import pathlib
import tempfile
import time

import problem
import results
import rounds

from medjax.bench import options as options_lib

NETWORKS = ("mednet", "quadsnet")
STEPS, PER_DISPATCH, ROW_EVERY = 20, 4, 20
BLOCKS, METRICS = "steps that saving a checkpoint blocks", "share of a step that metrics take"


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Every network; peak memory is told by the rows of training steps."""
  for network in asked.networks or (NETWORKS[:1] if asked.quick else NETWORKS):
    options = dict(network=network, device=asked.device, rounds=asked.rounds)
    options |= dict(steps=asked.steps or STEPS, side=asked.size, batch=asked.batch or problem.BATCH)
    found = rounds.alone("overheads", options)
    yield [
      results.Measured("overheads", network, what, results.OURS, "", tuple(found[what]), **aim)
      for what, aim in {
        results.STEP: {},
        BLOCKS: {"wanted": "<= 1"},
        METRICS: {"wanted": "<= 0.01"},
      }.items()
    ]


def main(options: dict) -> dict:
  """Alternates rounds of bare steps with rounds that do more, in one process."""
  import in_medjax
  import jax

  from medjax import checkpoint
  from medjax import train as train_lib
  from medjax import writer as writer_lib

  steps, names = options["steps"], ("side", "batch", "device")
  task = problem.task(options["network"], **{name: options[name] for name in names})
  made = in_medjax.parts(task, steps)
  dispatch = train_lib.dispatcher(made.objective, made.feed.take, made.mesh)

  def trained(record: train_lib.Record | None = None) -> float:
    """Seconds of the host for its record, within a round; all metrics are ready when it ends."""
    spent = 0.0
    for step in range(PER_DISPATCH, steps + 1, PER_DISPATCH):
      ticket, lrs = made.feed.next(PER_DISPATCH), made.lrs(PER_DISPATCH)
      made.state, metrics = dispatch(made.state, made.feed.resident, ticket, lrs, made.key)
      if record is not None:
        row = step % ROW_EVERY == 0
        if row:
          jax.block_until_ready(metrics)  # as the loop does before a row
        began = time.perf_counter()
        record.add(metrics)
        if row:
          record.flush(step, {})
        spent += time.perf_counter() - began
    jax.block_until_ready(made.state)
    return spent

  found: dict[str, list[float]] = {results.STEP: [], BLOCKS: [], METRICS: []}
  with tempfile.TemporaryDirectory() as folder:
    saved = checkpoint.Checkpoints(pathlib.Path(folder) / "checkpoints")
    writer = writer_lib.make(pathlib.Path(folder), "bench", 0)
    record = train_lib.Record(writer.scalars, lambda step: "")
    trained(record)  # compiles
    for number in range(options["rounds"]):
      began = time.perf_counter()
      trained()
      step = (time.perf_counter() - began) / steps
      spent = trained(record)
      began = time.perf_counter()
      saved.save(checkpoint.LAST, number, made.state, {})
      blocked = time.perf_counter() - began
      trained()  # while it is written
      saved.wait()
      found[results.STEP].append(step)
      found[METRICS].append(spent / steps / step)
      found[BLOCKS].append(blocked / step)
    saved.close()
    writer.close()
  return found
