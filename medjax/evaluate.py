"""Scoring a part of a data set: every image exactly once, on any number of devices.

The part is read in order in padded, masked batches; one row of scores an image comes back, and
every metric is computed from that table (`metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import csv
import functools
import itertools
import pathlib
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from medjax import contract
from medjax import mesh as mesh_lib
from medjax import views as views_lib
from medjax.objectives import base

_SPECS = (mesh_lib.REPLICATED, mesh_lib.cut(1))
_AHEAD = 2  # batches that may wait on the devices


def scorer(objective: base.Objective, mesh: Mesh) -> jax.stages.Wrapped:
  """A jitted function (state, ticket of k batches with their pixels) -> scores [k, B, K].

  Args:
    objective: whose `forward` gives the scores. mesh: to run on.
  """

  def score(state, batch):
    return objective.forward(state, batch).scores

  return _each_batch(score, mesh)


def embedder(objective: base.Objective, mesh: Mesh) -> jax.stages.Wrapped:
  """The same for embeddings [k, B, D]."""

  def embed(state, batch):
    return objective.forward(state, batch).embedding

  return _each_batch(embed, mesh)


def _each_batch(fn: Callable, mesh: Mesh) -> jax.stages.Wrapped:
  """Jits (state, tickets) -> what `fn` says of (state, batch), batch by batch, by `fn`'s name."""

  @functools.wraps(fn)
  def each(state, tickets):
    return lax.map(lambda batch: fn(state, batch), tickets)

  return mesh_lib.mapped(each, mesh, _SPECS, mesh_lib.cut(1))


def calibrator(objective: base.Objective, mesh: Mesh) -> jax.stages.Wrapped:
  """A jitted function (state, tickets) -> batch-norm statistics anew, for `state.stats`.

  The statistics become the mean over the tickets' k batches of each batch's own, with the weights
  as they are now, instead of an average over the weights of the past.
  """

  def calibrate(state, tickets):
    each = lax.map(lambda batch: objective.recalibrate(state, batch), tickets)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)

  return mesh_lib.mapped(calibrate, mesh, _SPECS, mesh_lib.REPLICATED)


def table(fn: Callable, state: base.TrainState, feed: Any) -> np.ndarray:
  """What `fn` says of every image of a part, a row [n, ...] an image in the part's order.

  Args:
    fn: from `scorer` or `embedder`, compiled or not. state: to look at. feed: of the part, in
      order, streamed.
  """
  feed.position = 0
  batches: list[jax.Array] = []  # [1, B', ...] each
  for step in range(len(feed)):
    batches.append(fn(state, feed.next(1)))
    if step >= _AHEAD:
      batches[step - _AHEAD].block_until_ready()
  return np.concatenate(
    [  # slots past a batch's own rows only fill up the devices
      batch[0, : len(feed.rows(step))] for step, batch in enumerate(mesh_lib.fetch(batches))
    ]
  )


def averaged(score: Callable, views: Sequence[views_lib.View]) -> Callable:
  """A scorer of each image's mean scores over several views of it.

  Args:
    score: from `scorer`, compiled or not. views: at least one, see `medjax.views`.
  """

  def mean(state: base.TrainState, ticket: views_lib.Ticket) -> jax.Array:
    return jnp.mean(jnp.stack([score(state, view(ticket)) for view in views]), axis=0)

  return mean


def predict(
  score: Callable, state: base.TrainState, feed: Any, part: Any, classes: tuple[str, ...]
) -> contract.Predictions:
  """Scores every image of a part once.

  Args:
    score: from `scorer`, compiled or not. state: to score. feed: of the part, in order, streamed.
    part: the table of the images: `name`, `ids`, `groups`, `labels`, `facts`. classes: names of
      the K columns.

  Returns:
    The table, in the part's order.
  """
  scores = table(score, state, feed)
  return contract.Predictions(
    ids=part.ids,
    groups=part.groups,
    split=part.name,
    labels=part.labels,
    scores=scores.astype(np.float64),
    classes=classes,
    metadata=part.facts,
  )


def write(path: pathlib.Path, table: contract.Predictions) -> None:
  """Writes the table as CSV, a row an image: id, group, split, label, predicted, score_<class>.

  Where an image may have several classes, the columns are `labels` and `predicted`, each with the
  names of all, `contract.BETWEEN` between them. What is known of the patient follows, meta_<name>.
  """
  columns = [*_HEADS[table.multi_label], *(f"{_SCORE}{name}" for name in table.classes)]
  columns += [f"{_META}{name}" for name in table.metadata]
  partial = path.with_suffix(".partial")
  with partial.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in zip(
      table.ids,
      table.groups,
      _names(table.labels, table.classes),
      _names(table.predicted, table.classes),
      table.scores,
      *table.metadata.values(),
      strict=True,
    ):
      identity, group, label, predicted, scores, *known = row
      shown = map(repr, scores.tolist())
      writer.writerow([identity, group, table.split, label, predicted, *shown, *known])
  partial.replace(path)


def read(path: pathlib.Path) -> contract.Predictions:
  """Reads a table that `write` wrote.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no such table, or one without a row.
  """
  with path.open(newline="", encoding="utf-8") as file:
    header, *rows = list(csv.reader(file)) or [[]]
  if header[:5] not in _HEADS or not rows:
    raise ValueError(
      f"{path} is no table of predictions: it needs the columns {', '.join(_HEADS[0])} and"
      f" {_SCORE}<class>, and a row at least"
    )
  columns = list(zip(*rows, strict=True))
  scores, known = (_marked(header, columns, mark) for mark in (_SCORE, _META))
  classes = tuple(scores)
  labels = _several if header[3] == _COLUMNS[True] else _single
  return contract.Predictions(
    ids=np.asarray(columns[0]),
    groups=np.asarray(columns[1]),
    split=columns[2][0],
    labels=labels(columns[3], classes),
    scores=np.asarray(list(scores.values()), np.float64).T,
    classes=classes,
    metadata={name: np.asarray(column) for name, column in known.items()},
  )


_COLUMNS = {False: "label", True: "labels"}  # by whether an image may have several
_HEADS = [["id", "group", "split", label, "predicted"] for label in _COLUMNS.values()]
_SCORE, _META = "score_", "meta_"  # what columns of scores and of metadata begin with


def _marked(header: Sequence[str], columns: Sequence, mark: str) -> dict[str, Sequence[str]]:
  """The columns whose names begin with a mark, by what follows it."""
  pairs = zip(header, columns, strict=True)
  return {name.removeprefix(mark): cells for name, cells in pairs if name.startswith(mark)}


def _names(labels: np.ndarray, classes: tuple[str, ...]) -> np.ndarray:
  """[n] the class of each image, or the classes."""
  if labels.ndim == 1:
    return np.asarray(classes)[labels]
  return np.array([contract.BETWEEN.join(itertools.compress(classes, row)) for row in labels])


def _single(names: Sequence[str], classes: tuple[str, ...]) -> np.ndarray:
  """[n] int32 of `_names`."""
  return np.asarray([classes.index(name) for name in names], np.int32)


def _several(names: Sequence[str], classes: tuple[str, ...]) -> np.ndarray:
  """[n, K] float32 of `_names`."""
  held = [set(name.split(contract.BETWEEN)) for name in names]
  return np.array([[name in each for name in classes] for each in held], np.float32)
