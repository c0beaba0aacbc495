"""Xception against Keras's."""

import end_points
import keras_parity as parity
import pytest

from medjax import models, settings
from medjax.models import net as net_lib
from medjax.models import xception

keras = parity.keras  # which sets the backend before it is imported
CFG = settings.Xception()
COUNTS = (22_910_480, 22_855_952)  # total with moving statistics, and trainable
SIZE = 71  # the smallest of Keras


def test_counts():
  assert parity.counts(CFG, 299) == COUNTS


@pytest.mark.slow
def test_counts_of_keras():
  parity.assert_described(keras.applications.Xception(weights=None), CFG, COUNTS)


def _assert_same(**keywords):
  model, about = parity.built(keras.applications.Xception, SIZE), parity.info(SIZE)
  prepared = keras.applications.xception.preprocess_input
  layer_of = xception.keras_layer
  parity.assert_same_network(model, CFG, about, layer_of, prepared=prepared, **keywords)


def test_xception_infers_as_keras_does():
  _assert_same()


@pytest.mark.slow
def test_xception_says_in_training_what_keras_says():
  with parity.float64():
    _assert_same(train=True, n=4)


def test_shortcuts_have_the_numbers_of_keras():
  of = lambda path: xception.keras_layer(path, CFG)  # noqa: E731
  assert of("encoder/entry/block2/shortcut") == "conv2d"
  assert of("encoder/exit/block13/shortcut_bn") == "batch_normalization_3"
  assert of("encoder/middle/block7/sepconv3/pointwise") == "block7_sepconv3"
  assert of("encoder/entry/block1/conv2_bn") == "block1_conv2_bn"


@pytest.mark.parametrize("remat", [False, True])
def test_maps(remat):
  expected = {
    "embedding": (2048,),
    "block1_conv2_act": (147, 147, 64),
    "block2_out": (74, 74, 128),
    "block4_out": (19, 19, 728),
    "block12_out": (19, 19, 728),
    "block13_out": (10, 10, 1024),
    "block14_sepconv2_act": (10, 10, 2048),
  }
  assert end_points.shapes(CFG, 299, list(expected)[1:], remat=remat) == expected


def test_small_grey_images_through_the_small_stem():
  small = settings.Xception(stem="small")
  maps = {"block1_conv_act": (28, 28, 64), "block4_out": (4, 4, 728), "block13_out": (2, 2, 1024)}
  assert maps.items() <= end_points.shapes(small, 28, list(maps), channels=1).items()


def test_stages_cover_all_parameters():
  parity.assert_stages_cover(CFG, parity.info(64))


def test_too_small_images_are_refused():
  assert end_points.shapes(CFG, 7, []) == {"embedding": (2048,)}
  with pytest.raises(ValueError, match=r"set data\.image_size to 7 or more, or model\.stem"):
    models.make(CFG, parity.info(6), net_lib.Execution())


@pytest.mark.slow
def test_the_gradient_by_an_offset_is_the_numerical_one(x64):
  end_points.assert_gradients_by_offsets(CFG, parity.info(32), ["block4_out"])
