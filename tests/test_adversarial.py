"""GANs: losses by hand, a step on 8 devices by two turns without any, and who learns what in it."""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import augment, contract, losses, objectives, optim, settings
from medjax import mesh as mesh_lib
from medjax.models import gan
from medjax.models import net as net_lib
from medjax.objectives import adversarial, base

IMAGES, SLOTS, SIZE, K = 14, 16, 8, 3
INFO = contract.DataInfo(("a", "b", "c"), (SIZE, SIZE, 1), (20, 10, 5), 35, (0.5,), (0.3,))
TINY = settings.GAN(width=2, latent=6)
RULE = settings.Adam(lr=1e-2, b1=0.0, b2=0.9, schedule="constant", clip=0.0, ema=0.9)
CHANGE = settings.Augment(brightness=0.5)
SGD = settings.SGD(momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.0, ema=0.9)


def numbers(*values):
  return jnp.array(values)


def test_hinge_losses_by_hand():
  """Nothing to learn from verdicts of 1 on real and -1 on generated images."""
  verdicts = numbers(1.0, 3.0, 0.0, -2.0)
  np.testing.assert_allclose(losses.hinge_real(verdicts), [0, 0, 1, 3])
  np.testing.assert_allclose(losses.hinge_generated(-verdicts), [0, 0, 1, 3])


def test_vanilla_losses_by_hand():
  """D = sigmoid(log 3) = 3/4: -log D = log 4/3 and -log(1 - D) = log 4."""
  np.testing.assert_allclose(losses.real(numbers(np.log(3), 0)), np.log([4 / 3, 2]), rtol=1e-6)
  np.testing.assert_allclose(losses.generated(numbers(np.log(3), 0)), np.log([4, 2]), rtol=1e-6)


def test_one_class_more_by_hand():
  """Logits log 1, log 2, log 3 beside the 0 of generated: Z = 6, D = 6/7."""
  odds = losses.log_odds(jnp.log(numbers([1.0, 2.0, 3.0])))
  assert float(jax.nn.sigmoid(odds)[0]) == pytest.approx(6 / 7)
  assert float(losses.real(odds)[0]) == pytest.approx(np.log(7 / 6), rel=1e-5)
  assert float(losses.generated(odds)[0]) == pytest.approx(np.log(7), rel=1e-5)


@pytest.mark.parametrize("least", [-np.inf, -1e30])
def test_an_image_of_no_class_is_generated_and_costs_no_infinity(least):
  def total(logits):
    odds = losses.log_odds(logits)
    return (losses.real(odds) + losses.generated(odds)).sum(), jax.nn.sigmoid(odds)

  (loss, real), slope = jax.value_and_grad(total, has_aux=True)(jnp.full((2, 3), least))
  assert real.tolist() == [0, 0] and np.isfinite(loss) and np.isfinite(slope).all()


def batch(slots=SLOTS, labelled=None):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, K, SLOTS).astype(np.int32)
  if labelled is not None:
    labels[labelled:] = contract.UNLABELLED
  found = {
    contract.IMAGE: rng.integers(0, 256, (SLOTS, SIZE, SIZE, 1), np.uint8),
    contract.LABEL: labels,
    contract.MASK: (np.arange(SLOTS) < IMAGES).astype(np.float32),
    contract.SLOT: np.arange(SLOTS, dtype=np.int32),
  }
  return {name: value[:slots] for name, value in found.items()}


def networks(cfg, axis):
  return gan.make(TINY, INFO, net_lib.Execution(axis=axis), adversarial.end(cfg))


def objective(cfg, rule=RULE):
  made = optim.make(rule, 10, 0)
  return objectives.make(cfg, networks(cfg, contract.AXIS), made, augment.make(CHANGE), INFO)


# What is compiled here runs once: XLA need not make it fast.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def run(fn, *inputs):
  """What a jitted function says."""
  return fn.lower(*inputs).compile(compiler_options=QUICKLY)(*inputs)


def mapped(found, devices):
  whole = mesh_lib.REPLICATED
  mesh = mesh_lib.make(jax.devices()[:devices])
  specs = (whole, mesh_lib.cut(), whole, whole)
  return mesh_lib.mapped(found.step, mesh, specs, (whole, whole))


def distance(tree, other):
  """The largest difference of two trees' numbers."""
  differ = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), tree, other)
  return max(jax.tree.leaves(differ))


def named(key, name):
  return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def two_turns(cfg, state, data, key, lr):
  """The same step by hand: means over the images, no devices, no padding.

  Returns:
    Parameters, statistics and losses of both.
  """
  pair, change = networks(cfg, None), augment.make(CHANGE)
  images = data[contract.IMAGE] / np.float64(255)
  data = data | {contract.CONDITION: data[contract.LABEL]}
  (g, d), (gs, ds) = ((t["generator"], t["discriminator"]) for t in (state.params, state.stats))

  def draw(key):
    return jax.random.normal(key, (TINY.latent,))

  def made(g, gs, key):
    z = jax.vmap(lambda i: draw(jax.random.fold_in(named(key, "latents"), i)))(jnp.arange(IMAGES))
    result, gs = pair.generator.apply(g, gs, data | {contract.IMAGE: z}, train=True, key=key)
    return result.output, gs

  def seen(d, ds, images, train):
    inputs = data | {contract.IMAGE: images}
    return pair.discriminator.apply(d, ds, inputs, train=train, key=key)

  def d_loss(d, ds, fakes, key):
    augmented = [change(named(key, "augment"), x, data[contract.SLOT]) for x in (images, fakes)]
    (real, new), (fake, _) = (seen(d, ds, x, True) for x in augmented)
    return DISCRIMINATOR[cfg.name](real.output, fake.output, data[contract.LABEL]).mean(), new

  def g_loss(g, gs, d, ds, key):
    fakes, new = made(g, gs, key)
    change_all = lambda x: change(named(key, "augment"), x, data[contract.SLOT])  # noqa: E731
    fake, real = (seen(d, ds, change_all(x), False)[0] for x in (fakes, images))
    return GENERATOR[cfg.name](fake, real), new

  for turn in range(cfg.d_steps):
    own = jax.random.fold_in(named(key, "discriminator"), turn)
    (loss, ds), slope = jax.value_and_grad(d_loss, has_aux=True)(d, ds, made(g, gs, own)[0], own)
    d = jax.tree.map(lambda p, s: p - lr * cfg.lr_ratio * s, d, slope)
  own = named(key, "generator")
  (other, gs), slope = jax.value_and_grad(g_loss, has_aux=True)(g, gs, d, ds, own)
  g = jax.tree.map(lambda p, s: p - lr * s, g, slope)
  return (g, d), (gs, ds), (loss, other)


def of_classes(real, fake, labels):
  """Means over the labelled and over all, as weights of each image."""
  known = (labels >= 0) * 1.0
  log_p = jnp.log(jax.nn.softmax(real))[jnp.arange(IMAGES), labels]
  odds, odds_fake = (jnp.log(jnp.exp(x).sum(1)) for x in (real, fake))
  apart = jnp.log(1 + jnp.exp(-odds)) + jnp.log(1 + jnp.exp(odds_fake))
  return -known * log_p * IMAGES / known.sum() + apart / 2


def matched(fake, real):
  return ((fake.embedding.mean(0) - real.embedding.mean(0)) ** 2).sum()


DISCRIMINATOR = {
  "gan_vanilla": lambda real, fake, _: jnp.log(
    (1 + jnp.exp(-real[:, 0])) * (1 + jnp.exp(fake[:, 0]))
  ),
  "gan_semi": of_classes,
  "gan_cond": lambda real, fake, _: jnp.maximum(0, 1 - real[:, 0]) + jnp.maximum(0, 1 + fake[:, 0]),
}
GENERATOR = {
  "gan_vanilla": lambda fake, _: jnp.log(1 + jnp.exp(-fake.output[:, 0])).mean(),
  "gan_semi": matched,
  "gan_cond": lambda fake, _: -fake.output[:, 0].mean(),
}
GAMES = {
  "gan_cond": settings.GANCond(lr_ratio=2.0),
  "gan_semi": settings.GANSemi(lr_ratio=2.0),
  "gan_vanilla": settings.GANVanilla(d_steps=2),
}
FEW = 9  # labelled images of the K + 1 classifier


@functools.cache
def stepped(name):
  """The objective, the state before a step on 8 devices, after it, and its metrics."""
  with jax.enable_x64(True):
    found = objective(GAMES[name], SGD)
    state = run(jax.jit(found.init), jax.random.key(0))
    data = batch(labelled=FEW if name == "gan_semi" else None)
    after = run(mapped(found, 8), state, data, jax.random.key(1), np.float64(0.1))
    return found, state, *after


@pytest.mark.parametrize(
  "name", ["gan_cond", *(pytest.param(n, marks=pytest.mark.slow) for n in list(GAMES)[1:])]
)
def test_a_step_on_8_devices_is_that_of_two_turns_by_hand(name, x64):
  """With padding, augmentation, batch norm over all images, and few labels."""
  cfg = GAMES[name]
  _, state, after, metrics = stepped(name)
  turns = jax.jit(functools.partial(two_turns, cfg))
  data = batch(IMAGES, labelled=FEW if name == "gan_semi" else None)
  weights, stats, found = run(turns, state, data, jax.random.key(1), np.float64(0.1))
  for tree, expected in ((after.params, weights), (after.stats, stats)):
    assert distance((tree["generator"], tree["discriminator"]), expected) < 1e-12
  assert distance(state.params["generator"], after.params["generator"]) > 1e-4
  assert distance(state.params["discriminator"], after.params["discriminator"]) > 1e-4
  if cfg.d_steps == 1:
    assert float(metrics["d_loss"]) == pytest.approx(float(found[0]))
  assert float(metrics["g_loss"]) == pytest.approx(float(found[1]))
  assert float(metrics["loss"]) == pytest.approx(float(metrics["d_loss"] + metrics["g_loss"]))
  assert 0 <= metrics["d_accuracy"] <= 1 and after.step == 1


def test_both_follow_their_moving_average(x64):
  """After the first step its decay is 2/11, whatever larger one is asked for."""
  _, before, after, _ = stepped("gan_cond")
  for name in ("params", "stats"):
    old, new = getattr(before, name), getattr(after, name)
    expected = jax.tree.map(lambda a, b: np.asarray(a) * 2 / 11 + np.asarray(b) * 9 / 11, old, new)
    assert distance(getattr(base.evaluated(after), name), expected) < 1e-12


def test_an_image_is_a_function_of_seed_number_and_class(x64):
  """Whatever others are made beside it; and the class matters."""
  found, _, after, _ = stepped("gan_cond")
  sample = jax.jit(functools.partial(found.sample, base.evaluated(after), jax.random.key(3)))
  some = sample(jnp.array([5, 7, 5]), jnp.array([0, 1, 2]))
  other = sample(jnp.array([9, 5, 7]), jnp.array([2, 0, 1]))
  np.testing.assert_allclose(some[:2], other[1:], atol=1e-12)
  assert np.abs(some[0] - some[2]).max() > 1e-6
  assert some.shape == (3, SIZE, SIZE, 1) and some.min() >= 0 and some.max() <= 1


@pytest.mark.slow
def test_single_precision_stays_single():
  found = objective(settings.GANCond(), RULE)
  state = run(jax.jit(found.init), jax.random.key(0))
  after, metrics = run(mapped(found, 1), state, batch(), jax.random.key(1), np.float32(1e-2))
  leaves = jax.tree.leaves((after.params, after.stats, after.extra, metrics))
  assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
  assert jax.tree.structure(state) == jax.tree.structure(after)


def over_two_devices(cfg, real, fake, data):
  """The game's losses [2, b] and metrics, the axis being that of a map."""
  game = adversarial.GAMES[type(cfg)][1](cfg)
  return jax.vmap(game.discriminator, axis_name=contract.AXIS)(real, fake, data)


def test_labels_count_by_their_number_wherever_they_are():
  """Three labelled images on one device, one on the other: the mean is over the four."""
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(2, 5, K)))
  data = {
    contract.LABEL: jnp.array([[0, 1, 2, -1, 0], [-1, -1, 1, -1, 2]]),
    contract.MASK: jnp.array([[1.0, 1, 1, 1, 0], [1, 1, 1, 1, 0]]),
  }
  result = net_lib.Result(logits, logits)
  cfg = settings.GANSemi(unsupervised=0.0)
  loss, metrics = over_two_devices(cfg, result, result, data)
  known = {(0, 0): 0, (0, 1): 1, (0, 2): 2, (1, 2): 1}  # device and place -> label
  expected = [log_softmax(logits[at])[label] for at, label in known.items()]
  mask = data[contract.MASK]
  assert (mask * loss).sum() / mask.sum() == pytest.approx(-np.mean(expected), rel=1e-5)
  hits = [logits[at].argmax() == label for at, label in known.items()]
  assert (mask * metrics["accuracy"]).sum() / mask.sum() == pytest.approx(np.mean(hits))


def log_softmax(logits):
  return np.asarray(logits - np.log(np.exp(logits).sum()))


def test_a_batch_without_labels_teaches_no_class():
  data = {contract.LABEL: jnp.full((1, 4), -1), contract.MASK: jnp.ones((1, 4))}
  result = net_lib.Result(jnp.ones((1, 4, K)), jnp.ones((1, 4, 2)))
  loss, metrics = over_two_devices(settings.GANSemi(unsupervised=0.0), result, result, data)
  assert not loss.any() and not metrics["accuracy"].any()


def test_the_seeds_own_game_saturates():
  """By hand: log(1 - D) with D = 3/4, and -log D in its place."""
  fake = net_lib.Result(jnp.log(jnp.array([[3.0]])), None)
  for saturating, expected in ((True, np.log(1 / 4)), (False, np.log(4 / 3))):
    game = adversarial.GAMES[settings.GANVanilla][1](settings.GANVanilla(saturating=saturating))
    assert float(game.generator(fake, fake, {})[0]) == pytest.approx(expected, rel=1e-5)


def test_the_classifier_gives_probabilities_of_classes():
  found = objective(settings.GANSemi())
  outputs = jax.jit(found.forward)(found.init(jax.random.key(0)), batch())
  assert outputs.scores.shape == (SLOTS, K)
  np.testing.assert_allclose(outputs.scores.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("change", [{"accumulate": 2}, {"freeze": ("encoder",)}])
def test_settings_of_one_network_are_refused(change):
  with pytest.raises(ValueError, match="trains two networks by turns"):
    objective(settings.GANCond(), dataclasses.replace(RULE, **change))
