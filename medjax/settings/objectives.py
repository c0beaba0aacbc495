"""Settings of objectives: what a training step minimises."""

from __future__ import annotations

import dataclasses
from typing import Literal

from medjax.settings.learning import Loss, SoftmaxCE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """What a training step minimises."""

  name: str


# Schemes of class weights, see `imbalance.class_weights`; the first go by the images of each class.
BY_COUNTS = ("balanced", "inv_norm", "class_balanced")
WEIGHTS = ("none", *BY_COUNTS, "mel5")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Supervised(Objective):
  """Labels, a loss and class weights computed from the training part.

  Attributes:
    class_weights: a scheme of `imbalance.class_weights`, or weights of single classes, such as
      `mel=5,bcc=2`, beside the 1 of all others. Schemes that go by the images of each class fit
      neither images of several classes nor a sampling by class.
    defer_weights: share of the training before they apply (deferred re-weighting, Cao et al. 2019,
      section 3.3, with 0.8).
    auxiliary: factor of the losses of a head's parts, such as the scales of `darknet53_fpn`.
    mixup, cutmix: images are mixed with a neighbour in the batch, and their labels with them: alpha
      of the Beta distribution of the shares, see `mixing.make`; 0 is off.
  """

  name: str = "supervised"
  loss: Loss = SoftmaxCE()
  class_weights: str = "balanced"
  defer_weights: float = 0.0
  auxiliary: float = 0.3
  mixup: float = 0.0
  cutmix: float = 0.0

  def __post_init__(self):
    if self.class_weights not in WEIGHTS and "=" not in self.class_weights:
      raise ValueError(
        f"objective.class_weights={self.class_weights!r}: choose one of {', '.join(WEIGHTS)}, or "
        "weights of single classes such as mel=5,bcc=2"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimCLR(Objective):
  """Two views of each image against all others (SimCLR, Chen et al. 2020).

  Attributes:
    temperature: of NT-Xent. projector: widths of its hidden and output layers.
  """

  name: str = "simclr"
  temperature: float = 0.1
  projector: tuple[int, int] = (512, 128)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MICLe(SimCLR):
  """SimCLR whose positives are two images of one patient, lesion or study (Azizi et al. 2021).

  The images of a batch are drawn in such pairs. Where a group has one image, its pair is that image
  twice, seen as SimCLR sees it.
  """

  name: str = "micle"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BYOL(Objective):
  """One view must tell what a moving average of the network says of another (Grill et al. 2020).

  Attributes:
    projector, predictor: widths of their hidden and output layers; () leaves the predictor out,
      without which embeddings collapse.
    decay: of the moving average at the first step; it grows to 1 by a half cosine.
  """

  name: str = "byol"
  projector: tuple[int, int] = (1024, 256)
  predictor: tuple[int, ...] = (1024, 256)
  decay: float = 0.996

  def __post_init__(self):
    if self.predictor and (len(self.predictor) != 2 or self.predictor[1] != self.projector[1]):
      raise ValueError(
        f"objective.predictor={self.predictor}: write (hidden, {self.projector[1]}), as wide as "
        "what the projector puts out, or () for none"
      )
    if not 0 <= self.decay < 1:
      raise ValueError(f"objective.decay={self.decay}: choose 0 or more, and less than 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation(Objective):
  """Which of four quarter turns was an image given (Gidaris et al. 2018)?"""

  name: str = "rotation"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceLabel(Supervised):
  """Which source is an image from? The labels are those of `data.target="source"`."""

  name: str = "source_label"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classical(Objective):
  """No network: features by formula, and a classifier of scikit-learn; the floor of a comparison.

  Attributes:
    features: any of `hog`, `glcm` and `lbp`, see `medjax.classical`.
    classifier: a support vector machine with a Gaussian kernel, or a forest.
    class_weights: whether classes count alike in sum.
    trees: of the forest.
  """

  name: str = "classical"
  features: tuple[str, ...] = ("hog", "glcm", "lbp")
  classifier: Literal["svm", "random_forest"] = "svm"
  class_weights: Literal["none", "balanced"] = "balanced"
  trees: int = 500
