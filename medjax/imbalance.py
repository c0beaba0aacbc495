"""Class weights and margins for rare classes, from the counts of images.

NumPy, once, before training; `losses` takes the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math

import numpy as np

from medjax import settings


def _refuse_empty(counts: Sequence[int] | np.ndarray, so: str, kind: str = "image") -> None:
  empty = np.flatnonzero(np.asarray(counts) <= 0)
  if empty.size:
    raise ValueError(f"class {empty[0]} has no {kind} in the training part, so {so}")


def _balanced(counts: np.ndarray) -> np.ndarray:
  return counts.sum() / (len(counts) * counts)


def _inverse_normalised(counts: np.ndarray) -> np.ndarray:
  return (1 / counts) / (1 / counts).sum()


def _class_balanced(counts: np.ndarray) -> np.ndarray:
  beta = 0.9999 if counts.max() >= 5000 else 0.999
  # expm1, since 1 - beta^n cancels for a few images; 1 - beta itself falls out of the rescaling.
  inverse = -1 / np.expm1(counts * np.log(beta))
  return inverse * len(counts) / inverse.sum()


# The keys are `settings.BY_COUNTS`.
_BY_COUNTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "balanced": _balanced,
  "inv_norm": _inverse_normalised,
  "class_balanced": _class_balanced,
}
# What Nguyen et al. 2022 set beside their augmented images: melanoma's weight in HAM10000.
_NAMED = {"mel5": "mel=5"}


def class_weights(scheme: str, counts: Sequence[int], classes: Sequence[str] = ()) -> np.ndarray:
  """Class weights, most of them from the number of images of each class in the training part.

  Args:
    scheme: `none` (1), `balanced` (N / (K n_k)), `inv_norm` ((1 / n_k) / sum_j 1 / n_j),
      `class_balanced`, (1 - beta) / (1 - beta^n_k) rescaled to the sum K: the inverse effective
      number of images (Cui et al. 2019, proposition 1), with a beta of 0.9999, or 0.999 if no class
      has 5,000 images; or weights of named classes, `mel=5,bcc=2`, all others 1, of which `mel5` is
      the one that Nguyen et al. 2022 used.
    counts: n_k.
    classes: names of the K classes, for weights by name.

  Returns:
    [K] float64.

  Raises:
    KeyError: for an unknown scheme or class.
    ValueError: for a class without images, whose weight would be infinite, and for a named weight
      that is no number above 0.
  """
  scheme = _NAMED.get(scheme, scheme)
  if scheme == "none":
    return np.ones(len(counts))
  if "=" in scheme:
    return _given(scheme, classes)
  if scheme not in _BY_COUNTS:
    known = ", ".join(settings.WEIGHTS)
    raise KeyError(f"unknown class weights {scheme!r}: choose one of {known}, or name=weight")
  cure = "give it images, drop the class, or set objective.class_weights=none"
  _refuse_empty(counts, f"{scheme!r} weights do not exist: {cure}")
  return _BY_COUNTS[scheme](np.asarray(counts, np.float64))


def _given(pairs: str, classes: Sequence[str]) -> np.ndarray:
  """[K] of `name=weight,...`, 1 where a class is not named."""
  weights = np.ones(len(classes))
  for pair in pairs.split(","):
    name, _, weight = (part.strip() for part in pair.rpartition("="))
    if name not in classes:
      raise KeyError(
        f"objective.class_weights weighs {name!r}, which is no class of these data: they have "
        f"{', '.join(classes)}"
      )
    weights[classes.index(name)] = _positive(pair, weight)
  return weights


def _positive(pair: str, weight: str) -> float:
  try:
    value = float(weight)
  except ValueError:
    value = 0.0
  if not 0 < value < math.inf:
    raise ValueError(f"objective.class_weights: {pair.strip()!r} is no name=weight above 0")
  return value


def balanced_bce_weights(counts: Sequence[int], total: int) -> tuple[np.ndarray, np.ndarray]:
  """Weights of presence and absence that give both the same sum over the training part.

  Presence weighs n_neg / (n_pos + n_neg), absence n_pos / (n_pos + n_neg) (CheXNet, Rajpurkar et
  al. 2017, section 2.1).

  Args:
    counts: n_pos, images that have each class.
    total: n_pos + n_neg, all images of the training part.

  Returns:
    [K] float64 each: `positive` and `negative` of `losses.sigmoid_bce`.

  Raises:
    ValueError: for a class that no image or every image has.
  """
  positive = np.asarray(counts, np.float64)
  negative = total - positive
  so = "its balanced weights are 0 and 1 and teach nothing: give it some, or drop the class"
  _refuse_empty(positive, so, "positive image")
  _refuse_empty(negative, so, "negative image")
  return negative / total, positive / total


def ldam_margins(counts: Sequence[int], largest: float = 0.5) -> np.ndarray:
  """Margins of `losses.ldam`: C n_k^(-1/4), with C such that the rarest class has `largest`.

  Args:
    counts: n_k, images of each class in the training part.
    largest: in units of a cosine.

  Returns:
    [K] float64.

  Raises:
    ValueError: for a class without images, whose margin would be infinite.
  """
  _refuse_empty(counts, "its LDAM margin does not exist: give it images, or drop the class")
  known = np.asarray(counts, np.float64)
  return largest * (known.min() / known) ** 0.25
