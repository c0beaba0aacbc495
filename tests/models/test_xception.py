"""Xception against Keras's."""

import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import contract, models, settings
from medjax.models import net as net_lib
from medjax.models import xception

keras = parity.keras  # which sets the backend before it is imported
CFG = settings.Xception()
UNIT = settings.Xception(preprocess="unit")
COUNTS = (22_910_480, 22_855_952)  # total with moving statistics, and trainable
SIZE = 71  # the smallest of Keras


def _keras(**keywords):
  keras.utils.clear_session()  # its numbers of layers count from there
  return keras.applications.Xception(weights=None, classifier_activation=None, **keywords)


@pytest.fixture(scope="module")
def keras_small():
  return _keras(classes=parity.CLASSES, input_shape=(SIZE, SIZE, 3))


def test_counts():
  assert parity.counts(CFG, 299) == COUNTS


@pytest.mark.slow
def test_counts_of_keras():
  model = _keras()
  trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
  assert (model.count_params(), trainable) == COUNTS


@pytest.mark.parametrize("train", [False, True])
def test_logits_are_those_of_keras(keras_small, train):
  layer_of = xception.keras_layer
  parity.assert_same_network(keras_small, UNIT, parity.info(SIZE), layer_of, train=train, n=4)


def test_shortcuts_have_the_numbers_of_keras():
  of = lambda path: xception.keras_layer(path, CFG)  # noqa: E731
  assert of("encoder/entry/block2/shortcut") == "conv2d"
  assert of("encoder/exit/block13/shortcut_bn") == "batch_normalization_3"
  assert of("encoder/middle/block7/sepconv3/pointwise") == "block7_sepconv3"
  assert of("encoder/entry/block1/conv2_bn") == "block1_conv2_bn"


def _shapes(cfg, size, endpoints, channels=3, **execution):
  """(Embedding's shape, maps' shapes) without computing any of them."""
  about = parity.info(size, channels=channels)
  net = models.make(cfg, about, net_lib.Execution(**execution))
  images = jnp.zeros((1, *about.image_shape))
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  batch = parity.batch_of(np.asarray(images))
  result, _ = jax.eval_shape(
    lambda *args: net.apply(*args, train=False, endpoints=endpoints), params, stats, batch
  )
  return result.embedding.shape, {name: x.shape[1:] for name, x in result.endpoints.items()}


@pytest.mark.parametrize("remat", [False, True])
def test_maps(remat):
  expected = {
    "block1_conv2_act": (147, 147, 64),
    "block2_out": (74, 74, 128),
    "block4_out": (19, 19, 728),
    "block12_out": (19, 19, 728),
    "block13_out": (10, 10, 1024),
    "block14_sepconv2_act": (10, 10, 2048),
  }
  assert _shapes(CFG, 299, list(expected), remat=remat) == ((1, 2048), expected)


def test_small_grey_images_through_the_small_stem():
  small = settings.Xception(stem="small")
  maps = {"block1_conv_act": (28, 28, 64), "block4_out": (4, 4, 728), "block13_out": (2, 2, 1024)}
  assert _shapes(small, 28, list(maps), channels=1) == ((1, 2048), maps)


def test_stages_cover_all_parameters():
  parity.assert_stages_cover(CFG, parity.info(64))


def test_too_small_images_are_refused():
  assert _shapes(CFG, 7, [])[0] == (1, 2048)
  with pytest.raises(ValueError, match=r"set data\.image_size to 7 or more, or model\.stem"):
    models.make(CFG, parity.info(6), net_lib.Execution())


@pytest.mark.slow
def test_the_gradient_by_an_offset_is_that_by_the_map(x64):
  """Against central differences of the first logit along a random direction of the map."""
  about, name = parity.info(16), "block4_out"
  net = models.make(settings.Xception(stem="small"), about, net_lib.Execution("cpu"))
  weights = net.init(jax.random.key(0), jnp.zeros((1, *about.image_shape)))
  batch = parity.batch_of(parity.images(16))
  batch[contract.IMAGE] = batch[contract.IMAGE].astype(float)

  @jax.jit
  def logit(offset):
    result, _ = net.apply(*weights, batch, train=False, offsets={name: offset})
    return result.output[0, 0]

  offset = jnp.zeros((2, 2, 2, 728))
  direction = jnp.asarray(np.random.default_rng(0).normal(size=offset.shape))
  step = 1e-6 * direction
  slope = (logit(step) - logit(-step)) / 2e-6
  np.testing.assert_allclose((jax.grad(logit)(offset) * direction).sum(), slope, rtol=1e-5)
