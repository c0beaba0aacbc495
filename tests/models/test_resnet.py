"""ResNets against Keras's (50, 152) and against torchvision's layer list, built in Keras (18)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import keras_parity as parity
from keras_parity import keras  # on the backend that it chooses
import numpy as np
import pytest

from medjax import models, settings, trees
from medjax.models import net as net_lib
from medjax.models import resnet

PRESETS = settings.VARIANTS[settings.Model]
KERAS = {"resnet50": keras.applications.ResNet50, "resnet152": keras.applications.ResNet152}
SIZE = 96  # of images: at 64 the last maps hold 2x2 pixels, and their variances magnify rounding
TINY = settings.ResNet(units=(1, 1), preprocess="unit", bottleneck=False)

# (total with moving statistics, trainable) at 224 pixels, 1,000 classes. Those of 18 and 34 are
# torchvision's, which counts trainable parameters, and two moving statistics a channel.
COUNTS = {
  "resnet18": (11_699_112, 11_689_512),
  "resnet34": (21_814_696, 21_797_672),
  "resnet50": (25_636_712, 25_583_592),
  "resnet152": (60_419_944, 60_268_520),
}


def _plain(name):
  """A preset that takes pixels as they are, as the Keras networks here do."""
  return dataclasses.replace(PRESETS[name], preprocess="unit")


@functools.cache
def _keras(name):
  inputs = (SIZE, SIZE, 3)
  return KERAS[name](
    weights=None, input_shape=inputs, classes=parity.CLASSES, classifier_activation=None
  )


def _torchvision(units, size):
  """torchvision's `resnet.py` with basic blocks, in Keras: its layers, paddings and epsilon."""
  layers = keras.layers

  def conv_bn(x, name, features, side, stride):
    x = layers.ZeroPadding2D(side // 2)(x)
    conv = layers.Conv2D(features, side, stride, use_bias=False, name=f"{name}conv")
    return layers.BatchNormalization(epsilon=1e-5, name=f"{name}bn")(conv(x))

  def block(x, name, features, stride):
    y = layers.ReLU()(conv_bn(x, f"{name}_1_", features, 3, stride))
    y = conv_bn(y, f"{name}_2_", features, 3, 1)
    if stride > 1:
      x = conv_bn(x, f"{name}_0_", features, 1, stride)
    return layers.ReLU()(layers.Add()([x, y]))

  images = keras.Input((size, size, 3))
  x = layers.ReLU()(conv_bn(images, "conv1_", 64, 7, 2))
  x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
  for stage, count in enumerate(units):
    for unit in range(count):
      stride = 2 if stage and not unit else 1
      x = block(x, f"conv{stage + 2}_block{unit + 1}", 64 * 2**stage, stride)
  x = layers.GlobalAveragePooling2D()(x)
  return keras.Model(images, layers.Dense(parity.CLASSES, name="predictions")(x))


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_preset(name):
  assert parity.counts(PRESETS[name], 224) == COUNTS[name]


@pytest.mark.parametrize("name", ["resnet50", pytest.param("resnet152", marks=pytest.mark.slow)])
def test_counts_are_those_of_keras(name):
  model = _keras(name)
  trainable = sum(np.prod(weight.shape) for weight in model.trainable_weights)
  total, learnt = parity.counts(PRESETS[name], SIZE, classes=parity.CLASSES)
  assert (total, learnt) == (model.count_params(), trainable)


@pytest.mark.parametrize("name", ["resnet50", pytest.param("resnet152", marks=pytest.mark.slow)])
def test_logits_are_those_of_keras(name):
  about = parity.info(SIZE)
  parity.assert_same_network(_keras(name), _plain(name), about, resnet.keras_layer)


def test_logits_with_batch_statistics_are_those_of_keras():
  model, about = _keras("resnet50"), parity.info(SIZE)
  parity.assert_same_network(model, _plain("resnet50"), about, resnet.keras_layer, train=True, n=4)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
  "units",
  [(2, 1, 1, 1), pytest.param((2, 2, 2, 2), marks=pytest.mark.slow)],
)
def test_basic_blocks_are_those_of_torchvision(units, train):
  cfg = dataclasses.replace(_plain("resnet18"), units=units)
  model = _torchvision(units, 64)
  parity.assert_same_network(model, cfg, parity.info(64), resnet.keras_layer, train=train, n=4)


def _torch_resnet18(torch):
  """Torchvision's ResNet-18 with its own names, to ten classes."""
  nn = torch.nn

  class Block(nn.Module):
    def __init__(self, inputs, features, stride):
      super().__init__()
      self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
      self.bn1 = nn.BatchNorm2d(features)
      self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
      self.bn2 = nn.BatchNorm2d(features)
      self.downsample = nn.Sequential()
      if stride > 1:
        conv = nn.Conv2d(inputs, features, 1, stride, bias=False)
        self.downsample = nn.Sequential(conv, nn.BatchNorm2d(features))

    def forward(self, x):
      y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
      return torch.relu(y + self.downsample(x))

  net = nn.Sequential()
  net.add_module("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False))
  net.add_module("bn1", nn.BatchNorm2d(64))
  net.add_module("relu", nn.ReLU())
  net.add_module("maxpool", nn.MaxPool2d(3, 2, 1))
  for stage, (inputs, features) in enumerate([(64, 64), (64, 128), (128, 256), (256, 512)]):
    units = Block(inputs, features, 2 if stage else 1), Block(features, features, 1)
    net.add_module(f"layer{stage + 1}", nn.Sequential(*units))
  net.add_module("avgpool", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
  net.add_module("fc", nn.Linear(512, parity.CLASSES))
  return net


def _from_torch(path, leaf, state):
  """A tensor of torchvision's network for one of ours, by its path."""
  *modules, name = path.split("/")
  names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
  if modules[0] == "head":
    where = "fc"
  elif modules[1] == "conv1":
    where = {"conv": "conv1", "bn": "bn1"}[modules[2]]
  else:
    stage, unit = int(modules[1][-1]) - 1, int(modules[2].removeprefix("block")) - 1
    number, kind = modules[3].split("_")
    shortcut = f"downsample.{int(kind == 'bn')}"
    where = f"layer{stage}.{unit}.{f'{kind}{number}' if number != '0' else shortcut}"
  value = state.pop(f"{where}.{names.get(name, name)}").numpy()
  value = value.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, (0,)))
  assert value.shape == leaf.shape, (path, value.shape, leaf.shape)
  return value


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
def test_resnet18_is_that_of_torch(train):
  """Where PyTorch is installed, as it is for the comparisons of tests/peers."""
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = _torch_resnet18(torch).train(train)
  for name, tensor in model.state_dict().items():
    if name.endswith(("running_mean", "running_var")):
      tensor.uniform_(0.5, 1.5)
  state = {k: v.clone() for k, v in model.state_dict().items() if "num_batches" not in k}
  net = models.make(_plain("resnet18"), parity.info(96), net_lib.Execution())
  pixels = parity.images(96, n=4)
  params, stats = (
    trees.unflatten(
      {
        path: leaf if path.startswith("encoder/input") else _from_torch(path, leaf, state)
        for path, leaf in trees.flatten(tree).items()
      }
    )
    for tree in net.init(jax.random.key(0), pixels)
  )
  assert not state
  run = jax.jit(lambda *args: net.apply(*args, train=train, momentum=0.0)[0].output)
  theirs = model(torch.from_numpy(pixels.transpose(0, 3, 1, 2))).detach().numpy()
  parity.assert_same_logits(run(params, stats, parity.batch_of(pixels)), theirs)


def test_keras_preprocessing_is_part_of_the_network():
  """Keras reverses the channels of pixels in [0, 255] and subtracts ImageNet's means."""
  pixels = parity.images(32)
  cfg = settings.ResNet(units=(1,), bottleneck=False)
  about = parity.info(32)
  net = models.make(cfg, about, net_lib.Execution())
  weights = net.init(jax.random.key(0), jnp.asarray(pixels))
  theirs = keras.applications.resnet.preprocess_input(pixels * 255)
  raw = models.make(dataclasses.replace(cfg, preprocess="unit"), about, net_lib.Execution())
  ours = net.apply(*weights, parity.batch_of(pixels), train=False)[0].output
  fed = raw.apply(*weights, parity.batch_of(theirs), train=False)[0].output
  parity.assert_same_logits(ours, fed)


def test_end_points_are_those_of_keras_by_name_and_shape():
  model, about = _keras("resnet50"), parity.info(SIZE)
  net = models.make(_plain("resnet50"), about, net_lib.Execution())

  def every(key, images):
    weights = net.init(key, images)
    batch = parity.batch_of(images)
    return net.apply(*weights, batch, train=False, endpoints=[net_lib.EVERY])[0].endpoints

  images = jax.ShapeDtypeStruct((2, *about.image_shape), jnp.float32)
  found = jax.eval_shape(every, jax.random.key(0), images)
  assert len(found) == 2 + 16
  for name, x in found.items():
    assert x.shape == (2, *model.get_layer(name).output.shape[1:]), name


def test_the_gradient_by_an_offset_is_that_by_the_map(x64):
  about = parity.info(32)
  net = models.make(TINY, about, net_lib.Execution("cpu"))
  batch = parity.batch_of(parity.images(32).astype(float))
  weights = net.init(jax.random.key(0), batch["image"])

  @jax.jit
  def logit(offset):
    offsets = {"conv3_block1_out": offset}
    return net.apply(*weights, batch, train=False, offsets=offsets)[0].output[0, 0]

  zeros = jnp.zeros((2, 4, 4, 128))
  direction = jax.random.normal(jax.random.key(3), zeros.shape)
  found = jnp.vdot(jax.grad(logit)(zeros), direction)
  step = 1e-6
  numerical = (logit(step * direction) - logit(-step * direction)) / (2 * step)
  assert abs(numerical) > 1e-4
  np.testing.assert_allclose(found, numerical, rtol=1e-5)


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
  assert parity.cut_total(PRESETS[name], 224, endpoint) == total


@pytest.mark.parametrize("channels", [1, 3])
def test_a_small_stem_keeps_the_size_of_small_images(channels):
  cfg = dataclasses.replace(_plain("resnet18"), stem="small")
  about = parity.info(28, channels=channels)
  net = models.make(cfg, about, net_lib.Execution())

  def run(key, images):
    weights = net.init(key, images)
    return net.apply(*weights, parity.batch_of(images), train=False, endpoints=[net_lib.EVERY])[0]

  images = jax.ShapeDtypeStruct((2, 28, 28, channels), jnp.float32)
  result = jax.eval_shape(run, jax.random.key(0), images)
  assert result.endpoints["conv2_block2_out"].shape == (2, 28, 28, 64)
  assert result.endpoints["conv5_block2_out"].shape == (2, 4, 4, 512)
  assert "pool1_pool" not in result.endpoints
  # 3x3 in place of 7x7.
  saved = (49 - 9) * channels * 64
  large = parity.counts(_plain("resnet18"), 64, channels=channels)[0]
  assert parity.counts(cfg, 28, channels=channels)[0] == large - saved


@pytest.mark.parametrize(("stem", "least"), [("imagenet", 32), ("small", 8)])
def test_too_small_images_are_told(stem, least):
  cfg = dataclasses.replace(_plain("resnet18"), stem=stem)
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

    return jax.jit(jax.grad(loss))(weights[0])

  plain, *others = (
    gradient(execution) for execution in (net_lib.Execution(), net_lib.Execution("cpu", remat=True))
  )
  for other in others:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9), plain, other)
