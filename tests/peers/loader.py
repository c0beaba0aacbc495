"""Times feeds beside PyTorch's DataLoader and Grain, and of JPEG files beside one core.

  ./tests/peers/run.sh loader.py

is `bench.py --rows loader`. On CPU: uint8 images of 224 pixels, grey and then in colour, in batches
of 32, shuffled, decoded before. Every side is a process of its own and has the same images: the
peers in memory, as tensors or as an array that Grain's pipeline takes one by one, with no workers
and with two, of which the better counts; medjax resident on the device, at 8 and at 32 steps a
dispatch, split, in chunks, and streamed from memory, from a mapped file and from a prepared
collection, whose images are kept once read, or read from its records in every epoch. A side's batch
is there when it lies whole in memory that a training step could read: PyTorch's as a tensor,
Grain's as an array, medjax's on the device. A feed that holds its images there writes every batch
to a buffer there, as the compiled step does. What a side has read ahead when a round begins is used
up before the clock starts; rows alone, which resident feeds draw for eight dispatches at once, are
drawn as often within a round as it uses them.

Before that, every side adds up all pixels of two epochs: each image must come exactly twice.

Then files: medjax's streamed feed, on every core, beside decoders in a plain loop on one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import functools
import itertools
import os
import pathlib
import sys
import tempfile

import jpegs
import numpy as np
import results
import rounds

from medjax.bench import options as options_lib

IMAGES, SIDE, BATCH = 2048, 224, 32
PER_DISPATCH, PER_LONG_DISPATCH = 8, 32  # steps that a feed of medjax gives at once
CHANNELS = {"grey": 1, "colour": 3}
AHEAD = 32  # batches, at least what any side has read ahead when a round begins
STEPS, QUICK_STEPS, FILE_STEPS = 2048, 512, 64  # batches of every side in a round
SIDES = (
  ("medjax", "resident"),
  ("medjax", "resident, long dispatches"),
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
WANTED = {"torch": ">= 2"}
DECODERS = ("simplejpeg", "opencv")
DECODED = 0.9  # of what the best of them would do on every core
Step = Callable[[int], None]  # takes so many batches
Look = Callable[[int], Iterator[np.ndarray]]  # the same, to look at them


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Decoded images, then files."""
  for kind in CHANNELS:
    with tempfile.TemporaryDirectory() as folder:
      yield _of_images(asked, kind, pathlib.Path(folder))
  with tempfile.TemporaryDirectory() as folder:
    yield _of_files(asked, pathlib.Path(folder))


def _of_images(asked: options_lib.Asked, kind: str, folder: pathlib.Path) -> list[results.Measured]:
  """Of decoded images, fed from where each library has them."""
  steps = asked.steps or (QUICK_STEPS if asked.quick else STEPS)
  images = write(folder, CHANNELS[kind])
  options = dict(steps=steps, folder=str(folder))
  with contextlib.ExitStack() as stack:
    sides = [rounds.start(stack, "loader", *pair, options) for pair in SIDES]
    if {side.about["sum"] for side in sides} != {2 * int(images.sum(dtype=np.int64))}:
      raise rounds.Failed(f"not every image came twice: {[(s.name, s.about) for s in sides]}")
    rounds.alternate(sides, asked.rounds, steps)
  return results.of_sides("loader", f"{kind}_{SIDE}px", sides, WANTED, "seconds a batch")


def _of_files(asked: options_lib.Asked, folder: pathlib.Path) -> list[results.Measured]:
  """Of JPEG files, decoded and fed."""
  steps = asked.steps or FILE_STEPS
  files, told = jpegs.files(folder)
  options = dict(steps=steps, files=[str(file) for file in files])
  with contextlib.ExitStack() as stack:
    pairs = [("medjax", "streamed, files"), *((name, "one core, files") for name in DECODERS)]
    sides = [rounds.start(stack, "loader", *pair, options) for pair in pairs]
    rounds.alternate(sides, asked.rounds, steps)
  best, cores = rounds.best(sides), len(os.sched_getaffinity(0))
  fastest = min(best[name].median for name in DECODERS) / cores
  what = f"share of {cores} x the best decoder on one core"
  model = f"jpeg_{jpegs.SIDE}px"
  return [
    *results.of_sides("loader", model, sides, {}, f"seconds a batch of {told}"),
    results.figure("loader", model, what, fastest / best["medjax"].median, f">= {DECODED}"),
  ]


def side(library: str, variant: str, options: dict) -> rounds.Work:
  """What a process of `measure` does: adds up two epochs, then takes batches whenever asked."""
  steps = options["steps"]
  if "files" in variant:
    files = [pathlib.Path(file) for file in options["files"]]
    take = _of_feed(files) if library == "medjax" else _of_decoder(library, files)
    return rounds.Work(lambda: take(steps), {}, before=lambda: take(AHEAD))
  folder = pathlib.Path(options["folder"])
  images = np.load(folder / "images.npy", mmap_mode="r" if "file" in variant else None)
  make = {"medjax": of_medjax, "torch": of_torch, "grain": of_grain}[library]
  take, look = make(variant, images, folder)
  epochs = 2 * IMAGES // BATCH
  total = sum(int(batch.sum(dtype=np.int64)) for batch in look(epochs))
  return rounds.Work(lambda: take(steps), {"sum": total}, before=lambda: take(AHEAD))


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
  per_dispatch = PER_LONG_DISPATCH if "long" in variant else PER_DISPATCH
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
    for _ in range(count // per_dispatch):
      ticket = feed.next(per_dispatch)
      if kind == "streamed":
        jax.block_until_ready(ticket)
      else:
        buffer = written(feed.resident, buffer, ticket)
    jax.block_until_ready(buffer)

  def look(count: int) -> Iterator[np.ndarray]:
    taken = jax.jit(lambda resident, tickets: lax.map(lambda t: feed.take(resident, t), tickets))
    for _ in range(count // per_dispatch):
      ticket = feed.next(per_dispatch)
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


def _of_feed(files: list[pathlib.Path]) -> Step:
  """medjax's feed of files, read and decoded in every epoch."""
  import jax

  from medjax import mesh as mesh_lib
  from medjax import settings
  from medjax.data import catalogue, readers
  from medjax.data import feed as feed_lib

  reading = settings.Reading()

  def read(row: int) -> np.ndarray:
    return readers.read(files[row].read_bytes(), jpegs.SIDE, 1, reading)

  ids, labels = np.arange(len(files)).astype(str), np.zeros(len(files), np.int32)
  part = catalogue.Part("train", ids, ids, labels, read, None)
  cfg = settings.Feeding(memory_gb=0.0)
  feed = feed_lib.training(part, BATCH, 0, mesh_lib.make(), "streamed", cfg=cfg)

  def take(count: int) -> None:
    for _ in range(count // PER_DISPATCH):
      jax.block_until_ready(feed.next(PER_DISPATCH))

  return take


def _of_decoder(library: str, files: list[pathlib.Path]) -> Step:
  """A decoder alone, in a loop, on one core."""
  import cv2
  import simplejpeg

  os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
  cv2.setNumThreads(1)
  decode = {
    "simplejpeg": lambda data: simplejpeg.decode_jpeg(data, "GRAY"),
    "opencv": lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE),
  }[library]
  rows = itertools.cycle(files)

  def take(count: int) -> None:
    for file in itertools.islice(rows, count * BATCH):
      decode(file.read_bytes())

  return take


if __name__ == "__main__":
  import bench

  sys.exit(bench.main(["--rows=loader", *sys.argv[1:]]))
