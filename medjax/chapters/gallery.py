"""The images that a report shows of a scored part, and where the network looked in each."""

from __future__ import annotations

import pathlib

import numpy as np

from medjax import contract, explain, report, settings, trained
from medjax.data import catalogue, readers

_TOLD = (
  "To the right of each image: {method} of the class with the highest score. Red to yellow speaks"
  " for that class, blue against it. A map shows where evidence lies, not whether it is sound."
)


def of(
  stage: settings.Stage, part: catalogue.Part, table: contract.Predictions, folder: pathlib.Path
) -> report.Gallery:
  """The worst mistakes and the surest right ones of a part.

  Args:
    stage: its settings. part: the images. table: their predictions, row by row. folder: of the
      stage, with its checkpoints.
  """
  rows = report.pick(table)
  images = np.stack([part.fetch(row) for row in rows])
  pictures = readers.to_8_bit(images)
  method = stage.eval.maps
  if not method or isinstance(stage.objective, settings.Classical):
    return report.Gallery(pictures, rows.tolist())
  known = None if part.metadata is None else part.metadata[rows]
  try:
    maps = explain.maps(
      trained.opened(folder), images, method, table.scores[rows].argmax(axis=1), metadata=known
    )
  except ValueError as error:  # such as of a network without a map inside
    return report.Gallery(pictures, rows.tolist(), note=f"No maps of where it looked: {error}.")
  overlays = np.stack([explain.overlay(*pair) for pair in zip(images, maps, strict=True)])
  return report.Gallery(pictures, rows.tolist(), overlays, _TOLD.format(method=method))
