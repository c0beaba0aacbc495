"""Scores of files that no data set lists, by trained networks: streamed, batched, row by row.

predictor = predict.opened([pathlib.Path("runs/quickstart")])
for rows in predict.rows(predictor, inputs.walk(["scans", "films.zip"])): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
import itertools
import os
import pathlib

import numpy as np

from medjax import contract
from medjax.data import inputs, readers
from medjax.data import metadata as metadata_lib
from medjax.predict import known as known_lib
from medjax.predict import scoring, table

BATCH = 64  # images that are scored together


class Predictor:
  """Classifiers that are ready for images; several give the mean of their scores.

  Attributes:
    classes: names of the K columns of scores.
    multi_label: whether an image may have several of the classes, or none.
    scorers: one for each model. views: what each sees of a file.
    batch_size: images that are scored together, the last ones with filling; fewer images in a call
      are filled up to a power of two only, for each of which the network is compiled once.
  """

  def __init__(self, scorers: Sequence[scoring.Scorer], batch_size: int = BATCH):
    """Joins them.

    Args:
      scorers: at least one. batch_size: images that are scored together.

    Raises:
      ValueError: they know different classes.
    """
    self.scorers = tuple(scorers)
    self._operating = scoring.together(self.scorers)
    self.batch_size = batch_size
    self.classes, self.multi_label = scorers[0].classes, scorers[0].multi_label
    self.views = [inputs.View(s.image_shape[0], s.image_shape[2], s.reading) for s in self.scorers]

  def __call__(
    self,
    images: np.ndarray | Sequence[np.ndarray],
    metadata: Sequence[metadata_lib.Record] | None = None,
  ) -> np.ndarray:
    """Scores of images.

    Args:
      images: [n, H, W, C], or a list of [H, W] and [H, W, C] of any sizes; uint8 or uint16, C from
        1 to 4. They are fitted to what the network saw in training.
      metadata: for a network that takes them, what is known of each image's patient, by name.

    Returns:
      [n, K] float64, after the temperature.

    Raises:
      ValueError: what is no image, or metadata that are missing or not asked for.
    """
    if isinstance(images, np.ndarray) and images.ndim != 4:
      raise ValueError(f"images are {list(images.shape)}, not [n, H, W, C]: put one into a list")
    known = known_lib.encoded(self.scorers, metadata, len(images))
    found = [np.zeros((0, len(self.classes)))]
    wide = min(self.batch_size, 1 << max(len(images) - 1, 0).bit_length())
    for start in range(0, len(images), wide):
      some = range(start, min(start + wide, len(images)))
      pixels = [np.stack([readers.read(images[i], *view) for i in some]) for view in self.views]
      found.append(self.scores(pixels, [None if k is None else k[some] for k in known], wide))
    return np.concatenate(found)

  def scores(
    self, pixels: Sequence[np.ndarray], known: Sequence[np.ndarray | None], wide: int
  ) -> np.ndarray:
    """[b, K] of a batch: pixels [b, H, W, C] and encoded metadata [b, M] for each scorer.

    The batch is filled up to `wide`, so that the network is compiled for few sizes.
    """
    count = len(pixels[0])
    found = [
      scorer.scores(scoring.padded(p, wide), None if k is None else scoring.padded(k, wide))
      for scorer, p, k in zip(self.scorers, pixels, known, strict=True)
    ]
    return np.mean(found, axis=0)[:count]

  def predicted(self, scores: np.ndarray) -> list[str]:
    """The class of each image by scores [n, K]; of several the names with `contract.BETWEEN`.

    Thresholds that were chosen for the network are applied.
    """
    chosen = self._operating.predicted(scores, self.classes, self.multi_label)
    names = np.asarray(self.classes)
    if not self.multi_label:
      return names[chosen].tolist()
    return [contract.BETWEEN.join(names[row]) for row in chosen]


def opened(models: Sequence[pathlib.Path], stage: str = "", batch_size: int = BATCH) -> Predictor:
  """Opens models; see `scoring.opened` for what they may be and for errors."""
  return Predictor([scoring.opened(model, stage) for model in models], batch_size)


def rows(
  predictor: Predictor,
  listed: Iterable[inputs.Input],
  known: known_lib.Known | None = None,
  workers: int = 0,
) -> Iterator[list[table.Row]]:
  """Scores files: one row a file, in their order, some at a time.

  While a batch is scored, the next is decoded.

  Args:
    predictor: what scores. listed: the files, taken lazily.
    known: metadata, for a network that takes them.
    workers: processes that decode; 0 for one a core.
  """
  seen = inputs.seen(listed, predictor.views, workers or os.cpu_count() or 1)
  with futures.ThreadPoolExecutor(1) as thread:
    before: futures.Future[list[table.Row]] | None = None
    for batch in iter(lambda: list(itertools.islice(seen, predictor.batch_size)), []):
      coming = thread.submit(_scored, predictor, batch, known)
      if before:
        yield before.result()
      before = coming
    if before:
      yield before.result()


def _scored(
  predictor: Predictor, batch: Sequence[inputs.Seen], known: known_lib.Known | None
) -> list[table.Row]:
  errors = [seen.error or (known.missing(seen.path) if known else "") for seen in batch]
  good = [seen for seen, error in zip(batch, errors, strict=True) if not error]
  found = iter(_of(predictor, good, known) if good else ())
  return [
    table.Row(seen.path, "", None, error) if error else next(found)
    for seen, error in zip(batch, errors, strict=True)
  ]


def _of(
  predictor: Predictor, good: Sequence[inputs.Seen], known: known_lib.Known | None
) -> Iterator[table.Row]:
  pixels = [np.stack(each) for each in zip(*(seen.pixels for seen in good), strict=True)]
  paths = [seen.path for seen in good]
  facts = known.of(paths) if known else [None] * len(predictor.scorers)
  scores = predictor.scores(pixels, facts, predictor.batch_size)
  yield from map(table.Row, paths, predictor.predicted(scores), scores)
