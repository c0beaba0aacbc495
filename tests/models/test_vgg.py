import dataclasses

import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import models, settings, trees
from medjax.models import net as net_lib
from medjax.models import vgg

keras = parity.keras  # which sets the backend before it is imported
VARIANTS = settings.VARIANTS[settings.Model]
PLAIN = net_lib.Execution()
TINY = settings.VGG(convs=(1, 1, 2, 1, 1), hidden=(4, 3), preprocess="unit")
KERAS = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}
COUNTS = {"vgg16": 138_357_544, "vgg19": 143_667_240}
SIZE = 32


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_preset(name):
  assert parity.counts(VARIANTS[name], 224) == (COUNTS[name], COUNTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_counts_of_keras(name):
  assert KERAS[name](weights=None).count_params() == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_same_logits_as_keras(name):
  cfg, about, shape = VARIANTS[name], parity.info(SIZE), (SIZE, SIZE, 3)
  model = KERAS[name](
    weights=None, classes=parity.CLASSES, input_shape=shape, classifier_activation=None
  )
  parity.randomise(model)
  net = models.make(cfg, about, PLAIN)
  params, stats = parity.copied(model, net, about, lambda path: vgg.keras_layer(path, cfg))
  pixels = parity.images(SIZE)
  prepared = keras.applications.vgg16.preprocess_input(255 * pixels)
  weights = [v.value for v in model.trainable_variables]
  theirs, _ = jax.jit(lambda x: model.stateless_call(weights, [], x))(prepared)
  # Nothing differs in training: no batch norm, and the originals' dropout is not in Keras either.
  for train in (False, True):
    ours, _ = net.apply(params, stats, parity.batch_of(pixels), train=train, momentum=0.0)
    parity.assert_same_logits(ours.output, theirs)


def _abstract(cfg, size, channels=3):
  """(net, params, stats, batch) of shapes alone."""
  about = parity.info(size, channels=channels)
  net, batch = models.make(cfg, about, PLAIN), parity.batch_of(parity.images(size, 2, channels))
  return net, *jax.eval_shape(net.init, jax.random.key(0), batch["image"]), batch


def _maps(net, params, stats, batch):
  def run(params, stats):
    result, _ = net.apply(params, stats, batch, train=False, endpoints=[net_lib.EVERY])
    return result.endpoints, result.embedding

  maps, embedding = jax.eval_shape(run, params, stats)
  return {name: x.shape[1:] for name, x in maps.items()}, embedding.shape[1:]


def test_endpoints_have_the_names_and_shapes_of_keras():
  maps, embedding = _maps(*_abstract(TINY, 64))
  assert maps == {
    "block1_conv1": (64, 64, 64),
    "block1_pool": (32, 32, 64),
    "block2_conv1": (32, 32, 128),
    "block2_pool": (16, 16, 128),
    "block3_conv1": (16, 16, 256),
    "block3_conv2": (16, 16, 256),
    "block3_pool": (8, 8, 256),
    "block4_conv1": (8, 8, 512),
    "block4_pool": (4, 4, 512),
    "block5_conv1": (4, 4, 512),
    "block5_pool": (2, 2, 512),
  }
  assert embedding == (2 * 2 * 512,)


@pytest.mark.parametrize(("size", "side"), [(28, 1), (32, 2)])
def test_small_stem_leaves_the_first_pooling_out(size, side):
  cfg = dataclasses.replace(TINY, stem="small")
  maps, embedding = _maps(*_abstract(cfg, size, channels=1))
  assert "block1_pool" not in maps
  assert maps["block1_conv1"] == (size, size, 64)
  assert maps["block5_pool"] == (side, side, 512)
  assert embedding == (side * side * 512,)


def test_stages_follow_the_image_and_cover_every_parameter():
  net, params, *_ = _abstract(TINY, 32)
  assert net.stages == (*(f"encoder/block{i}" for i in range(1, 6)), "head")
  owners = [[s for s in net.stages if p.startswith(f"{s}/")] for p in trees.flatten(params)]
  assert all(len(owner) == 1 for owner in owners)
  assert {owner[0] for owner in owners} == set(net.stages)


def _weights(net, batch):
  """(params, stats) drawn at random."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(net.init, jax.random.key(0), batch["image"])
  return jax.tree.map(lambda leaf: rng.normal(0, 0.05, leaf.shape).astype(leaf.dtype), shapes)


def test_gradient_by_an_offset_is_the_numerical_one(x64):
  net = models.make(TINY, parity.info(32), PLAIN)
  batch = parity.batch_of(parity.images(32).astype(np.float64))
  params, stats = _weights(net, batch)

  @jax.jit
  def score(offset):
    offsets = {"block4_pool": offset}
    return net.apply(params, stats, batch, train=False, offsets=offsets)[0].embedding.sum()

  zeros = jnp.zeros((2, 2, 2, 512))
  direction = np.random.default_rng(1).normal(size=zeros.shape)
  slope = (jax.grad(score)(zeros) * direction).sum()
  step = 1e-6
  numerical = (score(step * direction) - score(-step * direction)) / (2 * step)
  assert abs(slope) > 1e-6
  np.testing.assert_allclose(slope, numerical, rtol=1e-5)


@pytest.mark.slow
def test_recomputation_changes_nothing():
  batch = parity.batch_of(parity.images(32))

  def gradient(remat):
    net = models.make(TINY, parity.info(32), net_lib.Execution(remat=remat))
    params, stats = _weights(net, batch)

    def score(params):
      return net.apply(params, stats, batch, train=True, momentum=0.0)[0].embedding.sum()

    return jax.jit(jax.grad(score))(params)

  plain, again = gradient(False), gradient(True)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain["encoder"]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), plain, again)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_too_small_images_are_refused(stem):
  with pytest.raises(ValueError, match=r"data\.image_size"):
    _abstract(dataclasses.replace(TINY, stem=stem), 15)


def test_another_number_of_blocks_is_refused():
  with pytest.raises(ValueError, match=r"model\.convs"):
    models.make(settings.VGG(convs=(2, 2)), parity.info(32), PLAIN)
