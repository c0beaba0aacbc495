"""Classifiers that were never trained, to export: random weights, statistics of random images."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from medjax import contract, objectives, settings
from medjax.export import program
from medjax.metrics import calibration, operating
from medjax.models import net as net_lib
from medjax.models import zoo
from medjax.objectives import base

TEMPERATURE = 1.5
_COLD = {"gan": 0.3}  # without batch norm random weights tell images apart by a little only
_CLASSES = 7  # at most: what 64 pixels can be told apart by


def source(
  model: settings.Model,
  size: int,
  channels: int = 3,
  classes: int = 3,
  metadata: int = 0,
  temperature: float = TEMPERATURE,
) -> program.Source:
  """A network whose scores depend on the image: batch norm has the statistics of some."""
  names, half = tuple(f"class{i}" for i in range(classes)), (0.5,) * channels
  shape = (size, size, channels)
  info = contract.DataInfo(names, shape, (1,) * classes, classes, half, half, metadata)
  stage = settings.Stage(model=model)
  net, objective = objectives.of_stage(stage, info, net_lib.Execution("cpu"))
  params, stats = net.init(jax.random.key(0), jnp.zeros((1, *shape)))
  params = jax.tree.map(_moved, params)
  state = base.TrainState(jnp.zeros((), jnp.int32), params, stats, (), {})
  chosen = operating.Operating(calibration.Temperature(temperature, "val"))
  found = program.Source(stage, info, state, chosen)
  batch = program.random_inputs(found, 8, seed=1) | {contract.MASK: np.ones(8, np.float32)}
  stats = jax.jit(objective.recalibrate)(state, batch)
  return dataclasses.replace(found, state=state.replace(stats=stats))


def _moved(values: jax.Array) -> np.ndarray:
  """Factors and offsets of channels, which start as 1 and 0, each at a place of its own.

  Offsets lie above 0. With every other unit dark, 150 random layers multiply rounding so much that
  float32 itself comes out 4e-4 of the largest logit from float64; so, it is 3e-5.
  """
  rng, values = np.random.default_rng(values.size), np.asarray(values)
  if values.ndim != 1:
    return values
  low, high = (-0.5, 0.5) if values.all() else (0, 0.5)
  return values + rng.uniform(low, high, values.shape).astype(np.float32)


def of_zoo(name: str, size: int = 64) -> program.Source:
  """A counted network at a small size, with at most a few classes."""
  entry = zoo.ENTRIES[name]
  classes = max(2, min(entry.classes, _CLASSES))
  temperature = _COLD.get(name, TEMPERATURE)
  return source(_small(entry.model), size, entry.channels, classes, entry.metadata, temperature)


def _small(model: settings.Model) -> settings.Model:
  """The settings with a stem that takes 64 pixels, where the network has the choice."""
  if isinstance(model, settings.SoftAttention):
    backbone = _small(model.backbone)
    assert isinstance(backbone, settings.Backbone | settings.VGG)
    return dataclasses.replace(model, backbone=backbone)
  if "inception" in model.name:  # the others take 64 pixels as they are
    return dataclasses.replace(model, stem="small")
  return model


def forward(found: program.Source, given: dict[str, np.ndarray]) -> np.ndarray:
  """What `Objective.forward` says, in the form of convolutions that runs of training take here."""
  _, objective = objectives.of_stage(found.stage, found.info, net_lib.Execution("cpu"))
  scores = jax.jit(objective.forward)(found.state, given).scores
  return found.operating.apply(np.asarray(scores, np.float64), found.info.multi_label)


def difference(got: np.ndarray, want: np.ndarray) -> float:
  """Of logits, as a part of the largest; refuses scores that do not depend on the image.

  Of scores [b, K] of one class an image, whose logarithms are their logits up to a constant.
  """
  found, wanted = (np.log(np.maximum(scores, 1e-37)) for scores in (got, want))
  largest = np.abs(wanted).max()
  same = "this network says the same of all images"
  assert len(want) == 1 or wanted.std(axis=0).max() > 5e-4 * largest, same
  return float(np.abs(found - wanted).max() / largest)
