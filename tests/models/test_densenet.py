import dataclasses

import end_points
import jax
from jax import test_util
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import models, settings
from medjax.models import densenet
from medjax.models import net as net_lib

keras = parity.keras  # which sets the backend before it is imported
VARIANTS = settings.VARIANTS[settings.Model]
PLAIN = net_lib.Execution()
TINY = settings.DenseNet(units=(2, 1), growth=4, preprocess="unit")
KERAS = {
  "densenet121": keras.applications.DenseNet121,
  "densenet169": keras.applications.DenseNet169,
  "densenet201": keras.applications.DenseNet201,
}
# Total with moving statistics, and trainable: a thousand classes.
COUNTS = {
  "densenet121": (8_062_504, 7_978_856),
  "densenet169": (14_307_880, 14_149_480),
  "densenet201": (20_242_984, 20_013_928),
  "chexnet": (8_062_504, 7_978_856),
}
SMALL = dataclasses.replace(VARIANTS["densenet121"], units=(2, 1, 1, 1))
SIZE = 64


def _keras_small(**keywords):
  return keras.src.applications.densenet.DenseNet(list(SMALL.units), **keywords)


def _small(cfg=TINY, size=16, channels=3, **execution):
  """(net, params, stats) with random weights."""
  about = parity.info(size, channels=channels)
  net = models.make(cfg, about, net_lib.Execution(**execution))
  rng = np.random.default_rng(3)
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), params)
  stats = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), stats)
  return net, params, stats


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_preset(name):
  assert parity.counts(VARIANTS[name], 224) == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_counts_of_keras(name):
  parity.assert_described(KERAS[name](weights=None), VARIANTS[name], COUNTS[name])


def test_chexnet_has_the_classes_of_its_data():
  about = parity.info(32, classes=14)
  net = models.make(VARIANTS["chexnet"], about, PLAIN)
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  params, _ = jax.eval_shape(net.init, jax.random.key(0), images)
  assert params["head"]["classes"]["kernel"].shape == (1024, 14)


def _assert_same(compare, application, cfg, size=SIZE, **keywords):
  about, model = parity.info(size), parity.built(application, size)
  prepared, layer_of = keras.applications.densenet.preprocess_input, densenet.keras_layer
  compare(model, cfg, about, layer_of, prepared=prepared, **keywords)


def test_few_units_infer_as_keras_does():
  _assert_same(parity.assert_same_network, _keras_small, SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_presets_infer_as_keras_does(name):
  _assert_same(parity.assert_same_network, KERAS[name], VARIANTS[name])


def test_few_units_train_as_keras_does():
  with parity.float64():
    cfg = dataclasses.replace(SMALL, shared=True)
    _assert_same(parity.assert_same_step, _keras_small, cfg, size=32, n=4)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_densenet121_trains_as_keras_does(shared):
  with parity.float64():
    cfg = dataclasses.replace(VARIANTS["densenet121"], shared=shared)
    _assert_same(parity.assert_same_step, KERAS["densenet121"], cfg, n=4)


def _step(net, params, stats, batch, labels, momentum):
  def loss(params):
    result, moved = net.apply(params, stats, batch, train=True, momentum=momentum)
    return parity.cross_entropy(result.output, labels), (result.output, moved)

  grads, (logits, moved) = parity.once(jax.grad(loss, has_aux=True))(params)
  return logits, moved, grads


def test_shared_statistics_change_nothing(x64):
  # In float64: in float32 rounding moves values of small maps over the ReLU's corner.
  batch, labels = parity.batch_of(parity.images(16, 8).astype(np.float64)), jnp.arange(8)
  batch["mask"] = batch["mask"].at[-1].set(0)
  results = []
  for shared in (False, True):
    net, params, stats = _small(dataclasses.replace(TINY, shared=shared), bn_group=2)
    params, stats = jax.tree.map(jnp.float64, (params, stats))
    results.append(_step(net, params, stats, batch, labels, 0.5))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), *results)


def _reductions(shared):
  """How often a training pass sums over a map."""
  net, params, stats = _small(dataclasses.replace(TINY, shared=shared))
  batch = parity.batch_of(parity.images(16))
  traced = jax.make_jaxpr(lambda p: net.apply(p, stats, batch, train=True, momentum=0.5))(params)
  sums = [e for e in traced.eqns if e.primitive.name == "reduce_sum" and e.invars[0].aval.ndim == 5]
  return sum(e.invars[0].aval.size for e in sums)


def test_shared_statistics_of_a_map_are_taken_once():
  # Batch of 2. Stem: 64 channels of 8x8. Blocks on 4x4 and 2x2; bottlenecks of 16 channels.
  stem, bottlenecks = 64 * 64, 2 * 16 * 16 + 16 * 4
  once = (64 + 2 * 4) * 16 + (36 + 4) * 4
  each = (64 + 68 + 72) * 16 + (36 + 40) * 4
  assert _reductions(True) == 2 * 2 * (stem + bottlenecks + once)
  assert _reductions(False) == 2 * 2 * (stem + bottlenecks + each)


def test_endpoints_have_the_names_and_shapes_of_keras():
  expected = {
    "embedding": (40,),
    "conv1_relu": (16, 16, 64),
    "pool1": (8, 8, 64),
    "conv2_block1_1_relu": (8, 8, 16),
    "conv2_block2_concat": (8, 8, 72),
    "pool2_relu": (8, 8, 72),
    "pool2_pool": (4, 4, 36),
    "conv3_block1_concat": (4, 4, 40),
    "relu": (4, 4, 40),
  }
  assert end_points.shapes(TINY, 32, list(expected)[1:]) == expected


@pytest.mark.parametrize(
  ("name", "shared"), [("conv2_block1_concat", True), ("conv3_block1_1_relu", False)]
)
def test_gradient_by_an_offset_is_the_numerical_one(name, shared, x64):
  net, params, stats = _small(dataclasses.replace(TINY, shared=shared))
  params, stats = jax.tree.map(jnp.float64, (params, stats))
  batch = parity.batch_of(parity.images(16).astype(np.float64))

  @jax.jit
  def score(offset):
    result, _ = net.apply(
      params, stats, batch, train=True, momentum=0.0, offsets={name: offset}, endpoints=[name]
    )
    return result.output[:, 0].sum(), result.endpoints[name]

  _, x = jax.eval_shape(score, 0.0)
  test_util.check_grads(
    lambda offset: score(offset)[0],
    (jnp.zeros(x.shape),),
    order=1,
    modes=["rev"],
    rtol=1e-4,
    eps=1e-7,
  )


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
  ("endpoint", "total"),
  [("conv5_block29_1_relu", 17_430_336), ("conv5_block29_concat", 17_467_200)],
)
def test_cut_densenet201_has_nothing_behind_the_cut(endpoint, total, remat):
  assert end_points.cut_total(VARIANTS["densenet201"], 224, endpoint, remat) == total


def test_stages_follow_the_image_and_cover_every_parameter():
  about = parity.info(16)
  parity.assert_stages_cover(TINY, about)
  inside = ("conv1", "conv2", "pool2", "conv3", "bn")
  assert models.make(TINY, about, PLAIN).stages == (*(f"encoder/{s}" for s in inside), "head")


def test_recomputation_changes_nothing():
  batch, labels = parity.batch_of(parity.images(16, 4)), jnp.arange(4)
  cfg = dataclasses.replace(TINY, shared=True)
  results = [
    _step(*_small(cfg, remat=remat), batch, labels, momentum=0.5) for remat in (False, True)
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)


@pytest.mark.parametrize(("size", "side"), [(28, 14), (32, 16)])
def test_small_stem_keeps_the_sides_of_grey_images(size, side):
  small = dataclasses.replace(TINY, stem="small")
  maps = {"conv1_relu": (size, size, 64), "relu": (side, side, 40)}
  assert maps.items() <= end_points.shapes(small, size, list(maps), channels=1).items()
  large, grey = parity.counts(TINY, 64), parity.counts(small, size, channels=1)
  assert large[1] - grey[1] == (3 * 49 - 9) * 64


def test_too_small_images_are_refused():
  with pytest.raises(ValueError, match=r"data\.image_size"):
    parity.counts(VARIANTS["densenet121"], 16)


def test_a_network_without_blocks_is_refused():
  with pytest.raises(ValueError, match=r"model\.units"):
    models.make(settings.DenseNet(units=()), parity.info(32), PLAIN)
