"""A classifier as one function of arrays, with its weights and its preprocessing inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
from typing import Any, Literal

import jax
from jax import export
import jax.numpy as jnp
import numpy as np

from medjax import contract, objectives, settings
from medjax.export import simplify
from medjax.metrics import calibration, operating
from medjax.models import metadata
from medjax.models import net as net_lib
from medjax.objectives import base

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-4  # of the largest logit: by how much two forms of a program may differ
BATCH = "b"  # name of the one size that is left open


@dataclasses.dataclass(frozen=True)
class Source:
  """A trained classifier, as it is exported.

  Attributes:
    stage: its settings. info: of the data it learnt from. state: its weights, as it is evaluated.
    operating: its temperature and thresholds.
  """

  stage: settings.Stage
  info: contract.DataInfo
  state: base.TrainState
  operating: operating.Operating = operating.Operating()

  def __post_init__(self):
    if not objectives.classifies(self.stage.objective):
      raise ValueError(
        f"stage {self.stage.name!r} learns no classifier, so there are no scores to export: name a"
        " stage with one, such as by --stage finetune"
      )

  @property
  def inputs(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape and type of what the program takes, in its order."""
    batch, *_ = export.symbolic_shape(BATCH)
    pixel = np.uint16 if self.stage.data.reading.depth == 16 else np.uint8
    found = {contract.IMAGE: jax.ShapeDtypeStruct((batch, *self.info.image_shape), pixel)}
    if metadata.sees(self.stage.model):
      shape = (batch, self.info.metadata)
      found[contract.METADATA] = jax.ShapeDtypeStruct(shape, np.float32)
    return found


def scores(
  source: Source,
  precision: Literal["float32", "bfloat16"] = "float32",
  fold: bool = False,
) -> simplify.Settled:
  """(images [b, H, W, C], metadata [b, M] where the network takes them) -> scores [b, K].

  Convolutions have their plain form. What depends on the weights alone is computed when the
  function is traced, and not whenever it runs.

  Args:
    source: of what. precision: of computation.
    fold: takes batch norms up into the convolutions before them, see `simplify`.

  Returns:
    The function; scores are float32, after the temperature.
  """
  execution = net_lib.Execution(form="plain", dtype=precision)
  _, objective = objectives.of_stage(source.stage, source.info, execution)
  state = jax.tree.map(np.asarray, source.state)  # constants of the program
  temperature = source.operating.temperature

  def look(*values: jax.Array) -> jax.Array:
    batch: Any = dict(zip(source.inputs, values, strict=True))
    found = objective.forward(state, batch).scores
    assert found is not None  # of a classifier, see `Source`
    if temperature is None:
      return found
    return calibration.tempered(found, temperature.value, source.info.multi_label, jnp)

  return simplify.Settled(look, fold)


def serialised(function: Callable[..., jax.Array], source: Source) -> bytes:
  """The function for any batch size on cpu, cuda and tpu, as `jax.export.deserialize` reads it."""
  with _without_places():
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*source.inputs.values())
    return bytes(exported.serialize())


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
  """Keeps the files and lines of this machine out of what JAX compiles."""
  limit = "jax_traceback_in_locations_limit"
  kept = getattr(jax.config, limit)
  jax.config.update(limit, 0)
  try:
    yield
  finally:
    jax.config.update(limit, kept)


def random_inputs(source: Source, size: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Noise in the place of images and metadata, to compare two forms of a program by."""
  rng = np.random.default_rng(seed)
  found = {}
  for name, each in source.inputs.items():
    shape = (size, *each.shape[1:])
    noise = rng.integers(0, 256, shape) if name == contract.IMAGE else rng.normal(size=shape)
    found[name] = noise.astype(each.dtype)
  return found


def difference(got: np.ndarray, want: np.ndarray, multi_label: bool) -> float:
  """By how much the logits behind scores [b, K] differ at most, as a part of the largest.

  Rounding moves logits; how far scores move with them depends on how sure the network is. What
  scores tell of logits is their logarithm (of one class an image), whose largest is at most twice
  the largest logit, and log K more.
  """
  found, wanted = (
    calibration.logits(np.asarray(scores, np.float64), multi_label) for scores in (got, want)
  )
  largest = np.abs(wanted).max() or 1.0  # a network may be sure of nothing at all
  return float(np.abs(found - wanted).max() / largest)
