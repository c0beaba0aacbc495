"""Inception-V3 and Inception-ResNet-V2 against Keras's."""

import end_points
import keras_parity as parity
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
SIZE = 75  # the smallest of Keras
both = pytest.mark.parametrize("cfg", COUNTS, ids=lambda cfg: cfg.name)


@both
def test_counts(cfg):
  assert parity.counts(cfg, 299) == COUNTS[cfg]


@pytest.mark.slow
@both
def test_counts_of_keras(cfg):
  parity.assert_described(KERAS[cfg](weights=None), cfg, COUNTS[cfg])


def _assert_same(cfg, **keywords):
  model, about = parity.built(KERAS[cfg], SIZE), parity.info(SIZE)
  prepared = keras.applications.inception_v3.preprocess_input
  layer_of = FAMILY[cfg].keras_layer
  parity.assert_same_network(model, cfg, about, layer_of, prepared=prepared, **keywords)


def test_inception_v3_infers_as_keras_does():
  _assert_same(V3)


@pytest.mark.slow
def test_inception_resnet_infers_as_keras_does():
  _assert_same(RESNET)


@pytest.mark.slow
@both
def test_both_say_in_training_what_keras_says(cfg):
  with parity.float64():
    _assert_same(cfg, train=True, n=4)


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
  assert end_points.cut_total(RESNET, 299, endpoint, remat) == total


@pytest.mark.parametrize("remat", [False, True])
def test_maps_of_inception_v3(remat):
  expected = {
    "embedding": (2048,),
    "stem_pool2": (35, 35, 192),
    "mixed2": (35, 35, 288),
    "mixed7": (17, 17, 768),
    "mixed9_branch3x3_2_bn": (8, 8, 384),
    "mixed10": (8, 8, 2048),
  }
  assert end_points.shapes(V3, 299, list(expected)[1:], remat=remat) == expected


def test_maps_of_inception_resnet():
  expected = {
    "embedding": (1536,),
    "mixed_5b": (35, 35, 320),
    "block35_10_ac": (35, 35, 320),
    "block17_1_mixed": (17, 17, 384),
    "block8_9_branch1x1_bn": (8, 8, 192),
    "block8_10": (8, 8, 2080),
    "conv_7b_ac": (8, 8, 1536),
  }
  assert end_points.shapes(RESNET, 299, list(expected)[1:]) == expected


def test_small_grey_images_through_the_small_stem():
  small = settings.InceptionV3(stem="small")
  maps = {"mixed2": (28, 28, 288), "mixed3": (13, 13, 768), "mixed8": (6, 6, 1280)}
  assert maps.items() <= end_points.shapes(small, 28, list(maps), channels=1).items()
  assert end_points.shapes(small, 7, ["mixed8"])["mixed8"] == (1, 1, 1280)


@both
def test_stages_cover_all_parameters(cfg):
  parity.assert_stages_cover(cfg, parity.info(96))


@both
def test_too_small_images_are_refused(cfg):
  end_points.shapes(cfg, 75, [])
  with pytest.raises(ValueError, match=r"set data\.image_size to 75 or more, or model\.stem"):
    models.make(cfg, parity.info(74), net_lib.Execution())
