"""Generator and discriminator: counts by hand, spectral norm by SVD, conditional batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import contract, models, settings, trees
from medjax.models import gan, net

GENERATOR = {  # pixels -> blocks and all, of 128 latents, 7 classes and RGB
  32: (128 * 16 * 512 + 16 * 512) + 1_912_064 + 480_896 + 121_664 + 1_859,
  64: 12_255_235,
  128: 32_209_923,
}
DISCRIMINATOR = {
  # Blocks to 512 channels, the last dense layer, a vector of 512 a class.
  32: 38_976 + 119_104 + 475_776 + 1_901_824 + 513 + 7 * 512,
  64: 10_148_609,
  128: 30_074_625,
}


def info(size, classes=7, channels=3):
  names = tuple(f"c{i}" for i in range(classes))
  grey = (0.5,) * channels
  return contract.DataInfo(names, (size, size, channels), (1,) * classes, classes, grey, grey)


def shapes(network, *like):
  return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(like))[0]


def batch(images, condition=None, mask=None):
  n = len(images)
  found = {
    contract.IMAGE: jnp.asarray(images),
    contract.MASK: jnp.ones(n) if mask is None else jnp.asarray(mask),
    contract.SLOT: jnp.arange(n),
  }
  return found if condition is None else found | {contract.CONDITION: jnp.asarray(condition)}


@pytest.mark.parametrize("size", GENERATOR)
def test_conditional_networks_have_the_parameters_of_their_layers(size):
  pair = gan.make(settings.GAN(), info(size), net.Execution(), "projection")
  assert trees.count(shapes(pair.generator, 1, 128)) == GENERATOR[size]
  assert trees.count(shapes(pair.discriminator, 1, size, size, 3)) == DISCRIMINATOR[size]


def test_one_conditional_block_has_the_parameters_of_its_layers():
  pair = gan.make(settings.GAN(), info(64), net.Execution(), "projection")
  ours = shapes(pair.generator, 1, 128)["encoder"]
  assert [trees.count(ours[name]) for name in sorted(ours)] == [
    7_625_216,
    1_912_064,
    480_896,
    121_664,
    2_113_536,
  ]


def test_a_discriminator_of_classes_has_no_projection():
  pair = gan.make(settings.GAN(), info(64), net.Execution(), "classes")
  assert trees.count(shapes(pair.discriminator, 1, 64, 64, 3)) == 10_147_591
  per_class = 2 * 7 * sum((1024, 512, 512, 256, 256, 128, 128, 64))
  alone = 12_255_235 - per_class * 6 // 7  # one factor and one offset in the place of seven
  assert trees.count(shapes(pair.generator, 1, 128)) == alone


def test_the_body_alone_is_a_network_as_any_other():
  network = models.make(settings.GAN(), info(64), net.Execution())
  assert trees.count(shapes(network, 1, 64, 64, 3)) == 10_147_591


def applied(network, weights, inputs, **how):
  """`network.apply`, compiled."""
  return jax.jit(lambda weights, inputs: network.apply(*weights, inputs, **how))(weights, inputs)


@pytest.fixture(scope="module")
def tiny():
  """A conditional pair at 8 pixels, with parameters and statistics of both."""
  cfg = settings.GAN(width=2, latent=5)
  pair = gan.make(cfg, info(8, 3), net.Execution(), "projection")
  keys = jax.random.split(jax.random.key(1))
  return pair, {
    "generator": pair.generator.init(keys[0], jnp.zeros((1, 5))),
    "discriminator": pair.discriminator.init(keys[1], jnp.zeros((1, 8, 8, 3))),
  }


def test_images_lie_between_0_and_1(tiny):
  pair, weights = tiny
  latents = 3 * np.random.default_rng(0).normal(size=(4, 5))
  inputs = batch(latents, [0, 1, 2, 0])
  result, _ = applied(pair.generator, weights["generator"], inputs, train=False)
  assert result.output.shape == (4, 8, 8, 3)
  assert 0 <= result.output.min() < result.output.max() <= 1


def test_a_class_has_a_factor_and_an_offset_of_its_own(x64):
  """By hand: normalised over all examples, then moved as the class of each says."""
  module = gan.ConditionalBatchNorm(1e-5, 3)
  rng = np.random.default_rng(0)
  x, condition = rng.normal(size=(6, 4, 4, 2)), np.array([0, 1, 2, 2, 1, 0])
  scale, bias = rng.normal(size=(2, 3, 2))
  groups = net._mode(net.Execution(), batch(x), True, None).groups
  mode = net.Mode(net.Execution(), groups, condition=jnp.asarray(condition))
  variables = module.init(jax.random.key(0), x, mode)
  variables["params"].update(scale=scale, bias=bias)
  found, _ = module.apply(variables, x, mode, mutable=[net.BATCH_MOMENTS])
  unit = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
  expected = unit * scale[condition][:, None, None] + bias[condition][:, None, None]
  np.testing.assert_allclose(found, expected, atol=1e-9)


def test_a_class_must_be_told(tiny):
  pair, weights = tiny
  with pytest.raises(ValueError, match="needs classes"):
    pair.generator.apply(*weights["generator"], batch(np.zeros((2, 5))), train=False)


def _probe(shape):
  """A layer with a kernel of this shape, and images of one pixel each that read it off."""
  if len(shape) == 2:
    return gan.SpectralDense(shape[-1]), jnp.eye(shape[0])
  pixel = np.zeros((shape[2], 5, 5, shape[2]))
  pixel[np.arange(shape[2]), 2, 2, np.arange(shape[2])] = 1
  return gan.SpectralConv(shape[-1], shape[0]), jnp.asarray(pixel)


@pytest.mark.parametrize("shape", [(48, 32), (3, 3, 8, 16), (256, 1)])
def test_the_spectral_norm_comes_to_1(shape):
  """Against NumPy's SVD, after 50 steps of power iteration from the start."""
  layer, x = _probe(shape)
  mode = net._mode(net.Execution(), batch(x), True, None)
  stats = layer.init(jax.random.key(0), x, mode)["batch_stats"]
  kernel = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  params = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}

  def turn(_, stats):
    variables = {"params": params, "batch_stats": stats}
    return layer.apply(variables, x, mode, mutable=[net.ITERATES])[1][net.ITERATES]

  stats = jax.jit(lambda stats: jax.lax.fori_loop(0, 49, turn, stats))(stats)
  variables = {"params": params, "batch_stats": stats}
  found = np.asarray(layer.apply(variables, x, mode, mutable=[net.ITERATES])[0])
  norm = np.linalg.svd(found.reshape(-1, shape[-1]), compute_uv=False)[0]
  assert norm == pytest.approx(1, abs=1e-3)


def test_power_iteration_moves_in_training_alone(tiny):
  pair, weights = tiny
  weights, stats = weights["discriminator"], weights["discriminator"][1]
  inputs = batch(np.random.default_rng(0).random((2, 8, 8, 3)), [0, 1])
  _, kept = applied(pair.discriminator, weights, inputs, train=False)
  _, moved = applied(pair.discriminator, weights, inputs, train=True, key=jax.random.key(0))
  directions = {path for path in trees.flatten(stats) if path.endswith("/u")}
  assert len(directions) == 2 * 3 + 2
  for path, value in trees.flatten(moved).items():
    same = np.array_equal(value, trees.flatten(stats)[path])
    assert same == (path not in directions or value.shape == (1,)), path
    np.testing.assert_array_equal(trees.flatten(kept)[path], trees.flatten(stats)[path])


def test_the_gradient_is_that_of_the_kernel_over_its_norm(x64):
  """Directions that stand still: by finite differences of W / (v' W u)."""
  rng = np.random.default_rng(0)
  kernel, weight = rng.normal(size=(2, 5, 4))
  half = jnp.full(4, 0.5)
  u, v = map(np.asarray, gan._turned(jnp.asarray(kernel), half))
  layer, x = _probe((5, 4))

  def ours(kernel):
    variables = {"params": {"kernel": kernel, "bias": jnp.zeros(4)}, "batch_stats": {"u": half}}
    return (layer.apply(variables, x, net.Mode(net.Execution())) * weight).sum()

  expected = np.empty_like(kernel)
  for place in np.ndindex(kernel.shape):
    step = np.zeros_like(kernel)
    step[place] = 1e-6
    high, low = (((k := kernel + sign * step) * weight).sum() / (v @ k @ u) for sign in (1, -1))
    expected[place] = (high - low) / 2e-6
  np.testing.assert_allclose(jax.grad(ours)(jnp.asarray(kernel)), expected, atol=1e-6)


def test_a_verdict_is_a_product_with_the_vector_of_the_class(x64):
  """The class moves the verdict by its vector's share of the features, the norm of all being 1."""
  rng = np.random.default_rng(0)
  head, embedding = gan.Verdict(3), rng.normal(size=(1, 6)).repeat(3, 0)
  mode = net.Mode(net.Execution(), condition=jnp.arange(3))
  variables = head.init(jax.random.key(0), embedding, mode)
  kernel, u = rng.normal(size=(3, 6)), variables["batch_stats"]["projection"]["u"]
  variables["params"]["projection"]["kernel"] = jnp.asarray(kernel)
  found = np.asarray(head.apply(variables, embedding, mode))[:, 0]
  v = kernel @ np.asarray(u) / np.linalg.norm(kernel @ np.asarray(u))
  sigma = np.linalg.norm(v @ kernel)
  np.testing.assert_allclose(np.diff(found), np.diff(kernel @ embedding[0] / sigma))


@pytest.mark.parametrize(
  ("cfg", "data", "end", "told"),
  [
    (settings.GAN(), info(48), "real", "data.image_size to 8, 16, 32, 64 or 128"),
    (settings.MedNet(), info(32), "real", "set model.name=gan"),
    (settings.GAN(), info(32, 0), "projection", "have none or many"),
  ],
)
def test_what_does_not_fit_is_told(cfg, data, end, told):
  with pytest.raises(ValueError, match=told):
    gan.make(cfg, data, net.Execution(), end)
