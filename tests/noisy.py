"""Tables of predictions of a noisy classifier."""

import dataclasses

import numpy as np

from medjax import contract


def table(n=60, k=3, groups=15, seed=0, decimals=1, classes=None) -> contract.Predictions:
  """A noisy classifier whose rounded scores tie often."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(k, size=n)
  z = rng.normal(size=(n, k)) + np.eye(k)[labels]
  scores = np.round(np.exp(z) / np.exp(z).sum(1, keepdims=True), decimals)
  return contract.Predictions(
    ids=np.array([f"image{i}" for i in range(n)]),
    groups=rng.integers(groups, size=n).astype(str),
    split="test",
    labels=labels,
    scores=scores,
    classes=classes or tuple(f"class{i}" for i in range(k)),
  )


def rows(found: contract.Predictions, which: np.ndarray) -> contract.Predictions:
  """Some rows of a table, or some of them again."""
  columns = {f: getattr(found, f)[which] for f in ("ids", "groups", "labels", "scores")}
  return dataclasses.replace(found, **columns)
