"""Inception-V3 and Inception-ResNet-V2 against Keras's."""

import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import models, settings
from medjax.models import inception, inception_resnet
from medjax.models import net as net_lib

keras = parity.keras  # which sets the backend before it is imported
V3, RESNET = settings.InceptionV3(), settings.InceptionResNetV2()
FAMILY = {V3: inception, RESNET: inception_resnet}
KERAS = {V3: keras.applications.InceptionV3, RESNET: keras.applications.InceptionResNetV2}
# Total with moving statistics, and trainable: a thousand classes.
COUNTS = {V3: (23_851_784, 23_817_352), RESNET: (55_873_736, 55_813_192)}
SIZE = 139  # the last maps are 3x3: statistics of fewer values are ill-conditioned
both = pytest.mark.parametrize("cfg", COUNTS, ids=lambda cfg: cfg.name)


def _keras(cfg, **keywords):
  keras.utils.clear_session()  # its numbers of layers count from there
  return KERAS[cfg](weights=None, classifier_activation=None, **keywords)


def _small_keras(cfg):
  model = _keras(cfg, classes=parity.CLASSES, input_shape=(SIZE, SIZE, 3))
  parity.randomise(model)
  return model


@pytest.fixture(scope="module")
def keras_v3():
  return _small_keras(V3)


def _pixels(n):
  """Images of large squares: those of noise alone differ little after a few layers."""
  coarse = np.random.default_rng(1).random((n, 12, 12, 3)).astype(np.float32)
  return coarse.repeat(12, 1).repeat(12, 2)[:, :SIZE, :SIZE]


def _assert_same(model, cfg, *, train, n):
  """Equal logits with Keras's weights, of the same images in [0, 1]."""
  about = parity.info(SIZE)
  net = models.make(cfg, about, net_lib.Execution())
  layer_of = lambda path: FAMILY[cfg].keras_layer(path, cfg)  # noqa: E731
  params, stats = parity.copied(model, net, about, layer_of)
  run = parity.once(lambda *args: net.apply(*args, train=train, momentum=0.0)[0].output)
  prepared = keras.applications.inception_v3.preprocess_input(255 * _pixels(n))
  theirs = parity.keras_logits(model, prepared, train)
  parity.assert_same_logits(run(params, stats, parity.batch_of(_pixels(n))), theirs)


@both
def test_counts(cfg):
  assert parity.counts(cfg, 299) == COUNTS[cfg]


@pytest.mark.slow
@both
def test_counts_of_keras(cfg):
  model = _keras(cfg)
  trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
  assert (model.count_params(), trainable) == COUNTS[cfg]


def test_inception_v3_infers_as_keras_does(keras_v3):
  _assert_same(keras_v3, V3, train=False, n=2)


def test_inception_v3_trains_as_keras_does(keras_v3):
  _assert_same(keras_v3, V3, train=True, n=8)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_inception_resnet_says_what_keras_says(train):
  _assert_same(_small_keras(RESNET), RESNET, train=train, n=4)


def test_layers_have_the_numbers_of_keras():
  # Counted by hand: 195 unnamed batch norms come before that of block8_9's first branch.
  path = "encoder/stage7/block8_9/branch1x1"
  assert inception_resnet.keras_layer(f"{path}/bn", RESNET) == "batch_normalization_195"
  assert inception_resnet.keras_layer("encoder/conv_7b/bn", RESNET) == "conv_7b_bn"
  assert inception_resnet.keras_layer("encoder/stage5/block35_2/conv", RESNET) == "block35_2_conv"
  assert inception.keras_layer("encoder/stem/conv1/conv", V3) == "conv2d"
  assert inception.keras_layer("encoder/stage7/mixed10/branch_pool/bn", V3) == (
    "batch_normalization_93"
  )


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(
  ("endpoint", "total"), [("block8_9_branch1x1_bn", 47_464_608), ("conv_7b_ac", 54_336_736)]
)
def test_totals_of_cut_networks(endpoint, total, remat):
  assert parity.cut_total(RESNET, 299, endpoint, remat) == total


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
def test_maps_of_inception_v3(remat):
  expected = {
    "stem_pool2": (35, 35, 192),
    "mixed2": (35, 35, 288),
    "mixed7": (17, 17, 768),
    "mixed9_branch3x3_2_bn": (8, 8, 384),
    "mixed10": (8, 8, 2048),
  }
  assert _shapes(V3, 299, list(expected), remat=remat) == ((1, 2048), expected)


def test_maps_of_inception_resnet():
  expected = {
    "mixed_5b": (35, 35, 320),
    "block35_10_ac": (35, 35, 320),
    "block17_1_mixed": (17, 17, 384),
    "block8_9_branch1x1_bn": (8, 8, 192),
    "block8_10": (8, 8, 2080),
    "conv_7b_ac": (8, 8, 1536),
  }
  assert _shapes(RESNET, 299, list(expected)) == ((1, 1536), expected)


def test_small_grey_images_through_the_small_stem():
  small = settings.InceptionV3(stem="small")
  maps = {"mixed2": (28, 28, 288), "mixed3": (13, 13, 768), "mixed8": (6, 6, 1280)}
  assert _shapes(small, 28, list(maps), channels=1) == ((1, 2048), maps)
  assert _shapes(small, 7, ["mixed8"])[1] == {"mixed8": (1, 1, 1280)}


@both
def test_stages_cover_all_parameters(cfg):
  parity.assert_stages_cover(cfg, parity.info(96))


@both
def test_too_small_images_are_refused(cfg):
  assert _shapes(cfg, 75, [])[0][0] == 1
  with pytest.raises(ValueError, match=r"set data\.image_size to 75 or more, or model\.stem"):
    models.make(cfg, parity.info(74), net_lib.Execution())
