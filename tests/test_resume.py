"""A run that was killed and started again ends exactly as one that was not."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from medjax import checkpoint, main, writer

ROOT = pathlib.Path(__file__).parents[1]
TINY = pathlib.Path(__file__).with_name("tiny.py")
GAN = pathlib.Path(__file__).with_name("gan.py")
STEPS = "--config.train.length=60 steps"
# Pairs of images mixed, in sizes that change in between.
MIXED = (
  "--config.objective.mixup=0.4",
  "--config.objective.cutmix=1.0",
  "--config.augment.cutout=0.3",
  "--config.train.sizes=(16,24)",
  "--config.train.sizes_every=6 steps",
)
MONITORED = "--config.eval.monitors=({'name':'phantom','patients':40,'seed':3},)"


def start(workdir: pathlib.Path, *args: str) -> subprocess.Popen:
  """The real program in a process of its own, on one device."""
  environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  command = [sys.executable, "-m", "medjax.main", *args, f"--workdir={workdir}", STEPS]
  return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def until_step(process: subprocess.Popen, step: int) -> None:
  """Reads the progress lines up to a step."""
  assert process.stdout is not None
  for line in process.stdout:
    if "step " in line and int(line.split("step ")[1].split("/")[0]) >= step:
      return


def final(workdir: pathlib.Path) -> tuple[dict, list, list[bytes]]:
  """State, logged rows and predictions of the only stage."""
  (stage,) = (path for path in workdir.iterdir() if (path / "checkpoints").is_dir())
  (last,) = (stage / "checkpoints" / "last").iterdir()
  state = ocp.StandardCheckpointer().restore((last / "state").resolve())
  tables = [path.read_bytes() for path in sorted(stage.glob("predictions*.csv"))]
  return state, writer.read(stage / "metrics.jsonl"), tables


def assert_equal(one, other) -> None:
  assert one[1] == other[1], "logged rows"
  assert one[2] == other[2], "predictions"
  jax.tree.map(np.testing.assert_array_equal, one[0], other[0])


def assert_survives(tmp_path: pathlib.Path, kills: int, *args: str) -> None:
  whole = start(tmp_path / "whole", *args)
  assert whole.communicate()[0] and whole.returncode == 0
  rng = np.random.default_rng(len(args[0]))
  cuts = sorted(rng.choice(np.arange(6, 56), kills, replace=False).tolist())
  for cut in cuts:
    process = start(tmp_path / "cut", *args)
    until_step(process, cut)
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    process.communicate()
  process = start(tmp_path / "cut", *args)
  text, _ = process.communicate()
  assert process.returncode == 0 and "resumed from step" in text
  assert_equal(final(tmp_path / "whole"), final(tmp_path / "cut"))


def test_killed_once(tmp_path):
  assert_survives(tmp_path, 1, f"--config={TINY}")


@pytest.mark.slow
@pytest.mark.parametrize(
  "args",
  [
    (f"--config={TINY}",),
    (f"--config={TINY}", "--config.data.feed=streamed"),
    (f"--config={TINY}:simclr",),
    (f"--config={TINY}:rules",),
    (f"--config={TINY}:simclr", "--config.objective.name=byol"),
    (f"--config={TINY}:simclr", "--config.objective.name=micle"),
    (f"--config={TINY}:simclr", MONITORED),
    (f"--config={TINY}", *MIXED),
    (f"--config={GAN}:alone",),
    (f"--config={GAN}:semi",),
  ],
  ids=[
    "resident",
    "streamed",
    "simclr",
    "rules",
    "byol",
    "micle",
    "monitors",
    "mixed",
    "gan",
    "gan_semi",
  ],
)
def test_killed_three_times(tmp_path, args):
  assert_survives(tmp_path, 3, *args)


def test_both_feeds_learn_the_same(tmp_path):
  for feed in ("resident", "streamed"):
    process = start(tmp_path / feed, f"--config={TINY}", f"--config.data.feed={feed}")
    assert process.communicate()[0] and process.returncode == 0
  assert_equal(final(tmp_path / "resident"), final(tmp_path / "streamed"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_a_status_of_its_own(tmp_path, number):
  process = start(tmp_path / "w", f"--config={TINY}", "--config.train.checkpoint_every=60 steps")
  until_step(process, 8)
  process.send_signal(number)
  text, _ = process.communicate()
  assert process.returncode == main.STOPPED and "stopped at step" in text
  saved = checkpoint.Checkpoints(tmp_path / "w" / "train" / "checkpoints")
  assert (saved.latest(checkpoint.LAST) or 0) >= 8
