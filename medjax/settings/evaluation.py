"""Settings of evaluation: what is scored, by which numbers, and from which score on."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib
import re
from typing import Literal

from medjax import contract
from medjax.settings.durations import Duration
from medjax.settings.images import Collection, Data, ImageFolder, Npz, Table, ZipFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Threshold:
  """A score from which on an image is given a class; the criterion is the variant's name.

  `youden` is where sensitivity + specificity is highest (Youden 1950).

  Attributes:
    positive: the class; empty for the second of two classes, and of more for each in turn.
    part: that it is chosen on, val or the name of one of `eval.tests`; it is never scored there.
  """

  name: str = "youden"
  positive: str = ""
  part: str = "val"

  def __post_init__(self):
    if self.part == "test":
      raise ValueError(
        f"a threshold that is chosen on the test part ({self.name}, part=test) cannot be scored"
        " there: choose it on val (part=val), or on one of eval.tests by its name"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AtLeast(Threshold):
  """`sensitivity`, `specificity` or `ppv` is at least so much, and what is paid for it least.

  For `sensitivity` that is the highest specificity, for the two others the highest sensitivity.
  """

  name: str = "sensitivity"
  at_least: float = 0.95

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.at_least <= 1:
      raise ValueError(
        f"a threshold of {self.name} with at_least={self.at_least}: choose a share above 0, at"
        " most 1"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost(Threshold):
  """`cost` is where mistakes cost least, at the prevalence of the part that it is chosen on.

  Attributes:
    costs: of an image, by truth (rows: not of the class, of it) and by what it is given (columns,
      in the same order).
  """

  name: str = "cost"
  costs: tuple[tuple[float, float], tuple[float, float]] = ((0.0, 1.0), (1.0, 0.0))

  def __post_init__(self):
    super().__post_init__()
    (rejected, alarm), (missed, found) = self.costs
    if not (rejected < alarm < float("inf") and found < missed < float("inf")):
      raise ValueError(
        f"a threshold of cost with costs={self.costs}: a mistake must cost more than what is right,"
        " such as ((0, 1), (5, 0)) where a missed image costs five times a false alarm"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
  """Evaluation.

  Attributes:
    every: how often the val part is scored, and the monitors are. batch_size: of evaluation.
    select: metric of the val part that chooses the best checkpoint, see `metrics.names`.
    recalibrate: training images over which batch-norm statistics are estimated anew before
      evaluation; 0 keeps the running ones.
    bootstrap: resamples behind the intervals.
    prevalence: share of all images that each class has where the classifier is to be used, for PPV
      and NPV there; in the order of the classes, adding up to 1 unless an image may have several.
    monitors: labelled sets that tell on the way what the embeddings are worth: nearest neighbours
      and a linear probe, learnt from the train part of each and scored on its val part. They take
      `image_size`, `channels`, `cache` and `reading` of the stage's data.
    tests: further labelled sets of the same classes that the best checkpoint scores, each in
      `predictions_<name>.csv`: the test part of the set's own split, or all of a set that has none.
      They take what monitors take.
    temperature: whether a temperature is fitted on the val part (Guo et al. 2017), by which the
      logits are divided before they become the scores in `predictions_*.csv`.
    thresholds: scores from which on images are given a class: by `medjax.predict`, of several for
      one class the first, and in the report. No score changes, nor `predicted` in predictions.
    augment: test-time augmentation: so many views of each image, drawn by the stage's `augment`,
      whose scores are averaged with the image's own. 0 scores the image alone, as validation does.
    pool: how the report pools the scores of one group's images for metrics of groups: `mean`, `max`
      or `noisy_or`, see `medjax.metrics.pooling`; empty for none.
    pool_by: column of metadata that tells which images are pooled; empty for the groups.
    subgroups: columns of metadata, for each value of which the report has metrics, see
      `medjax.metrics.subgroups`.
    maps: how the report shows where the network looked, see `medjax.saliency`; empty for no maps.
    probes: what the test images lose before they are scored again, to find out what the network
      goes by, see `medjax.probing`.
  """

  every: Duration = Duration(1, "epochs")
  batch_size: int = 64
  select: str = "macro_f1"
  recalibrate: int = 0
  bootstrap: int = 10_000
  prevalence: tuple[float, ...] = ()
  monitors: tuple[Data, ...] = ()
  tests: tuple[Data, ...] = ()
  temperature: bool = False
  thresholds: tuple[Threshold, ...] = ()
  augment: int = 0
  pool: Literal["", "mean", "max", "noisy_or"] = ""
  pool_by: str = ""
  subgroups: tuple[str, ...] = ()
  maps: Literal[
    "", "gradcam", "gradcam++", "attention", "integrated_gradients", "smoothgrad", "occlusion"
  ] = "gradcam"
  probes: tuple[Literal["borders", "centre", "shuffled", "metadata"], ...] = ()

  def __post_init__(self):
    if self.augment < 0:
      raise ValueError(f"eval.augment={self.augment}: choose a number of views, or 0 for none")
    if self.pool_by and not self.pool:
      raise ValueError(f"eval.pool_by={self.pool_by} says what is pooled, not how: set eval.pool")


def named(sets: Sequence[Data]) -> tuple[str, ...]:
  """What further sets are called in files and tables: by kind, or a user's own by file or folder.

  A name that an earlier one has gets a number: `hospital`, `hospital-2`.
  """
  found: list[str] = []
  for cfg in sets:
    name = re.sub(r"[^\w-]+", "_", _title(cfg))
    taken = sum(each.rpartition("-")[0] == name or each == name for each in found)
    found.append(f"{name}-{taken + 1}" if taken else name)
  return tuple(found)


def _title(cfg: Data) -> str:
  if not isinstance(cfg, ImageFolder | Table | Npz | ZipFolder | Collection):
    return getattr(cfg, "set", "") or cfg.name
  place = pathlib.PurePath(cfg.root)
  in_words = (place.stem, f"{place.parent.name}_{place.stem}")
  return in_words[place.stem in contract.PARTS] or cfg.name
