"""Operating points of a stage: chosen from its scores, and kept beside them."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib

from medjax import contract, evaluate, settings
from medjax.data import catalogue
from medjax.metrics import calibration, operating, thresholds

Scored = Mapping[str, contract.Predictions]


def check(stage: settings.Stage, splits: catalogue.Splits) -> None:
  """Raises ValueError before a training for what could not be chosen after it."""
  cfg, info, parts = stage.eval, splits.info, [name for name in splits.parts if name != "train"]
  if cfg.temperature and calibration.FITTED not in parts:
    raise ValueError(
      f"stage {stage.name!r}: eval.temperature is fitted on the val part, and there is none: set"
      " data.split.val, or leave eval.temperature at False"
    )
  for each in cfg.thresholds:
    if each.part not in parts:
      raise ValueError(
        f"stage {stage.name!r}: eval.thresholds are to be chosen on the part {each.part!r}, and"
        f" scored are {', '.join(parts) or 'none'}"
      )
    thresholds.positives(each, info.classes, info.multi_label)


def settled(
  cfg: settings.Eval, raw: Scored, folder: pathlib.Path
) -> dict[str, contract.Predictions]:
  """Chooses what is to be chosen, and writes it and the predictions to a stage's folder.

  Args:
    cfg: evaluation of the stage. raw: part -> predictions, as the network gives them.
    folder: of the stage.

  Returns:
    Part -> predictions as they are written: tempered, where there is to be a temperature.
  """
  warm = calibration.fit(raw[calibration.FITTED]) if cfg.temperature else None
  tables = {part: warm(table) if warm else table for part, table in raw.items()}
  operating.write(folder, operating.Operating(warm, *thresholds.chosen(cfg.thresholds, tables)))
  for part, table in tables.items():
    evaluate.write(folder / f"predictions_{part}.csv", table)
  return tables
