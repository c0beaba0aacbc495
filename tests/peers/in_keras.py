"""QuadSNet's training in Keras 3 on JAX: `fit` on arrays in memory, compiled."""

from __future__ import annotations

import jax
import keras
from keras import layers, ops
import numpy as np
import problem

from medjax import settings


def versions() -> dict[str, str]:
  return {"keras": f"{keras.__version__} on {keras.backend.backend()} {jax.__version__}"}


def make(cfg: settings.QuadSNet, variant: str, steps: int) -> problem.Trainer:
  model = _with_kernels(_model(cfg))
  adam = keras.optimizers.Adam(problem.LEARNING_RATE, epsilon=problem.EPSILON)
  per_execution = int(variant.split()[0])
  model.compile(adam, _margin, jit_compile=True, steps_per_execution=per_execution)
  images, labels = problem.float_data(steps)
  targets = np.eye(problem.CLASSES, dtype=np.float32)[labels]

  def run() -> float:
    done = model.fit(images, targets, problem.BATCH, verbose=0, shuffle=False)
    return done.history["loss"][0]

  return problem.Trainer(sum(v.value.size for v in model.trainable_variables), run)


def _model(cfg: settings.QuadSNet) -> keras.Model:
  images = keras.Input((problem.SIDE, problem.SIDE, 3))
  x = layers.Concatenate()([_stream(cfg, stream, images) for stream in cfg.streams])
  if cfg.bn == "fusion":
    x = _batch_norm(cfg, "encoder.bn")(x)
  x = layers.AveragePooling2D(x.shape[1] // 2)(x)  # to 2x2
  x = layers.Flatten()(layers.Dropout(cfg.dropout)(x))
  x = layers.Dense(cfg.hidden, activation="relu", name="head.hidden")(x)
  return keras.Model(images, layers.Dense(problem.CLASSES, name="head.classes")(x))


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


def _batch_norm(cfg: settings.QuadSNet, name: str) -> layers.Layer:
  return layers.BatchNormalization(momentum=cfg.bn_momentum, epsilon=cfg.bn_epsilon, name=name)


def _margin(targets, logits):
  loss, scores = problem.LOSS, ops.softmax(logits) ** 2
  present = targets * ops.relu(loss.positive - scores)
  absent = (1 - targets) * ops.relu(scores - loss.negative)
  return ops.sum(present + loss.down_weight * absent, axis=-1)


def _with_kernels(model: keras.Model) -> keras.Model:
  for variable in model.trainable_variables:
    path = variable.path.replace(".", "/").replace("wise_kernel", "wise/kernel")
    if path.endswith("depthwise/kernel"):  # [k, k, C, 1], in medjax [k, k, 1, C]
      k, _, channels, _ = variable.shape
      variable.assign(problem.kernel(path, (k, k, 1, channels)).swapaxes(2, 3))
    elif path.endswith("kernel"):
      variable.assign(problem.kernel(path, variable.shape))
  return model
