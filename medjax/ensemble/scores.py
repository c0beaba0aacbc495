"""Several tables of predictions as one."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np

from medjax import contract


def together(tables: Sequence[contract.Predictions]) -> contract.Predictions:
  """One table of several: each image with the mean of its scores in those that hold it.

  Args:
    tables: of one part and the same classes; images that several hold are alike in all of them.

  Returns:
    The images in the order in which they first appear, with the metadata that all tables have.

  Raises:
    ValueError: classes, parts, labels or groups differ, or some images are in more tables than
      others, so that their scores would be means over another number of networks.
  """
  for table in tables:
    _check_kind(tables[0], table)
  whole = _stacked(tables)
  ids, at, of, count = np.unique(
    whole.ids, return_index=True, return_inverse=True, return_counts=True
  )
  _check_counts(ids, count)
  _check_alike(whole, at[of])
  scores = np.zeros((len(ids), len(whole.classes)))
  np.add.at(scores, of, whole.scores)
  order = np.argsort(at)
  return dataclasses.replace(whole.rows(at[order]), scores=scores[order] / count[order][:, None])


def _check_kind(first: contract.Predictions, other: contract.Predictions) -> None:
  kinds = [(table.split, table.classes, table.multi_label) for table in (first, other)]
  if kinds[0] != kinds[1]:
    told = [f"{part} of {', '.join(classes)}" for part, classes, _ in kinds]
    raise ValueError(f"the tables are of different parts or classes: {told[0]}; {told[1]}")


def _stacked(tables: Sequence[contract.Predictions]) -> contract.Predictions:
  """All rows below each other."""
  known = [name for name in tables[0].metadata if all(name in table.metadata for table in tables)]
  return dataclasses.replace(
    tables[0],
    ids=np.concatenate([table.ids for table in tables]),
    groups=np.concatenate([table.groups for table in tables]),
    labels=np.concatenate([table.labels for table in tables]),
    scores=np.concatenate([table.scores for table in tables]),
    metadata={name: np.concatenate([t.metadata[name] for t in tables]) for name in known},
  )


def _check_counts(ids: np.ndarray, count: np.ndarray) -> None:
  most, least = count.max(), count.min()
  if most != least:
    few, many = ids[count == least][0], ids[count == most][0]
    raise ValueError(
      f"{(count != most).sum()} of {len(ids)} images are in fewer tables than the others, such as"
      f" {str(few)!r} in {least} and {str(many)!r} in {most}: score all networks on the same part,"
      " or as many of them on each fold"
    )


def _check_alike(whole: contract.Predictions, first: np.ndarray) -> None:
  """Raises ValueError where an image has another label or group in another table."""
  relabelled = (whole.labels != whole.labels[first]).reshape(len(first), -1).any(axis=1)
  other = np.flatnonzero(relabelled | (whole.groups != whole.groups[first]))
  if other.size:
    raise ValueError(
      f"{len(set(whole.ids[other]))} images have another label or group in another table, first"
      f" {str(whole.ids[other[0]])!r}: score all networks on one version of the set"
    )
