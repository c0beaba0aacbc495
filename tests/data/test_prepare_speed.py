"""What gathering costs: an image, a shard, a byte of memory.

Run with `-n 0 -m slow -s` to see the figures, on a quiet machine.
"""

import functools
import os
import pathlib
import statistics
import subprocess
import sys
import time

import cv2
import imagecodecs
import numpy as np
import pytest
import simplejpeg
import trees_of_files as trees

from medjax.data.collection import making, shards
from medjax.data.collection import plan as plan_lib

pytestmark = pytest.mark.slow

SIDE, FILES, ROUNDS = 224, 512, 5


def _phantoms(folder, count: int) -> None:
  """Noise of 64 pixels, blurred: no two alike, and cheap to draw."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  for number in range(count):
    noise = cv2.resize(rng.integers(0, 256, (8, 8), np.uint8), (64, 64))
    (folder / f"{number}.png").write_bytes(cv2.imencode(".png", noise)[1].tobytes())


def test_cost_an_image_stays_as_collections_grow(tmp_path):
  """CPU time and peak memory of the whole command with one worker, start-up counted."""
  costs, peaks = {}, {}
  for count in (1_000, 10_000, 100_000):
    _phantoms(tmp_path / f"{count}", count)
    command = [sys.executable, "-m", "medjax.data", "prepare", tmp_path / f"{count}"]
    command += ["--out", tmp_path / f"out{count}", "--size", "64", "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
      seconds, peaks[count] = _watched(process)
    assert process.returncode == 0
    costs[count] = 1e6 * seconds / count
    print(f"{count:,} images: {costs[count]:.0f} us of CPU each, peak {peaks[count]:.0f} MB")
  assert costs[100_000] < 1.3 * costs[10_000]
  assert peaks[100_000] < 1.5 * peaks[1_000]


def _watched(process: subprocess.Popen) -> tuple[float, float]:
  """Of a process and its descendants, looked at ten times a second: CPU seconds, peak megabytes."""
  peak, seconds = 0, {}
  while process.poll() is None:
    family = _family(process.pid)
    peak = max(peak, sum(map(_proportional, family)))
    seconds |= {pid: max(_seconds(pid), seconds.get(pid, 0)) for pid in family}
    time.sleep(0.1)
  return sum(seconds.values()), peak / 1e3


def _seconds(pid: int) -> float:
  """CPU seconds of a process alone."""
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
  except OSError:  # it ended meanwhile
    return 0
  return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _family(pid: int) -> list[int]:
  try:
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
  except OSError:  # it ended meanwhile
    return []
  return [pid, *(one for child in children for one in _family(child))]


def _proportional(pid: int) -> int:
  """Kilobytes, of which shared pages are shared out."""
  try:
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
  except OSError:  # it ended meanwhile
    return 0
  return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


DECODERS = {
  ("JPEG", False): lambda data: simplejpeg.decode_jpeg(data, "GRAY"),
  ("JPEG", True): lambda data: simplejpeg.decode_jpeg(data, "RGB"),
  ("PNG", False): imagecodecs.png_decode,
  ("PNG", True): imagecodecs.png_decode,
}


def _timed(plan, numbers, seconds):
  """Makes shards in this process."""
  for number in numbers:
    began = time.perf_counter()
    counts = shards.write((plan, number))
    seconds.append(time.perf_counter() - began)
    yield counts


@pytest.mark.parametrize(("kind", "colour"), DECODERS)
def test_rate_of_a_core_against_its_best_decoder(tmp_path, kind, colour):
  """Everything that becomes of a file: read, hashed, decoded, described, fitted, recorded."""
  options = {"quality": 90} if kind == "JPEG" else {}
  for number in range(FILES):
    pixels = trees.picture(number, SIDE, colour)
    trees.write(tmp_path / f"tree/{number}.{kind}", trees.encoded(pixels, kind, **options))
  data = [path.read_bytes() for path in sorted((tmp_path / "tree").iterdir())]
  decode, ratios, rates = DECODERS[kind, colour], [], []
  for number in range(ROUNDS):
    plan = plan_lib.Plan(tmp_path / f"out{number}", (tmp_path / "tree",), size=SIDE, salt=b"pepper")
    plan.folder.mkdir()
    seconds = []
    making.make(plan, functools.partial(_timed, seconds=seconds))
    began = time.perf_counter()
    for one in data:
      decode(one)
    ratios.append((time.perf_counter() - began) / sum(seconds))
    rates.append(FILES / sum(seconds))
  rate, ratio = statistics.median(rates), statistics.median(ratios)
  colours = "RGB" if colour else "grey"
  print(f"{kind} {colours}: {rate:,.0f} images/s a core, {ratio:.2f} of the decoder alone")
  assert ratio > 0.1
