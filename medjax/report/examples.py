"""Which images of a scored part are shown, and what is said of each."""

from __future__ import annotations

import numpy as np

from medjax import contract


def pick(table: contract.Predictions, each: int = 8) -> np.ndarray:
  """Rows of up to `each` mistakes, worst first, then of as many right ones, surest first."""
  denied = 1 - table.scores if table.multi_label else np.inf  # of a class that is not there
  of_truth = np.where(table.members, table.scores, denied).min(axis=1)
  order = np.argsort(of_truth, kind="stable")
  mistaken = wrong(table)[order]
  return np.concatenate([order[mistaken][:each], order[~mistaken][::-1][:each]])


def wrong(table: contract.Predictions) -> np.ndarray:
  """[n] bool, which images were given other classes than they have."""
  return (table.assigned != table.members).any(axis=1)


def truth(table: contract.Predictions, row: int) -> list[str]:
  """The classes that an image has."""
  return [table.classes[c] for c in np.flatnonzero(table.members[row])]


def guess(table: contract.Predictions, row: int) -> dict[str, float]:
  """The classes that an image was given, with their scores."""
  given = np.flatnonzero(table.assigned[row])
  return {table.classes[c]: float(table.scores[row, c]) for c in given}


def caption(table: contract.Predictions, row: int) -> list[str]:
  """The lines below an image."""
  guessed = [f"{name} {score:.2f}" for name, score in guess(table, row).items()]
  return [
    f"truth {', '.join(truth(table, row)) or 'none'}",
    f"predicted {', '.join(guessed) or 'none'}",
  ]
