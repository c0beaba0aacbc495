"""Layers: batch norm over groups and devices, dropout by slot, separable convolutions."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import contract, trees
from medjax import mesh as mesh_lib
from medjax.models import blocks, initial
from medjax.models import net as net_lib

PLAIN = net_lib.Execution()


def _batch(images, mask=None, slots=None):
  n = len(images)
  mask = jnp.ones(n) if mask is None else mask
  return {
    contract.IMAGE: images,
    contract.MASK: mask,
    contract.SLOT: jnp.arange(n) if slots is None else slots,
  }


def test_separable_convolution_is_one_dense_kernel():
  layer = blocks.SeparableConv(5, 3, use_bias=True)
  mode = net_lib.Mode(PLAIN)
  x = jax.random.normal(jax.random.key(0), (2, 6, 7, 3))
  params = initial.with_kernels(
    layer.init(jax.random.key(1), x, mode)["params"], jax.random.key(2), initial.GLOROT_UNIFORM
  )
  params["pointwise"]["bias"] += jnp.arange(5.0)
  dense = params["depthwise"]["kernel"][:, :, 0, :, None] * params["pointwise"]["kernel"][0, 0]
  truth = jax.lax.conv_general_dilated(
    x, dense, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  ours = layer.apply({"params": params}, x, mode)
  np.testing.assert_allclose(ours, truth + jnp.arange(5.0), atol=1e-5)
  assert trees.count(params) == 9 * 3 + 3 * 5 + 5


class _Norm(nn.Module):
  """Batch norm and nothing else; the embedding is the normalised map."""

  @nn.compact
  def __call__(self, x, mode):
    return blocks.BatchNorm(1e-3, name="bn")(x, mode)


class _Weighted(nn.Module):
  """A head with different gradients for every value."""

  @nn.compact
  def __call__(self, x, mode):
    return x**2 * jnp.arange(x.size // len(x), dtype=x.dtype).reshape(x.shape[1:])


SLOTS = 48


def _normalised_by_hand(x, mask, group, epsilon=1e-3):
  """Outputs, and the mean over groups of their mean and variance, of real examples alone."""
  out, moments = np.zeros_like(x), []
  for start in range(0, len(x), group):
    rows = np.arange(start, start + group)
    real = x[rows[mask[rows] > 0]]
    if not len(real):
      continue
    mean, var = real.mean((0, 1, 2)), real.var((0, 1, 2))
    out[rows] = (x[rows] - mean) / np.sqrt(var + epsilon)
    moments.append((mean, var))
  return out, np.mean(moments, axis=0)


def _norm_net(group, axis=contract.AXIS):
  execution = net_lib.Execution(bn_group=group, axis=axis)
  return net_lib.wrap(_Norm(), _Weighted(), initial.HE_NORMAL, execution, 0.9)


def _norm_step(net, mesh):
  """(params, stats, batch) -> (result, stats, gradients), over a mesh."""

  def step(params, stats, batch):
    def loss(params):
      result, moved = net.apply(params, stats, batch, train=True, key=jax.random.key(0))
      mask = batch[contract.MASK].reshape(-1, 1, 1, 1)
      return (mask * result.output).sum(), (result, moved)

    grads, (result, moved) = jax.grad(loss, has_aux=True)(params)
    return result, moved, jax.lax.psum(grads, contract.AXIS)

  whole, cut = mesh_lib.REPLICATED, mesh_lib.cut()
  return mesh_lib.mapped(step, mesh, (whole, whole, cut), (cut, whole, whole))


def _norm_inputs(net):
  rng = np.random.default_rng(5)
  x = rng.normal(1.0, 2.0, (SLOTS, 3, 2, 4)) * np.arange(1, 5)
  mask = np.ones(SLOTS)
  mask[[0, 5, 6]] = 0
  mask[-14:] = 0  # padding at the end: the last group of 2 to 12, and all of a device's slots
  params, stats = net.init(jax.random.key(0), jnp.asarray(x[:1]))
  return x, mask, params, stats


@pytest.mark.parametrize(
  ("devices", "group"),
  [(n, g) for n in (1, 3, 8) for g in (0, 2, 48)] + [(1, 12), (8, 12), (8, 24), (3, 16)],
)
def test_batch_norm_is_that_of_the_full_batch(x64, devices, group):
  net, mesh = _norm_net(group), mesh_lib.make(jax.devices()[:devices])
  x, mask, params, stats = _norm_inputs(net)
  result, moved, grads = _norm_step(net, mesh)(params, stats, _batch(x, mask))
  truth, (mean, var) = _normalised_by_hand(x, mask, group or SLOTS)
  real = mask > 0
  np.testing.assert_allclose(np.asarray(result.embedding)[real], truth[real], atol=1e-11)
  assert np.isfinite(result.embedding).all()
  bn = moved["encoder"]["bn"]
  np.testing.assert_allclose(bn["mean"], 0.1 * mean, atol=1e-12)
  np.testing.assert_allclose(bn["var"], 0.9 + 0.1 * var, atol=1e-11)
  # d/dscale of sum(w (scale n + bias)^2) at scale 1, bias 0 is sum(2 w n^2); d/dbias sum(2 w n).
  weights = np.arange(truth[0].size).reshape(truth.shape[1:])
  slope = (2 * weights * truth)[real]
  truths = {"scale": (slope * truth[real]).sum((0, 1, 2)), "bias": slope.sum((0, 1, 2))}
  for name, value in truths.items():
    np.testing.assert_allclose(grads["encoder"]["bn"][name], value, rtol=1e-10)


@pytest.mark.parametrize("group", [0, 12])
def test_gradients_cross_devices_inside_a_group(x64, group):
  """What lies before a batch norm feels every example of the group, wherever it is."""
  x, mask, params, stats = _norm_inputs(_norm_net(group, axis=None))

  def gradient(axis):
    net = _norm_net(group, axis)

    def grad(x, mask):
      def loss(x):
        result, _ = net.apply(params, stats, _batch(x, mask), train=True, key=jax.random.key(0))
        return (mask.reshape(-1, 1, 1, 1) * result.output).sum()

      return jax.grad(loss)(x)

    return grad

  mesh = mesh_lib.make(jax.devices())
  cut = mesh_lib.cut()
  ours = mesh_lib.mapped(gradient(contract.AXIS), mesh, (cut, cut), cut)(x, mask)
  np.testing.assert_allclose(ours, jax.jit(gradient(None))(x, mask), atol=1e-9)
  assert np.abs(ours).max() > 0.1


@pytest.mark.parametrize(("devices", "group"), [(3, 12), (8, 4), (8, 36), (1, 96), (1, -2)])
def test_groups_that_do_not_fit(devices, group):
  net, mesh = _norm_net(group), mesh_lib.make(jax.devices()[:devices])
  x, mask, params, stats = _norm_inputs(net)
  with pytest.raises(ValueError, match=rf"groups of {group} do not fit a global batch of 48 slots"):
    _norm_step(net, mesh)(params, stats, _batch(x, mask))


@pytest.mark.parametrize(("group", "reductions"), [(2, 1), (0, 2)])
def test_groups_inside_a_device_cost_one_reduction_a_net(group, reductions):
  """Of the running statistics; a group over all devices costs the count's and one a layer."""
  net, mesh = _norm_net(group), mesh_lib.make(jax.devices())
  x, mask, params, stats = _norm_inputs(net)

  def step(params, stats, batch):
    return net.apply(params, stats, batch, train=True, key=jax.random.key(0))

  whole, cut = mesh_lib.REPLICATED, mesh_lib.cut()
  run = mesh_lib.mapped(step, mesh, (whole, whole, cut), (cut, whole))
  text = run.lower(params, stats, _batch(x, mask)).as_text()
  assert text.count('"stablehlo.all_reduce"') == reductions


class _Drop(nn.Module):
  """Two dropouts of the same values."""

  @nn.compact
  def __call__(self, x, mode):
    first, second = (blocks.Dropout(0.3, name=name)(x, mode) for name in ("first", "second"))
    return jnp.stack([first, second], axis=1)


class _Same(nn.Module):
  @nn.compact
  def __call__(self, x, mode):
    self.variable("batch_stats", "nothing", jnp.zeros, ())
    self.param("nothing", nn.initializers.zeros, ())
    return x


def _drop(slots, key, mesh=None, width=2000):
  axis = None if mesh is None else contract.AXIS
  net = net_lib.wrap(_Drop(), _Same(), initial.HE_NORMAL, net_lib.Execution(axis=axis), 0.9)
  images = jnp.ones((len(slots), width))
  params, stats = net.init(key, images[:1])

  def run(batch, key):
    return net.apply(params, stats, batch, train=True, key=key)[0].embedding

  if mesh is not None:
    run = mesh_lib.mapped(run, mesh, (mesh_lib.cut(), mesh_lib.REPLICATED), mesh_lib.cut())
  return np.asarray(run(_batch(images, slots=slots), key))  # [b, layer, width]


def test_dropout_does_not_know_devices(mesh):
  slots = jnp.arange(24)
  np.testing.assert_array_equal(
    _drop(slots, jax.random.key(1), mesh, width=50), _drop(slots, jax.random.key(1), width=50)
  )


def test_dropout_is_random():
  first = _drop(jnp.arange(40), jax.random.key(1))
  assert set(np.unique(first)) == {np.float32(0), np.float32(1 / 0.7)}
  kept = first > 0
  deviation = math.sqrt(0.3 * 0.7 / kept.size)
  assert kept.mean() == pytest.approx(0.7, abs=4 * deviation)
  # Slots, layers, keys, neighbours, and the same value in all slots: all as good as independent.
  other_key = _drop(jnp.arange(40), jax.random.key(2)) > 0
  pairs = {
    "slots": (kept[:-1], kept[1:]),
    "layers": (kept[:, 0], kept[:, 1]),
    "keys": (kept, other_key),
    "neighbours": (kept[..., :-1], kept[..., 1:]),
    "far neighbours": (kept[..., :-32], kept[..., 32:]),
  }
  for name, (a, b) in pairs.items():
    correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
    assert abs(correlation) < 5 / math.sqrt(a.size), name
  by_value = kept.mean((0, 1))  # the same value, all slots and layers: binomial around 0.7
  assert by_value.std() == pytest.approx(math.sqrt(0.3 * 0.7 / 80), rel=0.1)


def test_dropout_follows_the_slot_not_the_row():
  slots = jnp.array([7, 3, 11])
  sorted_ = _drop(jnp.arange(12), jax.random.key(1), width=100)
  np.testing.assert_array_equal(_drop(slots, jax.random.key(1), width=100), sorted_[slots])
