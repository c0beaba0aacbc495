"""Feeds that hold a share of the images on each device, against the streamed feed."""

import dataclasses
import gc
import threading

import jax
from jax import lax
import numpy as np
import pytest

from medjax import contract, settings
from medjax import mesh as mesh_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib

ROWS, BATCH, SEED = 203, 16, 7
ORDERS = {
  "shuffled": settings.Feeding(shards=8),
  "balanced": settings.Feeding(shards=8, sampling="class_balanced"),
  "blocks": settings.Feeding(shards=8, block=4, window=20),
}
BLOCKS = ORDERS["blocks"]


@pytest.fixture(params=[1, 2, 8])
def mesh(request) -> jax.sharding.Mesh:
  return mesh_lib.make(jax.devices()[: request.param])


def make_part(dtype=np.uint8) -> catalogue.Part:
  """Images, three classes and two numbers of each patient; nothing is the same in two rows."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), (ROWS, 5, 4, 3), dtype)
  names = np.array([f"{i}.png" for i in range(ROWS)])
  labels = np.arange(ROWS, dtype=np.int32) % 3
  metadata = rng.normal(size=(ROWS, 2)).astype(np.float32)
  return catalogue.Part("train", names, names, labels, images.__getitem__, images, metadata)


def together(part: catalogue.Part, seen: list | None = None) -> catalogue.Part:
  """The same part, whose images lie elsewhere and are read together."""
  images = part.images

  def fetch_many(rows: np.ndarray) -> np.ndarray:
    if seen is not None:
      seen.append(np.array(rows))
    return images[rows]

  return dataclasses.replace(part, images=None, fetch=None, fetch_many=fetch_many)


def make(part, kind, mesh, cfg, **more) -> feed_lib.Feed:
  return feed_lib.training(part, BATCH, SEED, mesh, kind, cfg=cfg, **more)


def batches(feed: feed_lib.Feed, mesh: jax.sharding.Mesh, *ks: int) -> dict[str, np.ndarray]:
  """The next sum(ks) steps as a training loop has them: [steps, B, ...] on the host."""

  def every(resident, ticket):
    return lax.map(lambda one: feed.take(resident, one), ticket)

  mapped = mesh_lib.mapped(every, mesh, (feed.spec, mesh_lib.cut(1)), mesh_lib.cut(1))
  parts = []
  with jax.transfer_guard("disallow"):
    for k in ks:
      ticket = feed.next(k)
      parts.append(jax.device_get(mapped(feed.resident, ticket)))
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].dtype == other[name].dtype
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def expected(part: catalogue.Part, cfg: settings.Feeding, steps: int, **more) -> dict:
  """What the streamed feed gives on one device."""
  mesh = mesh_lib.make(jax.devices()[:1])
  feed = make(part, "streamed", mesh, cfg, threads=2, **more)
  got = batches(feed, mesh, steps)
  feed.close()
  return got


@pytest.mark.parametrize("name", ORDERS)
def test_split_gives_the_streamed_batches(mesh, name):
  part = make_part()
  feed = make(part, "split", mesh, ORDERS[name])
  got = batches(feed, mesh, 5, 1, 24)  # more than two epochs
  assert_same(got, expected(part, ORDERS[name], 30))
  for step in (0, 17):
    rows = feed.rows(step)
    np.testing.assert_array_equal(got[contract.IMAGE][step], part.images[rows])
    np.testing.assert_array_equal(got[contract.METADATA][step], part.metadata[rows])
    np.testing.assert_array_equal(got[contract.LABEL][step], part.labels[rows])


def test_a_device_holds_its_share_alone(mesh):
  part, seen = make_part(), []
  feed = make(together(part, seen), "split", mesh, ORDERS["shuffled"])
  images = feed.resident[contract.IMAGE]
  shares = {shard.device: shard.data.nbytes for shard in images.addressable_shards}
  longest = -(-ROWS // 8)
  assert set(shares.values()) == {8 * longest * 60 // mesh.size}
  assert len(shares) == mesh.size
  read = np.concatenate([rows for rows in seen if len(rows) > 1])
  assert set(read) == set(range(ROWS)) and len(read) == 8 * longest  # all have the same room
  feed.close()
  assert feed.resident == {}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_chunked_gives_the_streamed_batches(mesh, dtype):
  part = make_part(dtype)
  feed = make(together(part), "chunked", mesh, BLOCKS)
  got = batches(feed, mesh, 3, 1, 2, *[4] * 8)  # 36 steps of 16: more than two epochs
  feed.close()
  assert got[contract.IMAGE].dtype == dtype
  assert_same(got, expected(part, BLOCKS, 38))


@pytest.mark.parametrize("kind", ["split", "chunked"])
def test_goes_on_from_any_step(mesh, kind):
  part = make_part()
  whole = expected(part, BLOCKS, 24)
  for position in np.random.default_rng(mesh.size).integers(0, 20, 3).tolist():
    feed = make(part, kind, mesh, BLOCKS, position=position)
    assert_same(batches(feed, mesh, 3), {n: a[position : position + 3] for n, a in whole.items()})
    feed.position = 2  # back, and from there on
    assert_same(batches(feed, mesh, 3), {n: a[2:5] for n, a in whole.items()})
    feed.close()


@pytest.mark.parametrize("kind", ["split", "chunked"])
def test_micro_batches_are_those_of_the_streamed_feed(mesh, kind):
  part = make_part()
  by_slot = lambda got: {  # noqa: E731
    name: np.stack([a[s][np.argsort(got["slot"][s])] for s in range(6)]) for name, a in got.items()
  }
  feed = make(part, kind, mesh, BLOCKS, accumulate=2)
  got = batches(feed, mesh, 2, 4)
  feed.close()
  assert_same(by_slot(got), by_slot(expected(part, BLOCKS, 6, accumulate=2)))


def test_at_most_two_windows_lie_on_the_devices():
  """Counted whenever another one is read: at most one is there then."""
  mesh, part, found = mesh_lib.make(jax.devices()[:2]), make_part(), []
  shape = (8 * 9, 5, 4, 3)  # 26 rows of a shard in windows of at most 10: 9, 9 and 8

  def fetch_many(rows):
    if len(rows) > 1:
      found.append(sum(array.shape == shape for array in jax.live_arrays()))
    return part.images[rows]

  gc.collect()
  whole = dataclasses.replace(part, images=None, fetch=None, fetch_many=fetch_many)
  feed = make(whole, "chunked", mesh, BLOCKS)
  for _ in range(40):
    ticket = feed.next(1)
    assert feed.resident["even"][contract.IMAGE].shape == shape
    jax.block_until_ready(ticket)
  feed.close()
  assert len(found) > 16
  assert max(found) == 1


def test_the_next_window_is_read_while_the_first_is_used():
  mesh, part, threads = mesh_lib.make(jax.devices()[:1]), make_part(), []
  go_on, second = threading.Event(), threading.Event()

  def fetch_many(rows):
    if len(rows) > 1:
      threads.append(threading.current_thread())
      if len(threads) == 3:  # a window's 72 images are read in two parts
        second.set()
        assert go_on.wait(20)
    return part.images[rows]

  whole = dataclasses.replace(part, images=None, fetch=None, fetch_many=fetch_many)
  feed = make(whole, "chunked", mesh, BLOCKS)
  feed.next(1)
  assert second.wait(20)
  feed.next(2)  # of the first window, which the second does not hold up
  assert threading.current_thread() not in threads
  go_on.set()
  feed.next(4)
  feed.close()
  assert not threads[0].is_alive()


def test_a_window_reads_runs_of_neighbours():
  seen = []
  cfg = settings.Feeding(shards=1, block=20, window=3)
  feed = make(together(make_part(), seen), "chunked", mesh_lib.make(jax.devices()[:1]), cfg)
  for _ in range(12):
    feed.next(1)
  feed.close()
  windows = [rows for rows in seen if len(rows) > 1]
  assert len(windows) >= 4
  for rows in windows:
    assert (np.diff(rows) >= 0).all()  # in the order in which they lie
    assert (np.diff(rows) > 1).sum() <= 4  # 3 blocks, or 2 and pieces of two


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_streams_in_windows_what_it_would_read_one_by_one(devices):
  mesh, part = mesh_lib.make(jax.devices()[:devices]), make_part()
  images = part.images
  alone = dataclasses.replace(part, images=None, fetch=images.__getitem__)
  one, other = (make(p, "streamed", mesh, BLOCKS, threads=3) for p in (together(part), alone))
  for position in (0, 21):
    one.position = other.position = position
    assert_same(batches(one, mesh, 2, 4, 4), batches(other, mesh, 10))
  one.close()
  other.close()


def test_streams_each_window_once_and_in_runs_of_neighbours():
  """10 epochs of 203 images, each in windows of 102 and 101; some are read ahead of the last."""
  seen, before = [], set(threading.enumerate())
  cfg = settings.Feeding(block=17, window=6)
  mesh = mesh_lib.make(jax.devices()[:1])
  feed = make(together(make_part(), seen), "streamed", mesh, cfg, threads=3)
  for _ in range(126):
    feed.next(1)
  feed.close()
  assert not {t for t in set(threading.enumerate()) - before if "ThreadPool" in t.name}
  windows = [rows for rows in seen if len(rows) > 1]
  assert 40 <= len(windows) <= 44  # two reads a window
  counts = np.bincount(np.concatenate(windows[:40]))
  np.testing.assert_array_equal(counts, np.full(ROWS, 10))
  for rows in windows:
    assert (np.diff(rows) > 0).all()
    assert (np.diff(rows) > 1).sum() <= 7


def test_the_step_is_mapped_over_split_images():
  """The training loop's own dispatcher, with an objective that adds up what it sees."""
  from medjax import train

  class Sum:
    def step(self, state, batch, key, lr):
      seen = lax.psum(batch[contract.IMAGE].astype(np.int32).sum(), contract.AXIS)
      return state.replace(step=state.step + 1), {"loss": seen}

  from medjax.objectives import base

  mesh, part = mesh_lib.make(jax.devices()[:4]), make_part()
  feed = make(part, "chunked", mesh, BLOCKS)
  state = mesh_lib.put(mesh, base.TrainState(np.int32(0), {}, {}, {}, {}))
  key, lrs = mesh_lib.put(mesh, jax.random.key(0)), mesh_lib.put(mesh, np.zeros(3))
  run = train.dispatcher(Sum(), feed.take, mesh, feed.spec)
  program = train.compiled(run, state, feed, mesh, (3,))
  ticket = feed.next(3)
  _, metrics = program(state, feed.resident, ticket, lrs, key)
  feed.close()
  sums = [part.images[feed.rows(step)].astype(int).sum() for step in range(3)]
  np.testing.assert_array_equal(metrics["loss"], sums)


@pytest.mark.parametrize(
  ("kind", "cfg", "text"),
  [
    ("split", settings.Feeding(shards=4), "shards=4 cannot be dealt evenly to 8 devices"),
    ("chunked", settings.Feeding(shards=4, block=8), "set it to a multiple of 8"),
    ("chunked", settings.Feeding(shards=8), "set data.feeding.block"),
  ],
)
def test_what_cannot_be_split_is_told(kind, cfg, text):
  with pytest.raises(ValueError, match=text):
    make(make_part(), kind, mesh_lib.make(), cfg)


def test_a_ticket_that_needs_three_windows_is_told_before_the_run():
  feed = make(make_part(), "chunked", mesh_lib.make(jax.devices()[:1]), BLOCKS)
  feed.like(4)
  with pytest.raises(ValueError, match="12 steps draw 192 images, more than a window's 72"):
    feed.like(12)
  with pytest.raises(ValueError, match=r"set data\.feeding\.window higher"):
    feed.next(12)
  feed.close()


@pytest.mark.parametrize(("gigabytes", "times"), [(1.0, 1), (1e-6, 4)])
def test_a_streamed_feed_reads_each_image_once_where_there_is_memory_for_all(gigabytes, times):
  seen, steps = [], 4 * ROWS // BATCH
  mesh, part = mesh_lib.make(jax.devices()[:1]), make_part()
  cfg = settings.Feeding(memory_gb=gigabytes)
  feed = make(together(part, seen), "streamed", mesh, cfg, threads=1)
  got = batches(feed, mesh, *[1] * steps)
  feed.close()
  assert_same(got, expected(part, settings.Feeding(), steps))
  rows, count = np.unique(np.concatenate([s for s in seen if len(s) > 1]), return_counts=True)
  assert len(rows) >= ROWS - 1 and np.median(count) == times
