import dataclasses

import end_points
import jax
import keras_parity as parity
import numpy as np
import pytest

from medjax import models, settings
from medjax.models import net as net_lib
from medjax.models import vgg

keras = parity.keras  # which sets the backend before it is imported
VARIANTS = settings.VARIANTS[settings.Model]
PLAIN = net_lib.Execution()
TINY = settings.VGG(convs=(1, 1, 2, 1, 1), hidden=(16, 12), preprocess="unit")
KERAS = {"vgg16": keras.applications.VGG16, "vgg19": keras.applications.VGG19}
COUNTS = {"vgg16": 138_357_544, "vgg19": 143_667_240}
SIZE = 32


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_preset(name):
  assert parity.counts(VARIANTS[name], 224) == (COUNTS[name], COUNTS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_counts_of_keras(name):
  parity.assert_described(KERAS[name](weights=None), VARIANTS[name], (COUNTS[name],) * 2)


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", KERAS)
def test_same_logits_as_keras(name, train):
  # Nothing differs in training: no batch norm, and the originals' dropout is not in Keras either.
  model, about, cfg = parity.built(KERAS[name], SIZE), parity.info(SIZE), VARIANTS[name]
  prepared = keras.applications.vgg16.preprocess_input
  layer_of = vgg.keras_layer
  parity.assert_same_network(model, cfg, about, layer_of, train=train, prepared=prepared)


@pytest.mark.parametrize(("pool", "size"), [("flatten", SIZE), ("gap", 2 * SIZE)])
def test_a_narrow_one_says_what_keras_says(pool, size):
  """The layers of VGG's paper with fewer convolutions, as Keras's own network has no such depth."""
  layers = {"flatten": keras.layers.Flatten, "gap": keras.layers.GlobalAveragePooling2D}
  model = keras.Sequential([keras.Input((size, size, 3))])
  for block, (convs, width) in enumerate(zip(TINY.convs, (64, 128, 256, 512, 512), strict=True), 1):
    for conv in range(1, convs + 1):
      name = f"block{block}_conv{conv}"
      model.add(keras.layers.Conv2D(width, 3, padding="same", activation="relu", name=name))
    model.add(keras.layers.MaxPooling2D())
  model.add(layers[pool]())
  for name, width in zip(("fc1", "fc2"), TINY.hidden, strict=True):
    model.add(keras.layers.Dense(width, activation="relu", name=name))
  model.add(keras.layers.Dense(parity.CLASSES, name="predictions"))
  cfg = dataclasses.replace(TINY, pool=pool)
  parity.assert_same_network(model, cfg, parity.info(size), vgg.keras_layer)


def test_endpoints_have_the_names_and_shapes_of_keras():
  assert end_points.shapes(TINY, 64, [net_lib.EVERY]) == {
    "embedding": (2 * 2 * 512,),
    "block1_conv1": (64, 64, 64),
    "block1_pool": (32, 32, 64),
    "block2_conv1": (32, 32, 128),
    "block2_pool": (16, 16, 128),
    "block3_conv1": (16, 16, 256),
    "block3_conv2": (16, 16, 256),
    "block3_pool": (8, 8, 256),
    "block4_conv1": (8, 8, 512),
    "block4_pool": (4, 4, 512),
    "block5_conv1": (4, 4, 512),
    "block5_pool": (2, 2, 512),
  }


@pytest.mark.parametrize(("size", "side"), [(28, 1), (32, 2)])
def test_small_stem_leaves_the_first_pooling_out(size, side):
  cfg = dataclasses.replace(TINY, stem="small")
  maps = end_points.shapes(cfg, size, [net_lib.EVERY], channels=1)
  assert "block1_pool" not in maps
  assert maps["block1_conv1"] == (size, size, 64)
  assert maps["block5_pool"] == (side, side, 512)
  assert maps["embedding"] == (side * side * 512,)


def test_stages_follow_the_image_and_cover_every_parameter():
  about = parity.info(SIZE)
  parity.assert_stages_cover(TINY, about)
  stages = (*(f"encoder/block{i}" for i in range(1, 6)), "head")
  assert models.make(TINY, about, PLAIN).stages == stages


@pytest.mark.slow
def test_gradient_by_an_offset_is_the_numerical_one(x64):
  end_points.assert_gradients_by_offsets(TINY, parity.info(SIZE), ["block4_pool"])


@pytest.mark.slow
def test_recomputation_changes_nothing():
  about = parity.info(SIZE)
  batch = parity.batch_of(parity.images(SIZE))

  def gradient(remat):
    net = models.make(TINY, about, net_lib.Execution(remat=remat))
    params, stats = net.init(jax.random.key(0), batch["image"])

    def score(params):
      return net.apply(params, stats, batch, train=True, momentum=0.0)[0].embedding.sum()

    return parity.once(jax.grad(score))(params)

  plain, again = gradient(False), gradient(True)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(plain["encoder"]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), plain, again)


@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_too_small_images_are_refused(stem):
  with pytest.raises(ValueError, match=r"data\.image_size"):
    parity.counts(dataclasses.replace(TINY, stem=stem), 15)


def test_another_number_of_blocks_is_refused():
  with pytest.raises(ValueError, match=r"model\.convs"):
    models.make(settings.VGG(convs=(2, 2)), parity.info(32), PLAIN)
