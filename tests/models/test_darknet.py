"""Darknet-53 and its pyramid against the layer lists of their paper, built in Keras."""

import contextlib
import dataclasses

import end_points
import jax
import jax.numpy as jnp
import keras_parity as parity
from keras_parity import keras  # on the backend that it chooses
import numpy as np
import pytest

from medjax import models, settings, trees
from medjax.models import darknet
from medjax.models import net as net_lib

BODY = settings.VARIANTS[settings.Model]["darknet53"]
PYRAMID = settings.VARIANTS[settings.Model]["darknet53_fpn"]

SLOW = [(BODY, False), (BODY, True), (PYRAMID, True)]  # (preset, batch statistics)

# (preset, classes) -> (total, trainable).
COUNTS = {
  ("darknet53", 1000): (41_645_640, 40_584_928 + 1024 * 1000 + 1000),
  ("darknet53", 14): (40_634_990, 40_584_928 + 1024 * 14 + 14),
  ("darknet53", 6): (40_626_790, 40_584_928 + 1024 * 6 + 6),
  ("darknet53_fpn", 6): (61_554_802, 61_502_194),
  ("darknet53_fpn", 14): (61_569_162, 61_502_194 + 8 * (1024 + 512 + 256 + 3)),
}


def _conv(x, name, features, size, stride=1):
  x = keras.layers.ZeroPadding2D(size // 2)(x)
  x = keras.layers.Conv2D(features, size, stride, use_bias=False, name=f"{name}_conv")(x)
  return keras.layers.LeakyReLU(0.1)(keras.layers.BatchNormalization(name=f"{name}_bn")(x))


def _body(images):
  """Maps of strides 8, 16, 32."""
  x, maps = _conv(images, "stem", 32, 3), []
  for stage, (units, width) in enumerate(
    [(1, 64), (2, 128), (8, 256), (8, 512), (4, 1024)], start=1
  ):
    x = _conv(x, f"stage{stage}_down", width, 3, 2)
    for unit in range(1, units + 1):
      name = f"stage{stage}_block{unit}"
      y = _conv(x, f"{name}_reduce", width // 2, 1)
      x = keras.layers.Add()([x, _conv(y, f"{name}_expand", width, 3)])
    maps.append(x)
  return maps[2:]


def _five_and_one(x, name, width):
  for number in range(1, 6):
    x = _conv(x, f"{name}_conv{number}", *((width // 2, 1) if number % 2 else (width, 3)))
  return x, _conv(x, f"{name}_conv6", width, 3)


def _logits(x, name):
  x = keras.layers.GlobalAveragePooling2D()(x)
  return keras.layers.Dense(parity.CLASSES, name=name)(x)


def _keras(cfg, size):
  layers = keras.layers
  images = keras.Input((size, size, 3))
  fine, middle, coarse = _body(images)
  if not cfg.pyramid:
    return keras.Model(images, _logits(coarse, "classes"))
  up, last = _five_and_one(coarse, "neck_scale32", 1024)
  logits = [_logits(last, "classes32")]
  up = layers.UpSampling2D()(_conv(up, "neck_up16", 256, 1))
  up, last = _five_and_one(layers.Concatenate()([up, middle]), "neck_scale16", 512)
  logits.append(_logits(last, "classes16"))
  up = layers.UpSampling2D()(_conv(up, "neck_up8", 128, 1))
  _, last = _five_and_one(layers.Concatenate()([up, fine]), "neck_scale8", 256)
  logits.append(_logits(last, "classes8"))
  return keras.Model(images, layers.Average()(logits))


@pytest.mark.parametrize(("name", "classes"), COUNTS)
def test_counts_of_every_preset(name, classes):
  cfg = settings.VARIANTS[settings.Model][name]
  assert parity.counts(cfg, 256, classes) == COUNTS[name, classes]


@pytest.mark.parametrize(
  ("endpoint", "total"),
  [
    ("stem", 992),
    ("stage1_block1", 40_544),
    ("stage2_block2", 280_160),
    ("stage3_block8", 3_209_824),
    ("stage4_block8", 14_901_856),
    ("stage5_block4", 40_620_640),
  ],
)
def test_totals_of_cut_networks(endpoint, total):
  assert end_points.cut_total(BODY, 256, endpoint) == total


def test_convolutions_of_body_and_neck():
  about = parity.info(256)
  net = models.make(PYRAMID, about, net_lib.Execution())
  images = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  flat = trees.flatten(params["encoder"])
  kernels = [path.startswith("neck/") for path in flat if path.endswith("/kernel")]
  assert (kernels.count(False), kernels.count(True)) == (52, 20)
  neck = trees.count(params["encoder"]["neck"]) + trees.count(stats["encoder"]["neck"])
  assert neck == 20_923_392


@pytest.mark.parametrize(
  ("cfg", "train"),
  [
    (PYRAMID, False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW),
  ],
)
def test_logits_are_those_of_keras(cfg, train):
  with parity.float64() if train else contextlib.nullcontext():
    about, model = parity.info(64), _keras(cfg, 64)
    assert parity.counts(cfg, 64, parity.CLASSES)[0] == model.count_params()
    parity.assert_same_network(model, cfg, about, darknet.keras_layer, train=train)


def test_end_points_at_256_pixels():
  shapes = end_points.shapes(PYRAMID, 256, [net_lib.EVERY])
  assert shapes.pop("embedding") == (1024 + 512 + 256,)
  assert len(shapes) == 1 + (1 + 2 + 8 + 8 + 4) + 3
  assert shapes["stage3_block8"] == (32, 32, 256)
  assert shapes["scale32"] == (8, 8, 1024)
  assert shapes["scale16"] == (16, 16, 512)
  assert shapes["scale8"] == (32, 32, 256)


def test_the_pyramid_averages_the_logits_of_its_scales(x64):
  head = darknet.PyramidClassifier(4, 0.0)
  rng = np.random.default_rng(0)
  embedding = rng.normal(size=(3, 1024 + 512 + 256))
  mode = net_lib.Mode(net_lib.Execution())
  shapes = jax.eval_shape(head.init, jax.random.key(0), embedding, mode)
  params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)
  found, beside = head.apply(params, embedding, mode, mutable=[net_lib.AUXILIARY])
  weights = params["params"]
  wanted = [
    part @ weights[f"classes{scale}"]["kernel"] + weights[f"classes{scale}"]["bias"]
    for scale, part in zip((32, 16, 8), np.split(embedding, [1024, 1536], axis=1), strict=True)
  ]
  np.testing.assert_allclose(found, sum(wanted) / 3, rtol=1e-10)
  (auxiliary,) = jax.tree.leaves(beside)
  np.testing.assert_allclose(auxiliary, wanted, rtol=1e-10)


def test_cosines_are_refused():
  with pytest.raises(ValueError, match="without its pyramid"):
    models.make(PYRAMID, parity.info(64), net_lib.Execution(), cosine=True)
  models.make(BODY, parity.info(64), net_lib.Execution(), cosine=True)


@pytest.mark.parametrize("cfg", [BODY, PYRAMID], ids=lambda cfg: cfg.name)
def test_stages_cover_all_parameters(cfg):
  parity.assert_stages_cover(cfg, parity.info(64))


@pytest.mark.parametrize(
  ("cfg", "size", "words"),
  [(BODY, 31, "data.image_size to 32"), (PYRAMID, 80, "a multiple of 32")],
)
def test_sizes_that_do_not_fit_are_told(cfg, size, words):
  with pytest.raises(ValueError, match=words):
    models.make(cfg, parity.info(size), net_lib.Execution())


def test_the_body_takes_odd_sizes_and_grey_images():
  cfg = dataclasses.replace(BODY, preprocess="stats")
  total, _ = parity.counts(cfg, 75, 6, channels=1)
  assert total == 40_626_790 - 9 * 2 * 32
