"""How fast feeds are, against steps on data that lie on the device and against decoding alone.

Run with `-n 0 -m slow -s` to see the figures, on a quiet machine.
"""

import pathlib
import statistics
import time

import cv2
import jax
import numpy as np
import pytest

from medjax import augment, contract, models, objectives, optim, settings, train
from medjax import mesh as mesh_lib
from medjax.data import catalogue, readers
from medjax.data import feed as feed_lib
from medjax.models import net as net_lib

pytestmark = pytest.mark.slow

K, BATCH, SIZE, IMAGES, CALLS, PAIRS = 4, 32, 64, 512, 6, 7
INFO = contract.DataInfo(("a", "b", "c"), (SIZE, SIZE, 1), (200, 200, 112), IMAGES, (0.5,), (0.2,))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[pathlib.Path]:
  """Blurred noise as PNG files of 256 pixels, about as hard to decode as films."""
  folder, rng = tmp_path_factory.mktemp("png"), np.random.default_rng(0)
  paths = [folder / f"{i}.png" for i in range(IMAGES)]
  for path in paths:
    noise = rng.integers(0, 256, (256, 256), np.uint8)
    cv2.imwrite(str(path), cv2.GaussianBlur(noise, (0, 0), 3))
  return paths


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
  return mesh_lib.make(jax.devices()[:1])


def _part(files: list[pathlib.Path], decoded: bool) -> catalogue.Part:
  fetch = lambda row: readers.read(files[row].read_bytes(), SIZE, 1)  # noqa: E731
  images = np.stack([fetch(row) for row in range(IMAGES)]) if decoded else None
  names = np.array([path.name for path in files])
  labels = np.repeat(np.arange(3), INFO.class_counts).astype(np.int32)
  return catalogue.Part("train", names, names, labels, fetch, images)


def _objective(mesh: jax.sharding.Mesh):
  execution = net_lib.Execution("cpu", axis=contract.AXIS)
  net = models.make(settings.MedNet(width=8), INFO, execution)
  optimizer = optim.make(settings.AdamW(), 10_000, 5)
  return objectives.make(
    settings.Supervised(), net, optimizer, augment.make(settings.Augment()), INFO
  )


class _Again:
  """A feed whose one ticket lies on the device already."""

  def __init__(self, feed: feed_lib.Feed):
    self.resident, self._ticket = feed.resident, feed.next(K)

  def next(self, k: int) -> feed_lib.Ticket:
    assert k == K
    return self._ticket


def _trainer(feed: feed_lib.Feed, mesh: jax.sharding.Mesh):
  """A function (feed) -> steps a second of the real loop over it."""
  objective = _objective(mesh)
  state = mesh_lib.put(mesh, jax.jit(objective.init)(jax.random.key(0)))
  dispatch = train.dispatcher(objective, feed.take, mesh)
  program = train.compiled(dispatch, state, feed, mesh, (K,))
  key, lrs = mesh_lib.put(mesh, jax.random.key(1)), mesh_lib.put(mesh, np.full(K, 1e-4))
  held = [state]

  def rate(source) -> float:
    record = train.Record(lambda *_: None, str)
    steps = K * CALLS
    hooks = [train.Hook(steps, lambda step, _: record.flush(step))]
    began = time.perf_counter()
    end = train.train(
      program,
      held[0],
      source,
      hooks,
      record,
      train.Clock(),
      lrs=lambda _: lrs,
      key=key,
      step=0,
      total=steps,
      per_dispatch=K,
    )
    held[0] = end.state
    return steps / (time.perf_counter() - began)

  return rate


def test_a_resident_feed_costs_nothing(files, mesh):
  feed = feed_lib.training(_part(files, decoded=True), BATCH, 0, mesh, "resident")
  rate, again = _trainer(feed, mesh), _Again(feed)
  rate(feed)
  ratios = [rate(feed) / rate(again) for _ in range(PAIRS)]
  print(f"resident: {sorted(ratios)} of the rate on data on the device")
  assert statistics.median(ratios) >= 0.95


def test_a_streamed_feed_costs_no_more_than_its_decoding(files, mesh):
  """Cores that decode cannot compute: at best the times of both add up."""
  feed = feed_lib.training(_part(files, decoded=False), BATCH, 0, mesh, "streamed")
  rate, again = _trainer(feed, mesh), _Again(feed)

  def decoding() -> float:
    began = time.perf_counter()
    for _ in range(CALLS):
      feed.next(K)
    return K * CALLS / (time.perf_counter() - began)

  def cold(measured) -> float:
    """From nothing read ahead, as `decoding` begins too."""
    feed.close()
    return measured()

  rate(feed)
  shares = []
  for _ in range(PAIRS):
    decoder, step = cold(decoding), rate(again)
    shares.append(cold(lambda: rate(feed)) * (1 / decoder + 1 / step))
  feed.close()
  print(f"streamed: {sorted(shares)} of what decoding and steps allow")
  assert statistics.median(shares) >= 0.90
