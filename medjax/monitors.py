"""What a stage's embeddings are worth on the way, told by labelled sets of `eval.monitors`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import numpy as np

from medjax import data, evaluate, figures, probes, settings, wiring
from medjax.data import catalogue
from medjax.data import feed as feed_lib
from medjax.metrics import rates
from medjax.objectives import base

_LEARNT, _SCORED = "train", "val"
_MOST_MAPPED = 2_000  # points that t-SNE maps in seconds


@dataclasses.dataclass(frozen=True)
class Look:
  """What one set says of a state.

  Attributes:
    name: of the set. classes: of the set.
    scalars: for the log: accuracy of the nearest neighbours (`knn/<set>`) and of the linear probe
      (`probe/<set>`), and the mean of each over the classes (`knn_balanced/`, `probe_balanced/`).
    embeddings: [n, D] of the val part. labels: [n] int32.
  """

  name: str
  classes: tuple[str, ...]
  scalars: dict[str, float]
  embeddings: np.ndarray
  labels: np.ndarray

  def figure(self, last: bool) -> figures.mpl_figure.Figure:
    """The val part in the plane: its principal components, or at the end of a stage t-SNE's map."""
    method: probes.Method = "tsne" if last and len(self.labels) <= _MOST_MAPPED else "pca"
    points = probes.plane(self.embeddings, method)
    title = f"{self.name}, {_SCORED} part, {probes.METHODS[method]}"
    return figures.embedding(points, self.labels, self.classes, title)


@dataclasses.dataclass(frozen=True)
class Monitors:
  """The sets that watch a stage; made by `make`.

  Attributes:
    splits: name -> set. feeds: (name, part) -> its images in order.
    embed: from `evaluate.embedder`.
  """

  splits: Mapping[str, catalogue.Splits]
  feeds: Mapping[tuple[str, str], feed_lib.Feed]
  embed: Callable

  def __call__(self, state: base.TrainState) -> list[Look]:
    """What every set says of a state as it is evaluated."""
    return [self._look(name, state) for name in self.splits]

  def _look(self, name: str, state: base.TrainState) -> Look:
    splits = self.splits[name]
    labels = {part: splits.parts[part].labels for part in (_LEARNT, _SCORED)}
    train, val = (
      evaluate.table(self.embed, state, self.feeds[name, part]) for part in (_LEARNT, _SCORED)
    )
    known = train, labels[_LEARNT], val, len(splits.info.classes)
    predicted = {"knn": probes.nearest(*known), "probe": probes.linear(*known).argmax(1)}
    scalars: dict[str, float] = {}
    for probe, found in predicted.items():
      matrix = rates.confusion(labels[_SCORED], found, len(splits.info.classes))
      scalars[f"{probe}/{name}"] = float(rates.accuracy(matrix).value)
      scalars[f"{probe}_balanced/{name}"] = float(rates.balanced_accuracy(matrix).value)
    return Look(name, splits.info.classes, scalars, val, labels[_SCORED])


def told(step: int, looks: Sequence[Look]) -> str:
  """A line for the terminal."""
  values = [f"{name} {value:.4f}" for look in looks for name, value in look.scalars.items()]
  return f"monitors after {step} steps: {', '.join(values)}"


def make(bench: wiring.Bench) -> Monitors:
  """Reads the sets of `eval.monitors`.

  Raises:
    ValueError: a set that cannot be a monitor of the stage.
  """
  splits: dict[str, catalogue.Splits] = {}
  feeds = {}
  sets = bench.stage.eval.monitors
  for name, cfg in zip(settings.named(sets), sets, strict=True):
    made = data.make(cfg)
    _check(name, made, bench)
    splits[name] = made
    for part in (_LEARNT, _SCORED):
      images = _without_metadata(made.parts[part], bench.splits.info.metadata)
      size, threads = bench.stage.eval.batch_size, cfg.threads
      feeds[name, part] = feed_lib.sequential(images, size, bench.mesh, threads)
      bench.feeds.callback(feeds[name, part].close)
  return Monitors(splits, feeds, evaluate.embedder(bench.objective, bench.mesh))


def _check(name: str, splits: catalogue.Splits, bench: wiring.Bench) -> None:
  """Refuses sets that the probes or the network cannot take."""
  ours, theirs = bench.splits.info.image_shape, splits.info.image_shape
  if ours != theirs:
    raise ValueError(
      f"eval.monitors: {name} has images of {theirs} and stage {bench.stage.name!r} of {ours}: give"
      " both the same image_size and channels"
    )
  if not splits.info.classes or splits.info.multi_label:
    kind = "several labels an image" if splits.info.multi_label else "no labels"
    raise ValueError(f"eval.monitors: {name} has {kind}; a probe needs one label an image")
  if _SCORED not in splits.parts:
    raise ValueError(f"eval.monitors: {name} has no val part to score: set its split.val to 0.2")


def _without_metadata(part: catalogue.Part, width: int) -> catalogue.Part:
  """The part with zeros for metadata: a head may ask for them, the embedding is made before it."""
  zeros = np.zeros((len(part), width), np.float32) if width else None
  return dataclasses.replace(part, metadata=zeros)
