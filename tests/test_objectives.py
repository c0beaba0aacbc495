"""Objectives: one step on 1, 3 and 8 devices against gradients of the whole batch, in float64.

The batch has 22 images in 24 slots; the two slots that only pad it hold noise.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.metrics import log_loss

from medjax import augment, contract, losses, models, objectives, optim, pixels, settings, trees
from medjax import mesh as mesh_lib
from medjax.models import net as net_lib
from medjax.objectives import base

IMAGES, SLOTS, SIZE = 22, 24, 8
INFO = contract.DataInfo(
  classes=("a", "b", "c"),
  image_shape=(SIZE, SIZE, 1),
  class_counts=(40, 10, 5),
  train_size=55,
  mean=(0.5,),
  std=(0.3,),
)
SGD = settings.SGD(lr=0.5, momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.0)
LR = np.float64(0.5)
NO_CHANGE = settings.Augment()
CHANGE = settings.Augment(rotation=20, zoom=0.2, noise=0.5)
QUADSNET = settings.QuadSNet(
  widths=(4,), streams=("cs3", "ss3"), convs_per_block=1, sep_convs_per_block=1, hidden=5
)


@pytest.fixture(autouse=True)
def _double_precision():
  with jax.enable_x64(True):
    yield


def _linear_net(outputs):
  """A real, if small, network: one dense layer on the pixels, its input as the embedding."""

  def init(key, images):
    features = images[0].size
    kernel = jax.random.normal(key, (features, outputs), images.dtype) / 8
    return {"head": {"kernel": kernel, "bias": jnp.zeros(outputs, images.dtype)}}, {}

  def apply(params, stats, batch, *, train, key=None, momentum=None):
    flat = batch[contract.IMAGE].reshape(len(batch[contract.IMAGE]), -1)
    head = params["head"]
    return net_lib.Result(flat @ head["kernel"] + head["bias"], flat), stats

  return net_lib.Net(init, apply)


def _batch(slots=SLOTS, seed=0):
  rng = np.random.default_rng(seed)
  return {
    contract.IMAGE: rng.integers(0, 256, (SLOTS, SIZE, SIZE, 1), np.uint8)[:slots],
    contract.LABEL: rng.integers(0, 3, SLOTS).astype(np.int32)[:slots],
    contract.MASK: (np.arange(slots) < IMAGES).astype(np.float32),
    contract.SLOT: np.arange(slots, dtype=np.int32),
    contract.INDEX: np.arange(slots, dtype=np.int32),
  }


def _objective(cfg, net, change=NO_CHANGE, info=INFO, rule=SGD):
  return objectives.make(cfg, net, optim.make(rule, 10, 0), augment.make(change), info)


def _real(cfg, change, rule=SGD, bn_group=0):
  execution = net_lib.Execution(axis=contract.AXIS, bn_group=bn_group)
  projector = (16, 4) if isinstance(cfg, settings.SimCLR) else None
  return _objective(cfg, models.make(QUADSNET, INFO, execution, projector), change, rule=rule)


def _mapped_step(objective, mesh):
  whole = mesh_lib.REPLICATED
  specs = (whole, mesh_lib.cut(), whole, whole)
  return mesh_lib.mapped(objective.step, mesh, specs, (whole, whole))


def _stepped(objective, mesh, batch, seed=1):
  """(state before, state after, metrics) of one step."""
  state = objective.init(jax.random.key(0))
  after, metrics = _mapped_step(objective, mesh)(state, batch, jax.random.key(seed), LR)
  return state, after, metrics


def _assert_close(tree, other, atol=1e-9):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), tree, other)


def _flat_images():
  return _batch()[contract.IMAGE][:IMAGES].reshape(IMAGES, -1) / 255


def test_supervised_step_is_the_gradient_of_the_weighted_mean_by_hand(mesh):
  """Softmax regression: the gradient is X^T (w_y (p - y)) / N, with N images, not 24 slots."""
  objective = _objective(settings.Supervised(class_weights="balanced"), _linear_net(3))
  before, after, metrics = _stepped(objective, mesh, _batch())
  x, labels = _flat_images(), _batch()[contract.LABEL][:IMAGES]
  logits = x @ np.asarray(before.params["head"]["kernel"])
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  w = (55 / (3 * np.array([40, 10, 5])))[labels]
  error = w[:, None] * (p - np.eye(3)[labels]) / IMAGES
  kernel, bias = (np.asarray(after.params["head"][name]) for name in ("kernel", "bias"))
  np.testing.assert_allclose(
    kernel, before.params["head"]["kernel"] - 0.5 * x.T @ error, atol=1e-12
  )
  np.testing.assert_allclose(bias, -0.5 * error.sum(0), atol=1e-12)
  expected = {
    "loss": -(w * np.log(p[range(IMAGES), labels])).mean(),
    "accuracy": (p.argmax(1) == labels).mean(),
    "grad_norm": np.sqrt(((x.T @ error) ** 2).sum() + (error.sum(0) ** 2).sum()),
  }
  assert metrics.keys() == expected.keys()
  for name, value in expected.items():
    assert float(metrics[name]) == pytest.approx(value, abs=1e-12), name
  assert after.step == 1 and after.step.dtype == jnp.int32


def test_simclr_step_is_the_gradient_over_all_views(mesh):
  """The same loss without devices: all views of all images in one array."""
  cfg = settings.SimCLR(temperature=0.3)
  net, augmenter = _linear_net(4), augment.make(CHANGE)
  objective = _objective(cfg, net, CHANGE)
  before, after, metrics = _stepped(objective, mesh, _batch())
  key = jax.random.fold_in(jax.random.key(1), np.uint32(zlib.crc32(b"augment")))
  images = jnp.repeat(pixels.to_float(jnp.asarray(_batch()[contract.IMAGE])), 2, axis=0)
  views = jax.jit(augmenter)(key, images, jnp.arange(2 * SLOTS))[: 2 * IMAGES]
  rows = jnp.arange(2 * IMAGES)

  def mean_loss(params):
    z = net.apply(params, {}, {contract.IMAGE: views}, train=True)[0].output
    found = losses.nt_xent(
      z, z, own=rows, positive=rows ^ 1, mask=jnp.ones(2 * IMAGES), temperature=0.3
    )
    return found.mean(), z

  (loss, z), grads = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(before.params)
  expected = jax.tree.map(lambda p, g: p - 0.5 * g, before.params, grads)
  _assert_close(after.params, expected, atol=1e-12)
  assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-12)
  unit = np.asarray(z) / np.linalg.norm(z, axis=1, keepdims=True)
  cosines = (unit[0::2] * unit[1::2]).sum(1)
  assert float(metrics["alignment"]) == pytest.approx(cosines.mean(), abs=1e-12)
  assert float(metrics["feature_std"]) == pytest.approx(unit.std(0).mean() * 2, abs=1e-12)


@functools.cache
def _unpadded_reference(cfg):
  """One step of QuadSNet on one device, on a batch without padding."""
  objective = _real(cfg, CHANGE)
  mesh = mesh_lib.make(jax.devices()[:1])
  return _stepped(objective, mesh, _batch(IMAGES))


@pytest.mark.parametrize(
  "cfg",
  [settings.Supervised(loss=settings.Margin(mix=0.5)), settings.SimCLR()],
  ids=["supervised", "simclr"],
)
@pytest.mark.parametrize("devices", [3, 8])
def test_a_real_network_steps_alike_on_any_devices(cfg, devices):
  """With augmentation, dropout and batch norm over the global batch, and with padding."""
  before, expected, metrics = _unpadded_reference(cfg)
  mesh = mesh_lib.make(jax.devices()[:devices])
  _, after, found = _stepped(_real(cfg, CHANGE), mesh, _batch())
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before.params, after.params)
  assert max(jax.tree.leaves(moved)) > 1e-3
  _assert_close(after.params, expected.params)
  _assert_close(after.stats, expected.stats)
  _assert_close(found, metrics)


def _micro(batch, parts, devices):
  """The batch as a feed lays it out: each device's slots of a micro-batch, then of the next."""
  cut = lambda x: x.reshape(parts, devices, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)  # noqa: E731
  return {name: cut(value) for name, value in batch.items()}


@pytest.mark.parametrize("devices", [1, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(devices):
  """With augmentation, dropout and batch-norm groups of 4 slots, 3 of them in a micro-batch."""
  mesh, cfg = mesh_lib.make(jax.devices()[:devices]), settings.Supervised()
  rule = dataclasses.replace(SGD, accumulate=2)
  whole = _real(cfg, CHANGE, bn_group=4)
  _, expected, metrics = _stepped(whole, mesh_lib.make(jax.devices()[:1]), _batch())
  batch = _micro(_batch(), 2, devices)
  _, after, found = _stepped(_real(cfg, CHANGE, rule, bn_group=4), mesh, batch)
  _assert_close(after.params, expected.params, atol=1e-12)
  _assert_close(after.stats, expected.stats, atol=1e-12)
  _assert_close(found, metrics, atol=1e-12)


def test_a_micro_batch_is_the_largest_batch_norm_group(mesh1):
  """Stated policy: without groups of their own, micro-batches are normalised by themselves."""
  rule, cfg = dataclasses.replace(SGD, accumulate=2), settings.Supervised()
  _, whole, _ = _stepped(_real(cfg, NO_CHANGE, rule), mesh1, _batch())
  _, groups, _ = _stepped(_real(cfg, NO_CHANGE, rule, bn_group=12), mesh1, _batch())
  _assert_close(whole.params, groups.params, atol=1e-12)


def test_simclr_refuses_to_lose_negatives():
  with pytest.raises(ValueError, match=r"optimizer\.accumulate=2 .* negatives"):
    _objective(settings.SimCLR(), _linear_net(4), rule=dataclasses.replace(SGD, accumulate=2))


def test_frozen_parameters_stay_and_do_not_count(mesh1):
  rule = dataclasses.replace(SGD, freeze=("encoder/cs3", "*/bias"))
  before, after, metrics = _stepped(_real(settings.Supervised(), NO_CHANGE, rule), mesh1, _batch())
  moves = trees.flatten(jax.tree.map(lambda a, b: (a - b) / 0.5, before.params, after.params))
  frozen = {path for path in moves if path.startswith("encoder/cs3/") or path.endswith("/bias")}
  assert frozen and all(not moves[path].any() for path in frozen)
  assert all(moves[path].any() for path in moves if path not in frozen)
  norm = np.sqrt(sum((np.asarray(move) ** 2).sum() for move in moves.values()))
  assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-9)


def test_the_moving_average_is_what_is_evaluated(mesh1):
  """After steps 1 and 2 the decay is 2/11 and 3/12, whatever larger one is asked for."""
  objective = _real(settings.Supervised(), NO_CHANGE, dataclasses.replace(SGD, ema=0.999))
  step, key = _mapped_step(objective, mesh1), jax.random.key(1)
  states = [objective.init(jax.random.key(0))]
  for _ in range(2):
    states.append(step(states[-1], _batch(), key, LR)[0])
  for name in ("params", "stats"):
    zero, one, two = (getattr(state, name) for state in states)
    first = jax.tree.map(lambda a, v: a * 2 / 11 + v * 9 / 11, zero, one)
    second = jax.tree.map(lambda a, v: a * 3 / 12 + v * 9 / 12, first, two)
    _assert_close(getattr(base.evaluated(states[-1]), name), second, atol=1e-12)
  assert base.evaluated(states[-1]).extra == {}


def test_weights_brought_along_are_where_the_average_starts():
  objective = _real(settings.Supervised(), NO_CHANGE, dataclasses.replace(SGD, ema=0.9))
  ours, theirs = (objective.init(jax.random.key(seed)) for seed in (0, 1))
  moved = base.with_weights(ours, theirs.params, theirs.stats)
  _assert_close(base.evaluated(moved).params, theirs.params, atol=0)
  _assert_close(moved.params, theirs.params, atol=0)


@pytest.mark.parametrize("step", [7, 8])
def test_class_weights_wait_for_their_time(mesh1, step):
  """Of 10 steps the first 8 (0 to 7) have equal weights with `defer_weights=0.8`."""
  late = settings.Supervised(class_weights="balanced", defer_weights=0.8)
  now = settings.Supervised(class_weights="none" if step == 7 else "balanced")
  losses_found = []
  for cfg in (late, now):
    objective = _objective(cfg, _linear_net(3))
    state = objective.init(jax.random.key(0)).replace(step=jnp.asarray(step, jnp.int32))
    mapped = _mapped_step(objective, mesh1)
    losses_found.append(float(mapped(state, _batch(), jax.random.key(1), LR)[1]["loss"]))
  assert losses_found[0] == pytest.approx(losses_found[1], abs=1e-12)


def test_parts_of_a_head_have_a_share_in_the_loss(mesh1):
  """Cross-entropy of the mean of three logit vectors, and 0.3 times that of each."""
  parts = np.random.default_rng(0).normal(size=(3, SLOTS, 3))

  def init(key, images):
    return {"head": {"gain": jnp.ones(())}}, {}

  def apply(params, stats, batch, **_):
    logits = params["head"]["gain"] * jnp.asarray(parts)
    return net_lib.Result(logits.mean(0), logits[0], auxiliary=logits), stats

  cfg = settings.Supervised(class_weights="none")
  *_, metrics = _stepped(_objective(cfg, net_lib.Net(init, apply)), mesh1, _batch())

  def cross_entropy(logits):
    return log_loss(_batch()[contract.LABEL][:IMAGES], special.softmax(logits[:IMAGES], axis=1))

  expected = cross_entropy(parts.mean(0)) + 0.3 * sum(map(cross_entropy, parts))
  np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-9)


ONE_VS_REST = [settings.SigmoidBCE(), settings.SigmoidBCE(balanced=True), settings.SigmoidFocal()]


@pytest.mark.parametrize(
  "loss", [*ONE_VS_REST, settings.Focal(), settings.LDAM()], ids=lambda c: c.name
)
def test_every_loss_learns_and_gives_probabilities(mesh1, loss):
  objective = _objective(settings.Supervised(loss=loss), _linear_net(3))
  step, state = _mapped_step(objective, mesh1), objective.init(jax.random.key(0))
  series = []
  for number in range(20):
    state, metrics = step(state, _batch(), jax.random.key(number), np.float64(0.01))
    series.append(float(metrics["loss"]))
  assert series[-1] < series[0], series
  scores = objective.forward(state, _batch(IMAGES)).scores
  np.testing.assert_allclose(scores.sum(1), 1, atol=1e-9)
  assert (scores >= 0).all()


def test_one_vs_rest_scores_are_shares_of_the_probabilities():
  scores = _objective(settings.Supervised(loss=settings.SigmoidBCE()), _linear_net(3)).scores
  found = scores(jnp.log(jnp.array([[0.5 / 0.5, 0.25 / 0.75, 0.25 / 0.75]])))
  np.testing.assert_allclose(found, [[0.5, 0.25, 0.25]], atol=1e-9)


def test_equal_keys_give_equal_steps_and_other_keys_others(mesh1):
  objective = _objective(settings.Supervised(), _linear_net(3), CHANGE)
  step = _mapped_step(objective, mesh1)
  state = objective.init(jax.random.key(0))
  kernels = [
    np.asarray(step(state, _batch(), jax.random.key(seed), LR)[0].params["head"]["kernel"])
    for seed in (1, 1, 2)
  ]
  np.testing.assert_array_equal(kernels[0], kernels[1])
  assert np.abs(kernels[0] - kernels[2]).max() > 1e-4


def _hlo(objective, mesh):
  state = jax.eval_shape(objective.init, jax.random.key(0))
  compiled = _mapped_step(objective, mesh).lower(state, _batch(), jax.random.key(1), LR).compile()
  return compiled.as_text()


def _collectives(text, name):
  return sum(f" {name}(" in line or f" {name}-start(" in line for line in text.splitlines())


def test_supervised_step_needs_one_all_reduce_and_no_gather():
  eight = mesh_lib.make(jax.devices()[:8])
  text = _hlo(_objective(settings.Supervised(), _linear_net(3)), eight)
  assert _collectives(text, "all-reduce") == 1
  assert "all-gather" not in text


def test_supervised_quadsnet_gathers_nothing():
  eight = mesh_lib.make(jax.devices()[:8])
  text = _hlo(_real(settings.Supervised(), NO_CHANGE), eight)
  assert _collectives(text, "all-reduce") > 1  # batch norm over the global batch
  assert "all-gather" not in text


def test_one_device_reduces_nothing(mesh1):
  text = _hlo(_objective(settings.Supervised(), _linear_net(3)), mesh1)
  assert "all-reduce" not in text


def test_single_precision_stays_single(mesh1):
  with jax.enable_x64(False):
    objective = _objective(settings.Supervised(), _linear_net(3), CHANGE)
    before, after, metrics = _stepped(objective, mesh1, _batch())
  assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {np.dtype(np.float32)}
  assert {value.dtype for value in metrics.values()} == {np.dtype(np.float32)}
  assert jax.tree.structure(before) == jax.tree.structure(after)


def test_collapse_shows_in_the_metrics(mesh):
  """A net that says the same of every image: loss log(2N - 1), views aligned, no spread."""
  objective = _objective(settings.SimCLR(), _linear_net(4), CHANGE)
  state = objective.init(jax.random.key(0))
  head = {"kernel": jnp.zeros_like(state.params["head"]["kernel"]), "bias": jnp.ones(4)}
  step = _mapped_step(objective, mesh)
  _, metrics = step(state.replace(params={"head": head}), _batch(), jax.random.key(1), LR)
  assert float(metrics["loss"]) == pytest.approx(np.log(2 * IMAGES - 1), abs=1e-9)
  assert float(metrics["alignment"]) == pytest.approx(1)
  assert float(metrics["feature_std"]) == pytest.approx(0, abs=1e-9)


def test_simclr_learns_to_tell_images_apart(mesh1):
  objective = _objective(settings.SimCLR(), _linear_net(8), settings.Augment(noise=1.0))
  step, state = _mapped_step(objective, mesh1), objective.init(jax.random.key(0))
  series = []
  for number in range(30):
    state, metrics = step(state, _batch(), jax.random.key(number), LR)
    series.append(float(metrics["loss"]))
  assert series[0] > 0.5 and series[-1] < series[0] / 2


def test_forward_gives_softmax_and_embedding_without_augmentation():
  objective = _objective(settings.Supervised(), _linear_net(3), CHANGE)
  state = objective.init(jax.random.key(0))
  outputs = objective.forward(state, _batch(IMAGES))
  logits = _flat_images() @ np.asarray(state.params["head"]["kernel"])
  expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(outputs.scores, expected, atol=1e-12)
  np.testing.assert_allclose(outputs.embedding, _flat_images(), atol=1e-12)


def test_simclr_forward_has_an_embedding_alone():
  objective = _objective(settings.SimCLR(), _linear_net(4), CHANGE)
  outputs = objective.forward(objective.init(jax.random.key(0)), _batch(IMAGES))
  assert outputs.scores is None
  np.testing.assert_allclose(outputs.embedding, _flat_images(), atol=1e-12)


def test_capsule_scores_are_shares_of_the_lengths():
  """A large negative logit is a long capsule: reading it by a softmax would deny the loss."""
  cfg = settings.Supervised(loss=settings.Margin(score="capsule"))
  scores = _objective(cfg, _linear_net(3)).scores(jnp.array([[-2.0, 1.0, 0.0], [0, 0, 0]]))
  np.testing.assert_allclose(scores[0], [0.8 / 1.3, 0.5 / 1.3, 0], atol=1e-12)
  np.testing.assert_allclose(scores[1], 1 / 3)


def test_recalibrated_statistics_are_those_of_the_batch():
  """Evaluation with them equals the same batch's normalisation by itself, dropout left out."""
  objective = _real(settings.Supervised(), CHANGE)
  state, batch = objective.init(jax.random.key(0)), _batch()

  def both(state, batch):
    stats = objective.recalibrate(state, batch)
    floats = {**batch, contract.IMAGE: pixels.to_float(batch[contract.IMAGE])}
    alone = objective.net.apply(state.params, state.stats, floats, train=True, momentum=0.5)[0]
    evaluated = objective.net.apply(state.params, stats, floats, train=False)[0]
    return alone.output, evaluated.output

  specs = (mesh_lib.REPLICATED, mesh_lib.cut())
  eight = mesh_lib.make(jax.devices()[:8])
  alone, evaluated = mesh_lib.mapped(both, eight, specs, mesh_lib.cut())(state, batch)
  np.testing.assert_allclose(evaluated[:IMAGES], alone[:IMAGES], atol=1e-9)


def test_margin_and_cross_entropy_mix_by_their_share(mesh1):
  shares = {0.0: None, 0.25: None, 0.999999999999: None}
  for mix in shares:
    cfg = settings.Supervised(loss=settings.Margin(mix=mix))
    shares[mix] = float(_stepped(_objective(cfg, _linear_net(3)), mesh1, _batch())[2]["loss"])
  margin, mixed, entropy = shares.values()
  assert abs(margin - entropy) > 0.1
  assert mixed == pytest.approx(0.75 * margin + 0.25 * entropy, abs=1e-9)


def test_tables_hold_every_named_setting():
  named = settings.VARIANTS
  learnt = {type(v) for v in named[settings.Objective].values()} - {settings.Classical}
  assert learnt == set(objectives.OBJECTIVES)
  assert {type(v) for v in named[settings.Loss].values()} == set(objectives.supervised.LOSSES)


def test_unknown_settings_list_the_known_ones():
  with pytest.raises(KeyError, match="Supervised, SimCLR"):
    _objective(settings.Objective(name="byol"), _linear_net(3))
  with pytest.raises(KeyError, match="SoftmaxCE, Margin"):
    _objective(settings.Supervised(loss=settings.Loss(name="dice")), _linear_net(3))


def test_capsules_refuse_cross_entropy():
  cfg = settings.Supervised(loss=settings.Margin(score="capsule", mix=0.1))
  with pytest.raises(ValueError, match=r"loss\.mix.*score=capsule"):
    _objective(cfg, _linear_net(3))


def test_a_class_without_training_images_is_refused():
  info = dataclasses.replace(INFO, class_counts=(40, 0, 15))
  with pytest.raises(ValueError, match="class 1 has no image"):
    _objective(settings.Supervised(), _linear_net(3), info=info)
