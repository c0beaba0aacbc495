"""PPV and NPV where classes are more or less frequent than in the table that was scored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medjax import contract, metrics
from medjax.metrics import rates, tables


def check(shares: Sequence[float], classes: int, multi_label: bool) -> None:
  """Raises ValueError where these are no prevalences of so many classes."""
  fits = len(shares) == classes and all(0 <= share <= 1 for share in shares)
  if not fits or not (multi_label or abs(sum(shares) - 1) < 1e-6):
    total = "" if multi_label else ", which add up to 1"
    raise ValueError(
      f"eval.prevalence={tuple(shares)} of {classes} classes: give each one a share of all images,"
      f" from 0 to 1{total}"
    )


def intervals(
  predictions: contract.Predictions, shares: Sequence[float], resamples: int, seed: int
) -> dict[str, tuple[metrics.Interval, ...]]:
  """`ppv` and `npv` of every class against the others, as `metrics.by_class` has them.

  What the images of each class are taken for stays as it is in the table.

  Args:
    predictions: the table, of whatever prevalence. shares: K, of all images: they add up to 1,
      unless an image may have several classes.
    resamples, seed: of the bootstrap.

  Raises:
    ValueError: shares that are none.
  """
  check(shares, len(predictions.classes), predictions.multi_label)
  wanted = np.asarray(shares, float)
  if predictions.multi_label:
    wanted = np.stack([1 - wanted, wanted], axis=-1)

  def elsewhere(rating: tables.Rating) -> metrics.Metric:
    return lambda view: view.of_classes(lambda m: rating(rates.at_prevalence(m, wanted)))

  chosen = {name: elsewhere(rates.PER_CLASS[name]) for name in ("ppv", "npv")}
  return metrics.of_classes(predictions, chosen, resamples, seed)
