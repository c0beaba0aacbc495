"""A trained network of a run, opened without the data that it learnt from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from medjax import checkpoint, contract, objectives, ops, settings, wiring
from medjax import config as config_lib
from medjax.models import gan
from medjax.models import net as net_lib
from medjax.objectives import base

CONFIG = "config.json"  # of a workdir
INFO = "info.json"  # of a stage: what its network was told of the data


@dataclasses.dataclass(frozen=True)
class Trained:
  """A network that is ready to look at images; made by `opened`.

  Attributes:
    stage: its settings, which say how new files are to be read. folder: of the stage.
    place: the checkpoint. info: of the data it learnt from: classes, the shape of images, whether
      they were drawn by a program.
    net: the network itself, or the pair of a GAN. objective: whose `forward` says what it sees.
    state: the weights as they are evaluated, without an optimizer's.
  """

  stage: settings.Stage
  folder: pathlib.Path
  place: str
  info: contract.DataInfo
  net: net_lib.Net | gan.Pair
  objective: base.Objective
  state: base.TrainState


def opened(model: pathlib.Path, stage: str = "", form: ops.Form | None = None) -> Trained:
  """Opens a network.

  Args:
    model: a workdir, the folder of a stage in one, or of a checkpoint of a stage.
    stage: of a workdir; empty for the last one that has a network, and a classifier if any has.
    form: of convolutions, see `medjax.ops`; None for what suits this machine.

  Raises:
    FileNotFoundError: no run is there, no such stage in it, or no checkpoint yet.
    ValueError: no stage of the workdir has a network.
  """
  folder, where = places(model, stage)
  cfg, _ = stage_of(folder)
  info = recalled(folder)
  cfg = _as_read(cfg, info)
  execution = wiring.execution(cfg.train)
  if form:
    execution = dataclasses.replace(execution, form=form)
  net, objective = objectives.of_stage(cfg, info, execution)
  state, place = weights(where)
  return Trained(cfg, folder, place, info, net, objective, state)


def _as_read(cfg: settings.Stage, info: contract.DataInfo) -> settings.Stage:
  """A stage whose settings say how new files are to be read, also where its own were prepared."""
  if not info.reading:
    return cfg
  reading = settings.Reading(**{**info.reading, "depth": cfg.data.reading.depth})
  return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, reading=reading))


def weights(
  where: pathlib.Path,
  read: Callable[[pathlib.Path], tuple[contract.Tree, str]] = checkpoint.weights,
) -> tuple[base.TrainState, str]:
  """The best state of a stage, as it is evaluated and without its optimizer, and its place.

  Args:
    where: a stage's folder, or one of its checkpoints. read: how, of several processes.

  Raises:
    FileNotFoundError: no checkpoint is there.
  """
  found, place = read(where)
  state = base.TrainState(jnp.zeros((), jnp.int32), found["params"], found["stats"], (), {})
  return jax.tree.map(jnp.asarray, state), place


def stage_of(folder: pathlib.Path) -> tuple[settings.Stage, int]:
  """The settings of a stage and its seed, by its folder in a workdir.

  Raises:
    FileNotFoundError: it is no stage's folder.
  """
  if not (folder.parent / CONFIG).is_file():
    raise FileNotFoundError(f"{folder} is no stage of a run: {folder.parent / CONFIG} is missing")
  found = _config(folder.parent)
  stages = {stage.name: stage for stage in found.stages}
  if folder.name not in stages:
    raise FileNotFoundError(f"{folder.parent} has no stage {folder.name!r}, only {list(stages)}")
  stage = stages[folder.name]
  return stage, found.seed if stage.seed is None else stage.seed


def remember(folder: pathlib.Path, info: contract.DataInfo) -> None:
  """Keeps in a stage's folder what its network is told of the data."""
  partial = folder / f"{INFO}.partial"
  partial.write_text(json.dumps(dataclasses.asdict(info), indent=2) + "\n", encoding="utf-8")
  partial.replace(folder / INFO)


def recalled(folder: pathlib.Path) -> contract.DataInfo:
  """What `remember` kept. Raises FileNotFoundError where the stage was never begun."""
  if not (folder / INFO).is_file():
    raise FileNotFoundError(f"{folder} was never trained: it has no {INFO}")
  return contract.DataInfo.restored(json.loads((folder / INFO).read_text(encoding="utf-8")))


def _config(workdir: pathlib.Path) -> settings.Config:
  return config_lib.parse(json.loads((workdir / CONFIG).read_text(encoding="utf-8")))


def places(model: pathlib.Path, stage: str = "") -> tuple[pathlib.Path, pathlib.Path]:
  """The folder of the stage that is meant, and that of the weights; see `opened`."""
  if (model / CONFIG).is_file():
    folder = model / (stage or _last(_config(model).stages, model))
    return folder, folder
  for folder in (model, *model.parents):
    if (folder.parent / CONFIG).is_file() and folder.parent != folder:
      return folder, model
  raise FileNotFoundError(
    f"{model} is no trained network: give a workdir of medjax, which has a {CONFIG}, a folder of a"
    " stage in it, or a checkpoint such as runs/quickstart/finetune/checkpoints/best/120"
  )


def _last(stages: Sequence[settings.Stage], model: pathlib.Path) -> str:
  """The last stage with a network; one with a classifier goes before all others."""
  kinds: tuple[Any, ...] = (settings.Supervised | settings.GANSemi, settings.Objective)
  for kind in kinds:
    for stage in reversed(stages):
      floor = isinstance(stage.objective, settings.Classical)
      if isinstance(stage.objective, kind) and not floor:
        return stage.name
  raise ValueError(f"no stage of {model} has a network")
