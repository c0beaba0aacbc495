"""Times feeds of decoded images beside PyTorch's DataLoader and Grain, in one alternating run.

  ./tests/peers/run.sh loader.py

On CPU: uint8 images of 224 pixels, grey or in colour, in batches of 32, shuffled, decoded before.
Every side is a process of its own and has the same images: the peers in memory, as tensors or as an
array that Grain's pipeline takes one by one, with no workers and with two, of which the better
counts; medjax resident on the device, split, in chunks, and streamed from memory, from a mapped
file and from a prepared collection, whose images are kept once read, or read from its records in
every epoch. A side's batch is there when it lies whole in memory
that a training step could read: PyTorch's as a tensor, Grain's as an array, medjax's on the device.
A feed that holds its images there writes every batch to a buffer there, as the compiled step does.
A round is long, so that what a side has read ahead by then counts little.

Before that, every side adds up all pixels of two epochs: each image must come exactly twice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
import contextlib
import functools
import itertools
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

import numpy as np
import rounds

IMAGES, SIDE, BATCH, PER_DISPATCH = 2048, 224, 32, 8
TARGET = 2.0
SIDES = (
  ("medjax", "resident"),
  ("medjax", "split"),
  ("medjax", "chunked"),
  ("medjax", "streamed, memory"),
  ("medjax", "streamed, mapped file"),
  ("medjax", "streamed, collection"),
  ("medjax", "streamed, collection, read anew"),
  ("torch", "0 workers"),
  ("torch", "2 workers"),
  ("grain", "0 threads"),
  ("grain", "2 threads"),
)
Step = Callable[[int], None]  # takes so many batches
Look = Callable[[int], Iterator[np.ndarray]]  # the same, to look at them


def main() -> None:
  asked = _asked()
  if asked.side:
    return work(*asked.side.split(":"), asked.steps, pathlib.Path(asked.folder))
  print(f"command: {shlex.join(['./tests/peers/run.sh', 'loader.py', *sys.argv[1:]])}")
  print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before", flush=True)
  with contextlib.ExitStack() as stack:
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    images = write(pathlib.Path(folder), asked.channels)
    sides = [start(stack, *side, asked.steps, folder) for side in SIDES]
    if {side.about["sum"] for side in sides} != {2 * int(images.sum(dtype=np.int64))}:
      raise SystemExit(f"not every image came twice: {[(s.name, s.about) for s in sides]}")
    rounds.alternate(sides, asked.rounds, asked.steps)
  kind = {1: "grey", 3: "colour"}[asked.channels]
  print(f"{kind} images a second, medians of {asked.rounds} rounds of {asked.steps} batches:")
  best = rounds.best(sides)
  for side in sides:
    peers = ", ".join(
      f"{best[peer].median / side.median:.1f} x {peer}'s better" for peer in ("torch", "grain")
    )
    print(f"  {side.name:32} {BATCH / side.median:9,.0f}   {peers}")
  print(f"wanted: {TARGET} x")


def _asked() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--steps", type=int, default=512, help="batches of every side in a round")
  parser.add_argument("--channels", type=int, default=1, help="1 (grey) or 3 (colour)")
  parser.add_argument("--side", help="library:variant, of a process that this script starts")
  parser.add_argument("--folder", help="of its images")
  return parser.parse_args()


def start(
  stack: contextlib.ExitStack, library: str, variant: str, steps: int, folder: str
) -> rounds.Side:
  """Starts a side and waits until it has shown that it gives every image."""
  command = [sys.executable, __file__, f"--side={library}:{variant}"]
  command += [f"--steps={steps}", f"--folder={folder}"]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
  process = stack.enter_context(subprocess.Popen(command, env=os.environ | rounds.ON_CPU, **pipes))
  stack.callback(process.kill)
  return rounds.Side(library, variant, process, json.loads(process.stdout.readline()))


def work(library: str, variant: str, steps: int, folder: pathlib.Path) -> None:
  """What the process of a side does: adds up two epochs, then takes batches whenever asked."""
  images = np.load(folder / "images.npy", mmap_mode="r" if "file" in variant else None)
  make = {"medjax": of_medjax, "torch": of_torch, "grain": of_grain}[library]
  take, look = make(variant, images, folder)
  total = sum(int(batch.sum(dtype=np.int64)) for batch in look(2 * IMAGES // BATCH))
  take(steps)
  print(json.dumps({"sum": total}), flush=True)
  for _ in sys.stdin:
    began = time.perf_counter()
    take(steps)
    print(json.dumps({"seconds": time.perf_counter() - began, "peak": 0}), flush=True)


def write(folder: pathlib.Path, channels: int) -> np.ndarray:
  """Images as an array and as the records of a prepared collection."""
  from medjax.data.collection import records

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (IMAGES, SIDE, SIDE, channels), np.uint8)
  np.save(folder / "images.npy", images)
  (folder / "shards").mkdir()
  for shard in range(2):
    with records.writing(records.path(folder, shard)) as record:
      for image in images[shard * IMAGES // 2 : (shard + 1) * IMAGES // 2]:
        record(image.tobytes())
  return images


def of_medjax(variant: str, images: np.ndarray, folder: pathlib.Path) -> tuple[Step, Look]:
  """A feed of medjax; one that holds its images takes batches inside a compiled loop."""
  import jax
  from jax import lax

  from medjax import mesh as mesh_lib
  from medjax import settings
  from medjax.data import catalogue
  from medjax.data import feed as feed_lib
  from medjax.data.collection import records

  ids, labels = np.arange(IMAGES).astype(str), np.zeros(IMAGES, np.int32)
  read = None
  if "collection" in variant:
    place = np.divmod(np.arange(IMAGES), IMAGES // 2)
    read = records.Images(folder, *place, images.shape[1:], records.dtype(8)).read
  part = catalogue.Part(
    "train", ids, ids, labels, images.__getitem__, None if read else images, fetch_many=read
  )
  mesh, kind = mesh_lib.make(), variant.partition(",")[0]
  cfg = settings.Feeding(memory_gb=0.0 if "anew" in variant else 8.0)
  if kind == "chunked":
    cfg = settings.Feeding(block=64, window=8)
  feed = feed_lib.training(part, BATCH, 0, mesh, kind, cfg=cfg)

  @functools.partial(jax.jit, donate_argnums=1)
  def written(resident, buffer, tickets):
    each = lambda _, ticket: (feed.take(resident, ticket)["image"], None)  # noqa: E731
    return lax.scan(each, buffer, tickets)[0]

  buffer = mesh_lib.put(mesh, np.zeros((BATCH, *images.shape[1:]), np.uint8))

  def take(count: int) -> None:
    nonlocal buffer
    for _ in range(count // PER_DISPATCH):
      ticket = feed.next(PER_DISPATCH)
      if kind == "streamed":
        jax.block_until_ready(ticket)
      else:
        buffer = written(feed.resident, buffer, ticket)
    jax.block_until_ready(buffer)

  def look(count: int) -> Iterator[np.ndarray]:
    taken = jax.jit(lambda resident, tickets: lax.map(lambda t: feed.take(resident, t), tickets))
    for _ in range(count // PER_DISPATCH):
      ticket = feed.next(PER_DISPATCH)
      yield from np.asarray(taken(feed.resident, ticket)["image"])

  return take, look


def of_torch(variant: str, images: np.ndarray, folder: pathlib.Path) -> tuple[Step, Look]:
  """A DataLoader of tensors in memory."""
  import torch
  from torch.utils import data

  del folder
  workers = int(variant.split()[0])
  tensors = data.TensorDataset(torch.from_numpy(images), torch.zeros(IMAGES, dtype=torch.int32))
  loader = data.DataLoader(
    tensors, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
  )
  return _of_batches(batch[0].numpy() for batch in itertools.chain.from_iterable(_again(loader)))


def of_grain(variant: str, images: np.ndarray, folder: pathlib.Path) -> tuple[Step, Look]:
  """A pipeline of Grain, image by image."""
  import grain

  del folder
  threads = int(variant.split()[0])
  one = lambda row: {"image": images[row], "label": np.int32(0)}  # noqa: E731
  rows = grain.MapDataset.range(IMAGES).seed(0).shuffle().repeat(None)
  options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16)
  pipeline = rows.map(one).batch(BATCH).to_iter_dataset(options)
  return _of_batches(batch["image"] for batch in pipeline)


def _again(loader):
  while True:
    yield loader


def _of_batches(batches: Iterator[np.ndarray]) -> tuple[Step, Look]:
  def take(count: int) -> None:
    for _ in itertools.islice(batches, count):
      pass

  return take, lambda count: itertools.islice(batches, count)


if __name__ == "__main__":
  main()
