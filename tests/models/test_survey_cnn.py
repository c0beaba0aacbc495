"""The survey's network against its layer list in Keras, with and without squeeze-and-excitation."""

import dataclasses

import jax
import keras_parity as parity
from keras_parity import keras  # on the backend that it chooses
import numpy as np
import pytest

from medjax import models, settings
from medjax.models import net as net_lib
from medjax.models import survey_cnn

PRESETS = settings.VARIANTS[settings.Model]
SMALL = settings.SurveyCNN(widths=(4, 6, 8), hidden=5, dropout=0.0)
# Squeeze-and-excitation of 32, 64, 128, 256 channels by 16: two dense layers with biases each.
EXCITATIONS = sum(2 * c * (c // 16) + c // 16 + c for c in (32, 64, 128, 256))


def _keras(cfg, size, channels=3):
  layers = keras.layers
  images = x = keras.Input((size, size, channels))
  for number, width in enumerate(cfg.widths, 1):
    name = f"block{number}"
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    x = layers.LeakyReLU(0.1)(x) if cfg.leaky else layers.ReLU()(x)
    x = layers.MaxPooling2D()(x)
    if cfg.squeeze:
      weights = layers.GlobalAveragePooling2D(keepdims=True)(x)
      narrow = layers.Dense(width // cfg.squeeze, activation="relu", name=f"{name}_se_reduce")
      wide = layers.Dense(width, activation="sigmoid", name=f"{name}_se_expand")
      x = layers.Multiply()([x, wide(narrow(weights))])
  x = layers.GlobalAveragePooling2D()(x)
  x = layers.Dense(cfg.hidden, activation="relu", name="hidden")(x)
  return keras.Model(images, layers.Dense(parity.CLASSES, name="classes")(x))


def test_counts_of_every_preset():
  """Of RGB and two classes, as published: 387,936 of convolutions, 960 of batch norm, 66,306."""
  plain, squeezed = (
    parity.counts(PRESETS[name], 128, 2) for name in ("survey_cnn", "survey_cnn_se")
  )
  assert plain == (455_202 + 960, 455_202)
  assert squeezed == (455_202 + 960 + EXCITATIONS, 455_202 + EXCITATIONS)


@pytest.mark.parametrize("squeeze", [0, 16])
def test_counts_are_those_of_keras(squeeze):
  cfg = dataclasses.replace(PRESETS["survey_cnn"], squeeze=squeeze)
  total, _ = parity.counts(cfg, 128, parity.CLASSES)
  assert total == _keras(cfg, 128).count_params()


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("change", [{}, {"squeeze": 2}, {"leaky": False}])
def test_logits_are_those_of_keras(change, train):
  cfg = dataclasses.replace(SMALL, **change)
  about = parity.info(32, channels=1)
  model = _keras(cfg, 32, channels=1)
  parity.assert_same_network(model, cfg, about, survey_cnn.keras_layer, train=train)


def test_end_points_are_the_blocks():
  about, pixels = parity.info(32), parity.images(32)
  net = models.make(SMALL, about, net_lib.Execution())
  weights = net.init(jax.random.key(0), pixels)
  batch, asked = parity.batch_of(pixels), [net_lib.EVERY]
  result = jax.jit(lambda: net.apply(*weights, batch, train=False, endpoints=asked)[0])()
  assert {name: x.shape for name, x in result.endpoints.items()} == {
    "block1": (2, 16, 16, 4),
    "block2": (2, 8, 8, 6),
    "block3": (2, 4, 4, 8),
  }
  np.testing.assert_allclose(result.endpoints["block3"].mean((1, 2)), result.embedding, rtol=1e-6)


@pytest.mark.parametrize("name", ["survey_cnn", "survey_cnn_se"])
def test_stages_cover_all_parameters(name):
  parity.assert_stages_cover(PRESETS[name], parity.info(64))


@pytest.mark.parametrize(
  ("change", "size", "words"),
  [
    ({}, 15, "data.image_size to 16"),
    ({"squeeze": 64}, 64, "1 to 32"),
    ({"squeeze": -1}, 64, "1 to 32"),
  ],
)
def test_impossible_sizes_are_told(change, size, words):
  cfg = dataclasses.replace(PRESETS["survey_cnn"], **change)
  with pytest.raises(ValueError, match=words):
    models.make(cfg, parity.info(size), net_lib.Execution())
