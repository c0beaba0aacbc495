"""Every image is scored exactly once on any number of devices, and tables survive the disk."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import augment as augment_lib
from medjax import contract, evaluate, models, objectives, optim, settings
from medjax import mesh as mesh_lib
from medjax.data import catalogue, feed
from medjax.models import net as net_lib

N, CLASSES = 203, ("a", "b", "c")
INFO = contract.DataInfo(CLASSES, (16, 16, 1), (1, 1, 1), 3, (0.5,), (0.2,))


def part(rng: np.random.Generator) -> catalogue.Part:
  images = rng.integers(0, 256, (N, 16, 16, 1), np.uint8)
  ids = np.asarray([f"{i}.png" for i in range(N)])
  labels = rng.integers(0, 3, N).astype(np.int32)
  return catalogue.Part("test", ids, ids, labels, images.__getitem__, images)


def network(axis: str | None) -> net_lib.Net:
  cfg = settings.QuadSNet(widths=(4, 8), hidden=8)
  return models.make(cfg, INFO, net_lib.Execution("plain", axis=axis))


def objective():
  net = network(contract.AXIS)
  optimizer, augmenter = optim.make(settings.Adam(), 10, 0), augment_lib.make(settings.Augment())
  return objectives.make(settings.Supervised(), net, optimizer, augmenter, INFO)


def table(mesh: jax.sharding.Mesh, batch_size: int = 64) -> contract.Predictions:
  images, learnt = part(np.random.default_rng(0)), objective()
  state = mesh_lib.put(mesh, learnt.init(jax.random.key(0)))
  batches = feed.sequential(images, batch_size, mesh)
  score = evaluate.scorer(learnt, mesh)
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


def test_recalibrated_statistics_are_the_mean_of_those_of_each_batch(mesh):
  images, learnt = part(np.random.default_rng(0)), objective()
  state = learnt.init(jax.random.key(0))
  batches = feed.sequential(images, 24, mesh)
  calibrate = evaluate.calibrator(learnt, mesh)
  found = calibrate(mesh_lib.put(mesh, state), batches.next(2))
  alone = [batch_statistics(state, images.images[at : at + 24]) for at in (0, 24)]
  truth = jax.tree.map(lambda one, other: (one + other) / 2, *alone)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, truth)


def batch_statistics(state, images):
  """Of one whole batch, without mesh or masks."""
  batch = {
    contract.IMAGE: jnp.asarray(images) / 255,
    contract.MASK: jnp.ones(len(images)),
    contract.SLOT: jnp.arange(len(images)),
  }
  _, stats = network(None).apply(state.params, state.stats, batch, train=True, momentum=0.0)
  return stats


def test_a_table_survives_the_disk(tmp_path, mesh1):
  before = table(mesh1)
  evaluate.write(tmp_path / "t.csv", before)
  after = evaluate.read(tmp_path / "t.csv")
  assert (after.split, after.classes) == (before.split, before.classes)
  for name in ("ids", "groups", "labels", "scores"):
    np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
  assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
