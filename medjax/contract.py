"""The words that rooms use to speak to each other: batch keys, data descriptions, predictions.

Nothing here computes. A room that needs another room's result needs one of these types instead.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
from typing import Any, Literal

import flax.struct
import jax
import numpy as np

AXIS = "data"  # the one mesh axis: examples are cut along it
PARTS = ("train", "val", "test")
UNLABELLED = -1
THRESHOLD = 0.5  # score from which on an image that may have several classes is given one
BETWEEN = "|"  # stands between the classes of such an image in tables of predictions

# Keys of a batch, a dict of arrays whose leading axis is the example's slot in the batch.
IMAGE = "image"  # [b, H, W, C] uint8 from a feed, float in [0, 1] once inside a step
LABEL = "label"  # [b] int32, UNLABELLED where there is none; multi-label [b, K] float32 of 0 and 1
MASK = "mask"  # [b] float, 0 for slots that only pad the batch to the number of devices
SLOT = "slot"  # [b] int32, the example's slot in the *global* batch: what randomness is keyed by
METADATA = "metadata"  # [b, M] float, what is known of the patient, encoded; in few sets
CONDITION = "condition"  # [b] int32, the class that a conditional network is asked for
INDEX = "index"  # [b] int32, row of the part's table: which image this is

Batch = dict[str, jax.Array]
Tree = Any  # a nested dict of arrays
Encoding = Mapping[str, Any]  # of one property of metadata, as plain JSON types
Metrics = dict[str, jax.Array]  # name -> scalar, already reduced over devices


@dataclasses.dataclass(frozen=True)
class DataInfo:
  """What a model or an objective may know about the data.

  Attributes:
    classes: class names in label order; empty for an unlabelled set.
    image_shape: (height, width, channels) of what a feed delivers.
    class_counts: images of each class in the training part.
    train_size: images in the training part.
    mean: per-channel mean of the training part's pixels, in [0, 1].
    std: per-channel standard deviation of the same, in [0, 1].
    metadata: width M of the encoded metadata; 0 where there are none.
    synthetic: whether the images were drawn by a program; shown wherever results are.
    multi_label: whether an image may have several of the classes, or none.
    target: what the classes are: the set's own labels, or the sources of its images.
    encoding: how metadata become those numbers, as plain JSON types, for new images; empty where
      there are none.
    reading: of images that had been prepared for the set, how that was done, by the fields of
      `settings.Reading`; empty where the set's own settings say it.
  """

  classes: tuple[str, ...]
  image_shape: tuple[int, int, int]
  class_counts: tuple[int, ...]
  train_size: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  metadata: int = 0
  synthetic: bool = False
  multi_label: bool = False
  target: Literal["label", "source"] = "label"
  encoding: tuple[Encoding, ...] = dataclasses.field(default=(), hash=False)
  reading: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

  @classmethod
  def restored(cls, kept: Mapping[str, Any]) -> DataInfo:
    """What `dataclasses.asdict` and JSON made of one, which knows no tuples."""
    tuples = {name: tuple(value) for name, value in kept.items() if isinstance(value, list)}
    return cls(**{**kept, **tuples})


@flax.struct.dataclass
class Outputs:
  """What a network says about a batch, without randomness.

  Attributes:
    scores: [b, K] class probabilities, or None for a net without a classifier.
    embedding: [b, D] pooled features.
  """

  scores: jax.Array | None
  embedding: jax.Array


@dataclasses.dataclass(frozen=True)
class Predictions:
  """One row an image: the table that every metric is computed from.

  Attributes:
    ids: [n] path relative to the data root, or index as text.
    groups: [n] patient, lesion or source: what is never cut across parts.
    split: the part that was scored, one of `PARTS`, or the name of a further test set.
    labels: [n] int, index into `classes`; where an image may have several, [n, K] 0 or 1.
    scores: [n, K] float64 class probabilities.
    classes: K class names.
    metadata: name -> [n] text, what is known of each image's patient; blank where it is not known.
  """

  ids: np.ndarray
  groups: np.ndarray
  split: str
  labels: np.ndarray
  scores: np.ndarray
  classes: tuple[str, ...]
  metadata: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def multi_label(self) -> bool:
    """Whether an image may have several of the classes, or none."""
    return self.labels.ndim == 2

  @property
  def predicted(self) -> np.ndarray:
    """[n] int, the class with the highest score; the first one on a tie.

    Where an image may have several, [n, K] bool, those whose scores reach `THRESHOLD`.
    """
    if self.multi_label:
      return self.scores >= THRESHOLD
    return self.scores.argmax(axis=1)

  @property
  def members(self) -> np.ndarray:
    """[n, K] bool, which image is of which class."""
    return members(self.labels, len(self.classes))

  @property
  def assigned(self) -> np.ndarray:
    """[n, K] bool, which image was given which class."""
    return members(self.predicted, len(self.classes))

  def rows(self, which: np.ndarray) -> Predictions:
    """The rows of an index [m] int or a mask [n] bool, in that order."""
    return dataclasses.replace(
      self,
      ids=self.ids[which],
      groups=self.groups[which],
      labels=self.labels[which],
      scores=self.scores[which],
      metadata={name: column[which] for name, column in self.metadata.items()},
    )


def members(labels: np.ndarray, classes: int) -> np.ndarray:
  """[n, K] bool, which image is of which of K classes, by its index [n] or by ones [n, K]."""
  return labels > 0 if labels.ndim == 2 else labels[:, None] == np.arange(classes)
