"""The layer, its two paths, and the branch of metadata, against loops in NumPy."""

import dataclasses
import functools

import attention_by_hand as by_hand
import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import settings, trees
from medjax.models import metadata, soft_attention


def _weights_of(layer, variables, x):
  """The layer's end point `attention`."""
  mode = dataclasses.replace(by_hand.MODE, endpoints=("attention",))
  (weights,) = jax.tree.leaves(layer.apply(variables, x, mode, mutable=["endpoints"])[1])
  return weights


@pytest.mark.parametrize("channels", [5, 8])
@pytest.mark.parametrize("kind", by_hand.KINDS)
def test_the_layer_equals_loops(x64, kind, channels):
  layer = soft_attention.SoftAttention(3, kind)
  variables, x = by_hand.module(layer, 2, 4, 5, channels)
  assert ("gamma" in variables["params"]) == (kind == "paper")
  ours = layer.apply(variables, x, by_hand.MODE)
  np.testing.assert_allclose(ours, by_hand.attended(variables["params"], x, kind), atol=1e-12)


@pytest.mark.parametrize("channels", [7, 10])
def test_the_quirk_is_the_original_convolution(channels):
  """Keras's Conv3D as the authors call it; on JAX its one step along the channels meets the first
  three, where TensorFlow on CPU, on which the experiments ran, has the middle ones."""
  layer = soft_attention.SoftAttention(4, "keras_quirk")
  variables, x = by_hand.module(layer, 2, 6, 5, channels)
  weights = variables["params"]["scores"]
  original = parity.keras.layers.Conv3D(
    4, (channels, 3, 3), strides=(1, 1, channels), padding="same", activation="relu"
  )
  rolled = np.roll(x, -((channels - 3) // 2), axis=-1)[..., None]
  original.build(rolled.shape)
  original.set_weights([weights["kernel"][..., None, :], weights["bias"]])
  scores = np.asarray(original(rolled))
  assert scores.shape == (2, 6, 5, 1, 4)
  truth = x * by_hand.attention(scores[..., 0, :])
  np.testing.assert_allclose(layer.apply(variables, x, by_hand.MODE), truth, atol=1e-5)


@pytest.mark.parametrize("kind", by_hand.KINDS)
def test_attention_adds_up_to_the_number_of_maps(kind):
  layer = soft_attention.SoftAttention(16, kind)
  variables, x = by_hand.module(layer, 3, 7, 6, 12)
  weights = _weights_of(layer, variables, x)
  assert weights.shape == (3, 7, 6, 1)
  np.testing.assert_allclose(weights.sum((1, 2, 3)), 16, rtol=1e-5)
  assert weights.std() > 0.01


@pytest.mark.parametrize("kind", by_hand.KINDS)
def test_without_scores_all_positions_weigh_the_same(kind):
  layer = soft_attention.SoftAttention(16, kind)
  variables, x = by_hand.module(layer, 2, 5, 4, 9)
  params = {"scores": jax.tree.map(np.zeros_like, variables["params"]["scores"])}
  gamma = {"gamma": np.float32(0.25)} if kind == "paper" else {}
  ours = layer.apply({"params": params | gamma}, x, by_hand.MODE)
  np.testing.assert_allclose(ours, gamma.get("gamma", 1) * 16 / 20 * x, rtol=1e-5)


def test_the_quirk_sees_three_channels():
  layer = soft_attention.SoftAttention(4, "keras_quirk")
  variables, x = by_hand.module(layer, 1, 5, 5, 9)
  weights = functools.partial(_weights_of, layer, variables)
  one_hot = np.eye(9, dtype=x.dtype)
  seen = [not np.array_equal(weights(x), weights(x + 5 * channel)) for channel in one_hot]
  assert np.flatnonzero(seen).tolist() == [3, 4, 5]


@pytest.mark.parametrize(
  ("channels", "count"),
  [
    (128, 18_448),
    (160, 23_056),
    (176, 25_360),
    (192, 27_664),
    (320, 46_096),
    (512, 73_744),
    (576, 82_960),
    (672, 96_784),
    (960, 138_256),
    (1024, 147_472),
    (1056, 152_080),
    (1280, 184_336),
    (1824, 262_672),
    (2048, 294_928),
    (2080, 299_536),
    (4032, 580_624),
  ],
)
def test_parameters_of_the_layer(channels, count):
  for kind, more in {"paper": 1, "paper_no_gamma": 0, "keras_quirk": 0}.items():
    layer = soft_attention.SoftAttention(16, kind)
    x = jax.ShapeDtypeStruct((1, 7, 7, channels), jnp.float32)
    shapes = jax.eval_shape(
      lambda x, layer=layer: layer.init(jax.random.key(0), x, by_hand.MODE), x
    )
    assert trees.count(shapes["params"]) == count + more


@pytest.mark.parametrize("relu_before", [False, True])
@pytest.mark.parametrize("kind", by_hand.KINDS)
def test_the_two_paths_equal_loops(x64, kind, relu_before):
  """On a map of odd sides, whose last row and column are pooled alone."""
  cfg = settings.SoftAttention(attention=kind, maps=3)
  module = soft_attention.TwoPaths(cfg, relu_before)
  variables, x = by_hand.module(module, 2, 5, 3, 6)
  ours = module.apply(variables, x, by_hand.MODE)
  assert ours.shape == (2, 3, 2, 12)
  truth = by_hand.two_paths(variables["params"], np.maximum(x, 0) if relu_before else x, kind)
  np.testing.assert_allclose(ours, truth, atol=1e-12)


def test_without_attention_the_map_alone_is_pooled(x64):
  module = soft_attention.TwoPaths(settings.SoftAttention(attention="none"), False)
  _, x = by_hand.module(soft_attention.SoftAttention(1, "paper"), 2, 4, 6, 3)
  windows = np.asarray(x).reshape(2, 2, 2, 3, 2, 3).max((2, 4))
  np.testing.assert_array_equal(module.apply({}, x, by_hand.MODE), np.maximum(windows, 0))


def test_the_two_paths_drop_half_in_training():
  module = soft_attention.TwoPaths(settings.SoftAttention(attention="paper_no_gamma"), False)
  variables, x = by_hand.module(module, 8, 16, 16, 4)
  keys = jax.random.bits(jax.random.key(2), (8, 2), jnp.uint32)
  plain = module.apply(variables, x, by_hand.MODE)
  dropped = module.apply(variables, x, dataclasses.replace(by_hand.MODE, keys=keys))
  kept = dropped != 0
  np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=1e-6)
  assert kept.sum() / (plain != 0).sum() == pytest.approx(0.5, abs=0.05)


def test_the_wide_branch_by_hand(x64):
  branch = metadata.Wide()
  variables, x = by_hand.module(branch, 3, by_hand.WIDTH)
  dense = variables["params"]["dense"]
  assert trees.count(variables["params"]) == 90_112
  truth = np.maximum(x @ dense["kernel"] + dense["bias"], 0)
  np.testing.assert_allclose(branch.apply(variables, x, by_hand.MODE), truth, atol=1e-12)


def test_the_two_layer_branch_by_hand(x64):
  branch = metadata.TwoLayer(1e-3)
  variables, x = by_hand.module(branch, 5, by_hand.WIDTH)
  params, stats, truth = variables["params"], variables["batch_stats"], x
  for number in (1, 2):
    truth = truth @ params[f"dense{number}"]["kernel"]
    truth = np.maximum(by_hand.normed(params[f"bn{number}"], stats[f"bn{number}"], truth), 0)
  assert truth.shape == (5, 256)
  np.testing.assert_allclose(branch.apply(variables, x, by_hand.MODE), truth, atol=1e-10)


def test_a_property_is_at_times_unknown_in_training(x64):
  """One-hot in three columns and a number: each is all there or 0, not scaled up."""
  n = 4000
  branch = metadata.TwoLayer(1e-3, width=8, dropout=0)
  variables, _ = by_hand.module(branch, 1, 4)
  rows = np.tile([0.0, 1, 0, 0.7], (n, 1))
  keys = jax.random.bits(jax.random.key(4), (n, 2), jnp.uint32)
  apply = functools.partial(branch.apply, variables)
  found = np.asarray(apply(rows, dataclasses.replace(by_hand.MODE, keys=keys)))
  states = {(one, number): [0, one, 0, 0.7 * number] for one in (1, 0) for number in (1, 0)}
  outputs = np.asarray(apply(np.array(list(states.values())), by_hand.MODE))
  equal = np.abs(found[:, None] - outputs).max(-1) < 1e-9
  assert (equal.sum(1) == 1).all()
  shares = equal.mean(0)
  np.testing.assert_allclose(shares, [0.81, 0.09, 0.09, 0.01], atol=0.02)
  again = np.asarray(apply(rows[::-1], dataclasses.replace(by_hand.MODE, keys=keys[::-1])))
  np.testing.assert_array_equal(again[::-1], found)
