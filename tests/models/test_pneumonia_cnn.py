"""The pneumonia network and its separable twins against their layer lists in Keras."""

import dataclasses

import jax
import jax.numpy as jnp
import keras_parity as parity
from keras_parity import keras  # on the backend that it chooses
import numpy as np
import pytest

from medjax import models, settings
from medjax.models import net as net_lib
from medjax.models import pneumonia_cnn

PRESETS = settings.VARIANTS[settings.Model]
NAMES = [f"pneumonia_{name}" for name in ("cnn", "sep_first", "sep_mid", "sep_last", "sep_all")]
# 18 pixels, of which blocks leave 9, 5, 3: the last two pools meet an edge.
SIZE = 18

# (preset, channels of the image, axis) -> (total, trainable) at 200 pixels with one sigmoid.
COUNTS = {
  ("pneumonia_cnn", 1, "row"): (800_141, 799_791),
  ("pneumonia_cnn", 3, "row"): (804_749, 804_399),
  ("pneumonia_cnn", 1, "channel"): (800_785, 800_113),
  ("pneumonia_cnn", 3, "channel"): (805_393, 804_721),
  ("pneumonia_sep_first", 3, "row"): (798_632, 798_282),
  ("pneumonia_sep_first", 3, "channel"): (799_276, 798_604),
  ("pneumonia_sep_all", 3, "row"): (662_248, 661_898),
  ("pneumonia_sep_all", 3, "channel"): (662_892, 662_220),
  ("pneumonia_sep_all", 1, "row"): (661_718, 661_368),
  ("pneumonia_sep_all", 1, "channel"): (662_362, 661_690),
  # A separable convolution in the second place has 18,752 in place of 147,520 parameters, in the
  # third 1,616 in place of 9,232.
  ("pneumonia_sep_mid", 3, "row"): (804_749 - 128_768, 804_399 - 128_768),
  ("pneumonia_sep_mid", 3, "channel"): (805_393 - 128_768, 804_721 - 128_768),
  ("pneumonia_sep_last", 3, "row"): (804_749 - 7_616, 804_399 - 7_616),
  ("pneumonia_sep_last", 3, "channel"): (805_393 - 7_616, 804_721 - 7_616),
}


def _keras(cfg, size, channels=3, classes=parity.CLASSES):
  """The published notebook's layers; with `row` its batch norm of axis 1, on maps [b, H, W, C]."""
  layers = keras.layers
  axis = 1 if cfg.bn_axis == "row" else -1
  images = x = keras.Input((size, size, channels))
  for number, width in enumerate((256, 64, 16), 1):
    conv = layers.SeparableConv2D if number in cfg.separable else layers.Conv2D
    name = f"block{number}_conv"
    x = conv(width, 3, padding="same", activation="relu", name=name)(x)
    x = layers.MaxPooling2D(padding="same")(x)
    x = layers.BatchNormalization(axis=axis, name=f"block{number}_bn")(x)
  x = layers.GlobalAveragePooling2D()(x) if cfg.pool == "gap" else layers.Flatten()(x)
  x = layers.Dense(64, activation="relu", name="hidden")(x)
  return keras.Model(images, layers.Dense(classes, name="classes")(x))


def _plain(name, **changes):
  return dataclasses.replace(PRESETS[name], dropout=0.0, **changes)


@pytest.mark.parametrize(("name", "channels", "axis"), COUNTS)
def test_counts_of_every_preset(name, channels, axis):
  cfg = dataclasses.replace(PRESETS[name], bn_axis=axis)
  assert parity.counts(cfg, 200, 1, channels) == COUNTS[name, channels, axis]
  assert _keras(cfg, 200, channels, 1).count_params() == COUNTS[name, channels, axis][0]


def test_global_pooling_saves_most_of_the_dense_layer():
  flat = parity.counts(PRESETS["pneumonia_cnn"], 200, 1)[0]
  pooled = parity.counts(_plain("pneumonia_cnn", pool="gap"), 200, 1)[0]
  assert flat - pooled == 638_976


def test_rows_of_the_published_maps():
  about = parity.info(200, 1)
  net = models.make(_plain("pneumonia_cnn", bn_axis="row"), about, net_lib.Execution())
  images = jax.ShapeDtypeStruct((1, 200, 200, 3), jnp.float32)
  params, _ = jax.eval_shape(net.init, jax.random.key(0), images)
  assert [params["encoder"][f"block{i}"]["bn"]["scale"].size for i in (1, 2, 3)] == [100, 50, 25]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
  ("name", "changes"),
  [
    ("pneumonia_cnn", {}),
    ("pneumonia_cnn", {"bn_axis": "row"}),
    ("pneumonia_cnn", {"pool": "gap"}),
    ("pneumonia_sep_all", {"bn_axis": "row"}),
    *(pytest.param(f"pneumonia_sep_{where}", {}, marks=pytest.mark.slow) for where in
      ("first", "mid", "last", "all")),
  ],
)  # fmt: skip
def test_logits_are_those_of_keras(name, changes, train):
  cfg, about = _plain(name, **changes), parity.info(SIZE)
  model = _keras(cfg, SIZE)
  parity.assert_same_network(model, cfg, about, pneumonia_cnn.keras_layer, train=train)


def test_statistics_of_rows_are_over_examples_columns_and_channels(x64):
  """Momentum 0 hands out the batch's own; padding counts for nothing."""
  about = parity.info(SIZE, channels=1)
  net = models.make(_plain("pneumonia_cnn", bn_axis="row"), about, net_lib.Execution())
  pixels = parity.images(SIZE, n=3, channels=1).astype(float)
  weights = net.init(jax.random.key(0), pixels)
  batch = parity.batch_of(pixels) | {"mask": jnp.array([1.0, 1.0, 0.0])}
  kernel = weights[0]["encoder"]["block1"]["conv"]["kernel"]
  stats = jax.jit(lambda: net.apply(*weights, batch, train=True, momentum=0.0)[1])()
  maps = jax.lax.conv_general_dilated(
    pixels[:2], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  squares = np.maximum(maps, 0).reshape(2, 9, 2, 9, 2, 256).max((2, 4))
  found = stats["encoder"]["block1"]["bn"]
  np.testing.assert_allclose(found["mean"], squares.mean((0, 2, 3)), rtol=1e-9)
  np.testing.assert_allclose(found["var"], squares.var((0, 2, 3)), rtol=1e-9)


def test_end_points_are_the_blocks():
  about, pixels = parity.info(SIZE), parity.images(SIZE)
  net = models.make(PRESETS["pneumonia_sep_all"], about, net_lib.Execution())
  weights = net.init(jax.random.key(0), pixels)
  batch, asked = parity.batch_of(pixels), [net_lib.EVERY]
  result = jax.jit(lambda: net.apply(*weights, batch, train=False, endpoints=asked)[0])()
  assert {name: x.shape for name, x in result.endpoints.items()} == {
    "block1": (2, 9, 9, 256),
    "block2": (2, 5, 5, 64),
    "block3": (2, 3, 3, 16),
  }
  np.testing.assert_array_equal(result.endpoints["block3"].reshape(2, -1), result.embedding)


@pytest.mark.parametrize("name", NAMES)
def test_stages_cover_all_parameters(name):
  parity.assert_stages_cover(PRESETS[name], parity.info(SIZE))


@pytest.mark.parametrize("separable", [(0,), (4,), (1, 1)])
def test_convolutions_that_do_not_exist_are_told(separable):
  cfg = dataclasses.replace(PRESETS["pneumonia_cnn"], separable=separable)
  with pytest.raises(ValueError, match="from 1 to 3, each once"):
    models.make(cfg, parity.info(SIZE), net_lib.Execution())
