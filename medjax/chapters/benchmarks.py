"""Published figures of public sets, each with the protocol that it was made by and its trap.

A figure stands beside ours where it is of the same set. It may be compared only where the parts of
the set, the images' size and the number of test images are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from medjax import metrics, settings


@dataclasses.dataclass(frozen=True)
class Card:
  """A published result.

  Attributes:
    source: whose network, and where it is told of.
    data: the set, as `settings.Data.name` has it; chosen: settings of it that must be as here.
    figures: metric, by its name in `metrics.names` -> value.
    mode: how images were dealt, as `settings.Split.mode` has it.
    size: side of the images in pixels; 0 where it is not told.
    tested: images of the test part; 0 where it is not told.
    trap: what a reader must know of it.
  """

  source: str
  data: str
  figures: Mapping[str, float]
  mode: str = "official"
  size: int = 0
  tested: int = 0
  trap: str = ""
  chosen: Mapping[str, object] = dataclasses.field(default_factory=dict)

  def half_width(self, metric: str) -> float | None:
    """Half of the 95% interval that an accuracy has by its test images alone (Wald); else None."""
    if metric != "accuracy" or not self.tested:
      return None
    share = self.figures[metric]
    return 1.96 * math.sqrt(share * (1 - share) / self.tested)


_MEDMNIST = "Yang et al. 2023, MedMNIST v2"
_PNEUMONIA: dict[str, Any] = dict(
  data="medmnist", size=28, tested=624, chosen={"set": "pneumoniamnist"}
)
_BREAST: dict[str, Any] = dict(data="medmnist", size=28, tested=156, chosen={"set": "breastmnist"})
_COVID: dict[str, Any] = dict(data="covid_ct", tested=203)
_APART = "By 203 test images, accuracies of .86 and .89 cannot be told apart."

CARDS: tuple[Card, ...] = (
  Card(
    f"ResNet-18 ({_MEDMNIST})",
    figures={"auc": 0.944, "accuracy": 0.854},
    trap="Mean of 3 runs: 100 epochs of Adam without augmentation, the best validation AUC each.",
    **_PNEUMONIA,
  ),
  Card(
    f"Google AutoML Vision ({_MEDMNIST})",
    figures={"auc": 0.991, "accuracy": 0.946},
    trap="The best that is published of this set.",
    **_PNEUMONIA,
  ),
  Card(
    f"ResNet-18 ({_MEDMNIST})",
    figures={"auc": 0.901, "accuracy": 0.863},
    trap="156 test images.",
    **_BREAST,
  ),
  Card(
    "DenseNet-169 (Zhao et al. 2020, COVID-CT-Dataset)",
    figures={"accuracy": 0.86, "auc": 0.94},
    trap=_APART,
    **_COVID,
  ),
  Card(
    "multi-task (Zhao et al. 2020, COVID-CT-Dataset)",
    figures={"accuracy": 0.89, "auc": 0.98},
    trap=_APART,
    **_COVID,
  ),
  Card(
    "Inception-ResNet-V2 with soft attention and metadata (Nguyen et al. 2022)",
    "ham10000",
    {"accuracy": 0.90},
    mode="image_random",
    size=299,
    tested=996,
    trap="Photographs of one lesion lie in both parts, and what is scored chose the checkpoint.",
  ),
  Card(
    "Inception-ResNet-V2 with soft attention (Datta et al. 2021)",
    "ham10000",
    {"accuracy": 0.934},
    mode="image_random",
    tested=828,
    trap="Others who repeated it found .916 without and .918 with soft attention.",
  ),
  Card(
    "ResNet-18 from scratch on the official test of ISIC 2018, task 3",
    "ham10000",
    {"auc": 0.896, "accuracy": 0.685},
    size=224,
    tested=1512,
    chosen={"official_test": True},
    trap="No lesion lies in two parts. The best with public data: balanced accuracy about .856.",
  ),
)


def of(data: settings.Data) -> list[Card]:
  """The cards of a set; none where its own labels are not what is learnt."""
  if data.target != "label":
    return []
  return [card for card in CARDS if card.data == data.name and _same_set(card, data)]


def _same_set(card: Card, data: settings.Data) -> bool:
  """Whether the setting agrees that names one set of several; others are a matter of protocol."""
  return card.chosen.get("set") == getattr(data, "set", None)


def differences(card: Card, data: settings.Data, tested: int) -> list[str]:
  """Why a figure cannot be compared with ours, a reason each; none where it can be.

  Args:
    card: the published figure. data: our set's settings. tested: how many test images we have.
  """
  reasons = []
  if data.split.mode != card.mode:
    reasons.append(f"dealt {card.mode} there, {data.split.mode} here")
  for key, value in card.chosen.items():
    if getattr(data, key) != value:
      reasons.append(f"{key}={value} there, {getattr(data, key)} here")
  if data.split.folds and data.split.folded == "test":
    reasons.append(f"one test part there, one of {data.split.folds} folds here")
  if card.size and data.image_size != card.size:
    reasons.append(f"{card.size} pixels there, {data.image_size} here")
  if card.tested and tested != card.tested:
    reasons.append(f"{card.tested:,} test images there, {tested:,} here")
  if data.split.fraction < 1:
    reasons.append(f"all of train there, {data.split.fraction:g} of it here")
  return reasons


def verdict(card: Card, metric: str, ours: metrics.Interval) -> str:
  """How ours compares with a figure that it may be compared with, in words.

  Both are taken as independent: their half widths add up as squares do.
  """
  apart = ours.value - card.figures[metric]
  width = math.hypot((ours.high - ours.low) / 2, card.half_width(metric) or 0.0)
  found = "ours is higher" if apart > 0 else "ours is lower"
  found = "cannot be told apart" if abs(apart) <= width else found
  return found if card.size else f"{found}; of which size its images were is not told"
