"""Does a network go by the finding? Test images lose something and are scored again.

A network that scores nearly as well without the middle of the image, with the image in shuffled
pieces or without the image at all goes by something else: a shortcut (Geirhos et al. 2020,
"Shortcut learning in deep neural networks"). Each probe is paired with the plain scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import pathlib

import jax
import numpy as np

from medjax import contract, metrics, settings, views, wiring
from medjax import evaluate as evaluate_lib
from medjax import mesh as mesh_lib
from medjax.metrics import operating
from medjax.objectives import base

FOLDER = "probes"  # of a stage; holds a table of predictions for each
METADATA = "metadata"
SCORE, CHANCE = "auc", 0.5  # what a probe is judged by
MOST = 0.8  # share of the AUC's excess from which on a probe keeps the score; a convention

WHAT = {
  "borders": "outer half of the image painted over",
  "centre": "inner half of the image painted over",
  "shuffled": f"{views.BLOCKS} x {views.BLOCKS} blocks of the image in random order",
  METADATA: "metadata alone, the image painted over",
}


@dataclasses.dataclass(frozen=True)
class Probe:
  """What became of the scores when the images lost something.

  Attributes:
    name: one of `WHAT`.
    intervals: of the metrics of the scores that are left.
    differences: from those of the plain images, paired.
    kept: share that is left of the plain AUC's excess over what is there without an image; None
      where the interval of the plain AUC holds that.
  """

  name: str
  intervals: Mapping[str, metrics.Interval]
  differences: Mapping[str, metrics.Difference]
  kept: float | None


_SENTENCES = {
  "borders": "With the outer half of the images painted over, {} of the AUC above {} are left: the"
  " network goes by the borders, too, where markers are and findings are rare.",
  "centre": "With the inner half of the images painted over, {} of the AUC above {} are left: a"
  " shortcut in the borders is likely.",
  "shuffled": "With their blocks shuffled, {} of the AUC above {} are left: texture and colour"
  " suffice, whatever the shape of things and wherever they are.",
  METADATA: "Without the images, {} of the AUC above {} are left: the metadata suffice, so that"
  " the other probes say nothing.",
}


def said(probes: Sequence[Probe]) -> list[str]:
  """What probes of one network say of it, a sentence for each that is not as one would wish."""
  alone = [probe for probe in probes if probe.name == METADATA]
  if any(_telling(probe) for probe in alone):
    return [_sentence(alone[0], "chance")]
  floor = "the metadata alone" if alone else "chance"
  if any(probe.kept is None for probe in probes):
    return [f"The AUC of the plain images cannot be told from {floor}, so the probes say nothing."]
  others = [_sentence(probe, floor) for probe in probes if _telling(probe)]
  return others or ["No probe speaks of a shortcut."]


def _telling(probe: Probe) -> bool:
  """Whether more is left than a sound network would keep, or of the borders' probe less."""
  return probe.kept is not None and (probe.kept >= MOST) != (probe.name == "borders")


def _sentence(probe: Probe, floor: str) -> str:
  assert probe.kept is not None
  return _SENTENCES[probe.name].format(f"{max(probe.kept, 0):.0%}", floor)


def score(bench: wiring.Bench, state: base.TrainState) -> None:
  """Scores the test part once for each probe and writes the tables that `read` finds.

  Args:
    bench: the stage. state: as it is evaluated.
  """
  if "test" not in bench.splits.parts or not bench.stage.eval.probes:
    return
  (bench.folder / FOLDER).mkdir(exist_ok=True)
  used = operating.read(bench.folder)
  for name in bench.stage.eval.probes:
    table = bench.scorer("test", state, _looks(bench, name))
    table = dataclasses.replace(table, scores=used.apply(table.scores, table.multi_label))
    evaluate_lib.write(_file(bench.folder, name), table)


def _file(folder: pathlib.Path, name: str) -> pathlib.Path:
  return folder / FOLDER / f"{name}.csv"


def _looks(bench: wiring.Bench, name: str) -> list[views.View]:
  """The views that the plain images are scored by, each of images that have lost something."""
  change = views.of(_change(name, bench.splits.info), bench.mesh)
  key = base.named(jax.random.key(bench.seed), name)
  without = functools.partial(change, mesh_lib.put(bench.mesh, key))
  return [_after(without, view) for view in bench.views or [views.plain]]


def _after(first: views.View, then: views.View) -> views.View:
  return lambda ticket: then(first(ticket))


def _change(name: str, info: contract.DataInfo) -> views.Change:
  """What takes something from images."""
  inner = views.centre(info.image_shape)
  changes: dict[str, Callable[[], views.Change]] = {
    "borders": lambda: views.hidden(~inner, info.mean),
    "centre": lambda: views.hidden(inner, info.mean),
    "shuffled": lambda: views.shuffled,
    METADATA: lambda: views.hidden(np.ones_like(inner), info.mean),
  }
  return changes[name]()


def read(folder: pathlib.Path, cfg: settings.Eval) -> dict[str, contract.Predictions]:
  """The tables that `score` wrote to a stage's folder, by the names of `cfg.probes`.

  Raises:
    FileNotFoundError: one is not there.
  """
  return {name: evaluate_lib.read(_file(folder, name)) for name in cfg.probes}


def of(
  tables: Mapping[str, contract.Predictions],
  plain: contract.Predictions,
  wanted: Sequence[str],
  resamples: int,
  seed: int,
) -> list[Probe]:
  """Compares the scores of probes with the plain ones.

  What is left is counted from chance, an AUC of 0.5; of a network that sees metadata, from what
  those alone give where that is more.

  Args:
    tables: probe -> its scores. plain: those of the images as they are.
    wanted: metrics, `SCORE` among them. resamples, seed: of the bootstrap over groups.
  """
  found = {name: metrics.intervals(t, wanted, resamples, seed) for name, t in tables.items()}
  before = metrics.intervals(plain, [SCORE], resamples, seed)[SCORE]
  floor = max(CHANCE, found[METADATA][SCORE].value) if METADATA in found else CHANCE
  return [
    Probe(
      name,
      found[name],
      metrics.paired(table, plain, wanted, resamples, seed),
      _kept(found[name][SCORE], before, CHANCE if name == METADATA else floor),
    )
    for name, table in tables.items()
  ]


def _kept(after: metrics.Interval, before: metrics.Interval, floor: float) -> float | None:
  """Share of the excess over a floor that is left."""
  if not before.defined or before.low <= floor:
    return None
  return (after.value - floor) / (before.value - floor)
