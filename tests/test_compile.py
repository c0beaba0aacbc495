"""What is compiled, when, and how often: told by JAX's own monitoring of a real run."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
TINY = pathlib.Path(__file__).with_name("tiny.py")

# Runs medjax as `main` does and prints, in order: what was compiled, what the cache on the disk had
# or had not, and where the loop of the stage began and ended.
PROGRAM = """
import json, pathlib, sys
import jax
from medjax import runs, train

events, loop = [], train.train

def marked(*args, **kwargs):
  events.append(["loop", "begin"])
  end = loop(*args, **kwargs)
  events.append(["loop", "end"])
  return end

def compiled(event, seconds, fun_name="", **rest):
  if event.endswith("backend_compile_duration"):
    events.append(["compiled", fun_name, seconds])

def cached(event, **rest):
  if event.startswith("/jax/compilation_cache/cache_"):
    events.append([event.rpartition("/")[2], ""])

train.train = marked
jax.monitoring.register_event_duration_secs_listener(compiled)
jax.monitoring.register_event_listener(cached)
config, workdir, *overrides = sys.argv[1:]
runs.start("train", config, pathlib.Path(workdir), overrides)
print(json.dumps(events))
"""
# Seven steps, two a call, so that the last call is a shorter one; statistics estimated anew.
SETTINGS = ["train.length=7 steps", "eval.every=2 steps", "eval.recalibrate=32"]


def _events(
  workdir: pathlib.Path, home: pathlib.Path, variant: str = "", *more: str, config=TINY
) -> list:
  environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "HOME": str(home)}
  command = [sys.executable, "-c", PROGRAM, f"{config}{variant}", str(workdir), *SETTINGS, *more]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> tuple[list, list]:
  """Events of a first start and of a second one that finds what the first compiled."""
  folder = tmp_path_factory.mktemp("compile")
  return tuple(_events(folder / name, folder) for name in ("first", "second"))


def test_each_function_is_compiled_once_a_length(starts):
  names = collections.Counter(name for kind, name, *_ in starts[0] if kind == "compiled")
  expected = {"jit(dispatch)": 2, "jit(score)": 1, "jit(calibrate)": 1, "jit(init)": 1}
  assert {name: names[name] for name in expected} == expected


@pytest.mark.parametrize("start", [0, 1], ids=["first", "second"])
def test_nothing_is_compiled_once_the_loop_began(starts, start):
  begun = starts[start].index(["loop", "begin"])
  after = [event for event in starts[start][begun:] if event[0] != "loop"]
  assert begun > 0 and after == []


def test_a_second_start_compiles_nothing_new(starts):
  first, second = (collections.Counter(kind for kind, *_ in events) for events in starts)
  assert first["cache_misses"] > 0 and first["cache_hits"] == 0
  assert second["cache_misses"] == 0 and second["cache_hits"] == first["cache_misses"]


def test_a_second_start_compiles_in_less_than_a_quarter(starts):
  seconds = [sum(event[2] for event in events if event[0] == "compiled") for events in starts]
  assert seconds[1] < seconds[0] / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simclr", "micle", "byol", "rotation"])
def test_pretraining_compiles_its_step_once_a_length(tmp_path, name):
  events = _events(tmp_path / "w", tmp_path, ":simclr", f"objective.name={name}")
  begun = events.index(["loop", "begin"])
  compiled = [event[1] for event in events[:begun] if event[0] == "compiled"]
  assert compiled.count("jit(dispatch)") == 2
  assert [event for event in events[begun:] if event[0] != "loop"] == []


@pytest.mark.slow
def test_a_gan_compiles_its_step_once_a_length_and_nothing_to_be_judged(tmp_path):
  events = _events(tmp_path / "w", tmp_path, config=TINY.with_name("gan.py"))
  begun = len(events) - events[::-1].index(["loop", "begin"])  # of the second stage
  first = events.index(["loop", "end"])
  compiled = [event[1] for event in events[first:begun] if event[0] == "compiled"]
  assert compiled.count("jit(dispatch)") == 2 and compiled.count("jit(sample)") == 1
  assert [event for event in events[begun:] if event[0] != "loop"] == []
