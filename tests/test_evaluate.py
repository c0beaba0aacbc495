"""Every image is scored exactly once on any number of devices, and tables survive the disk."""

import jax
import numpy as np
import pytest

from medjax import augment as augment_lib
from medjax import contract, evaluate, models, objectives, optim, settings
from medjax import mesh as mesh_lib
from medjax.data import catalogue, feed
from medjax.models import net as net_lib

N, CLASSES = 203, ("a", "b", "c")


def part(rng: np.random.Generator) -> catalogue.Part:
  images = rng.integers(0, 256, (N, 16, 16, 1), np.uint8)
  ids = np.asarray([f"{i}.png" for i in range(N)])
  labels = rng.integers(0, 3, N).astype(np.int32)
  return catalogue.Part("test", ids, ids, labels, images.__getitem__, images)


def objective(recalibrates: bool = False):
  cfg = settings.QuadSNet(widths=(4, 8), hidden=8)
  info = contract.DataInfo(CLASSES, (16, 16, 1), (1, 1, 1), 3, (0.5,), (0.2,))
  net = models.make(cfg, info, net_lib.Execution("plain", axis=contract.AXIS))
  tx, _ = optim.make(settings.Adam(), 10, 0)
  return objectives.make(settings.Supervised(), net, tx, augment_lib.make(settings.Augment()), info)


def table(mesh: jax.sharding.Mesh, batch_size: int = 64) -> contract.Predictions:
  images, learnt = part(np.random.default_rng(0)), objective()
  state = mesh_lib.put(mesh, learnt.init(jax.random.key(0)))
  batches = feed.sequential(images, batch_size, mesh, "resident")
  score = evaluate.scorer(learnt, batches.take, mesh)
  return evaluate.predict(score, state, batches, images, CLASSES)


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
  """The scores without mesh, batches or masks."""
  images, learnt = part(np.random.default_rng(0)), objective()
  state = learnt.init(jax.random.key(0))
  return np.asarray(learnt.forward(state, {contract.IMAGE: images.images}).scores)


def test_203_rows_on_any_number_of_devices(mesh, plain):
  found = table(mesh)
  np.testing.assert_array_equal(found.ids, [f"{i}.png" for i in range(N)])
  np.testing.assert_allclose(found.scores, plain, atol=1e-5)


def test_a_batch_larger_than_the_part(mesh1, plain):
  np.testing.assert_allclose(table(mesh1, 500).scores, plain, atol=1e-5)


def test_recalibrated_statistics_are_those_of_the_batches(mesh):
  images, learnt = part(np.random.default_rng(0)), objective()
  state = learnt.init(jax.random.key(0))
  batches = feed.sequential(images, 24, mesh, "resident")
  calibrate = evaluate.calibrator(learnt, batches.take, mesh)
  found = calibrate(mesh_lib.put(mesh, state), batches.resident, batches.next(2)).stats
  block = found["encoder"]["cs3"]["block1"]["bn"]
  before = state.stats["encoder"]["cs3"]["block1"]["bn"]
  assert not np.allclose(block["mean"], before["mean"])


def test_a_table_survives_the_disk(tmp_path, mesh1):
  before = table(mesh1)
  evaluate.write(tmp_path / "t.csv", before)
  after = evaluate.read(tmp_path / "t.csv")
  assert (after.split, after.classes) == (before.split, before.classes)
  for name in ("ids", "groups", "labels", "scores"):
    np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
  assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
