"""Maps by name: handed out, differentiated by, cut at, and the stages that lead to them."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import contract, models, settings, trees
from medjax.models import blocks, heads, initial
from medjax.models import net as net_lib

CFG = settings.MedNet(
  width=4, blocks=3, pooled=(2,), connections=(("stem", "b2", "conv"),), hidden=4
)
INFO = contract.DataInfo(("a", "b"), (32, 32, 1), (1, 1), 2, (0.5,), (0.2,))


def _net(remat=False):
  return models.make(CFG, INFO, net_lib.Execution("cpu", remat=remat))


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
