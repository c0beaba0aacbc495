"""Networks in Keras: backbones are Keras's own, the others have layers of medjax's names."""

from __future__ import annotations

import keras
from keras import layers
import problem

from medjax import settings

_BACKBONES = {
  "densenet121": keras.applications.DenseNet121,
  "resnet50": keras.applications.ResNet50,
  "mobilenet_v2": keras.applications.MobileNetV2,
  "inception_v3": keras.applications.InceptionV3,
  "nasnet_mobile": keras.applications.NASNetMobile,
  "nasnet_large": keras.applications.NASNetLarge,
  "inception_resnet_v2": keras.applications.InceptionResNetV2,
}


def make(task: problem.Task) -> keras.Model:
  """Images in [0, 1] to logits."""
  shape = task.side, task.side, task.channels
  if isinstance(task.cfg, settings.Backbone):
    backbone = _BACKBONES[task.cfg.name]
    return backbone(
      input_shape=shape, weights=None, classes=problem.CLASSES, classifier_activation=None
    )
  network = _NETWORKS[type(task.cfg)]
  images = keras.Input(shape)
  return _with_kernels(keras.Model(images, network(task.cfg, images)))


def _quadsnet(cfg: settings.QuadSNet, images):
  x = layers.Concatenate()([_stream(cfg, stream, images) for stream in cfg.streams])
  if cfg.bn == "fusion":
    x = _batch_norm(cfg, "encoder.bn")(x)
  x = layers.AveragePooling2D(x.shape[1] // 2)(x)  # to 2x2
  x = layers.Flatten()(layers.Dropout(cfg.dropout)(x))
  x = layers.Dense(cfg.hidden, activation="relu", name="head.hidden")(x)
  return layers.Dense(problem.CLASSES, name="head.classes")(x)


def _stream(cfg: settings.QuadSNet, stream: str, x):
  size, separable = problem.STREAMS[stream]
  layer = layers.SeparableConv2D if separable else layers.Conv2D
  how = dict(padding="same", use_bias=cfg.use_bias, activation="relu")
  for block, width in enumerate(cfg.widths, start=1):
    path = f"encoder.{stream}.block{block}"
    for conv in range(cfg.sep_convs_per_block if separable else cfg.convs_per_block):
      x = layer(width, size, name=f"{path}.conv{conv + 1}", **how)(x)
    if cfg.bn == "block":
      x = _batch_norm(cfg, f"{path}.bn")(x)
    x = layers.Dropout(cfg.dropout)(layers.MaxPooling2D(2)(x))
  return x


def _mednet(cfg: settings.MedNet, images):
  x = layers.ReLU()(_conv_bn(cfg, "stem1", images, problem.STEM_WIDTH, 3, 2))
  outputs = [layers.ReLU()(_conv_bn(cfg, "stem2", x, problem.STEM_WIDTH, 5, 2))]
  for block in range(1, cfg.blocks + 1):
    x = _pooled(outputs[-1], problem.pools(cfg, block - 1, block))
    x = _block(cfg, f"b{block}", x)
    for start, conv in problem.arriving(cfg, block):
      y = _pooled(outputs[start], problem.pools(cfg, start, block))
      x = layers.Add()([x, _conv_bn(cfg, conv, y, 4 * cfg.width) if conv else y])
    outputs.append(layers.ReLU()(x))
  x = layers.GlobalAveragePooling2D()(outputs[-1])
  x = layers.Dense(cfg.hidden, activation="relu", name="head.hidden")(x)
  return layers.Dense(problem.CLASSES, name="head.classes")(layers.Dropout(cfg.dropout)(x))


def _block(cfg: settings.MedNet, name: str, x):
  branches = [
    layers.ReLU()(_conv_bn(cfg, f"{name}.conv{size}", x, cfg.width, size, within=""))
    for size in problem.BRANCHES
  ]
  short = _conv_bn(cfg, f"{name}.short", x, 4 * cfg.width, within="")
  return layers.Add()([layers.Concatenate()(branches), short])


def _conv_bn(
  cfg: settings.MedNet,
  name: str,
  x,
  features: int,
  size: int = 1,
  stride: int = 1,
  within: str = ".conv",
):
  """Convolution and batch norm; medjax calls the former `name` and what is `within` it."""
  path = f"encoder.{name}"
  how = dict(padding="same", use_bias=False, name=f"{path}{within}")
  conv = layers.Conv2D(features, size, stride, **how)
  return _batch_norm(cfg, f"{path}.bn")(conv(x))


def _pooled(x, times: int):
  for _ in range(times):
    x = layers.MaxPooling2D(2, padding="same")(x)
  return x


def _pneumonia_cnn(cfg: settings.PneumoniaCNN, x):
  for block, width in enumerate(problem.PNEUMONIA_WIDTHS, start=1):
    path = f"encoder.block{block}"
    conv = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"{path}.conv")
    x = _batch_norm(cfg, f"{path}.bn")(_pooled(conv(x), 1))
  x = layers.Dropout(cfg.dropout)(layers.Flatten()(x))
  x = layers.Dense(problem.PNEUMONIA_HIDDEN, activation="relu", name="head.hidden")(x)
  return layers.Dense(problem.CLASSES, name="head.classes")(layers.Dropout(cfg.dropout)(x))


_NETWORKS = {
  settings.QuadSNet: _quadsnet,
  settings.MedNet: _mednet,
  settings.PneumoniaCNN: _pneumonia_cnn,
}


def _batch_norm(cfg: settings.Model, name: str) -> layers.Layer:
  return layers.BatchNormalization(momentum=cfg.bn_momentum, epsilon=cfg.bn_epsilon, name=name)


def _with_kernels(model: keras.Model) -> keras.Model:
  for variable in model.trainable_variables:
    path = variable.path.replace(".", "/").replace("wise_kernel", "wise/kernel")
    if path.endswith("depthwise/kernel"):  # [k, k, C, 1], in medjax [k, k, 1, C]
      k, _, channels, _ = variable.shape
      variable.assign(problem.kernel(path, (k, k, 1, channels)).swapaxes(2, 3))
    elif path.endswith("kernel"):
      variable.assign(problem.kernel(path, variable.shape))
  return model
