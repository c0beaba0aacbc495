"""Conversion to ONNX, in an environment of its own: its library and ours want different versions.

The classifier is handed over in files. What runs there is `medjax.export.converting`, and it
imports nothing of medjax that reads data or checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import tempfile
from typing import Any

from medjax import artifact, config, contract, settings, trees
from medjax.export import program
from medjax.metrics import operating
from medjax.objectives import base

SOURCE = "source.json"
SCRIPT = pathlib.Path(__file__).parents[2] / "launch" / "onnx.sh"
_SHOWN = 1500  # characters of what the conversion said last


def converted(source: program.Source, folder: pathlib.Path, fold: bool) -> dict[str, Any]:
  """Writes `model.onnx` into a folder that has the weights already; what is known of it.

  Raises:
    FileNotFoundError: medjax is not started from a checkout, which knows how to make environments.
    RuntimeError: the conversion failed.
  """
  if not SCRIPT.is_file():
    raise FileNotFoundError(
      f"{SCRIPT} is missing: ONNX is written by an environment that a checkout of medjax makes, so"
      " export from there"
    )
  with tempfile.TemporaryDirectory() as handed:
    (pathlib.Path(handed) / SOURCE).write_text(json.dumps(_kept(source, fold)), encoding="utf-8")
    paths = [pathlib.Path(handed), folder / artifact.WEIGHTS, folder / artifact.ONNX]
    done = subprocess.run([SCRIPT, *paths], capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f"no ONNX was written: {done.stderr.strip()[-_SHOWN:]}")
  found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
  return found


def _kept(source: program.Source, fold: bool) -> dict[str, Any]:
  """All of a source but its weights, as JSON."""
  data = settings.Phantom(reading=source.stage.data.reading)
  stage = dataclasses.replace(source.stage, data=data, eval=settings.Eval(), init_from="")
  return {
    "stage": config.to_dict(stage),
    "info": dataclasses.asdict(source.info),
    "operating": operating.to_dict(source.operating),
    "fold": fold,
  }


def received(folder: pathlib.Path, weights: pathlib.Path) -> tuple[program.Source, bool]:
  """What `converted` handed over: the classifier, and whether batch norms are folded."""
  import jax.numpy as jnp
  import safetensors.numpy

  kept = json.loads((folder / SOURCE).read_text(encoding="utf-8"))
  (stage,) = config.parse({"stages": [kept["stage"]]}).stages
  info = contract.DataInfo.restored(kept["info"])
  tree = trees.unflatten(safetensors.numpy.load_file(weights))
  state = base.TrainState(jnp.zeros((), jnp.int32), tree["params"], tree.get("stats", {}), (), {})
  source = program.Source(stage, info, state, operating.of(kept["operating"]))
  return source, kept["fold"]
