"""The model card: what the network is, what it learnt from, how it was tested, and its limits.

Its sections are among those of Mitchell et al. 2019, Model cards for model reporting. They are
filled from the settings, the data and the scores alone.
"""

from __future__ import annotations

from medjax import contract, figures, metrics, phrases
from medjax.report import contents, words

_NO_USE = (
  "Not stated: the config has no intended_use. Nothing on this page shows that the network is fit"
  " for use in care."
)


def sections(report: contents.Report, stage: contents.StageReport) -> dict[str, list[str]]:
  """Heading -> sentences or lines, of a scored stage."""
  assert stage.predictions is not None
  return {
    "Model": _model(stage),
    "Intended use": [report.use or _NO_USE],
    "Training data": _data(stage),
    "Training": [f"{what}: {value}" for what, value in stage.facts.items()],
    "Evaluation": _evaluation(report, stage, stage.predictions),
    "Limits": limits(stage),
  }


def _model(stage: contents.StageReport) -> list[str]:
  height, width, channels = stage.info.image_shape
  kind = "any number of" if stage.info.multi_label else "one of"
  return [
    f"Takes an image of {height} x {width} pixels, {channels} channel{'s' * (channels > 1)}.",
    f"Gives it {kind} {len(stage.info.classes)} classes: {', '.join(stage.info.classes)}.",
  ]


def _data(stage: contents.StageReport) -> list[str]:
  counts = zip(stage.info.classes, stage.info.class_counts, strict=True)
  each = ", ".join(f"{name} {count:,}" for name, count in counts)
  drawn = ["Drawn by a program."] if stage.info.synthetic else []
  return [*drawn, f"{stage.info.train_size:,} images: {each}."]


def _evaluation(
  report: contents.Report, stage: contents.StageReport, table: contract.Predictions
) -> list[str]:
  found = stage.intervals.get(report.primary)
  value = [f"{figures.label(report.primary)} {phrases.interval(found)}."] if found else []
  return [words.basis(report, table), *value]


def limits(stage: contents.StageReport) -> list[str]:
  """What follows from the data and the network for those who would use it."""
  assert stage.predictions is not None
  said = [words.SYNTHETIC] * stage.info.synthetic + [words.LEAKY] * stage.leaky
  said += metrics.cautions(stage.predictions)
  if not stage.info.multi_label:
    said.append(
      "An image of anything else is given one of these classes too: nothing here tells it apart."
    )
  height, width, _ = stage.info.image_shape
  said.append(f"Signs that are lost when an image becomes {height} x {width} pixels are not seen.")
  same = "The test part is of the same set as the training part"
  if stage.further:
    said.append(f"{same}; how the network does elsewhere, {', '.join(stage.further)} may show.")
  else:
    said.append(f"{same}: it does not show how the network does elsewhere.")
  return said
