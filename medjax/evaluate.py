"""Scoring a part of a data set: every image exactly once, on any number of devices.

The part is read in order in padded, masked batches; one row of scores an image comes back, and
every metric is computed from that table (`metrics`).
"""

from __future__ import annotations

from collections.abc import Callable
import csv
import pathlib
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from medjax import contract
from medjax import mesh as mesh_lib
from medjax.objectives import base

Scorer = Callable[[base.TrainState, Any, Any], jax.Array]
_SPECS = (mesh_lib.REPLICATED, mesh_lib.REPLICATED, mesh_lib.cut(1))


def scorer(objective: base.Objective, take: Callable, mesh: Mesh) -> Scorer:
  """A compiled function (state, resident, ticket of k batches) -> scores [k, B, K].

  Args:
    objective: whose `forward` gives the scores.
    take: of the feed that the tickets come from.
    mesh: to run on.
  """

  def score(state, resident, tickets):
    def one(ticket):
      return objective.forward(state, take(resident, ticket)).scores

    return lax.map(one, tickets)

  return mesh_lib.mapped(score, mesh, _SPECS, mesh_lib.cut(1))


def calibrator(objective: base.Objective, take: Callable, mesh: Mesh) -> Callable:
  """A compiled function (state, resident, tickets) -> state with batch-norm statistics anew.

  The statistics become the mean over the tickets' k batches of each batch's own, with the weights
  as they are now, instead of an average over the weights of the past.
  """

  def calibrate(state, resident, tickets):
    def one(ticket):
      return objective.recalibrate(state, take(resident, ticket))

    stats = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), lax.map(one, tickets))
    return state.replace(stats=stats)

  return mesh_lib.mapped(calibrate, mesh, _SPECS, mesh_lib.REPLICATED)


def predict(
  score: Scorer, state: base.TrainState, feed: Any, part: Any, classes: tuple[str, ...]
) -> contract.Predictions:
  """Scores every image of a part once.

  Args:
    score: from `scorer`. state: to score. feed: of the part, in order. classes: names of the K
      columns. part: the table of the images: `name`, `ids`, `groups`, `labels`.

  Returns:
    The table, in the part's order.
  """
  feed.position = 0
  rows = [score(state, feed.resident, feed.next(1)) for _ in range(len(feed))]
  scores = [  # [1, B', K] a batch; slots past its own rows only fill up the devices
    batch[0, : len(feed.rows(step))] for step, batch in enumerate(jax.device_get(rows))
  ]
  return contract.Predictions(
    ids=part.ids,
    groups=part.groups,
    split=part.name,
    labels=part.labels,
    scores=np.concatenate(scores).astype(np.float64),
    classes=classes,
  )


def write(path: pathlib.Path, table: contract.Predictions) -> None:
  """Writes the table as CSV, a row an image: id, group, split, label, predicted, score_<class>."""
  names = np.asarray(table.classes)
  columns = ["id", "group", "split", "label", "predicted", *(f"score_{c}" for c in table.classes)]
  partial = path.with_suffix(".partial")
  with partial.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in zip(
      table.ids,
      table.groups,
      names[table.labels],
      names[table.predicted],
      table.scores,
      strict=True,
    ):
      identity, group, label, predicted, scores = row
      writer.writerow([identity, group, table.split, label, predicted, *map(repr, scores.tolist())])
  partial.replace(path)


def read(path: pathlib.Path) -> contract.Predictions:
  """Reads a table that `write` wrote."""
  with path.open(newline="", encoding="utf-8") as file:
    header, *rows = csv.reader(file)
  classes = tuple(name.removeprefix("score_") for name in header[5:])
  columns = list(zip(*rows, strict=True))
  return contract.Predictions(
    ids=np.asarray(columns[0]),
    groups=np.asarray(columns[1]),
    split=columns[2][0],
    labels=np.asarray([classes.index(label) for label in columns[3]], np.int32),
    scores=np.asarray(columns[5:], np.float64).T,
    classes=classes,
  )
