"""Both feeds against a brute-force walk over the order, and against each other."""

import collections
import sys
import threading
import time

import jax
from jax import lax
import numpy as np
import pytest

from medjax import contract
from medjax import mesh as mesh_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib

KINDS = ("resident", "streamed")


def make_part(n: int, fetch=None) -> catalogue.Part:
  images = np.random.default_rng(n).integers(0, 256, (n, 5, 4, 3), np.uint8)
  names = np.array([f"folder/{i}.png" for i in range(n)])
  labels = np.arange(n, dtype=np.int32) % 3
  decoded = images if fetch is None else None
  return catalogue.Part("train", names, names, labels, fetch or images.__getitem__, decoded)


def undecoded(n: int) -> catalogue.Part:
  """The same part, whose images are read one by one."""
  return make_part(n, make_part(n).fetch)


def batches(feed: feed_lib.Feed, mesh: jax.sharding.Mesh, *ks: int) -> dict[str, np.ndarray]:
  """The next sum(ks) steps as a training loop has them: [steps, B', ...] on the host."""

  def every(resident, ticket):
    return lax.map(lambda one: feed.take(resident, one), ticket)

  specs = (mesh_lib.REPLICATED, mesh_lib.cut(1))
  mapped = mesh_lib.mapped(every, mesh, specs, mesh_lib.cut(1))
  with jax.transfer_guard("disallow"):
    parts = [jax.device_get(mapped(feed.resident, feed.next(k))) for k in ks]
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
  assert one.keys() == other.keys()
  for name in one:
    assert one[name].dtype == other[name].dtype
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("batch_size", [4, 8, 30])  # of 13 rows: epochs are straddled every time
def test_feeds_give_the_same_batches(mesh, batch_size):
  kinds = [(make_part(13), "resident"), (make_part(13), "streamed"), (undecoded(13), "streamed")]
  feeds = [feed_lib.training(part, batch_size, 7, mesh, kind, threads=3) for part, kind in kinds]
  # Tickets are drawn some ahead, which a change of their length makes void.
  resident, *streamed = (batches(feed, mesh, 3, *[2] * 11, 3) for feed in feeds)
  for feed, got in zip(feeds[1:], streamed, strict=True):
    feed.close()
    assert_same(resident, got)
  assert resident["image"].shape == (28, mesh_lib.padded(batch_size, mesh), 5, 4, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_holds_its_rows_then_masked_slots(mesh, kind):
  part = make_part(13)
  feed = feed_lib.training(part, 4, 7, mesh, kind)
  got = batches(feed, mesh, 2, 2)
  feed.close()
  padded = {1: 4, 3: 6, 8: 8}[mesh.size]
  for step in range(4):
    rows = feed.rows(step)
    index = np.concatenate([rows, np.zeros(padded - 4, int)])
    np.testing.assert_array_equal(got["index"][step], index)
    np.testing.assert_array_equal(got["slot"][step], np.arange(padded))
    np.testing.assert_array_equal(got["mask"][step], [1.0] * 4 + [0.0] * (padded - 4))
    np.testing.assert_array_equal(got["image"][step], part.images[index])
    np.testing.assert_array_equal(got["label"][step], part.labels[index])


@pytest.mark.parametrize(("n", "batch_size"), [(13, 4), (13, 30), (5, 5), (1, 3), (64, 7)])
def test_every_epoch_holds_every_row_once(mesh1, n, batch_size):
  feed = feed_lib.training(make_part(n), batch_size, 0, mesh1, "resident")
  order = np.concatenate([feed.rows(step) for step in range(-(-6 * n // batch_size))])
  epochs = order[: 6 * n].reshape(6, n)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(n), (6, 1)))
  if n > 5:  # few enough rows repeat by chance
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_first_rows_are_drawn_evenly(mesh1):
  part = make_part(4)
  feed = feed_lib.training(part, 4, 3, mesh1, "resident")
  firsts = collections.Counter(int(feed.rows(epoch)[0]) for epoch in range(800))
  assert all(150 < firsts[row] < 250 for row in range(4))  # 200 expected, 4 deviations of 12


def test_order_is_of_the_seed_and_not_of_the_batch_size(mesh1):
  def order(seed, batch_size):
    feed = feed_lib.training(make_part(40), batch_size, seed, mesh1, "resident")
    return np.concatenate([feed.rows(step) for step in range(120 // batch_size)])

  np.testing.assert_array_equal(order(1, 8), order(1, 30))
  orders = [order(seed, 8) for seed in range(3)]
  assert not np.array_equal(orders[0][:40], orders[1][:40])
  # Neighbouring seeds must not be one another's epochs, shifted by one.
  assert not np.array_equal(orders[0][40:80], orders[1][:40])
  assert not np.array_equal(orders[1][40:80], orders[2][:40])


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_at_any_step(mesh, kind):
  part = make_part(13)
  unbroken = batches(feed_lib.training(part, 5, 7, mesh, "resident"), mesh, 8)
  for position in (1, 3, 6):
    feed = feed_lib.training(part, 5, 7, mesh, kind, position=position)
    rest = batches(feed, mesh, 8 - position)
    feed.close()
    assert feed.position == 8
    assert_same(rest, {name: whole[position:] for name, whole in unbroken.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_position_can_be_set_back(mesh1, kind):
  feed = feed_lib.training(make_part(13), 5, 7, mesh1, kind)
  first = batches(feed, mesh1, 2, 2)
  feed.position = 1
  again = batches(feed, mesh1, 3)
  feed.close()
  assert_same(again, {name: whole[1:] for name, whole in first.items()})
  assert len(feed) == sys.maxsize


def test_sequential_gives_every_row_once(mesh):
  part = make_part(203)
  feed = feed_lib.sequential(part, 64, mesh)
  assert len(feed) == 4
  for _ in range(2):  # twice over: a monitor looks at a part again and again
    feed.position = 0
    got = batches(feed, mesh, 1, 2, 1)
    real = got["mask"] == 1
    np.testing.assert_array_equal(got["index"][real], np.arange(203))
    np.testing.assert_array_equal(got["image"][real], part.images)
    np.testing.assert_array_equal(got["label"][real], part.labels)
    assert not got["mask"][~real].any() and not got["index"][~real].any()
    with pytest.raises(ValueError, match="1 steps asked for at step 4 of 4"):
      feed.next(1)
  np.testing.assert_array_equal(feed.rows(3), np.arange(192, 203))
  feed.close()


def test_decoded_or_not_a_part_is_the_same(mesh):
  feeds = [feed_lib.sequential(part, 4, mesh) for part in (make_part(11), undecoded(11))]
  assert_same(*(batches(feed, mesh, 2, 1) for feed in feeds))
  for feed in feeds:
    feed.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_feed_says_what_its_tickets_look_like(mesh, kind, accumulate):
  feed = feed_lib.training(make_part(13), 4, 7, mesh, kind, accumulate=accumulate)
  like, ticket = feed.like(3), feed.next(3)
  feed.close()
  assert like.keys() == ticket.keys()
  for name, array in ticket.items():
    assert (like[name].shape, like[name].dtype) == (array.shape, array.dtype)
    assert like[name].sharding.is_equivalent_to(array.sharding, array.ndim)


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_are_runs_of_slots_cut_over_the_devices(mesh, kind):
  """12 slots in 2 micro-batches: every device has its share of 0-5, then its share of 6-11."""
  feed = feed_lib.training(make_part(13), 12, 7, mesh, kind, accumulate=2)
  got = batches(feed, mesh, 2)
  feed.close()
  whole = batches(feed_lib.training(make_part(13), 12, 7, mesh, "resident"), mesh, 2)
  for step in range(2):
    of_device = got["slot"][step].reshape(mesh.size, 2, -1)
    micro = of_device.swapaxes(0, 1).reshape(2, -1)
    real = micro < 12
    assert [sorted(each[kept]) for each, kept in zip(micro, real, strict=True)] == [
      list(range(6)),
      list(range(6, 12)),
    ]
    for name in ("image", "label", "mask", "index"):
      by_slot = got[name][step][np.argsort(got["slot"][step])][:12]
      np.testing.assert_array_equal(by_slot, whole[name][step][:12])


def test_a_batch_that_cannot_be_cut_in_micro_batches(mesh1):
  with pytest.raises(ValueError, match="accumulate=3 does not divide"):
    feed_lib.training(make_part(13), 4, 7, mesh1, "resident", accumulate=3)


def test_a_ticket_is_cut_over_the_devices(mesh):
  ticket = feed_lib.training(make_part(13), 4, 7, mesh, "resident").next(2)
  for array in ticket.values():
    assert array.sharding.spec == jax.sharding.PartitionSpec(None, contract.AXIS)
    assert len(array.sharding.device_set) == mesh.size


def test_streams_from_several_threads_and_reads_ahead(mesh1):
  part, seen = make_part(64), set()
  enough = threading.Event()

  def fetch(row):
    seen.add((row, threading.current_thread().name))
    if len({name for _, name in seen}) >= 4 and len(seen) > 40:
      enough.set()
    time.sleep(0.002)
    return part.images[row]

  feed = feed_lib.sequential(make_part(64, fetch), 8, mesh1, threads=3)
  feed.next(1)  # 8 rows, and row 0 at the start by this very thread
  assert enough.wait(timeout=20)
  feed.close()


@pytest.mark.parametrize("row", [0, 9])
def test_an_image_that_cannot_be_read_is_named(mesh1, row):
  part = make_part(20)

  def fetch(i):
    if i == row:
      raise OSError("broken data stream")
    return part.images[i]

  with pytest.raises(ValueError, match=rf"folder/{row}\.png: broken data stream"):
    feed = feed_lib.sequential(make_part(20, fetch), 4, mesh1)
    feed.next(5)


def test_close_ends_the_threads(mesh1):
  before = set(threading.enumerate())
  feed = feed_lib.training(make_part(13), 4, 7, mesh1, "streamed", threads=3)
  feed.next(1)
  assert set(threading.enumerate()) - before
  feed.close()
  deadline = time.monotonic() + 20
  while set(threading.enumerate()) - before and time.monotonic() < deadline:
    time.sleep(0.02)
  assert not set(threading.enumerate()) - before


def test_close_lets_go_of_resident_pixels(mesh1):
  feed = feed_lib.training(make_part(13), 4, 7, mesh1, "resident")
  feed.close()
  assert feed.resident == {}


def test_resident_needs_decoded_images(mesh1):
  part = make_part(3)
  part = catalogue.Part("val", part.ids, part.groups, part.labels, part.fetch, None)
  with pytest.raises(ValueError, match="the val part was not decoded"):
    feed_lib.training(part, 2, 7, mesh1, "resident")


def test_pixels_mapped_from_a_file_can_be_resident(mesh1, tmp_path):
  part = make_part(6)
  np.save(tmp_path / "images.npy", part.images)
  mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
  part = catalogue.Part("train", part.ids, part.groups, part.labels, part.fetch, mapped)
  got = batches(feed_lib.training(part, 6, 7, mesh1, "resident"), mesh1, 1)
  np.testing.assert_array_equal(got["image"][0], mapped[got["index"][0]])
