"""Workdirs as runs leave them, with weights at random: for tests of what is done after training."""

import contextlib
import json
import pathlib
from typing import Any

import jax

from medjax import checkpoint, data, stages, trained, wiring
from medjax import config as config_lib
from medjax import mesh as mesh_lib
from medjax.objectives import base

_SPREAD = 1.4  # on the weights, so that images differ in their scores
MODEL = dict(name="quadsnet", widths=(4, 8), hidden=8)


def workdir(folder: pathlib.Path, **tree: Any) -> pathlib.Path:
  """Makes a workdir of a config, with one stage `train`: settings, weights, scored parts.

  Args:
    folder: of the workdir. tree: of the config; by default `MODEL` learns from labels.
  """
  config = config_lib.parse(dict(model=MODEL, objective="supervised") | tree)
  (stage,), mesh = config.stages, mesh_lib.make(jax.devices()[:1])
  (folder / stage.name).mkdir(parents=True)
  (folder / trained.CONFIG).write_text(json.dumps(config_lib.to_dict(config)))
  splits = data.make(stage.data)
  trained.remember(folder / stage.name, splits.info)
  bench = wiring.wire(config.seed, stage, splits, folder / stage.name, mesh)
  with bench.feeds:
    state = base.evaluated(jax.jit(bench.objective.init)(jax.random.key(config.seed)))
    state = state.replace(params=jax.tree.map(lambda leaf: _SPREAD * leaf, state.params))
    saved = checkpoint.Checkpoints(folder / stage.name / stages.CHECKPOINTS)
    with contextlib.closing(saved):
      saved.save(checkpoint.BEST, 1, state, {"best": {}})
      saved.wait()
    stages.score(bench)
  return folder
