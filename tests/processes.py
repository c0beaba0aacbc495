"""The real program in a process of its own, and what a run leaves."""

import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp

from medjax import writer

ROOT = pathlib.Path(__file__).parents[1]
TINY = pathlib.Path(__file__).with_name("tiny.py")
STEPS = "--config.train.length=60 steps"


def start(workdir: pathlib.Path, *args: str, devices: int = 1) -> subprocess.Popen:
  """Starts a run; what it prints is read from `stdout`."""
  flags = f"--xla_force_host_platform_device_count={devices}"
  environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", "medjax.main", STEPS, *args, f"--workdir={workdir}"]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
  return subprocess.Popen(command, env=environment, **pipes)


def until_step(process: subprocess.Popen, step: int) -> None:
  """Reads the progress lines up to a step."""
  assert process.stdout is not None
  for line in process.stdout:
    if "step " in line and int(line.split("step ")[1].split("/")[0]) >= step:
      return


def final(workdir: pathlib.Path) -> tuple[dict, list, list[bytes]]:
  """State, logged rows and, as bytes, predictions and images seen of the only stage."""
  (stage,) = (path for path in workdir.iterdir() if (path / "checkpoints").is_dir())
  last = max((stage / "checkpoints" / "last").iterdir(), key=lambda path: int(path.name))
  state = ocp.StandardCheckpointer().restore((last / "state").resolve())
  files = [*sorted(stage.glob("predictions*.csv")), *stage.glob("images.jsonl")]
  tables = [path.read_bytes() for path in files]
  return state, writer.read(stage / "metrics.jsonl"), tables


def assert_equal(one, other) -> None:
  assert one[1] == other[1], "logged rows"
  assert one[2] == other[2], "predictions or images seen"
  jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
