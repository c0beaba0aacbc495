"""ResNets against Keras's (50, 152), and against timm's and torchvision's (18)."""

import dataclasses
import functools
import json

import end_points
import jax
import keras_parity as parity
from keras_parity import keras  # on the backend that it chooses
import numpy as np
import pytest
import torch_resnet18

from medjax import models, settings
from medjax.models import net as net_lib
from medjax.models import pretrained, resnet

PRESETS = settings.VARIANTS[settings.Model]
KERAS = {"resnet50": keras.applications.ResNet50, "resnet152": keras.applications.ResNet152}
SIZE = 64
TRUTH = json.loads(torch_resnet18.FILE.read_text())
TINY = settings.ResNet(units=(1, 1), preprocess="unit", bottleneck=False)

# (total with moving statistics, trainable) at 224 pixels, 1,000 classes. Those of 18 and 34 are
# torchvision's, which counts trainable parameters, and two moving statistics a channel.
COUNTS = {
  "resnet18": (11_699_112, 11_689_512),
  "resnet34": (21_814_696, 21_797_672),
  "resnet50": (25_636_712, 25_583_592),
  "resnet152": (60_419_944, 60_268_520),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_preset(name):
  assert parity.counts(PRESETS[name], 224) == COUNTS[name]


def test_counts_of_torchvision():
  """As it was counted there; all of its parameters are trained."""
  assert COUNTS["resnet18"][1] == TRUTH["parameters"] == 11_689_512


@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS)
def test_counts_of_keras(name):
  parity.assert_described(KERAS[name](weights=None), PRESETS[name], COUNTS[name])


def _assert_same(name, **keywords):
  model, about = parity.built(KERAS[name], SIZE), parity.info(SIZE)
  prepared = keras.applications.resnet.preprocess_input
  layer_of = resnet.keras_layer
  parity.assert_same_network(model, PRESETS[name], about, layer_of, prepared=prepared, **keywords)


@pytest.mark.parametrize("name", ["resnet50", pytest.param("resnet152", marks=pytest.mark.slow)])
def test_logits_are_those_of_keras(name):
  _assert_same(name)


@pytest.mark.slow
def test_logits_with_batch_statistics_are_those_of_keras():
  with parity.float64():
    _assert_same("resnet50", train=True, n=4)


@pytest.mark.parametrize("kind", ["inference", "training"])
def test_resnet18_says_what_timm_and_torchvision_say(kind, tmp_path):
  cfg = dataclasses.replace(PRESETS["resnet18"], preprocess="torch")
  net = models.make(cfg, parity.info(torch_resnet18.SIZE), net_lib.Execution())
  pixels = torch_resnet18.images().astype(np.float32)
  params, stats = net.init(jax.random.key(0), pixels)
  np.savez(tmp_path / "it.npz", **torch_resnet18.tensors(TRUTH["shapes"]))
  filled, account = pretrained.transfer(
    {"params": params, "stats": stats}, tmp_path / "it.npz", cfg
  )
  assert not account.left_over
  run = parity.once(functools.partial(net.apply, train=kind == "training", momentum=0.0))
  ours, _ = run(filled["params"], filled["stats"], parity.batch_of(pixels))
  parity.assert_same_logits(ours.output, TRUTH[kind])


def test_end_points_are_those_of_keras_by_name_and_shape():
  model = parity.built(KERAS["resnet50"], SIZE)
  found = end_points.shapes(PRESETS["resnet50"], SIZE, [net_lib.EVERY])
  assert found.pop("embedding") == (2048,)
  assert len(found) == 2 + 16
  for name, shape in found.items():
    assert model.get_layer(name).output.shape[1:] == shape, name


def test_the_gradient_by_an_offset_is_the_numerical_one(x64):
  end_points.assert_gradients_by_offsets(TINY, parity.info(32), ["conv3_block1_out"])


@pytest.mark.parametrize("name", COUNTS)
def test_stages_cover_all_parameters(name):
  parity.assert_stages_cover(PRESETS[name], parity.info(64))
  stages = models.make(PRESETS[name], parity.info(64), net_lib.Execution()).stages
  assert stages == (*(f"encoder/conv{number}" for number in range(1, 6)), "head")


# Keras's totals of the network up to a layer, moving statistics included.
@pytest.mark.parametrize(
  ("name", "endpoint", "total"),
  [
    ("resnet50", "pool1_pool", 9_728),
    ("resnet50", "conv2_block3_out", 229_760),
    ("resnet50", "conv3_block4_out", 1_460_096),
    ("resnet50", "conv4_block6_out", 8_589_184),
    ("resnet50", "conv5_block1_out", 14_644_096),
    ("resnet50", "conv5_block3_out", 23_587_712),
    ("resnet152", "conv3_block8_out", 2_589_568),
    ("resnet152", "conv4_block36_out", 43_372_416),
    ("resnet152", "conv5_block1_out", 49_427_328),
    ("resnet152", "conv5_block3_out", 58_370_944),
  ],
)
def test_totals_of_cut_networks(name, endpoint, total):
  assert end_points.cut_total(PRESETS[name], 224, endpoint) == total


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_stem_keeps_the_size_of_small_images(channels):
  imagenet = dataclasses.replace(PRESETS["resnet18"], preprocess="unit")  # takes any channels
  cfg = dataclasses.replace(imagenet, stem="small")
  maps = end_points.shapes(cfg, 28, [net_lib.EVERY], channels)
  assert maps["conv2_block2_out"] == (28, 28, 64)
  assert maps["conv5_block2_out"] == (4, 4, 512)
  assert "pool1_pool" not in maps
  # 3x3 in place of 7x7.
  saved = (49 - 9) * channels * 64
  large = parity.counts(imagenet, 64, channels=channels)[0]
  assert parity.counts(cfg, 28, channels=channels)[0] == large - saved


@pytest.mark.parametrize(("stem", "least"), [("imagenet", 32), ("small", 8)])
def test_too_small_images_are_told(stem, least):
  cfg = dataclasses.replace(PRESETS["resnet18"], stem=stem)
  models.make(cfg, parity.info(least), net_lib.Execution())
  with pytest.raises(ValueError, match=f"data.image_size to {least}"):
    models.make(cfg, parity.info(least - 1), net_lib.Execution())


def test_forgetting_maps_changes_no_gradient(x64):
  about = parity.info(32)
  batch = parity.batch_of(parity.images(32, n=4).astype(float))

  def gradient(execution):
    net = models.make(TINY, about, execution)
    weights = net.init(jax.random.key(0), batch["image"])

    def loss(params):
      result, _ = net.apply(params, weights[1], batch, train=True, momentum=0.0)
      return (result.output**2).sum()

    return parity.once(jax.grad(loss))(weights[0])

  plain, *others = (
    gradient(execution) for execution in (net_lib.Execution(), net_lib.Execution("cpu", remat=True))
  )
  for other in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), plain, other)
