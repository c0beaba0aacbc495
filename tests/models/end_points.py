"""Maps by name, of any network: their shapes, the networks that end there, gradients by them."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np

from medjax import contract, models, settings, trees
from medjax.models import blocks
from medjax.models import net as net_lib


def shapes(
  cfg: settings.Model, size: int, endpoints: Sequence[str], channels: int = 3, **execution
) -> dict[str, tuple[int, ...]]:
  """End point -> shape of an image's map there, and `embedding`; nothing is computed."""
  about = parity.info(size, channels=channels)
  net = models.make(cfg, about, net_lib.Execution(**execution))

  def run(images):
    weights = net.init(jax.random.key(0), images)
    return net.apply(*weights, parity.batch_of(images), train=False, endpoints=endpoints)[0]

  result = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32))
  maps = {"embedding": result.embedding} | result.endpoints
  return {name: x.shape[1:] for name, x in maps.items()}


def cut_total(cfg: settings.Model, size: int, endpoint: str, remat: bool = False) -> int:
  """Parameters and moving statistics of an encoder that ends at an end point."""
  about = parity.info(size)
  encoder = blocks.Cut(models.MODELS[type(cfg)](cfg, about).encoder, endpoint)
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  mode = net_lib.Mode(net_lib.Execution(remat=remat))
  variables = jax.eval_shape(encoder.init, jax.random.key(0), images, mode)
  variables["batch_stats"]["encoder"].pop("input")
  return trees.count(variables["params"]) + trees.count(variables["batch_stats"])


def _random_weights(net: net_lib.Net, about: contract.DataInfo, seed: int = 3):
  """(params, stats) in JAX's default type: kernels by He et al. 2015, all others in [0.5, 1.5]."""
  rng = np.random.default_rng(seed)

  def drawn(leaf):
    if leaf.ndim < 2:
      return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape))
    return jnp.asarray(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape))

  like = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  return jax.tree.map(drawn, jax.eval_shape(net.init, jax.random.key(0), like))


def assert_gradients_by_offsets(
  cfg: settings.Model, about: contract.DataInfo, names: list[str]
) -> None:
  """Central differences of the first logit along a random direction of each map; in float64."""
  net = models.make(cfg, about, net_lib.Execution())
  weights = _random_weights(net, about)
  batch = parity.batch_of(np.random.default_rng(1).random((2, *about.image_shape)))
  run = functools.partial(net.apply, train=False)
  maps = jax.eval_shape(functools.partial(run, endpoints=names), *weights, batch)[0].endpoints
  rng = np.random.default_rng(2)
  directions = {name: jnp.asarray(rng.normal(size=maps[name].shape)) for name in names}

  @parity.once
  @jax.value_and_grad
  def logit(steps):
    offsets = {name: steps[name] * directions[name] for name in names}
    return run(*weights, batch, offsets=offsets)[0].output[0, 0]

  zeros, step = dict.fromkeys(names, 0.0), 1e-6
  _, found = logit(zeros)
  for name in names:
    numerical = (logit(zeros | {name: step})[0] - logit(zeros | {name: -step})[0]) / (2 * step)
    assert abs(numerical) > 1e-4
    np.testing.assert_allclose(found[name], numerical, rtol=1e-4)
