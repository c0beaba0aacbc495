"""Where a stage's figures come from: its images, its training, and the hashes of what it made."""

from __future__ import annotations

from collections.abc import Mapping
import hashlib
import pathlib

import jax
import numpy as np

from medjax import checkpoint, contract, figures, metrics, phrases, report, settings, trees
from medjax.chapters import benchmarks
from medjax.data import catalogue
from medjax.report import contents

_WIDTHS = (
  "Behind \N{PLUS-MINUS SIGN} is half of the 95% interval that an accuracy has by its number of"
  " test images alone."
)


def flow(splits: catalogue.Splits, tables: Mapping[str, contract.Predictions]) -> report.Flow:
  """Images and groups from found to tested.

  Args:
    splits: the data of a stage. tables: part -> predictions; further test sets are left out.
  """
  own = [name for name in splits.parts if name in contract.PARTS]  # others are further test sets
  parts = [_of_part(splits, name) for name in own]
  scored = [
    report.Count(f"scored: {name}", len(table.ids), len(np.unique(table.groups)))
    for name, table in tables.items()
    if name in own
  ]
  census = splits.census
  if census is None:
    return report.Flow(parts=parts, scored=scored)
  images, groups = census.listed
  main, gone = [report.Count("found", images, groups)], []
  for reason, (fewer, less) in census.gone.items():
    images, groups = images - fewer, groups - less
    gone.append(report.Count(reason, fewer, less))
    main.append(report.Count("kept" if len(gone) > 1 else "read", images, groups))
  gone.append(report.Count("joined to another group, as they share a picture", 0, census.joined))
  main.append(report.Count("dealt to parts", images, groups - census.joined))
  return report.Flow(main, gone, parts, scored)


def _of_part(splits: catalogue.Splits, name: str) -> report.Count:
  part = splits.parts[name]
  return report.Count(name, len(part), len(np.unique(part.groups)))


def facts(stage: settings.Stage, seed: int, validated: bool) -> dict[str, str]:
  """What a reader would ask of the training of a network: what -> value.

  Args:
    stage: its settings. seed: of it. validated: whether there was a val part to choose by.
  """
  train, optimizer, objective = stage.train, stage.optimizer, stage.objective
  loss = getattr(objective, "loss", None)
  named = {
    "network": stage.model.name,
    "starts from": stage.init_from or "random weights",
    "objective": f"{objective.name}, {loss.name}" if loss else objective.name,
    "augmentation": stage.augment.name,
    "optimizer": f"{optimizer.name}, learning rate {optimizer.lr:g}, {optimizer.schedule}",
    "length": f"{train.length}, batches of {train.batch_size}",
    "checkpoint": f"the best {stage.eval.select} on the val part" if validated else "the last",
    "seed": str(seed),
  }
  return {"method": objective.name, "seed": str(seed)} if _bare(stage) else named


def _bare(stage: settings.Stage) -> bool:
  """Whether a stage has no network."""
  return isinstance(stage.objective, settings.Classical)


def published(
  data: settings.Data, table: contract.Predictions, ours: Mapping[str, metrics.Interval]
) -> list[report.Table]:
  """The published figures of a set beside ours, and whether they can be compared; [] of no card.

  Args:
    data: the set. table: predictions of its test part. ours: metric -> interval of them.
  """
  rows: list[list[contents.Cell]] = []
  for card in benchmarks.of(data):
    reasons = benchmarks.differences(card, data, len(table.ids))
    verdict = f"not comparable: {'; '.join(reasons)}" if reasons else ""
    for name in [name for name in card.figures if name in ours]:
      compared = verdict or benchmarks.verdict(card, name, ours[name])
      theirs = phrases.plus_minus(card.figures[name], card.half_width(name))
      rows.append([card.source, figures.label(name), theirs, ours[name], compared, card.trap])
  head = ["published", "metric", "theirs", "ours", "compared", "know that"]
  return [report.Table("Beside published figures", head, rows, _WIDTHS)] if rows else []


def hashes(folder: pathlib.Path) -> dict[str, str]:
  """SHA-256 of the predictions and the weights of a stage: what -> digits."""
  found = {path.name: of_file(path) for path in sorted(folder.glob("predictions_*.csv"))}
  if not any(folder.glob("checkpoints/*/*")):
    return found
  weights, place = checkpoint.weights(folder)
  return found | {f"weights of {pathlib.Path(place).relative_to(folder)}": of_tree(weights)}


def of_file(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def of_tree(tree: contract.Tree) -> str:
  """SHA-256 of named arrays: of each in order its path, type, shape and bytes.

  It is of the numbers alone, so that it does not change with the files that hold them.
  """
  digest = hashlib.sha256()
  for path, leaf in sorted(trees.flatten(jax.device_get(tree)).items()):
    array = np.ascontiguousarray(leaf)
    digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
