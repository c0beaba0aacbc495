"""Training in Keras 3 on JAX: `fit` on arrays in memory, compiled."""

from __future__ import annotations

from collections.abc import Callable

import in_medjax
import jax
import keras
from keras import ops
import keras_networks
import problem

from medjax import settings


def versions() -> dict[str, str]:
  return {"keras": f"{keras.__version__} on {keras.backend.backend()} {jax.__version__}"}


def make(task: problem.Task, variant: str, steps: int) -> problem.Trainer:
  mixed = task.precision == "bfloat16"
  keras.config.set_floatx("float64" if task.precision == "float64" else "float32")
  keras.config.set_dtype_policy("mixed_bfloat16" if mixed else keras.config.floatx())
  model = keras_networks.make(task)
  adam = keras.optimizers.Adam(problem.LEARNING_RATE, epsilon=problem.EPSILON)
  per_execution = int(variant.split()[0])
  model.compile(adam, _loss(task.loss), jit_compile=True, steps_per_execution=per_execution)
  images, targets = task.float_data(steps)

  def run() -> float:
    done = model.fit(images, targets, task.batch, verbose=0, shuffle=False)
    return done.history["loss"][0]

  def losses() -> list[float]:
    found = []
    for start in range(0, len(images), task.batch):
      model.reset_metrics()
      rows = slice(start, start + task.batch)
      found.append(float(model.train_on_batch(images[rows], targets[rows])))
    return found

  parameters = sum(v.value.size for v in model.trainable_variables)
  return problem.Trainer(parameters, run, losses, in_medjax.peak if task.device == "gpu" else None)


def _loss(cfg: settings.Loss) -> Callable:
  if not isinstance(cfg, settings.Margin):
    return keras.losses.CategoricalCrossentropy(from_logits=True)

  def margin(targets, logits):
    scores = ops.softmax(logits) ** 2
    present = targets * ops.relu(cfg.positive - scores)
    absent = (1 - targets) * ops.relu(scores - cfg.negative)
    return ops.sum(present + cfg.down_weight * absent, axis=-1)

  return margin
