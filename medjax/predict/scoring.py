"""What scores images: a network of a run, an exported one, or several together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import pathlib
from typing import Protocol

import jax
import numpy as np

from medjax import artifact, augment, contract, evaluate, settings, trained, wiring
from medjax import mesh as mesh_lib
from medjax.metrics import operating
from medjax.models import metadata as metadata_lib


class Scorer(Protocol):
  """A classifier that is ready for images as `reading` makes them.

  Attributes:
    classes: names of the K columns of scores.
    image_shape: (height, width, channels) of its images.
    reading: from a file's values to pixels, as in training.
    multi_label: whether an image may have several of the classes, or none.
    encoding: how metadata become numbers, see `contract.DataInfo`; empty where it takes none.
    operating: its temperature, which `scores` holds already, and its thresholds.
  """

  classes: tuple[str, ...]
  image_shape: tuple[int, int, int]
  reading: settings.Reading
  multi_label: bool
  encoding: Sequence[contract.Encoding]
  operating: operating.Operating

  def scores(self, images: np.ndarray, metadata: np.ndarray | None = None) -> np.ndarray:
    """Scores [b, K] after the temperature.

    Args:
      images: [b, H, W, C] uint8, or uint16 where `reading.depth` is 16.
      metadata: [b, M] float32, for a network that takes them.
    """


class Network:
  """A network of a run, on all devices; a `Scorer`.

  It scores as evaluation does. Where that averages views of an image (`eval.augment`), which go by
  the image's place in its part, all images here take the views of the first place.
  """

  def __init__(self, opened: trained.Trained):
    """Puts it on the devices; it is compiled once for every size of a batch that comes.

    Raises:
      ValueError: it gives no scores.
    """
    if not wiring.classifies(opened.stage):
      raise ValueError(
        f"{opened.folder} is no classifier, so it predicts nothing: name a stage with one, such as"
        " by --stage finetune"
      )
    sees = metadata_lib.sees(opened.stage.model)
    if sees and not opened.info.encoding:
      raise ValueError(
        f"{opened.folder / trained.INFO} does not say how metadata are encoded, as an earlier"
        " version wrote it: python -m medjax.main --task=evaluate"
        f" --workdir={opened.folder.parent} writes it anew"
      )
    self.opened = opened
    self.classes, self.image_shape = opened.info.classes, opened.info.image_shape
    self.multi_label = opened.info.multi_label
    self.encoding: Sequence[contract.Encoding] = opened.info.encoding if sees else ()
    self.reading = opened.stage.data.reading
    self.operating = operating.read(opened.folder)
    self._mesh = mesh_lib.make()
    self._state = mesh_lib.put(self._mesh, opened.state)
    self._score = self._looks(evaluate.scorer(opened.objective, self._mesh))

  def scores(self, images: np.ndarray, metadata: np.ndarray | None = None) -> np.ndarray:
    """See `Scorer`."""
    batch = {contract.IMAGE: images, contract.INDEX: np.zeros(len(images), np.int32)}
    if metadata is not None:
      batch[contract.METADATA] = metadata
    wide = mesh_lib.padded(len(images), self._mesh)
    ticket = {name: padded(value, wide)[None] for name, value in batch.items()}
    found = self._score(self._state, mesh_lib.put(self._mesh, ticket, mesh_lib.cut(1)))
    scores = jax.device_get(found)[0, : len(images)].astype(np.float64)
    return self.operating.apply(scores, self.multi_label)

  def _looks(self, score: Callable) -> Callable:
    """Scores by all views that evaluation averages."""
    stage, seed = trained.stage_of(self.opened.folder)
    views = wiring.views(seed, stage, augment.make(stage.augment), self._mesh)
    return evaluate.averaged(score, views) if views else score


def padded(values: np.ndarray, length: int) -> np.ndarray:
  """[length, ...]: the values [n, ...] and zeros behind them."""
  return np.concatenate([values, np.zeros((length - len(values), *values.shape[1:]), values.dtype)])


def opened(model: pathlib.Path, stage: str = "") -> Scorer:
  """Opens what a MODEL on a command line names.

  Args:
    model: a workdir, the folder of a stage in one, or of a checkpoint of a stage; or a folder that
      `python -m medjax.export` wrote, whose hashes are checked.
    stage: of a workdir; empty for its last classifier.

  Raises:
    FileNotFoundError: no run is there, or no checkpoint yet.
    ValueError: the stage gives no scores, or a file is not what was exported.
  """
  if artifact.is_one(model):
    if stage:
      raise ValueError(f"{model} is an exported classifier, which has no stages: leave --stage out")
    return artifact.opened(model)
  return Network(trained.opened(model, stage))


def together(scorers: Sequence[Scorer]) -> operating.Operating:
  """How the mean of several is used: that of one as it is, that of more without thresholds.

  A threshold was chosen for the scores of one network and says nothing of a mean.

  Raises:
    ValueError: they know different classes.
  """
  first = scorers[0]
  for other in scorers[1:]:
    if (other.classes, other.multi_label) != (first.classes, first.multi_label):
      raise ValueError(
        f"models of different classes have no mean: {', '.join(first.classes)} and"
        f" {', '.join(other.classes)}"
      )
  return first.operating if len(scorers) == 1 else operating.Operating()
