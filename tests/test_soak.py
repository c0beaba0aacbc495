"""A run of thousands of steps takes no more memory at its end than soon after its beginning."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import processes
import pytest

STEPS, WARM, EVERY = 2000, 1000, 20
SLOPE = 1e6 / 100  # bytes a step

# The same command line in one process twice: what the first run leaves is JAX's own.
DRIVER = """
import contextlib, gc, json, os, sys, threading
from medjax import main

def left():
  gc.collect()
  files = []
  for name in os.listdir("/proc/self/fd"):
    with contextlib.suppress(FileNotFoundError):  # that of the list itself
      files.append(os.readlink(f"/proc/self/fd/{name}"))
  threads = sorted(thread.name for thread in threading.enumerate())
  lasting = 0
  for task in os.listdir("/proc/self/task"):
    with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task}/comm") as name:
      lasting += "ts_pool" not in name.read()  # the storage library's come and go
  return {"threads": threads, "tasks": lasting, "files": sorted(files)}

short, long = json.loads(sys.argv[1])
assert main.main(short) == 0
before = left()
assert main.main(long) == 0
print("LEFT", json.dumps([before, left()]), flush=True)
"""
FEEDS = {
  "resident": ("--config.data.feed=resident",),
  "streamed": ("--config.data.feed=streamed", "--config.data.feeding.memory_gb=0"),
}


def resident_bytes(process: subprocess.Popen) -> int:
  pages = pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1]
  return int(pages) * os.sysconf("SC_PAGE_SIZE")


def names(folder: str | pathlib.Path) -> set[str]:
  return set(os.listdir(folder))


@pytest.mark.slow
@pytest.mark.parametrize("feed", FEEDS)
def test_memory_stays_flat_and_nothing_is_left_behind(tmp_path, feed):
  """Checkpoints, validation, and pictures of embeddings for TensorBoard, all the way."""
  args = [
    f"--config={processes.TINY}",
    *FEEDS[feed],
    "--config.train.checkpoint_every=100 steps",
    f"--config.train.log_every={EVERY} steps",
    "--config.eval.every=100 steps",
    "--config.eval.monitors=({'name':'phantom','patients':40,'seed':3},)",
    f"--config.data.cache={tmp_path}/cache",
  ]
  short, long = (
    [*args, f"--config.train.length={steps} steps", f"--workdir={tmp_path}/{steps}"]
    for steps in (40, STEPS)
  )
  temporary = tmp_path / "temporary"
  temporary.mkdir()
  shared = names("/dev/shm")
  environment = os.environ | {
    "PYTHONPATH": str(processes.ROOT),
    "XLA_FLAGS": "",
    "TMPDIR": str(temporary),
  }
  command = [sys.executable, "-c", DRIVER, json.dumps([short, long])]
  samples, left = [], None
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
    for line in process.stdout:
      if f"/{STEPS} " in line:
        step = int(line.split("step ")[1].split("/")[0])
        samples.append((step, resident_bytes(process)))
      elif line.startswith("LEFT "):
        left = json.loads(line.removeprefix("LEFT "))
  assert process.returncode == 0 and len(samples) == STEPS // EVERY
  steps, used = np.array(samples).T
  slope = np.polyfit(steps[steps > WARM], used[steps > WARM], 1)[0]
  print(f"{feed}: {slope * 100 / 1e6:+.3f} MB per 100 steps, {used[-1] / 1e6:.0f} MB at the end")
  before, after = left
  assert slope < SLOPE
  assert after["threads"] == before["threads"] and after["files"] == before["files"]
  assert after["tasks"] <= before["tasks"]
  assert not names(temporary) and names("/dev/shm") <= shared
