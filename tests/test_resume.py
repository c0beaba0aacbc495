"""A run that was killed and started again ends exactly as one that was not."""

import pathlib
import signal
import time

import numpy as np
import processes
import pytest

from medjax import checkpoint, main

TINY = processes.TINY
GAN = pathlib.Path(__file__).with_name("gan.py")
# Pairs of images mixed, in sizes that change in between.
MIXED = (
  "--config.objective.mixup=0.4",
  "--config.objective.cutmix=1.0",
  "--config.augment.cutout=0.3",
  "--config.train.sizes=(16,24)",
  "--config.train.sizes_every=6 steps",
)
MONITORED = "--config.eval.monitors=({'name':'phantom','patients':40,'seed':3},)"


def assert_survives(tmp_path: pathlib.Path, kills: int, *args: str) -> None:
  args = (*args, "--config.train.log_images=True")
  whole = processes.start(tmp_path / "whole", *args)
  assert whole.communicate()[0] and whole.returncode == 0
  rng = np.random.default_rng(len(args[0]))
  cuts = sorted(rng.choice(np.arange(6, 56), kills, replace=False).tolist())
  for cut in cuts:
    process = processes.start(tmp_path / "cut", *args)
    processes.until_step(process, cut)
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    process.communicate()
  process = processes.start(tmp_path / "cut", *args)
  text, _ = process.communicate()
  assert process.returncode == 0 and "resumed from step" in text
  processes.assert_equal(processes.final(tmp_path / "whole"), processes.final(tmp_path / "cut"))


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
    process = processes.start(tmp_path / feed, f"--config={TINY}", f"--config.data.feed={feed}")
    assert process.communicate()[0] and process.returncode == 0
  processes.assert_equal(
    processes.final(tmp_path / "resident"), processes.final(tmp_path / "streamed")
  )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_a_status_of_its_own(tmp_path, number):
  process = processes.start(
    tmp_path / "w", f"--config={TINY}", "--config.train.checkpoint_every=60 steps"
  )
  processes.until_step(process, 8)
  process.send_signal(number)
  text, _ = process.communicate()
  assert process.returncode == main.STOPPED and "stopped at step" in text
  saved = checkpoint.Checkpoints(tmp_path / "w" / "train" / "checkpoints")
  assert (saved.latest(checkpoint.LAST) or 0) >= 8
