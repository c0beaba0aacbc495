"""Times training from images beside the bare step: resident, and streamed from JPEG files.

On a CPU decoders and steps share the cores, so a streamed step can at best take what both take one
after the other. Files are read and decoded in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import operator
import pathlib
import tempfile
from typing import Any

import jpegs
import problem
import results
import rounds

from medjax.bench import options as options_lib

NETWORKS = ("mednet_8", "mednet")
SIDE, STEPS, PER_DISPATCH = 64, 32, 4
AHEAD = 12  # steps, at least what a feed has read ahead when a round begins; not timed
KINDS = ("device", "resident", "streamed", "decoder")
RESIDENT, STREAMED = 0.97, 0.9  # of what there is at best


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Every network."""
  with tempfile.TemporaryDirectory() as folder:
    files, told = jpegs.files(pathlib.Path(folder))
    print(f"{len(files)} {told}", flush=True)
    for network in asked.networks or (NETWORKS[:1] if asked.quick else NETWORKS):
      yield _of(network, asked, [str(file) for file in files])


def _of(network: str, asked: options_lib.Asked, files: list[str]) -> list[results.Measured]:
  steps = asked.steps or STEPS
  options = dict(network=network, steps=steps, side=asked.size or SIDE, device=asked.device)
  options |= dict(batch=asked.batch or problem.BATCH, files=files)
  with contextlib.ExitStack() as stack:
    sides = {kind: rounds.start(stack, "feeds", kind, "", options) for kind in KINDS}
    rounds.alternate(list(sides.values()), asked.rounds, steps)
  step, decoder = sides["device"].seconds, sides["decoder"].seconds
  together = map(max if asked.device == "gpu" else operator.add, step, decoder)
  shares = {
    ("resident", "share of the step's rate that is kept", RESIDENT): step,
    ("streamed", "share of the best rate of decoder and step", STREAMED): together,
  }
  return results.of_sides("feeds", network, list(sides.values()), {}) + [
    results.Measured(
      "feeds",
      network,
      f"{kind}: {what}",
      results.OURS,
      "",
      tuple(map(operator.truediv, best, sides[kind].seconds)),
      wanted=f">= {least}",
    )
    for (kind, what, least), best in shares.items()
  ]


def side(library: str, variant: str, options: dict) -> rounds.Work:
  """What a process of `measure` does; `library` is one of `KINDS`."""
  del variant
  import in_medjax
  import numpy as np

  from medjax import settings
  from medjax import train as train_lib
  from medjax.data import catalogue, readers
  from medjax.data import feed as feed_lib

  files = [pathlib.Path(file) for file in options["files"]]
  steps, names = options["steps"], ("side", "batch", "device")
  task = problem.task(options["network"], **{name: options[name] for name in names})
  reading = settings.Reading()

  def read(row: int) -> np.ndarray:
    return readers.read(files[row].read_bytes(), task.side, task.channels, reading)

  ids, labels = np.arange(len(files)).astype(str), np.arange(len(files), dtype=np.int32) % 2
  decodes = library in ("streamed", "decoder")
  images = None if decodes else np.stack([read(row) for row in range(len(files))])
  part = catalogue.Part("train", ids, ids, labels, read, images)
  made = in_medjax.parts(task, 1)
  kind, cfg = "streamed" if decodes else "resident", settings.Feeding(memory_gb=0.0)
  made.feed = feed_lib.training(part, task.batch, 0, made.mesh, kind, cfg=cfg)
  if library == "device":
    return _on_device(made, steps)
  dispatch = train_lib.dispatcher(made.objective, made.feed.take, made.mesh)
  run = _decoded if library == "decoder" else _trained(dispatch)
  about = {"versions": in_medjax.versions()}
  return rounds.Work(lambda: run(made, steps), about, before=lambda: run(made, AHEAD))


def _trained(dispatch: Callable) -> Callable[[Any, int], None]:
  import jax

  def run(made, steps: int) -> None:
    for _ in range(steps // PER_DISPATCH):
      ticket, lrs = made.feed.next(PER_DISPATCH), made.lrs(PER_DISPATCH)
      made.state, metrics = dispatch(made.state, made.feed.resident, ticket, lrs, made.key)
    jax.block_until_ready(metrics)

  return run


def _decoded(made, steps: int) -> None:
  import jax

  for _ in range(steps // PER_DISPATCH):
    jax.block_until_ready(made.feed.next(PER_DISPATCH))


def _on_device(made, steps: int) -> rounds.Work:
  """The same batches in every call, which lie on the device."""
  import in_medjax
  import jax

  from medjax import train as train_lib

  ticket, lrs = made.feed.next(PER_DISPATCH), made.lrs(PER_DISPATCH)
  taken = jax.jit(lambda resident, ticket: jax.vmap(made.feed.take, (None, 0))(resident, ticket))
  batches = jax.block_until_ready(taken(made.feed.resident, ticket))
  dispatch = train_lib.dispatcher(made.objective, lambda _, batch: batch, made.mesh)

  def run() -> None:
    for _ in range(steps // PER_DISPATCH):
      made.state, metrics = dispatch(made.state, {}, batches, lrs, made.key)
    jax.block_until_ready(metrics)

  return rounds.Work(run, {"versions": in_medjax.versions()})
