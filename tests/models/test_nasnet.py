import dataclasses

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
# One normal cell a stack, of 4 channels in the first: what a test may compile.
TINY = settings.NASNet(filters=96, repeats=1, stem_filters=8, preprocess="unit")


def _keras_tiny(size, skip_reduction):
  return parity.keras.src.applications.nasnet.NASNet(  # public are only its two sizes
    (size, size, 3),
    penultimate_filters=TINY.filters,
    num_blocks=TINY.repeats,
    stem_block_filters=TINY.stem_filters,
    skip_reduction=skip_reduction,
    weights=None,
    classes=parity.CLASSES,
    classifier_activation=None,
  )


def _keras(name, size):
  return KERAS[name](
    weights=None,
    input_shape=(size, size, 3),
    classes=parity.CLASSES,
    classifier_activation=None,
  )


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_preset(name):
  assert parity.counts(VARIANTS[name], NATIVE[name]) == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_keras(name):
  model = KERAS[name](weights=None)
  trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
  assert (model.count_params(), trainable) == COUNTS[name]


@pytest.mark.parametrize(("size", "skip_reduction"), [(96, False), (75, True)])
def test_few_cells_infer_as_keras_does(size, skip_reduction):
  """Of 96 pixels the maps before reductions are odd, even, even, even; of 75 odd four times."""
  cfg = dataclasses.replace(TINY, skip_reduction=skip_reduction)
  model = _keras_tiny(size, skip_reduction)
  parity.assert_same_network(model, cfg, parity.info(size), nasnet.keras_layer)


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_presets_infer_as_keras_does(name):
  size, cfg = 64, VARIANTS[name]
  model = _keras(name, size)
  parity.randomise(model)
  net = models.make(cfg, parity.info(size), net_lib.Execution())
  layer_of = lambda path: nasnet.keras_layer(path, cfg)  # noqa: E731
  params, stats = parity.copied(model, net, parity.info(size), layer_of)
  pixels = parity.images(size)
  run = parity.once(lambda *args: net.apply(*args, train=False)[0].output)
  ours = run(params, stats, parity.batch_of(pixels))
  prepared = applications.nasnet.preprocess_input(255 * pixels)
  parity.assert_same_logits(ours, parity.keras_logits(model, prepared))


@pytest.mark.slow
@pytest.mark.parametrize("skip_reduction", [False, True])
def test_few_cells_train_as_keras_does(skip_reduction):
  cfg = dataclasses.replace(TINY, skip_reduction=skip_reduction)
  model = _keras_tiny(96, skip_reduction)
  parity.assert_same_step(model, cfg, parity.info(96), nasnet.keras_layer, n=4)


@pytest.mark.slow
def test_nasnet_mobile_trains_as_keras_does():
  cfg = dataclasses.replace(VARIANTS["nasnet_mobile"], preprocess="unit")
  model = _keras("nasnet_mobile", 96)
  parity.assert_same_step(model, cfg, parity.info(96), nasnet.keras_layer, n=4)


def _shapes(cfg, size, names, **execution):
  about = parity.info(size)
  net = models.make(cfg, about, net_lib.Execution(**execution))
  batch = parity.batch_of(parity.images(size))
  variables = jax.eval_shape(net.init, jax.random.key(0), batch["image"])
  run = lambda *args: net.apply(*args, train=False, endpoints=names)[0].endpoints  # noqa: E731
  return {name: x.shape[1:] for name, x in jax.eval_shape(run, *variables, batch).items()}


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
  assert _shapes(VARIANTS["nasnet_mobile"], 224, list(ENDPOINTS)) == ENDPOINTS


def test_forgotten_cells_have_the_same_names_and_endpoints():
  every = [net_lib.EVERY]
  assert _shapes(TINY, 64, every, remat=True) == _shapes(TINY, 64, every)


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
    ("nasnet_large", "separable_conv_1_relu_normal_left5_18", 78_018_738),
    ("nasnet_large", "normal_concat_16", 64_775_634),
  ],
)
def test_totals_of_networks_cut_for_soft_attention(name, endpoint, total):
  assert parity.cut_total(VARIANTS[name], NATIVE[name], endpoint) == total


def test_the_gradient_by_an_offset_is_the_numerical_one(x64):
  names = ["reduction_concat_stem_2", "normal_concat_2"]
  parity.assert_gradients_by_offsets(TINY, parity.info(32), names)


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
  assert _shapes(small, 28, ["stem_bn1", "stem"]) == {"stem_bn1": (28, 28, 8), "stem": (7, 7, 8)}
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
