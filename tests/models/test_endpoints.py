"""Maps by name: handed out, differentiated by, cut at, and the stages that lead to them."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import contract, models, settings, trees
from medjax.models import blocks, heads, initial
from medjax.models import net as net_lib

CFG = settings.MedNet(
  width=4, blocks=3, pooled=(2,), connections=(("stem", "b2", "conv"),), hidden=4
)
INFO = contract.DataInfo(("a", "b"), (32, 32, 1), (1, 1), 2, (0.5,), (0.2,))


def _net():
  return models.make(CFG, INFO, net_lib.Execution("cpu"))


def _inputs(n=2):
  images = np.random.default_rng(0).random((n, *INFO.image_shape))
  return {
    contract.IMAGE: jnp.asarray(images),
    contract.MASK: jnp.ones(n),
    contract.SLOT: jnp.arange(n),
  }


@pytest.fixture(scope="module")
def weights():
  with jax.enable_x64(True):
    return _net().init(jax.random.key(0), jnp.zeros((1, *INFO.image_shape)))


def test_maps_are_handed_out_by_name(x64, weights):
  asked = _net().apply(*weights, _inputs(), train=False, endpoints=["b2", "stem"])[0]
  assert {name: x.shape for name, x in asked.endpoints.items()} == {
    "stem": (2, 8, 8, 64),
    "b2": (2, 4, 4, 16),
  }
  silent = _net().apply(*weights, _inputs(), train=False)[0]
  assert silent.endpoints == {}
  np.testing.assert_array_equal(asked.output, silent.output)
  every = _net().apply(*weights, _inputs(), train=False, endpoints=[net_lib.EVERY])[0]
  assert set(every.endpoints) == {"stem", "b1", "b2", "b3"}
  np.testing.assert_allclose(every.endpoints["b3"].mean((1, 2)), asked.embedding)


def test_an_end_point_that_does_not_exist_is_told(x64, weights):
  with pytest.raises(ValueError, match="no end point 'b9'"):
    _net().apply(*weights, _inputs(), train=False, endpoints=["b9"])


def test_the_gradient_by_an_offset_is_that_by_the_map(x64, weights):
  """Against central differences of the first logit along a random direction of the map."""

  def logit(offset):
    result, _ = _net().apply(*weights, _inputs(), train=False, offsets={"b2": offset})
    return result.output[0, 0]

  zeros = jnp.zeros((2, 4, 4, 16))
  direction = jax.random.normal(jax.random.key(3), zeros.shape)
  found = jnp.vdot(jax.grad(logit)(zeros), direction)
  step = 1e-6
  numerical = (logit(step * direction) - logit(-step * direction)) / (2 * step)
  assert abs(numerical) > 1e-4
  np.testing.assert_allclose(found, numerical, rtol=1e-5)


def test_stages_cover_all_parameters_in_order(weights):
  stages = _net().stages
  assert stages == (
    "encoder/stem1",
    "encoder/stem2",
    "encoder/b1",
    "encoder/stem_b2",
    "encoder/b2",
    "encoder/b3",
    "head",
  )
  for path in trees.flatten(weights[0]):
    assert any(path.startswith(f"{stage}/") for stage in stages), path


class _Pooled(nn.Module):
  """An encoder of one map, pooled."""

  encoder: nn.Module

  def __call__(self, images, mode):
    return self.encoder(images, mode).mean((1, 2))


def test_a_network_ends_where_it_is_cut(x64, weights):
  """Equal to the whole network's map there, and without the parameters beyond."""
  parts = models.mednet.build(CFG, INFO)
  encoder = _Pooled(blocks.Cut(parts.encoder, "b2"))
  head = heads.Classifier(2, (), 0.0)
  cut = net_lib.wrap(encoder, head, initial.HE_NORMAL, net_lib.Execution("cpu"), 0.9)
  params, _ = cut.init(jax.random.key(0), jnp.zeros((1, *INFO.image_shape)))
  flat = trees.flatten(params["encoder"])
  assert not any("/b3/" in path for path in flat) and any("/b2/" in path for path in flat)
  whole = _net().apply(*weights, _inputs(), train=False, endpoints=["b2"])[0].endpoints["b2"]
  ours = {"encoder": {"encoder": {"encoder": weights[0]["encoder"]}}, "head": params["head"]}
  theirs = {"encoder": {"encoder": {"encoder": weights[1]["encoder"]}}}
  found = cut.apply(ours, theirs, _inputs(), train=False)[0]
  np.testing.assert_allclose(found.embedding, whole.mean((1, 2)), atol=1e-12)


def test_a_cut_that_does_not_exist_is_told():
  encoder = blocks.Cut(models.mednet.build(CFG, INFO).encoder, "b7")
  net = net_lib.wrap(
    encoder, heads.Classifier(2, (), 0.0), initial.HE_NORMAL, net_lib.Execution(), 0.9
  )
  with pytest.raises(ValueError, match="no end point 'b7' to be cut at"):
    jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *INFO.image_shape)))


# A network, and an end point that lies inside one of its units.
INSIDE = [
  (settings.DenseNet(units=(2, 2), growth=4), "conv3_block1_1_relu"),
  (settings.VGG(convs=(1, 2, 1, 1, 1), hidden=(4,)), "block2_conv1"),
  (settings.MobileNetV2(width=0.1), "block_2_depthwise"),
  pytest.param(
    settings.NASNet(filters=96, repeats=1, stem_filters=2),
    "separable_conv_1_relu_normal_left5_0",
    marks=pytest.mark.slow,
  ),
]


@pytest.mark.parametrize(("cfg", "name"), INSIDE, ids=lambda value: getattr(value, "name", value))
def test_a_recomputed_unit_can_be_cut_in_its_middle(cfg, name):
  """The gradient is that of the unit that keeps its maps."""
  about = parity.info(32)
  encoder = blocks.Cut(models.MODELS[type(cfg)](cfg, about).encoder, name)
  images = jnp.asarray(parity.images(32))
  drawn = jax.jit(encoder.init)(jax.random.key(0), images, net_lib.Mode(net_lib.Execution()))
  params = jax.tree.map(_noise, drawn["params"])

  def gradient(remat):
    mode = net_lib.Mode(net_lib.Execution(remat=remat))
    loss = lambda params: jnp.square(encoder.apply(drawn | {"params": params}, images, mode)).sum()  # noqa: E731
    assert ("remat" in str(jax.make_jaxpr(loss)(params))) == remat
    return jax.tree.leaves(parity.once(jax.grad(loss))(params))

  for ours, expected in zip(gradient(remat=True), gradient(remat=False), strict=True):
    np.testing.assert_allclose(ours, expected, 1e-4, 1e-4 * abs(expected).max())


def _noise(leaf):
  return jnp.asarray(np.random.default_rng(leaf.size).normal(0, 0.3, leaf.shape), leaf.dtype)


RECOMPUTED = [
  settings.MedNet(width=2, blocks=1, pooled=(), connections=(), hidden=0),
  settings.QuadSNet(widths=(2, 3), streams=("cs3", "ss5"), dropout=0.0),
]


@pytest.mark.parametrize("cfg", RECOMPUTED, ids=lambda cfg: cfg.name)
def test_recomputing_maps_changes_no_gradient(x64, cfg):
  def gradient(remat):
    net = models.make(cfg, INFO, net_lib.Execution(remat=remat))
    params, stats = net.init(jax.random.key(0), jnp.zeros((1, *INFO.image_shape)))

    def loss(params):
      result, _ = net.apply(params, stats, _inputs(), train=True, momentum=0.9)
      return jnp.square(result.output).sum()

    assert ("remat" in str(jax.make_jaxpr(loss)(params))) == remat
    return parity.once(jax.grad(loss))(params)

  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-9), gradient(False), gradient(True))
