import dataclasses
import functools

import end_points
import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import models, settings
from medjax.models import mobilenet
from medjax.models import net as net_lib

applications = parity.keras.applications
VARIANTS = settings.VARIANTS[settings.Model]
SIZE = 96
NO_DROPOUT = {"dropout_rate": 0.0}
# Keras's network, what it wants to be fed (V3 preprocesses by itself), and how nothing is dropped.
KERAS = {
  "mobilenet_v1": (
    applications.MobileNet,
    applications.mobilenet.preprocess_input,
    {"dropout": 0.0},
  ),
  "mobilenet_v2": (applications.MobileNetV2, applications.mobilenet_v2.preprocess_input, {}),
  "mobilenet_v3_large": (applications.MobileNetV3Large, lambda pixels: pixels, NO_DROPOUT),
  "mobilenet_v3_small": (applications.MobileNetV3Small, lambda pixels: pixels, NO_DROPOUT),
}
# Total with moving statistics, and trainable: a thousand classes.
COUNTS = {
  "mobilenet_v1": (4_253_864, 4_231_976),
  "mobilenet_v2": (3_538_984, 3_504_872),
  "mobilenet_v3_large": (5_507_432, 5_483_032),
  "mobilenet_v3_small": (2_554_968, 2_542_856),
}
TINY = settings.MobileNetV1(width=0.125, stem="small", preprocess="unit")


def _keras(name, size=SIZE, **keywords):
  application, _, without_dropout = KERAS[name]
  return parity.built(application, size, **without_dropout, **keywords)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_preset(name):
  assert parity.counts(VARIANTS[name], 224) == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_keras(name):
  parity.assert_described(_keras(name, 224, classes=1000), VARIANTS[name], COUNTS[name])


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "width"),
  [("mobilenet_v1", w) for w in (0.25, 0.5, 0.75)]
  + [("mobilenet_v2", w) for w in (0.35, 0.5, 0.75, 1.3, 1.4)],
)
def test_counts_of_narrower_and_wider_ones(name, width):
  cfg = dataclasses.replace(VARIANTS[name], width=width)
  model = _keras(name, 224, alpha=width)
  assert parity.counts(cfg, 224, classes=parity.CLASSES)[0] == model.count_params()


def test_widths_are_multiples_of_eight_and_never_a_tenth_narrower():
  expected = {3: 8, 8: 8, 8.4: 8, 11: 16, 11.2: 16, 12: 16, 18: 24, 33.6: 32, 41.6: 40, 44.8: 48}
  assert {width: mobilenet.divisible(width) for width in expected} == expected


def _assert_same(compare, name, size=SIZE, width=1.0, **keywords):
  cfg, layer_of = VARIANTS[name], mobilenet.keras_layer
  if width != 1:
    cfg = dataclasses.replace(cfg, width=width)
  model, prepared = _keras(name, size, alpha=width), KERAS[name][1]
  compare(model, cfg, parity.info(size), layer_of, prepared=prepared, **keywords)


_assert_same_inference = functools.partial(_assert_same, parity.assert_same_network)


def test_mobilenet_v2_infers_as_keras_does():
  _assert_same_inference("mobilenet_v2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_other_mobilenets_infer_as_keras_does(name):
  _assert_same_inference(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_mobilenets_infer_as_keras_does_where_a_stride_meets_an_odd_map(name):
  _assert_same_inference(name, 72)  # maps of 9x9, which Keras's V1 pads otherwise than its V2


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "width"), [("mobilenet_v1", 0.25), ("mobilenet_v2", 0.35), ("mobilenet_v2", 1.4)]
)
def test_narrower_and_wider_ones_infer_as_keras_does(name, width):
  _assert_same_inference(name, width=width)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_other_mobilenets_say_in_training_what_keras_says(name):
  with parity.float64():
    _assert_same(parity.assert_same_network, name, 64, train=True, n=4)


@pytest.mark.slow
def test_mobilenet_v2_trains_as_keras_does():
  with parity.float64():
    _assert_same(parity.assert_same_step, "mobilenet_v2", 64, n=4)


ENDPOINTS = {
  "mobilenet_v1": {
    "conv1_relu": (48, 48, 32),
    "conv_dw_2_relu": (24, 24, 64),
    "stage2": (24, 24, 128),
    "conv_pw_13_relu": (3, 3, 1024),
  },
  "mobilenet_v2": {
    "Conv1_relu": (48, 48, 32),
    "expanded_conv_project_bn": (48, 48, 16),
    "block_1_expand_relu": (48, 48, 96),
    "block_2_add": (24, 24, 24),
    "stage2": (24, 24, 24),
    "block_13_depthwise": (3, 3, 576),
    "out_relu": (3, 3, 1280),
  },
  "mobilenet_v3_large": {
    "conv_hard_swish": (48, 48, 16),
    "expanded_conv_add": (48, 48, 16),
    "expanded_conv_1_expand_relu": (48, 48, 64),
    "stage4": (6, 6, 112),
    "expanded_conv_12_depthwise_hard_swish": (3, 3, 672),
    "conv_1_hard_swish": (3, 3, 960),
  },
  "mobilenet_v3_small": {
    "expanded_conv_project_bn": (24, 24, 16),
    "stage1": (24, 24, 16),
    "conv_1_hard_swish": (3, 3, 576),
  },
}


@pytest.mark.parametrize("name", ENDPOINTS)
def test_endpoints_have_these_shapes(name):
  found = end_points.shapes(VARIANTS[name], SIZE, list(ENDPOINTS[name]))
  assert ENDPOINTS[name].items() <= found.items()


@pytest.mark.parametrize("name", COUNTS)
def test_a_small_stem_keeps_the_map(name):
  cfg = dataclasses.replace(VARIANTS[name], stem="small")
  first = "conv_hard_swish" if "v3" in name else f"{'c' if 'v1' in name else 'C'}onv1_relu"
  assert end_points.shapes(cfg, 28, [first])[first][:2] == (28, 28)
  assert parity.counts(cfg, 28) == COUNTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_stages_cover_all_parameters(name):
  parity.assert_stages_cover(VARIANTS[name], parity.info(SIZE))


def test_stages_are_in_the_order_in_which_an_image_passes_them():
  stages = models.make(VARIANTS["mobilenet_v2"], parity.info(SIZE), net_lib.Execution()).stages
  inside = [*(f"stage{number}" for number in range(1, 6)), "top"]
  assert stages == ("encoder/stem", *(f"encoder/{stage}" for stage in inside), "head")


@pytest.mark.parametrize(
  ("name", "endpoint", "total"),
  [
    ("mobilenet_v2", "block_14_depthwise", 882_624),
    ("mobilenet_v2", "block_14_add", 1_040_704),
    ("mobilenet_v3_large", "expanded_conv_14_depthwise_hard_swish", 2_222_672),
    ("mobilenet_v3_large", "expanded_conv_14_expand_hard_swish", 2_194_832),
    ("mobilenet_v3_large", "conv_1_hard_swish", 2_996_352),
    ("mobilenet_v3_small", "expanded_conv_10_depthwise_hard_swish", 659_232),
    ("mobilenet_v3_small", "conv_1_hard_swish", 939_120),
  ],
)
def test_totals_of_networks_cut_for_soft_attention(name, endpoint, total):
  assert end_points.cut_total(VARIANTS[name], 224, endpoint) == total


def test_the_gradient_by_an_offset_is_the_numerical_one(x64):
  end_points.assert_gradients_by_offsets(TINY, parity.info(16), ["stage4", "conv_pw_13_relu"])


UNITS = {
  "separable": (mobilenet.SeparableUnit, mobilenet.Row("unit_2", 8, 2)),
  "inverted": (
    mobilenet.InvertedResidual,
    mobilenet.Row("block_1", 4, 1, 8, 5, True, mobilenet.HARD_SWISH),
  ),
}


@pytest.mark.parametrize("kind", UNITS)
def test_both_forms_of_a_unit_are_equal(kind, x64):
  unit, row = UNITS[kind]
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 8, 4)))
  module, modes = unit(TINY, row), [net_lib.Mode(net_lib.Execution(f)) for f in ("plain", "cpu")]
  variables = jax.eval_shape(module.init, jax.random.key(0), x, modes[0])
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(0.5, 1, leaf.shape)), variables)
  score = lambda values, mode: jnp.sin(module.apply(values, x, mode)).sum()  # noqa: E731
  plain, cpu = (parity.once(jax.grad(score))(variables, mode) for mode in modes)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), plain, cpu)
  assert max(abs(leaf).max() for leaf in jax.tree.leaves(plain["params"])) > 1e-2


@pytest.mark.parametrize("name", COUNTS)
def test_grey_images_change_the_first_convolution_alone(name):
  colour, grey = (parity.counts(VARIANTS[name], 32, channels=channels)[0] for channels in (3, 1))
  assert colour - grey == 2 * 9 * (16 if "v3" in name else 32)


def test_images_that_the_strides_use_up_are_refused():
  cfg = VARIANTS["mobilenet_v1"]
  with pytest.raises(ValueError, match=r"28x28.*data.image_size to 31"):
    models.make(cfg, parity.info(28), net_lib.Execution())
  assert end_points.shapes(cfg, 31, ["conv_pw_13_relu"])["conv_pw_13_relu"] == (1, 1, 1024)
  small = dataclasses.replace(cfg, stem="small")
  assert end_points.shapes(small, 16, ["conv_pw_13_relu"])["conv_pw_13_relu"] == (1, 1, 1024)
