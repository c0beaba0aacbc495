"""One function a task. Only this file and `stages` see the whole picture; they wire, no more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import datetime
import json
import pathlib
import shlex
import statistics
import sys
import time
from typing import Any

import jax

from medjax import (
  chapters,
  classical,
  cluster,
  contract,
  data,
  lock,
  points,
  report,
  settings,
  stages,
  study,
  trained,
  wiring,
)
from medjax import config as config_lib
from medjax import mesh as mesh_lib
from medjax import place as place_lib
from medjax.chapters import breakdown, provenance
from medjax.data import catalogue
from medjax.models.pretrained import manifests

_COMPILED = "~/.cache/medjax/xla"
# What of these settings a checkpoint depends on; by the others it is only looked at.
_LEARNT_BY = {
  "data": ("image_size", "channels"),
  "eval": ("every", "select", "recalibrate", "monitors"),
}
# What a stage that goes on may do otherwise than it began: nothing that is learnt depends on it.
_FREE = {"data": ("cache", "patience", "threads"), "train": ("memory_gb", "profile")}


def start(
  task: str,
  spec: str | None,
  workdir: pathlib.Path | None,
  overrides: Sequence[str],
  place: place_lib.Place | None = None,
) -> None:
  """Runs a task by name.

  Args:
    task: one of `TASKS`. spec: config file, `FILE[:ARG]`; a workdir that exists needs none.
    workdir: folder of the run, by default named by the config. overrides: `"key=value"`.
    place: of this process among several, from `place.found`.

  Raises:
    ValueError: an unknown task, or too little said.
  """
  if task not in TASKS:
    raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
  if workdir is None:
    if spec is None:
      raise ValueError("say what to run: --config=configs/quickstart.py --workdir=runs/quickstart")
    workdir = pathlib.Path("runs") / pathlib.Path(spec.partition(":")[0]).stem
  tree = config_lib.load(spec) if spec else _stored(workdir)
  # What was compiled once, on this machine, is not compiled again by the next start.
  jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(_COMPILED).expanduser()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  if place is None:
    mesh_lib.divide_cpu()
  with cluster.joined(place, workdir) as own:
    TASKS[task](_preprocessed(config_lib.parse(tree, overrides)), own)


def _preprocessed(config: settings.Config) -> settings.Config:
  """The config with the preprocessing that the weight files in it were trained with.

  A stage that starts from an earlier one begins, by way of that one, with the same file. What a
  manifest says stands above what the config says, as no other preprocessing fits the weights.
  """
  origins: dict[str, str] = {}
  stages = []
  for stage in config.stages:
    origins[stage.name] = origins.get(stage.init_from, stage.init_from)
    stages.append(_adopting(stage, pathlib.Path(origins[stage.name]).expanduser()))
  return dataclasses.replace(config, stages=tuple(stages))


def _adopting(stage: settings.Stage, origin: pathlib.Path) -> settings.Stage:
  manifest = manifests.read(origin)
  if manifest is None:
    return stage
  model = manifests.adopted(stage.model, manifest)
  if model != stage.model:
    print(
      f"{stage.name}  preprocess={manifest.preprocess}: {origin} was trained with it", flush=True
    )
  return dataclasses.replace(stage, model=model)


def train(config: settings.Config, workdir: pathlib.Path) -> None:
  """Trains every stage, or goes on with them; scores those that classify; writes the report."""
  workdir.mkdir(0o700, parents=True, exist_ok=True)  # what it will hold is of patients
  with lock.held(workdir):
    _claim(workdir, config)
    _run(config, workdir, stages.fit)


def evaluate(config: settings.Config, workdir: pathlib.Path) -> None:
  """Scores the best checkpoint of every stage again; rewrites predictions and report.

  The config may differ from the workdir's in where the data lie, how they are fed, and what of
  `eval` no checkpoint depends on: further test sets, temperature, thresholds, intervals.
  """
  stored = config_lib.parse(_stored(workdir))
  _refuse_other(_learnt(stored), _learnt(config), workdir)
  with lock.held(workdir):
    _run(config, workdir, lambda bench, sources: None, again=True)


TASKS: dict[str, Callable[[settings.Config, pathlib.Path], None]] = {
  "train": train,
  "evaluate": evaluate,
}


def _run(
  config: settings.Config, workdir: pathlib.Path, fit: Callable, again: bool = False
) -> None:
  """Takes every stage in turn, then writes the report and prints its table.

  Args:
    config: of the run. workdir: for its files. fit: trains a stage.
    again: whether stages that are finished are scored once more.
  """
  mesh, pace = mesh_lib.make(), _Pace(len(config.stages))
  folders = {stage.name: workdir / stage.name for stage in config.stages}
  found = []
  for stage in config.stages:
    chapter, finished = _kept(folders[stage.name], again)
    with pace(stage.name, finished):
      found.append(chapter if finished else _staged(config, stage, folders, mesh, fit))
  if cluster.lead():
    _tell(config, [chapter for chapter in found if chapter], workdir)


def _kept(folder: pathlib.Path, again: bool) -> tuple[report.StageReport | None, bool]:
  """The chapter of a stage that is finished, which the lead has, and whether it is."""
  chapter = None if again else chapters.saved(folder)
  return chapter, bool(cluster.told(lambda: b"kept" if chapter else b""))


def _tell(
  config: settings.Config, chapters: list[report.StageReport], workdir: pathlib.Path
) -> None:
  """Writes the report and prints its table."""
  written = _report(config, chapters, workdir)
  if written.study is not None:
    study.write(workdir, written.study)
  page = report.write(workdir / "report.html", written)
  print(f"\n{report.terminal_table(written)}\n\nreport: {page}", flush=True)


def _staged(
  config: settings.Config,
  stage: settings.Stage,
  folders: dict[str, pathlib.Path],
  mesh: jax.sharding.Mesh,
  fit: Callable,
) -> report.StageReport | None:
  """Takes a stage to its end; of several processes, the lead has its chapter."""
  folder, seed = folders[stage.name], config.seed if stage.seed is None else stage.seed
  folder.mkdir(parents=True, exist_ok=True)
  apart = [other.data for other in config.stages if other.name in stage.audit_against]
  splits = cluster.in_turn(lambda: _decoded(stage, folder, apart))
  if _classifies(stage):
    points.check(stage, splits)
  breakdown.check(stage, splits)
  trained.remember(folder, splits.info)
  if isinstance(stage.objective, settings.Classical):
    tables = _floor(stage.objective, stage, splits, folder, seed)
  else:
    bench = wiring.wire(seed, stage, splits, folder, mesh)
    with bench.feeds:
      fit(bench, folders)
      tables = stages.score(bench)
  if not cluster.lead():
    return None
  chapter = chapters.of(stage, splits, tables, folder, config.seed)
  chapters.save(folder, chapter)
  return chapter


def _decoded(
  stage: settings.Stage, folder: pathlib.Path, apart: Sequence[settings.Data]
) -> catalogue.Splits:
  """The parts of a stage's data, and beside them the further sets that it is tested on."""
  splits = data.make(stage.data, folder / "quarantine.tsv", apart)
  return data.beside(splits, stage.data, stage.eval.tests) if _classifies(stage) else splits


def _floor(
  cfg: settings.Classical,
  stage: settings.Stage,
  splits: catalogue.Splits,
  folder: pathlib.Path,
  seed: int,
) -> dict[str, contract.Predictions]:
  """Learns and scores a stage without a network, and writes its predictions."""
  print(*(f"{stage.name}  {line}" for line in splits.table.splitlines()), sep="\n", flush=True)
  cache = pathlib.Path(stage.data.cache).expanduser()
  raw = classical.predict(cfg, splits.parts, splits.info, cache, seed)
  return points.settled(stage.eval, raw, folder)


def _classifies(stage: settings.Stage) -> bool:
  """Whether anything is scored by the classes of a stage."""
  return wiring.classifies(stage) or isinstance(stage.objective, settings.Classical)


class _Pace:
  """Says which of several stages begins, and about how long all that are left will take."""

  def __init__(self, total: int):
    self._total, self._number = total, 0
    self._seconds: list[float] = []

  @contextlib.contextmanager
  def __call__(self, name: str, finished: bool) -> Iterator[None]:
    """Around a stage; one that was finished before tells nothing of the others."""
    self._number += 1
    began = time.perf_counter()
    if finished:
      print(f"{name}  finished before", flush=True)
    elif self._total > 1:
      print(f"\nstage {self._number} of {self._total}: {name}{self._left()}", flush=True)
    yield
    if not finished:
      self._seconds.append(time.perf_counter() - began)

  def _left(self) -> str:
    if not self._seconds:
      return ""
    left = round(statistics.fmean(self._seconds) * (self._total - self._number + 1))
    return f", about {datetime.timedelta(seconds=left)} left"


def _report(
  config: settings.Config, chapters: list[report.StageReport], workdir: pathlib.Path
) -> report.Report:
  cfg = config.stages[-1].eval
  by_name = {chapter.name: chapter for chapter in chapters}
  comparison = None
  if config.compare:
    ours, baseline = (by_name[name] for name in config.compare)
    names = tuple(ours.intervals)
    comparison = report.compare(ours, baseline, names, cfg.bootstrap, config.seed)
  return report.Report(
    title=config.title,
    question=config.question,
    use=config.intended_use,
    stages=chapters,
    primary=cfg.select,
    resamples=cfg.bootstrap,
    comparison=comparison,
    study=_study(config, by_name, cfg),
    settings=config_lib.to_dict(config),
    command="python -m medjax.main " + shlex.join(sys.argv[1:]),
    environment=report.environment(),
    hashes={trained.CONFIG: provenance.of_file(workdir / trained.CONFIG)},
  )


def _study(
  config: settings.Config, chapters: dict[str, report.StageReport], cfg: settings.Eval
) -> study.Study | None:
  """The table of the stages that are rows of one."""
  rows = []
  for stage in config.stages:
    chapter = chapters[stage.name]
    if stage.cell and chapter.predictions is not None:
      interval = chapter.intervals[stage.eval.select]
      rows.append(study.Scored(stage.cell, chapter.predictions, interval))
  return study.of(config.study, rows, cfg.select, cfg.bootstrap, config.seed) if rows else None


def _stored(workdir: pathlib.Path) -> dict[str, Any]:
  """The config that a workdir was made by."""
  path = workdir / trained.CONFIG
  if not path.is_file():
    raise FileNotFoundError(f"{workdir} is no workdir of medjax: it has no {trained.CONFIG}")
  return json.loads(path.read_text())


def _claim(workdir: pathlib.Path, config: settings.Config) -> None:
  """Makes the workdir this config's, or makes sure that it is once anything was learnt in it."""
  learnt = (f"*/{stages.CHECKPOINTS}/*/*", f"*/{chapters.FILE}")
  if (workdir / trained.CONFIG).is_file() and any(any(workdir.glob(each)) for each in learnt):
    stored = config_lib.parse(_stored(workdir))  # with defaults for settings that are newer
    start = f"--config.init_from={workdir / config.stages[-1].name}"
    instead = f". To go on from what was learnt there, as a new run: {start} and another --workdir"
    _refuse_other(_bound(stored), _bound(config), workdir, instead)
    return
  partial = workdir / f"{trained.CONFIG}.partial"
  partial.write_text(json.dumps(config_lib.to_dict(config), indent=2) + "\n")
  partial.replace(workdir / trained.CONFIG)


def _bound(config: settings.Config) -> dict[str, Any]:
  """The part of a config that a run which goes on must keep to."""
  tree = config_lib.to_dict(config)
  for stage in tree["stages"]:
    for group, keys in _FREE.items():
      stage[group] = {key: value for key, value in stage[group].items() if key not in keys}
  return tree


def _learnt(config: settings.Config) -> dict[str, Any]:
  """The part of a config that a checkpoint depends on."""
  tree = config_lib.to_dict(config) | {"title": "", "question": "", "intended_use": ""}
  for stage in tree["stages"]:
    for group, keys in _LEARNT_BY.items():
      stage[group] = {key: stage[group][key] for key in keys}
  return tree


def _refuse_other(theirs: Any, ours: Any, workdir: pathlib.Path, instead: str = "") -> None:
  """Raises ValueError with the settings in which two configs differ, and what to do `instead`."""
  differ = list(_differences(theirs, ours, ""))
  if differ:
    raise ValueError(
      f"{workdir} was made by another config; give this one another --workdir. They differ in "
      + "; ".join(differ[:5])
      + (f" and {len(differ) - 5} more" if len(differ) > 5 else "")
      + instead
    )


def _differences(theirs: Any, ours: Any, where: str):
  if isinstance(theirs, dict) and isinstance(ours, dict):
    for key in theirs | ours:
      yield from _differences(theirs.get(key), ours.get(key), f"{where}.{key}" if where else key)
  elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
    for index, (a, b) in enumerate(zip(theirs, ours, strict=True)):
      yield from _differences(a, b, f"{where}[{index}]")
  elif theirs != ours:
    yield f"{where}: {theirs!r} there, {ours!r} here"
