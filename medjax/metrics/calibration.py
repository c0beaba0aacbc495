"""Temperature scaling: scores that say how often they are right (Guo et al. 2017)."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import Any

import numpy as np

from medjax import contract, metrics

FITTED = "val"  # the part that a run fits a temperature on
SHOWN = ("log_loss", "brier", "ece")  # what a temperature is to make better
_RANGE = (0.05, 20.0)  # of temperatures
_LEAST = float(np.finfo(np.float32).tiny)  # stand for the 0 and 1 of a network in float32
_MOST = 1 - float(np.finfo(np.float32).epsneg)


@dataclasses.dataclass(frozen=True)
class Temperature:
  """By what logits are divided before they become scores.

  Attributes:
    value: above 1 makes scores less sure. part: that it was fitted on.

  Raises:
    ValueError: a value that is none, or a part that is for testing.
  """

  value: float
  part: str

  def __post_init__(self):
    if not (math.isfinite(self.value) and self.value > 0):
      raise ValueError(f"a temperature is a number above 0, not {self.value!r}")
    if self.part == "test":
      raise ValueError(
        "a temperature that is fitted on the test part makes the scores there look better than they"
        f" are: fit it on the {FITTED} part"
      )

  @property
  def note(self) -> str:
    """A sentence where none fits better the farther it goes, "" else."""
    if self.value not in _RANGE:
      return ""
    what = "are all right" if self.value == _RANGE[0] else "tell next to nothing"
    return f"It met its bound: the scores of the {self.part} part {what}."

  def __call__(self, table: contract.Predictions) -> contract.Predictions:
    """The table with the scores that a network gave, tempered."""
    scores = tempered(table.scores, self.value, table.multi_label)
    return dataclasses.replace(table, scores=scores)

  def undone(self, table: contract.Predictions) -> contract.Predictions:
    """The table as it was before it was tempered, to compare the two.

    Raises:
      ValueError: the temperature was fitted on this part, so that it would look better than it is.
    """
    if table.split == self.part:
      raise ValueError(
        f"the temperature {self.value:.4g} was fitted on the part {self.part!r}, and calibration"
        " would look better there than it is: score another part"
      )
    scores = tempered(table.scores, 1 / self.value, table.multi_label)
    return dataclasses.replace(table, scores=scores)


def tempered(scores: Any, value: float, multi_label: bool = False, xp: ModuleType = np) -> Any:
  """Scores as they are after their logits are divided by a temperature.

  Of one class an image, softmax(log p / T), as logits and log p differ by a constant; of several,
  each score's own sigmoid(logit(p) / T).

  Args:
    scores: [..., K] in [0, 1]. value: T. multi_label: whether an image may have several classes.
    xp: numpy, or jax.numpy in a program.
  """
  divided = logits(scores, multi_label, xp) / value
  if multi_label:
    return 1 / (1 + xp.exp(-divided))
  raised = xp.exp(divided - divided.max(axis=-1, keepdims=True))
  return raised / raised.sum(axis=-1, keepdims=True)


def logits(scores: Any, multi_label: bool, xp: ModuleType = np) -> Any:
  """[..., K] logits that give such scores, up to a constant of each image of one class.

  Args:
    scores, multi_label, xp: see `tempered`. Scores that float32 cannot hold to all its digits
      count as the least that it can.
  """
  p = xp.maximum(scores, _LEAST)
  if not multi_label:
    return xp.log(p)
  p = xp.where(p >= 1, _MOST, p)
  return xp.log(p) - xp.log1p(-p)


def fit(table: contract.Predictions) -> Temperature:
  """The temperature with the least log loss on a table of scores as the network gives them.

  The loss is convex in 1 / T, so its slope, the mean over images of how far the expected logit is
  above that of the truth, has one root. Where none lies between 1/20 and 20 the nearer bound is
  taken: such scores are all right, or tell nothing.

  Raises:
    ValueError: the table is of the test part, or cannot be scored.
  """
  from scipy import optimize  # only here: most runs need no root

  lowest, highest = (1 / t for t in reversed(_RANGE))
  metrics.check(table)
  found, members = logits(np.asarray(table.scores, float), table.multi_label), table.members

  def slope(inverse: float) -> float:
    expected = tempered(table.scores, 1 / inverse, table.multi_label)
    return float(((expected - members) * found).sum(axis=1).mean())

  if slope(lowest) >= 0:
    return Temperature(_RANGE[1], table.split)
  if slope(highest) <= 0:
    return Temperature(_RANGE[0], table.split)
  return Temperature(1 / optimize.brentq(slope, lowest, highest, xtol=1e-12), table.split)
