"""Mixed images against NumPy and SciPy; a step that mixes, on 1 to 8 devices in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from medjax import augment, contract, objectives, optim, settings
from medjax import mesh as mesh_lib
from medjax.augment import mixing
from medjax.models import net as net_lib
from medjax.objectives import base

SLOTS, IMAGES, SIZE = 32, 29, 8
INFO = contract.DataInfo(("a", "b", "c"), (SIZE, SIZE, 1), (40, 10, 5), 55, (0.5,), (0.3,))
SGD = settings.SGD(lr=0.5, momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.0)


PAIRED, HEIGHT, WIDTH = 4000, 20, 24  # one shape for all that is mixed alone, compiled once a kind


def _floats():
  rng = np.random.default_rng(0)
  return {
    contract.IMAGE: jnp.asarray(rng.random((PAIRED, HEIGHT, WIDTH, 1), np.float32)),
    contract.MASK: jnp.ones(PAIRED),
    contract.SLOT: jnp.arange(PAIRED, dtype=jnp.int32),
    contract.METADATA: jnp.asarray(rng.normal(size=(PAIRED, 5)), jnp.float32),
  }


@functools.cache
def _mixer(mixup, cutmix):
  return jax.jit(mixing.make(mixup, cutmix))


def _mixed(mixup, cutmix, batch, seed=0):
  found, share = _mixer(mixup, cutmix)(jax.random.key(seed), batch)
  return {name: np.asarray(value) for name, value in found.items()}, np.asarray(share)


def _swapped(values):
  """Each slot's partner, written out."""
  return np.stack([np.asarray(values)[slot + 1 - 2 * (slot % 2)] for slot in range(len(values))])


def test_mixup_is_the_weighted_mean_of_neighbours():
  batch = _floats()
  found, share = _mixed(0.4, 0, batch)
  own = np.asarray(batch[contract.IMAGE])
  factor = share[:, None, None, None]
  np.testing.assert_allclose(
    found[contract.IMAGE], factor * own + (1 - factor) * _swapped(own), atol=1e-6
  )
  np.testing.assert_array_equal(share, _swapped(share))
  assert len(np.unique(share)) > 0.95 * PAIRED / 2


@pytest.mark.parametrize(("mixup", "cutmix", "alpha"), [(0.4, 0, 0.4), (1.0, 1.0, 1.0)])
def test_shares_of_mixup_are_beta_distributed(mixup, cutmix, alpha):
  batch = _floats()
  found, share = _mixed(mixup, cutmix, batch)
  blended = ~_exchanged(batch, found).all((1, 2))[::2]
  assert stats.kstest(share[::2][blended], stats.beta(alpha, alpha).cdf).pvalue > 0.01


def _exchanged(batch, found):
  """[slots, H, W] bool, where a pixel is either the image's own or its partner's."""
  own, pixels = np.asarray(batch[contract.IMAGE]), found[contract.IMAGE]
  return ((pixels == own) | (pixels == _swapped(own))).all(-1)


@functools.cache
def _boxes():
  """Where CutMix with alpha 1 has put the partner's pixels, [slots, H, W] bool, and the shares."""
  batch = _floats()
  found, share = _mixed(0, 1.0, batch)
  assert _exchanged(batch, found).all()
  return (found[contract.IMAGE] != np.asarray(batch[contract.IMAGE])).all(-1), share


def test_cutmix_exchanges_a_box_and_counts_its_pixels():
  foreign, share = _boxes()
  np.testing.assert_allclose(share, 1 - foreign.mean((1, 2)), atol=1e-6)
  np.testing.assert_array_equal(foreign, _swapped(foreign))
  rows, columns = foreign.any(2), foreign.any(1)
  np.testing.assert_array_equal(foreign, rows[:, :, None] & columns[:, None])
  for side in (rows, columns):  # one run each
    assert (np.abs(np.diff(np.pad(side.astype(int), ((0, 0), (1, 1))), axis=1)).sum(1) <= 2).all()


def test_boxes_of_cutmix_have_the_drawn_area_and_lie_about_any_pixel():
  """Sides are sqrt(1 - lambda) of the image's, rounded down; lambda is uniform for alpha 1."""
  foreign, _ = _boxes()
  rng = np.random.default_rng(1)
  side = np.sqrt(1 - rng.random(10**5))
  for axis, length in ((2, HEIGHT), (1, WIDTH)):
    cells = (side * length).astype(int)
    start = rng.integers(length, size=len(side)) - cells // 2
    expected = np.clip(start + cells, 0, length) - np.clip(start, 0, length)
    found = foreign[::2].any(axis).sum(1)
    kept = found > 0  # a box without rows has no columns that one could see
    assert found[kept].mean() == pytest.approx(expected[expected > 0].mean(), rel=0.03)
    assert found[kept].std() == pytest.approx(expected[expected > 0].std(), rel=0.05)
    at = foreign[::2].any(axis).mean(0)  # a place in the middle is hidden more often
    places = np.arange(length)[:, None]
    hidden = ((start <= places) & (places < start + cells)).mean(1)
    np.testing.assert_allclose(at, hidden, atol=0.05)


def test_with_both_each_pair_draws_one_of_them():
  batch = _floats()
  boxed = _exchanged(batch, _mixed(1.0, 1.0, batch)[0]).all((1, 2))
  np.testing.assert_array_equal(boxed, _swapped(boxed))
  assert boxed.mean() == pytest.approx(0.5, abs=0.03)


def test_metadata_are_mixed_by_the_share():
  batch = _floats()
  known = np.asarray(batch[contract.METADATA])
  found, share = _mixed(0, 1.0, batch)
  expected = share[:, None] * known + (1 - share[:, None]) * _swapped(known)
  np.testing.assert_allclose(found[contract.METADATA], expected, atol=1e-6)


def test_an_image_beside_padding_stays_whole():
  batch = _floats()
  batch[contract.MASK] = jnp.asarray(np.arange(PAIRED) < 29, jnp.float32)
  found, share = _mixed(0.4, 0, batch)
  assert share[28] == 1 and (share[:28] < 1).all()
  np.testing.assert_array_equal(found[contract.IMAGE][28], batch[contract.IMAGE][28])


def test_draws_go_by_slot_and_not_by_place():
  batch = _floats()
  _, share = _mixed(0.4, 0, batch)
  backwards = batch | {contract.SLOT: batch[contract.SLOT].reshape(-1, 2)[::-1].ravel()}
  np.testing.assert_array_equal(_mixed(0.4, 0, backwards)[1], share[::-1])


def test_a_slot_without_a_neighbour_is_refused():
  odd = {name: value[:3] for name, value in _floats().items()}
  with pytest.raises(ValueError, match=r"each device has 3 slots .* even"):
    mixing.make(0.2, 0)(jax.random.key(0), odd)


# A step that mixes.


def _linear_net():
  """One dense layer on the pixels."""

  def init(key, images):
    return {"head": {"kernel": jax.random.normal(key, (images[0].size, 3), images.dtype) / 8}}, {}

  def apply(params, stats, batch, **_):
    flat = batch[contract.IMAGE].reshape(len(batch[contract.IMAGE]), -1)
    return net_lib.Result(flat @ params["head"]["kernel"], flat), stats

  return net_lib.Net(init, apply)


def _batch():
  rng = np.random.default_rng(0)
  return {
    contract.IMAGE: rng.integers(0, 256, (SLOTS, SIZE, SIZE, 1), np.uint8),
    contract.LABEL: rng.integers(0, 3, SLOTS).astype(np.int32),
    contract.MASK: (np.arange(SLOTS) < IMAGES).astype(np.float32),
    contract.SLOT: np.arange(SLOTS, dtype=np.int32),
  }


@functools.cache
def _stepped(loss, devices):
  cfg = settings.Supervised(loss=loss, mixup=0.5, cutmix=1.0)
  rule, change = optim.make(SGD, 10, 0), augment.make(settings.Augment(invert=0.5, cutout=0.4))
  objective = objectives.make(cfg, _linear_net(), rule, change, INFO)
  mesh, whole = mesh_lib.make(jax.devices()[:devices]), mesh_lib.REPLICATED
  specs = (whole, mesh_lib.cut(), whole, whole)
  step = mesh_lib.mapped(objective.step, mesh, specs, (whole, whole))
  state = objective.init(jax.random.key(0))
  after, metrics = step(state, _batch(), jax.random.key(1), np.float64(0.5))
  return objective, state, after, metrics


def test_eight_devices_mix_alike(x64):
  *_, expected, metrics = _stepped(settings.SoftmaxCE(), 1)
  *_, after, found = _stepped(settings.SoftmaxCE(), 8)
  for one, other in ((after.params, expected.params), (found, metrics)):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), one, other)


@functools.cache
def _mixed_batch():
  """What the step sees, by the parts that are tested by themselves."""
  objective, *_ = _stepped(settings.SoftmaxCE(), 1)

  @jax.jit
  def mixed(key, batch):
    batch, slots = base.with_floats(batch), batch[contract.SLOT]
    images = objective.augmenter(base.named(key, "augment"), batch[contract.IMAGE], slots)
    return objective.mixer(base.named(key, "mixing"), batch | {contract.IMAGE: images})

  return jax.tree.map(np.asarray, mixed(jax.random.key(1), _batch()))


@pytest.mark.parametrize("loss", [settings.SoftmaxCE(), settings.LDAM()], ids=lambda c: c.name)
def test_the_loss_and_the_accuracy_are_those_of_both_labels(x64, loss):
  """LDAM lowers the logit of one label at a time, so it is not linear in a mixed target."""
  _, state, _, metrics = _stepped(loss, 1)
  batch, share = _mixed_batch()
  logits = batch[contract.IMAGE].reshape(SLOTS, -1) @ np.asarray(state.params["head"]["kernel"])
  weights = 55 / (3 * np.array(INFO.class_counts))
  margins = 0.5 * (5 / np.array(INFO.class_counts)) ** 0.25

  def of(label, row):
    z = row.copy()
    if isinstance(loss, settings.LDAM):
      z[label] -= margins[label]
      z = 30 * z
    return -weights[label] * special.log_softmax(z)[label]

  losses, hits = [], []
  for slot in range(IMAGES):
    partner = slot ^ 1
    labels, parts = batch[contract.LABEL][[slot, partner]], (share[slot], 1 - share[slot])
    losses.append(sum(p * of(c, logits[slot]) for c, p in zip(labels, parts, strict=True)))
    hits.append(sum(p * (logits[slot].argmax() == c) for c, p in zip(labels, parts, strict=True)))
  assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-9)
  assert float(metrics["accuracy"]) == pytest.approx(np.mean(hits), abs=1e-9)
