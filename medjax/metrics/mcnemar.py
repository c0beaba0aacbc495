"""McNemar's test of two classifiers on the same images (McNemar 1947), in its exact form."""

from __future__ import annotations

from typing import NamedTuple

from medjax import contract, metrics


class Discordant(NamedTuple):
  """Images that only one of two tables has right, and the two-sided p-value of their numbers."""

  only_first: int
  only_second: int
  p: float


def exact(a: contract.Predictions, b: contract.Predictions) -> Discordant:
  """Whether two tables are right equally often; takes images as independent.

  An image of several classes is right where all of them are.

  Raises:
    ValueError: the tables differ in images, labels, groups or classes.
  """
  from scipy import stats

  first, second = ((t.assigned == t.members).all(axis=1) for t in metrics.aligned([a, b]))
  only = int((first & ~second).sum()), int((second & ~first).sum())
  p = stats.binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
  return Discordant(*only, float(p))
