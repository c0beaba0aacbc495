"""Whole networks with soft attention: cuts, classifiers, training, the authors' tables."""

import dataclasses
import functools
import math

import attention_by_hand as by_hand
from flax import linen as nn
import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest

from medjax import contract, models, settings, trees
from medjax.models import initial, metadata, soft_attention
from medjax.models import net as net_lib

TINY = settings.SoftAttention(
  backbone=settings.DenseNet(name="tiny", units=(2,), growth=8), cut="conv2_block1_concat"
)


def _info(size=32, metadata=by_hand.WIDTH):
  return dataclasses.replace(parity.info(size, classes=7), metadata=metadata)


def _batch(n=4, size=32, metadata=True):
  rng = np.random.default_rng(5)
  batch = parity.batch_of(parity.images(size, n))
  known = {contract.METADATA: jnp.asarray(rng.normal(size=(n, by_hand.WIDTH)))} if metadata else {}
  return {key: jnp.asarray(value) for key, value in batch.items()} | known


@pytest.mark.parametrize(("branch", "width"), [("dense", 4096), ("two_layer", 256)])
def test_classes_see_the_embedding_and_the_metadata(branch, width):
  cfg = dataclasses.replace(TINY, metadata=branch)
  net = models.make(cfg, _info(), net_lib.Execution())
  params, stats = _weights(net)
  result, _ = jax.jit(functools.partial(net.apply, train=False))(params, stats, _batch())
  module = metadata.Wide() if branch == "dense" else metadata.TwoLayer(1e-3)
  variables = {"params": params["head"]["metadata"]}
  if branch == "two_layer":
    variables["batch_stats"] = stats["head"]["metadata"]
  beside = module.apply(variables, _batch()[contract.METADATA], by_hand.MODE)
  assert beside.shape == (4, width)
  classes = params["head"]["classes"]
  truth = np.concatenate([result.embedding, beside], -1) @ classes["kernel"] + classes["bias"]
  np.testing.assert_allclose(result.output, truth, atol=1e-4 * np.abs(truth).max())


def _weights(net, size=32):
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  return jax.tree.map(jnp.asarray, (by_hand.random(params), by_hand.random(stats, 1)))


@pytest.mark.parametrize("pool", ["flatten", "gap"])
def test_the_cut_map_goes_through_the_two_paths(pool):
  """From the map that the backbone alone has at the cut."""
  net = models.make(dataclasses.replace(TINY, pool=pool), _info(), net_lib.Execution())
  params, stats = _weights(net)
  ask = functools.partial(net.apply, train=False, endpoints=["attention"])
  result, _ = jax.jit(ask)(params, stats, _batch())
  cut = np.asarray(_backbone_map(params, stats), np.float64)
  attention = result.endpoints["attention"]
  assert attention.shape == (*cut.shape[:3], 1)
  np.testing.assert_allclose(attention.sum((1, 2, 3)), 16, rtol=1e-4)
  truth = by_hand.two_paths(params["encoder"]["attention"], np.maximum(cut, 0), "paper")
  truth = truth.mean((1, 2)) if pool == "gap" else truth.reshape(4, -1)
  np.testing.assert_allclose(result.embedding, truth, atol=1e-4 * np.abs(truth).max())


def _backbone_map(params, stats):
  """The end point of the whole backbone with the weights of the cut one."""
  net = models.make(TINY.backbone, _info(), net_lib.Execution())
  whole = [trees.flatten(tree) for tree in _weights(net)]
  for flat, tree in zip(whole, (params, stats), strict=True):
    within = trees.flatten(tree["encoder"]["backbone"]["encoder"])
    flat.update({f"encoder/{path}": leaf for path, leaf in within.items()})
  ask = functools.partial(net.apply, train=False, endpoints=[TINY.cut])
  return jax.jit(ask)(*map(trees.unflatten, whole), _batch())[0].endpoints[TINY.cut]


@pytest.mark.parametrize("cut", ["paper", "code", "code34", "conv4_block6_out"])
def test_only_the_code_leaves_the_relu_out(cut):
  cfg = settings.SoftAttention(cut=cut)
  assert soft_attention.relu_before(cfg) == (cut not in ("code", "code34"))


@pytest.mark.parametrize("kind", by_hand.KINDS)
def test_both_forms_of_the_layer_have_the_same_gradients(x64, kind):
  layer = soft_attention.SoftAttention(4, kind)
  variables, x = by_hand.module(layer, 2, 6, 5, 7)

  def gradients(form):
    mode = net_lib.Mode(net_lib.Execution(form))
    loss = lambda variables, x: jnp.sum(layer.apply(variables, x, mode) ** 2)  # noqa: E731
    return trees.flatten(dict(zip("px", jax.grad(loss, (0, 1))(variables, x), strict=True)))

  plain, other = gradients("plain"), gradients("cpu")
  for path, leaf in plain.items():
    assert np.abs(leaf).max() > 1e-6, path
    np.testing.assert_allclose(other[path], leaf, rtol=1e-9, atol=1e-12, err_msg=path)


def test_a_training_step_reaches_every_parameter():
  cfg = dataclasses.replace(TINY, metadata="two_layer")
  net = models.make(cfg, _info(), net_lib.Execution(remat=True))

  def loss(params, stats):
    result, _ = net.apply(params, stats, _batch(8), train=True, key=jax.random.key(1))
    return jnp.sum(jax.nn.log_softmax(result.output)[:, 0])

  for path, leaf in trees.flatten(jax.jit(jax.grad(loss))(*_weights(net))).items():
    assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_bfloat16_keeps_attention_exact():
  net = models.make(TINY, _info(), net_lib.Execution(dtype="bfloat16"))
  asked = functools.partial(net.apply, train=False, endpoints=["attention"])
  result, _ = jax.jit(asked)(*_weights(net), _batch())
  assert result.output.dtype == jnp.float32
  assert result.endpoints["attention"].dtype == jnp.float32
  np.testing.assert_allclose(result.endpoints["attention"].sum((1, 2, 3)), 16, rtol=1e-5)


def test_a_cosine_classifier_sees_the_metadata():
  cfg = dataclasses.replace(TINY, metadata="dense")
  net = models.make(cfg, _info(), net_lib.Execution(), cosine=True)
  result, _ = jax.jit(functools.partial(net.apply, train=False))(*_weights(net), _batch())
  assert result.output.shape == (4, 7) and np.abs(result.output).max() <= 1.00001


def test_statistics_move_by_the_momentum_of_the_backbone():
  """What they were counts by that share, whatever the batch gives."""
  cfg = dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, bn_momentum=0.7))
  net = models.make(cfg, _info(), net_lib.Execution())
  params, stats = _weights(net)
  step = jax.jit(functools.partial(net.apply, train=True, key=jax.random.key(0)))
  shifted = trees.flatten(stats)
  path = "encoder/backbone/encoder/conv1/bn/mean"
  shifted[path] += 1.0
  one, other = (
    trees.flatten(step(params, before, _batch())[1])[path]
    for before in (stats, trees.unflatten(shifted))
  )
  np.testing.assert_allclose(other - one, 0.7, rtol=1e-5)


def test_initial_weights():
  """He-uniform scores and gamma 0.01; backbone and classes as the backbone's Keras original."""
  net = models.make(dataclasses.replace(TINY, metadata="dense"), _info(), net_lib.Execution())
  params = trees.flatten(net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[0])
  assert params["encoder/attention/soft/gamma"] == np.float32(0.01)
  fans = {
    "encoder/attention/soft/scores/kernel": lambda fan_in, fan_out: fan_in / 2,
    "encoder/backbone/encoder/conv2/block1/1_conv/kernel": lambda fan_in, fan_out: (
      (fan_in + fan_out) / 2
    ),
    "head/metadata/dense/kernel": lambda fan_in, fan_out: (fan_in + fan_out) / 2,
  }
  for path, mean in fans.items():
    kernel = np.asarray(params[path])
    *window, inputs, outputs = kernel.shape
    limit = math.sqrt(3 / mean(math.prod(window) * inputs, math.prod(window) * outputs))
    assert limit * 0.98 < np.abs(kernel).max() <= limit * 1.0001, path
    assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=0.05), path
  assert not params["encoder/attention/soft/scores/bias"].any()


def test_a_part_of_a_net_has_its_own_distribution():
  shapes = {"a": {"kernel": (60, 50)}, "b": {"c": {"kernel": (60, 50)}, "c2": {"kernel": (60, 50)}}}
  params = jax.tree.map(np.zeros, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))
  base, key = initial.GLOROT_UNIFORM, jax.random.key(0)
  plain, same, bell = (
    trees.flatten(initial.with_kernels(params, key, dataclasses.replace(base, elsewhere=elsewhere)))
    for elsewhere in ((), (("b/c", initial.HE_UNIFORM),), (("b/c", initial.HE_NORMAL),))
  )
  # 2 / 60 in place of 2 / (60 + 50); what has the same shape comes of the same draw.
  np.testing.assert_allclose(same["b/c/kernel"], plain["b/c/kernel"] * math.sqrt(110 / 60), 1e-6)
  for path in ("a/kernel", "b/c2/kernel"):
    np.testing.assert_array_equal(same[path], plain[path])
  assert np.abs(bell["b/c/kernel"]).max() > math.sqrt(6 / 60) * 1.1
  assert bell["b/c/kernel"].std() == pytest.approx(math.sqrt(2 / 60), rel=0.05)
  assert np.abs(bell["b/c2/kernel"]).max() <= math.sqrt(6 / 110) * 1.0001


# Backbone and cut, then the authors' tables: side and channels of the cut map, totals of the
# backbone, of the net, and of the net with metadata.
TABLE = [
  ("densenet201", "code", 7, 128, 17_430_336, 17_477_463, 17_596_250),
  ("inception_resnet_v2", "code", 8, 192, 47_464_608, 47_535_287, 47_654_074),
  ("resnet50", "code", 7, 2048, 23_587_712, 24_341_399, 24_460_186),
  ("resnet152", "code", 7, 2048, 49_427_328, 50_181_015, 50_299_802),
  ("nasnet_large", "code", 11, 672, 78_018_738, 78_454_217, 78_573_004),
  ("nasnet_mobile", "code", 7, 176, 3_772_516, 3_837_307, 3_956_094),
  ("mobilenet_v2", "code", 7, 960, 882_624, 1_235_927, 1_354_714),
  ("mobilenet_v3_large", "code", 7, 960, 2_222_672, 2_575_975, 2_694_762),
  ("mobilenet_v3_large", "code34", 7, 960, 2_194_832, 2_548_135, 2_666_922),
  ("mobilenet_v3_small", "code", 7, 576, 659_232, 871_223, 990_010),
  ("densenet201", "paper", 7, 1824, 17_467_200, 18_138_455, 18_257_242),
  ("inception_resnet_v2", "paper", 8, 1536, 54_336_736, 54_902_007, 55_020_794),
  ("resnet50", "paper", 14, 1024, 8_589_184, 9_439_127, 9_557_914),
  ("resnet152", "paper", 14, 1024, 43_372_416, 44_222_359, 44_341_146),
  ("nasnet_large", "paper", 11, 4032, 64_775_634, 67_388_393, 67_507_180),
  ("nasnet_mobile", "paper", 7, 1056, 3_552_692, 3_941_323, 4_060_110),
  ("mobilenet_v2", "paper", 7, 160, 1_040_704, 1_099_607, 1_218_394),
  ("mobilenet_v3_large", "paper", 7, 960, 2_996_352, 3_349_655, 3_468_442),
  ("mobilenet_v3_small", "paper", 7, 576, 939_120, 1_151_111, 1_269_898),
]
# Keras counts its Normalization layer of the age: mean, variance, count. Here the data keep those.
NORMALIZATION = 3


def _cut(name, cut, **changes):
  backbone = settings.VARIANTS[settings.Model][name]
  return settings.SoftAttention(backbone=backbone, cut=cut, attention="paper_no_gamma", **changes)


def _parameters(net):
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  return jax.eval_shape(net.init, jax.random.key(0), images)[0]


class _Given(nn.Module):
  """A backbone without parameters, whose map is the image."""

  name_of_map: str

  @nn.compact
  def __call__(self, images, mode):
    self.variable("batch_stats", "nothing", jnp.zeros, 0)
    return mode.endpoint(self, self.name_of_map, images)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[1]}")
def test_counts_beside_the_backbone(row):
  """On a map as the tables have it: without metadata, with them, with gamma."""
  name, cut, side, channels, of_backbone, plain, with_metadata = row
  info = _info(side)

  def count(cfg):
    given = _Given(soft_attention.endpoint(cfg))
    parts = soft_attention.build(cfg, info, net_lib.Parts(given, None, initial.GLOROT_UNIFORM))
    head = metadata.fused(parts.classifier, cfg, info)
    net = net_lib.wrap(
      parts.encoder, head, parts.kernel_init, net_lib.Execution(), 0.9, (), by_hand.WIDTH
    )
    maps = jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32)
    return of_backbone + trees.count(jax.eval_shape(net.init, jax.random.key(0), maps)[0])

  cfg = _cut(name, cut)
  assert count(cfg) == plain
  assert count(dataclasses.replace(cfg, attention="paper")) == plain + 1
  assert count(dataclasses.replace(cfg, attention="keras_quirk")) == plain
  with_branch = dataclasses.replace(cfg, metadata="dense")
  assert count(with_branch) + NORMALIZATION == with_metadata
  pooled = {"resnet50": 23_911_319, "resnet152": 49_750_935}
  if cut == "code" and name in pooled:
    assert count(dataclasses.replace(cfg, pool="gap")) == pooled[name]


SMALL_VGG = settings.SoftAttention(
  name="vgg16_soft_attention",
  backbone=settings.VGG(convs=(2, 1, 1, 2, 1), hidden=(6, 5), preprocess="unit"),
  attention="paper_no_gamma",
)


@pytest.mark.parametrize("cut", ["paper", "code"])
def test_the_network_like_vgg_equals_loops(cut):
  cfg = dataclasses.replace(SMALL_VGG, cut=cut)
  net = models.make(cfg, _info(48, metadata=0), net_lib.Execution())
  params, stats = _weights(net, 48)
  batch = _batch(2, 48, metadata=False)
  result, _ = jax.jit(functools.partial(net.apply, train=False))(params, stats, batch)
  flat = jax.tree.map(lambda x: np.asarray(x, np.float64), params["encoder"])
  moving = jax.tree.map(lambda x: np.asarray(x, np.float64), stats["encoder"])
  x = np.asarray(batch[contract.IMAGE], np.float64)
  for number, convs in enumerate(cfg.backbone.convs, 1):
    block, of_block = flat[f"block{number}"], moving[f"block{number}"]
    for i in range(1, convs + 1):
      kernel = block[f"conv{i}"]["kernel"]
      assert kernel.shape[:2] == ((1, 1) if i == convs else (3, 3))
      x = np.maximum(by_hand.conv(x, kernel, block[f"conv{i}"]["bias"]), 0)
      x = by_hand.normed(block[f"bn{i}"], of_block[f"bn{i}"], x)
    if number == 4:
      x = np.maximum(x, 0) if cut == "paper" else x
      x = by_hand.two_paths(flat["attention"], x, "paper_no_gamma")
    else:
      x = by_hand.pooled(x, 4 if number == 5 else 2)
  x = x.reshape(2, -1)
  for dense in (flat["fc1"], flat["fc2"]):
    x = np.maximum(x @ dense["kernel"] + dense["bias"], 0)
  assert np.abs(x).max() > 0
  np.testing.assert_allclose(result.embedding, x, atol=1e-4 * np.abs(x).max())


def test_initial_weights_of_the_network_like_vgg():
  """He-normal convolutions, he-uniform scores, Glorot-uniform dense layers."""
  net = models.make(SMALL_VGG, _info(32, metadata=0), net_lib.Execution())
  params = trees.flatten(net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))[0])
  bounds = {  # largest number over the deviation
    "encoder/block4/conv1/kernel": 2 / 0.8796,
    "encoder/attention/soft/scores/kernel": math.sqrt(3),
    "encoder/fc1/kernel": math.sqrt(3),
  }
  for path, bound in bounds.items():
    kernel = np.asarray(params[path])
    *window, inputs, outputs = kernel.shape
    fan = math.prod(window) * inputs
    variance = 2 / (inputs + outputs) if "fc" in path else 2 / fan
    assert kernel.std() == pytest.approx(math.sqrt(variance), rel=0.05), path
    assert np.abs(kernel).max() / math.sqrt(variance) == pytest.approx(bound, rel=0.01), path


@pytest.mark.parametrize(
  "cfg",
  [TINY, SMALL_VGG, dataclasses.replace(TINY, metadata="two_layer")],
  ids=("plain", "vgg", "metadata"),
)
def test_stages_cover_all_parameters_in_order(cfg):
  net = models.make(cfg, _info(), net_lib.Execution())
  params = _parameters(net)
  paths = list(trees.flatten(params))
  for path in paths:
    assert sum(path.startswith(f"{stage}/") for stage in net.stages) == 1, path
  places = [stage.rpartition("/")[2] for stage in net.stages]
  if isinstance(cfg.backbone, settings.VGG):
    middle = ["attention", "block5", "fc1", "fc2"]
    assert places == ["block1", "block2", "block3", "block4", *middle, "head"]
  else:
    assert places[0] == "conv1" and places[-2:] == ["attention", "head"]


@pytest.mark.parametrize(
  ("changes", "told"),
  [
    (dict(cut="paper"), "'paper' is not defined for tiny, which has none"),
    (dict(cut="code34", backbone=settings.ResNet()), "which has 'code', 'paper'"),
    (dict(metadata="dense"), "set model.metadata=none"),
    (dict(preprocess="tf"), "set model.backbone.preprocess"),
    (dict(bn_momentum=0.5), "set model.backbone.bn_momentum"),
    (dict(backbone=settings.VGG(), cut="block4"), "which is not cut"),
    (dict(backbone=settings.VGG(pool="gap"), cut="paper"), "here the last map is model.pool's"),
    (dict(backbone=settings.VGG(convs=(1, 1)), cut="paper"), "5 blocks"),
  ],
)
def test_impossible_settings_are_told(changes, told):
  with pytest.raises(ValueError, match=told):
    models.make(dataclasses.replace(TINY, **changes), _info(64, metadata=0), net_lib.Execution())


def test_an_end_point_that_the_backbone_does_not_have_is_told():
  net = models.make(dataclasses.replace(TINY, cut="conv9"), _info(), net_lib.Execution())
  with pytest.raises(ValueError, match="no end point 'conv9' to be cut at"):
    _parameters(net)


def test_batches_without_metadata_are_told():
  cfg = dataclasses.replace(TINY, metadata="dense")
  net = models.make(cfg, _info(), net_lib.Execution())
  with pytest.raises(ValueError, match="need 'metadata'"):
    jax.eval_shape(
      functools.partial(net.apply, train=False), *_weights(net), _batch(metadata=False)
    )


def test_presets_are_those_of_the_authors():
  presets = settings.VARIANTS[settings.Model]
  assert presets["soft_attention"] == dataclasses.replace(
    _cut("densenet201", "paper"), attention="paper"
  )
  assert isinstance(presets["vgg16_soft_attention"].backbone, settings.VGG)
  assert set(soft_attention.CUTS) <= set(presets)
