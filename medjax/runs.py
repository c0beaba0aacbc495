"""One function a task. Only this file and `stages` see the whole picture; they wire, no more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
import shlex
import sys
from typing import Any

import jax
import numpy as np

from medjax import config as config_lib
from medjax import contract, metrics, report, settings, stages, wiring, writer
from medjax import mesh as mesh_lib
from medjax.models.pretrained import manifests

CONFIG = "config.json"
_COMPILED = "~/.cache/medjax/xla"


def start(
  task: str, spec: str | None, workdir: pathlib.Path | None, overrides: Sequence[str]
) -> None:
  """Runs a task by name.

  Args:
    task: one of `TASKS`. spec: config file, `FILE[:ARG]`; a workdir that exists needs none.
    workdir: folder of the run, by default named by the config. overrides: `"key=value"`.

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
  TASKS[task](_preprocessed(config_lib.parse(tree, overrides)), workdir)


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
  _claim(workdir, config)
  _run(config, workdir, stages.fit)


def evaluate(config: settings.Config, workdir: pathlib.Path) -> None:
  """Scores the best checkpoint of every stage again; rewrites predictions and report.

  The config may differ from the workdir's in where the data lie and how they are fed.
  """
  stored = config_lib.parse(_stored(workdir))
  _refuse_other(_learnt(stored), _learnt(config), workdir)
  _run(config, workdir, lambda bench, sources: None)


TASKS: dict[str, Callable[[settings.Config, pathlib.Path], None]] = {
  "train": train,
  "evaluate": evaluate,
}


def _run(config: settings.Config, workdir: pathlib.Path, fit: Callable) -> None:
  """Takes every stage in turn, then writes the report and prints its table."""
  mesh = mesh_lib.make()
  folders = {stage.name: workdir / stage.name for stage in config.stages}
  chapters = []
  for stage in config.stages:
    bench = wiring.wire(config.seed, stage, folders[stage.name], mesh)
    with bench.feeds:
      fit(bench, folders)
      chapters.append(_chapter(bench, stages.score(bench)))
  found = _report(config, chapters)
  page = report.write(workdir / "report.html", found)
  print(f"\n{report.terminal_table(found)}\n\nreport: {page}", flush=True)


def _chapter(bench: wiring.Bench, tables: dict[str, contract.Predictions]) -> report.StageReport:
  """What the report says of a stage."""
  chapter = report.StageReport(
    name=bench.stage.name,
    info=bench.splits.info,
    counts=bench.splits.table,
    history=writer.read(bench.folder / writer.FILE),
    leaky=bench.splits.leaky,
    notes=bench.splits.notes,
  )
  if "test" not in tables:
    return chapter
  table, cfg = tables["test"], bench.stage.eval
  names, rows = report.names(len(table.classes), cfg.select), report.pick(table)
  return dataclasses.replace(
    chapter,
    predictions=table,
    intervals=metrics.intervals(table, names, cfg.bootstrap, bench.seed),
    pictures=np.stack([bench.splits.parts["test"].fetch(row) for row in rows]),
    picture_rows=rows.tolist(),
  )


def _report(config: settings.Config, chapters: list[report.StageReport]) -> report.Report:
  cfg = config.stages[-1].eval
  by_name = {chapter.name: chapter for chapter in chapters}
  comparison = None
  if config.compare:
    ours, baseline = (by_name[name] for name in config.compare)
    names = tuple(ours.intervals)
    comparison = report.compare(ours, baseline, names, cfg.bootstrap, config.seed)
  return report.Report(
    title=config.title,
    stages=chapters,
    primary=cfg.select,
    resamples=cfg.bootstrap,
    comparison=comparison,
    settings=json.dumps(config_lib.to_dict(config), indent=2),
    command="python -m medjax.main " + shlex.join(sys.argv[1:]),
    environment=report.environment(),
  )


def _stored(workdir: pathlib.Path) -> dict[str, Any]:
  """The config that a workdir was made by."""
  path = workdir / CONFIG
  if not path.is_file():
    raise FileNotFoundError(f"{workdir} is no workdir of medjax: it has no {CONFIG}")
  return json.loads(path.read_text())


def _claim(workdir: pathlib.Path, config: settings.Config) -> None:
  """Makes the workdir this config's, or makes sure that it is once anything was learnt in it."""
  if (workdir / CONFIG).is_file() and any(workdir.glob(f"*/{stages.CHECKPOINTS}/*/*")):
    _refuse_other(_stored(workdir), config_lib.to_dict(config), workdir)
    return
  workdir.mkdir(parents=True, exist_ok=True)
  partial = workdir / f"{CONFIG}.partial"
  partial.write_text(json.dumps(config_lib.to_dict(config), indent=2) + "\n")
  partial.replace(workdir / CONFIG)


def _learnt(config: settings.Config) -> dict[str, Any]:
  """The part of a config that a checkpoint depends on."""
  tree = config_lib.to_dict(config)
  for stage in tree["stages"]:
    stage["data"] = {
      "image_size": stage["data"]["image_size"],
      "channels": stage["data"]["channels"],
    }
  return tree


def _refuse_other(theirs: Any, ours: Any, workdir: pathlib.Path) -> None:
  """Raises ValueError with the settings in which two configs differ."""
  differ = list(_differences(theirs, ours, ""))
  if differ:
    raise ValueError(
      f"{workdir} was made by another config; give this one another --workdir. They differ in "
      + "; ".join(differ[:5])
      + (f" and {len(differ) - 5} more" if len(differ) > 5 else "")
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
