import dataclasses

import jax
from jax import test_util
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import models, settings, trees
from medjax.models import blocks, densenet
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
SIZE = 64


def _keras(name):
  shape = (SIZE, SIZE, 3)
  model = KERAS[name](
    weights=None, classes=parity.CLASSES, input_shape=shape, classifier_activation=None
  )
  parity.randomise(model)
  return model


@pytest.fixture(scope="module")
def keras121():
  return _keras("densenet121")


def _copied(model, cfg, net):
  return parity.copied(model, net, parity.info(SIZE), lambda path: densenet.keras_layer(path, cfg))


def _values(variables):
  return [variable.value for variable in variables]


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
  model = KERAS[name](weights=None)
  trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
  assert (model.count_params(), trainable) == COUNTS[name]


def test_chexnet_has_the_classes_of_its_data():
  about = parity.info(32, classes=14)
  net = models.make(VARIANTS["chexnet"], about, PLAIN)
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  params, _ = jax.eval_shape(net.init, jax.random.key(0), images)
  assert params["head"]["classes"]["kernel"].shape == (1024, 14)


def _assert_same_inference(model, cfg):
  net = models.make(cfg, parity.info(SIZE), PLAIN)
  params, stats = _copied(model, cfg, net)
  pixels = parity.images(SIZE)
  prepared = keras.applications.densenet.preprocess_input(255 * pixels)
  weights = _values(model.trainable_variables), _values(model.non_trainable_variables)
  theirs, _ = jax.jit(lambda x: model.stateless_call(*weights, x, training=False))(prepared)
  ours, _ = jax.jit(lambda batch: net.apply(params, stats, batch, train=False))(
    parity.batch_of(pixels)
  )
  parity.assert_same_logits(ours.output, theirs)


def test_densenet121_infers_as_keras_does(keras121):
  _assert_same_inference(keras121, VARIANTS["densenet121"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet169", "densenet201"])
def test_deeper_ones_infer_as_keras_does(name):
  _assert_same_inference(_keras(name), VARIANTS[name])


def _keras_step(model, pixels, labels):
  """Keras's training pass: logits, moved statistics, gradients of the loss."""

  def loss(trainable, fixed):
    logits, fixed = model.stateless_call(trainable, fixed, pixels, training=True)
    return _loss(logits, labels), (logits, fixed)

  weights = _values(model.trainable_variables), _values(model.non_trainable_variables)
  grads, (logits, fixed) = jax.jit(jax.grad(loss, has_aux=True))(*weights)
  return logits, fixed, grads


def _loss(logits, labels):
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def _step(net, params, stats, batch, labels, momentum):
  def loss(params):
    result, moved = net.apply(params, stats, batch, train=True, momentum=momentum)
    return _loss(result.output, labels), (result.output, moved)

  grads, (logits, moved) = jax.jit(jax.grad(loss, has_aux=True))(params)
  return logits, moved, grads


def _in_place(model, trainable, fixed):
  """Puts values in the place of a Keras model's weights, from where they are copied by name."""
  for variables, values in (
    (model.trainable_variables, trainable),
    (model.non_trainable_variables, fixed),
  ):
    for variable, value in zip(variables, values, strict=True):
      variable.assign(value)


@pytest.mark.slow
def test_densenet121_has_the_training_pass_of_keras(keras121):
  cfg = settings.DenseNet(preprocess="unit")
  net = models.make(cfg, parity.info(SIZE), PLAIN)
  params, stats = _copied(keras121, cfg, net)
  batch = parity.batch_of(parity.images(SIZE, 8))
  weights = _values(keras121.trainable_variables), _values(keras121.non_trainable_variables)
  theirs, _ = jax.jit(lambda x: keras121.stateless_call(*weights, x, training=True))(batch["image"])
  ours, _ = jax.jit(lambda b: net.apply(params, stats, b, train=True, momentum=0.0))(batch)
  parity.assert_same_logits(ours.output, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("shared", [False, True])
def test_densenet121_trains_as_keras_does(keras121, shared):
  # Eight images: the last maps are 2x2, and statistics of few values are ill-conditioned.
  cfg = settings.DenseNet(preprocess="unit", shared=shared)
  net = models.make(cfg, parity.info(SIZE), PLAIN)
  params, stats = _copied(keras121, cfg, net)
  pixels, labels = parity.images(SIZE, 8), jnp.arange(8)
  logits, moved, grads = _step(net, params, stats, parity.batch_of(pixels), labels, 0.99)
  weights = _values(keras121.trainable_variables), _values(keras121.non_trainable_variables)
  their_logits, their_moved, their_grads = _keras_step(keras121, pixels, labels)
  _in_place(keras121, their_grads, their_moved)
  expected_grads, expected_moved = _copied(keras121, cfg, net)
  _in_place(keras121, *weights)
  parity.assert_same_logits(logits, their_logits)
  _assert_near(moved, expected_moved, 1e-4)
  _assert_near(grads, expected_grads, 1e-3)


def _assert_near(ours, theirs, tolerance):
  """Each tensor within that share of its norm."""
  ours, theirs = trees.flatten(ours), trees.flatten(theirs)
  for path, value in theirs.items():
    error = np.linalg.norm(ours[path] - value) / max(np.linalg.norm(value), 1e-12)
    assert error < tolerance, (path, error)


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
  net, params, stats = _small(size=32)
  expected = {
    "conv1_relu": (2, 16, 16, 64),
    "pool1": (2, 8, 8, 64),
    "conv2_block1_1_relu": (2, 8, 8, 16),
    "conv2_block2_concat": (2, 8, 8, 72),
    "pool2_relu": (2, 8, 8, 72),
    "pool2_pool": (2, 4, 4, 36),
    "conv3_block1_concat": (2, 4, 4, 40),
    "relu": (2, 4, 4, 40),
  }
  maps = _maps(net, params, stats, parity.images(32), list(expected))
  assert {name: x.shape for name, x in maps.items()} == expected


def _maps(net, params, stats, pixels, names):
  def run(batch):
    return net.apply(params, stats, batch, train=False, endpoints=names)[0].endpoints

  return jax.eval_shape(run, parity.batch_of(pixels))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", ["conv2_block1_concat", "conv3_block1_1_relu"])
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


@pytest.mark.parametrize(
  ("endpoint", "shape", "total"),
  [
    ("conv5_block29_1_relu", (1, 7, 7, 128), 17_430_336),
    ("conv5_block29_concat", (1, 7, 7, 1824), 17_467_200),
  ],
)
@pytest.mark.parametrize("remat", [False, True])
def test_cut_densenet201_has_nothing_behind_the_cut(endpoint, shape, total, remat):
  cfg, about = VARIANTS["densenet201"], parity.info(224)
  encoder = blocks.Cut(densenet.build(cfg, about).encoder, endpoint)
  mode = net_lib.Mode(net_lib.Execution(remat=remat))
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  x, variables = jax.eval_shape(
    lambda images: encoder.init_with_output(jax.random.key(0), images, mode), images
  )
  assert x.shape == shape
  constants = 2 * 3
  assert trees.count(variables["params"]) + trees.count(variables["batch_stats"]) - constants == (
    total
  )


def test_stages_follow_the_image_and_cover_every_parameter():
  net, params, _ = _small()
  assert net.stages == (
    "encoder/conv1", "encoder/conv2", "encoder/pool2", "encoder/conv3", "encoder/bn", "head"
  )  # fmt: skip
  paths = list(trees.flatten(params))
  owners = [[s for s in net.stages if path.startswith(f"{s}/")] for path in paths]
  assert all(len(owner) == 1 for owner in owners)
  assert {owner[0] for owner in owners} == set(net.stages)


def test_recomputation_changes_nothing():
  batch, labels = parity.batch_of(parity.images(16, 4)), jnp.arange(4)
  cfg = dataclasses.replace(TINY, shared=True)
  results = [
    _step(*_small(cfg, remat=remat), batch, labels, momentum=0.5) for remat in (False, True)
  ]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), *results)


@pytest.mark.parametrize(("size", "side"), [(28, 14), (32, 16)])
def test_small_stem_keeps_the_sides_of_grey_images(size, side):
  net, params, stats = _small(dataclasses.replace(TINY, stem="small"), size, channels=1)
  assert params["encoder"]["conv1"]["conv"]["kernel"].shape == (3, 3, 1, 64)
  maps = _maps(net, params, stats, parity.images(size, channels=1), [net_lib.EVERY])
  assert maps["conv1_relu"].shape == (2, size, size, 64)
  assert maps["relu"].shape == (2, side, side, 40)


def test_too_small_images_are_refused():
  with pytest.raises(ValueError, match=r"data\.image_size"):
    parity.counts(VARIANTS["densenet121"], 16)


def test_a_network_without_blocks_is_refused():
  with pytest.raises(ValueError, match=r"model\.units"):
    models.make(settings.DenseNet(units=()), parity.info(32), PLAIN)
