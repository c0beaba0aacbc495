"""One network with the mean of the weights of several."""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import dataclasses
import json
import pathlib

import jax
import numpy as np

from medjax import checkpoint, contract, data, settings, stages, trained, trees, wiring
from medjax import config as config_lib
from medjax import mesh as mesh_lib
from medjax.objectives import base

RECALIBRATE = 2048  # training images for batch norm, where the stage's settings name no number


def mean(models: Sequence[pathlib.Path], stage: str = "") -> tuple[contract.Tree, int]:
  """The mean of several networks' weights, `{"params": ..., "stats": ...}`, and the last step.

  Args:
    models: workdirs, stages' folders or checkpoints, at least two. stage: of workdirs.

  Raises:
    FileNotFoundError: no checkpoint is there.
    ValueError: they are of different networks.
  """
  trees_found, steps = [], []
  for model in models:
    tree, place = checkpoint.weights(trained.places(model, stage)[1])
    trees_found.append(tree)
    steps.append(int(pathlib.Path(place).name))
    _check_same_network(trees_found[0], tree, models[0], model)
  return jax.tree.map(lambda *leaves: _mean(leaves), *trees_found), max(steps)


def _mean(leaves: Sequence[np.ndarray]) -> np.ndarray:
  """In float64, as the type of the leaves."""
  first = np.asarray(leaves[0])
  return np.mean([np.asarray(leaf, np.float64) for leaf in leaves], axis=0).astype(first.dtype)


def _check_same_network(
  ours: contract.Tree, theirs: contract.Tree, one: pathlib.Path, other: pathlib.Path
) -> None:
  mine, its = ({p: np.shape(x) for p, x in trees.flatten(t).items()} for t in (ours, theirs))
  differ = [path for path in mine | its if mine.get(path) != its.get(path)]
  if differ:
    raise ValueError(
      f"{one} and {other} are different networks, whose weights have no mean: {len(differ)} tensors"
      f" differ, such as {differ[0]}"
    )


def average(models: Sequence[pathlib.Path], out: pathlib.Path, stage: str = "") -> pathlib.Path:
  """Makes a workdir of one stage whose network has the mean of several networks' weights.

  Batch-norm statistics are estimated anew, over `eval.recalibrate` training images or else
  `RECALIBRATE`; the network is then scored as its stage was. Everything that takes a workdir takes
  this one, `--task=evaluate` among it.

  Args:
    models: see `mean`; the settings are those of the first. out: a folder that is not there
      yet, or is empty. stage: of workdirs.

  Returns:
    The stage's folder.
  """
  weights, step = mean(models, stage)
  cfg, seed = trained.stage_of(trained.places(models[0], stage)[0])
  cfg = _on_its_own(cfg, seed)
  folder, mesh = out / cfg.name, mesh_lib.make()
  folder.mkdir(parents=True)
  config = settings.Config(title=f"Mean weights of {len(models)} networks", stages=(cfg,))
  told = json.dumps(config_lib.to_dict(config), indent=2)
  (out / trained.CONFIG).write_text(told + "\n", encoding="utf-8")
  bench = wiring.wire(seed, cfg, data.make(cfg.data), folder, mesh)
  trained.remember(folder, bench.splits.info)
  with bench.feeds:
    state = base.with_weights(bench.objective.init(jax.random.key(seed)), **weights)
    state = bench.evaluated(mesh_lib.put(mesh, state.replace(step=np.int32(step))))
    with contextlib.closing(checkpoint.Checkpoints(folder / stages.CHECKPOINTS)) as saved:
      saved.save(checkpoint.BEST, step, state, {"mean_of": [str(model) for model in models]})
      saved.wait()
    stages.score(bench)
  return folder


def _on_its_own(cfg: settings.Stage, seed: int) -> settings.Stage:
  """A stage that starts from nothing else, and whose batch norm is estimated anew."""
  frozen = cfg.train.freeze_stats  # then all of them have the same statistics, which stay
  images = cfg.eval.recalibrate or (0 if frozen else RECALIBRATE)
  return dataclasses.replace(
    cfg,
    seed=seed,
    cell=(),
    audit_against=(),
    init_from="",
    init_allow=(),
    train=dataclasses.replace(cfg.train, freeze_stats=False),
    eval=dataclasses.replace(cfg.eval, recalibrate=images),
  )
