import dataclasses
import functools

import end_points
import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import models, settings
from medjax.models import initial, nasnet
from medjax.models import net as net_lib

applications = parity.keras.applications
VARIANTS = settings.VARIANTS[settings.Model]
KERAS = {
  "nasnet_mobile": applications.NASNetMobile,
  "nasnet_large": applications.NASNetLarge,
}
# Total with moving statistics, and trainable: a thousand classes.
COUNTS = {
  "nasnet_mobile": (5_326_716, 5_289_978),
  "nasnet_large": (88_949_818, 88_753_150),
}
NATIVE = {"nasnet_mobile": 224, "nasnet_large": 331}
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
# One normal cell a stack, of 4 channels in the first: what a test may compile.
TINY = settings.NASNet(filters=96, repeats=1, stem_filters=8, preprocess="unit")


def _keras_tiny(input_shape, **keywords):
  return parity.keras.src.applications.nasnet.NASNet(  # public are only its two sizes
    input_shape,
    penultimate_filters=TINY.filters,
    num_blocks=TINY.repeats,
    stem_block_filters=TINY.stem_filters,
    **keywords,
  )


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_preset(name):
  assert parity.counts(VARIANTS[name], NATIVE[name]) == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_keras(name):
  parity.assert_described(KERAS[name](weights=None), VARIANTS[name], COUNTS[name])


@pytest.mark.parametrize(
  ("size", "skip_reduction"),
  [(96, False), slow(75, True)],
)
def test_few_cells_infer_as_keras_does(size, skip_reduction):
  """Of 96 pixels the maps before reductions are odd, even, even, even; of 75 odd four times."""
  cfg = dataclasses.replace(TINY, skip_reduction=skip_reduction)
  model = parity.built(_keras_tiny, size, skip_reduction=skip_reduction)
  parity.assert_same_network(model, cfg, parity.info(size), nasnet.keras_layer)


def _assert_same(compare, name, **keywords):
  model, about = parity.built(KERAS[name], 64), parity.info(64)
  prepared = applications.nasnet.preprocess_input
  compare(model, VARIANTS[name], about, nasnet.keras_layer, prepared=prepared, **keywords)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_presets_infer_as_keras_does(name):
  _assert_same(parity.assert_same_network, name)


@pytest.mark.slow
def test_few_cells_train_as_keras_does_without_the_first_reduction():
  with parity.float64():
    cfg = dataclasses.replace(TINY, skip_reduction=True)
    model = parity.built(_keras_tiny, 64, skip_reduction=True)
    parity.assert_same_step(model, cfg, parity.info(64), nasnet.keras_layer, n=4)


@pytest.mark.slow
def test_nasnet_mobile_trains_as_keras_does():
  with parity.float64():
    _assert_same(parity.assert_same_step, "nasnet_mobile", n=4)


ENDPOINTS = {
  "stem_bn1": (111, 111, 32),
  "reduction_concat_stem_1": (56, 56, 44),
  "separable_conv_1_relu_reduction_right1_stem_2": (28, 28, 22),
  "stem": (28, 28, 88),
  "normal_concat_0": (28, 28, 264),
  "stack1": (28, 28, 264),
  "reduction_concat_reduce_4": (14, 14, 352),
  "normal_concat_5": (14, 14, 528),
  "stack2": (14, 14, 528),
  "reduction_concat_reduce_8": (7, 7, 704),
  "separable_conv_1_relu_normal_left5_12": (7, 7, 176),
  "normal_concat_12": (7, 7, 1056),
  "relu": (7, 7, 1056),
}


def test_endpoints_have_these_shapes():
  found = end_points.shapes(VARIANTS["nasnet_mobile"], 224, list(ENDPOINTS))
  assert ENDPOINTS.items() <= found.items()


def test_forgotten_cells_have_the_same_names_and_endpoints():
  every = [net_lib.EVERY]
  assert end_points.shapes(TINY, 64, every, remat=True) == end_points.shapes(TINY, 64, every)


def test_stages_cover_all_parameters_in_order():
  about = parity.info(64)
  parity.assert_stages_cover(TINY, about)
  net = models.make(TINY, about, net_lib.Execution())
  stages = ("stem", "stack1", "stack2", "stack3")
  assert net.stages == (*(f"encoder/{stage}" for stage in stages), "head")


@pytest.mark.parametrize(
  ("name", "endpoint", "total"),
  [
    ("nasnet_mobile", "separable_conv_1_relu_normal_left5_12", 3_772_516),
    ("nasnet_mobile", "normal_concat_11", 3_552_692),
    slow("nasnet_large", "separable_conv_1_relu_normal_left5_18", 78_018_738),
    slow("nasnet_large", "normal_concat_16", 64_775_634),
  ],
)
def test_totals_of_networks_cut_for_soft_attention(name, endpoint, total):
  assert end_points.cut_total(VARIANTS[name], NATIVE[name], endpoint) == total


@pytest.mark.slow
def test_the_gradient_by_an_offset_is_the_numerical_one(x64):
  names = ["reduction_concat_stem_2", "normal_concat_2"]
  end_points.assert_gradients_by_offsets(TINY, parity.info(32), names)


def test_both_forms_of_a_reduction_are_equal(x64):
  """Separable 7x7 convolutions with stride 2 on maps with odd and even sides."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 9, 8, 3)))
  module = nasnet.Separable(TINY, 4, 7, 2, "")
  modes = [net_lib.Mode(net_lib.Execution(form)) for form in ("plain", "cpu")]
  shapes = jax.eval_shape(module.init, jax.random.key(0), x, modes[0])
  weights = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-1, 1, leaf.shape) ** 2), shapes)
  score = lambda values, mode: jnp.sin(module.apply(values, x, mode)).sum()  # noqa: E731
  plain, cpu = (parity.once(jax.grad(score))(weights, mode) for mode in modes)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), plain, cpu)
  assert min(abs(leaf).max() for leaf in jax.tree.leaves(plain["params"])) > 1e-3


def test_a_small_stem_keeps_the_map():
  small = dataclasses.replace(TINY, stem="small")
  found = end_points.shapes(small, 28, ["stem_bn1", "stem"])
  assert (found["stem_bn1"], found["stem"]) == ((28, 28, 8), (7, 7, 8))
  assert parity.counts(small, 28) == parity.counts(TINY, 64)


def test_grey_images_change_the_first_convolution_alone():
  colour, grey = (parity.counts(TINY, 32, channels=channels)[0] for channels in (3, 1))
  assert colour - grey == 2 * 9 * 8


@pytest.mark.parametrize(("stem", "least"), [("imagenet", 19), ("small", 9)])
def test_images_that_the_reductions_use_up_are_refused(stem, least):
  cfg = dataclasses.replace(TINY, stem=stem)
  assert parity.counts(cfg, least) == parity.counts(cfg, 64)
  with pytest.raises(ValueError, match=f"data.image_size to {least}"):
    models.make(cfg, parity.info(least - 1), net_lib.Execution())


def test_filters_that_the_cells_cannot_share_are_refused():
  cfg = dataclasses.replace(TINY, filters=100)
  with pytest.raises(ValueError, match=r"model\.filters=100: take a multiple of 96"):
    models.make(cfg, parity.info(32), net_lib.Execution())


def test_kernels_are_drawn_as_keras_draws_those_of_its_1x1_convolutions():
  assert nasnet.build(TINY, parity.info(32)).kernel_init is initial.HE_NORMAL
