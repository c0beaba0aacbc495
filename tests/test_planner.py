"""A step is made to fit a device's memory: by the numbers of XLA, without other mathematics."""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from medjax import data, main, planner, settings, wiring
from medjax import mesh as mesh_lib

ROOT = pathlib.Path(__file__).parents[1]
TINY = pathlib.Path(__file__).with_name("tiny.py")
Plan = planner.Plan
STEPS, K = 10, 2
NET = settings.QuadSNet(
  widths=(4,), streams=("cs3",), convs_per_block=1, pool="gap", hidden=0, bn_momentum=0.9
)
STAGE = settings.Stage(
  data=settings.Phantom(image_size=16, patients=40),
  model=NET,
  augment=settings.Augment(hflip=True),
  optimizer=settings.SGD(),
  train=settings.Train(
    batch_size=16,
    length=settings.Duration(STEPS, "steps"),
    steps_per_dispatch=K,
    bn_group=4,
  ),
)


def changed(stage=STAGE, **groups) -> settings.Stage:
  """The stage with other settings: `train=dict(batch_size=8)`."""
  new = {name: dataclasses.replace(getattr(stage, name), **of) for name, of in groups.items()}
  return dataclasses.replace(stage, **new)


def counts(stage, devices=1, group=4) -> list[int]:
  return sorted({plan.accumulate for plan in planner.plans(stage, devices, group)})


# What may be tried.


def test_the_configured_program_comes_first_and_few_images_come_last():
  found = planner.plans(changed(train=dict(batch_size=64)), devices=1, group=4)
  large = [Plan(1, False), Plan(2, False), Plan(4, False), Plan(8, False)]
  small = [Plan(16, False), Plan(16, True)]
  assert found == [*large, *(Plan(plan.accumulate, True) for plan in large), *small]


def test_what_is_configured_is_not_taken_back():
  asked = changed(train=dict(remat=True), optimizer=dict(accumulate=2))
  assert planner.plans(asked, 1, 4) == [Plan(2, True), Plan(4, True)]


@pytest.mark.parametrize(
  ("group", "devices", "expected"),
  [
    (1, 1, [1, 2, 4, 8, 16]),
    (4, 1, [1, 2, 4]),
    (16, 1, [1]),
    (1, 8, [1, 2]),
    (4, 8, [1, 2]),
    (16, 8, [1]),
    (1, 3, [1]),  # some slots of a batch are empty there, and would be others
  ],
)
def test_micro_batches_hold_whole_groups_and_fill_all_devices(group, devices, expected):
  assert counts(STAGE, devices, group) == expected


@pytest.mark.parametrize(
  "stage",
  [
    dataclasses.replace(STAGE, objective=settings.SimCLR()),
    dataclasses.replace(STAGE, objective=settings.BYOL()),
    dataclasses.replace(STAGE, objective=settings.GANVanilla()),
    changed(data=dict(feeding=settings.Feeding(shards=2))),
  ],
  ids=["negatives", "views", "gan", "shards"],
)
def test_no_micro_batches_where_they_would_be_other_mathematics(stage):
  assert counts(stage, group=1) == [1]


def test_mixed_pairs_stay_together():
  assert counts(changed(objective=dict(mixup=0.4)), group=1) == [1, 2, 4, 8]


# What is chosen.


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
  return str(tmp_path_factory.mktemp("decoded"))


def wired(stage, folder, cache, devices=1) -> wiring.Bench:
  stage = changed(stage, data=dict(cache=cache))
  mesh = mesh_lib.make(jax.devices()[:devices])
  return wiring.wire(1, stage, data.make(stage.data), folder, mesh)


def losses(bench: wiring.Bench) -> tuple[list[float], wiring.Program]:
  """Those of all steps, and the program that took them."""
  feed, run = planner.fitted(bench, 0)
  state = mesh_lib.put(bench.mesh, jax.jit(bench.objective.init)(jax.random.key(bench.seed)))
  key = mesh_lib.put(bench.mesh, jax.random.key(bench.seed))
  found = []
  for start in range(0, STEPS, K):
    lrs, ticket = bench.lrs(lambda: 1.0)(range(start, start + K)), feed.next(K)
    state, metrics = run(state, feed.resident, ticket, lrs, key)
    found += np.asarray(metrics["loss"]).tolist()
  bench.feeds.close()
  return found, run


def analysed(run: wiring.Program) -> int:
  """Bytes of the only program of a run, by XLA's own fields."""
  (compiled,) = run.by_size.values()
  (program,) = compiled.by_length.values()
  told = program.memory_analysis()
  sizes = {name: getattr(told, f"{name}_size_in_bytes") for name in ("argument", "output", "temp")}
  assert min(sizes.values()) > 0
  return sum(sizes.values()) - told.alias_size_in_bytes


@pytest.mark.parametrize(
  ("devices", "group"),
  [(1, 4), pytest.param(2, 8, marks=pytest.mark.slow)],  # groups that both devices share
)
def test_the_chosen_program_learns_the_same_within_its_budget(
  tmp_path, cache, capsys, x64, devices, group
):
  stage = changed(train=dict(bn_group=group))
  expected, whole = losses(wired(stage, tmp_path, cache, devices))
  assert whole.memory == analysed(whole) and not (tmp_path / planner.FILE).exists()
  budget = whole.memory * 0.9 / 1e9
  bench = wired(changed(stage, train=dict(memory_gb=budget)), tmp_path, cache, devices)
  capsys.readouterr()
  found, run = losses(bench)
  assert analysed(run) == run.memory <= budget * 1e9 < whole.memory
  assert json.loads((tmp_path / planner.FILE).read_text())["accumulate"] == 2
  line = f"memory: {run.memory / 1e9:.3g} of {budget:.3g} GB a device with batch 16 in 2 micro-"
  assert line in capsys.readouterr().out
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  assert found != expected  # it was another program


def test_statistics_that_nothing_moves_bind_no_groups(tmp_path, cache):
  bench = wired(changed(model=dict(bn="none"), train=dict(bn_group=0)), tmp_path, cache)
  assert planner._group(bench) == 1
  assert planner._group(wired(STAGE, tmp_path, cache)) == 4
  assert planner._group(wired(changed(train=dict(bn_group=0)), tmp_path, cache)) == 16


@pytest.mark.parametrize("kept", ["", "[]", '{"devices": "1 x cpu"}', None])
def test_a_resumed_run_begins_with_its_plan_and_survives_a_torn_one(tmp_path, cache, kept):
  bench = wired(STAGE, tmp_path, cache)
  known = planner.plans(STAGE, 1, 4)
  planner._keep(bench, Plan(4, True))
  if kept is None:
    assert planner._kept(bench, known) == Plan(4, True)
    assert planner._kept(bench, known[:1]) == known[0]  # no longer of equal mathematics
    assert planner._kept(wired(STAGE, tmp_path, cache, 2), known) == known[0]
  else:
    (tmp_path / planner.FILE).write_text(kept)
    assert planner._kept(bench, known) == known[0]


# A run, as users start it.

# Runs medjax as `main` does; prints how much the loop's own peak lies above what was there before,
# and what was compiled.
PROGRAM = """
import json, pathlib, sys
import jax
from medjax import runs, train

compiled, loop = [], train.train

def status(name):
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def measured(*args, **kwargs):
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
  before = status("VmRSS")
  end = loop(*args, **kwargs)
  print(json.dumps([status("VmHWM") - before, compiled.count("jit(dispatch)")]))
  return end

def event(name, seconds, fun_name="", **rest):
  if name.endswith("backend_compile_duration"):
    compiled.append(fun_name)

train.train = measured
jax.monitoring.register_event_duration_secs_listener(event)
config, workdir, *overrides = sys.argv[1:]
runs.start("train", config, pathlib.Path(workdir), overrides)
"""
LARGE = (
  "model.streams=cs3",
  "model.convs_per_block=1",
  "model.widths=32",
  "model.pool=gap",
  "data.image_size=96",
  "augment=none",
  "data.split.val=0",
  "data.split.test=0",
  "train.batch_size=32",
  "train.bn_group=8",
  "train.steps_per_dispatch=1",
  "train.length=4 steps",
)


def started(folder: pathlib.Path, name: str, *more: str) -> tuple[float, int, int]:
  """(planned bytes, growth of the process, training steps compiled) of a run."""
  one = "--xla_force_host_platform_device_count=1"  # its memory alone is what grows
  environment = os.environ | {"XLA_FLAGS": one, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
  command = [sys.executable, "-c", PROGRAM, str(TINY), str(folder / name), *LARGE, *more]
  done = subprocess.run(command, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  (told,) = (line.split("memory: ")[1] for line in lines if "memory: " in line)
  growth, compiled = next(json.loads(line) for line in lines if line.startswith("["))
  return float(told.split()[0]) * 1e9, growth, compiled


@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
  ("budget", "tried"), [(0.11, 2), pytest.param(0, 1, marks=pytest.mark.slow)], ids=["cut", "whole"]
)
def test_a_process_grows_by_less_than_twice_what_was_planned(tmp_path, budget, tried):
  planned, growth, compiled = started(tmp_path, "run", f"train.memory_gb={budget}")
  assert planned / 4 < growth < 2 * planned and compiled == tried
  assert (5e7 < planned < 1.1e8) if budget else planned > 1.1e8


def test_a_budget_that_nothing_fits_is_an_error_that_says_what_would_help(tmp_path, capsys):
  """Without groups that are stated, micro-batches would have other statistics."""
  args = [*LARGE, "data.image_size=16", "train.bn_group=0", "train.memory_gb=1e-6"]
  flags = [f"--config.{each}" for each in args]
  assert main.main([f"--config={TINY}", f"--workdir={tmp_path / 'w'}", *flags]) == 1
  text = capsys.readouterr().err
  assert text.startswith("error: stage 'train': a device has 1e-06 GB for a step (train.memory_gb")
  assert "the least of 2 programs takes" in text and "Traceback" not in text
  for hint in ("train.bn_group=8", "data.feed=streamed", "train.precision=bfloat16"):
    assert hint in text


@pytest.mark.slow
def test_a_resumed_run_compiles_its_plan_alone(tmp_path):
  budget = "train.memory_gb=0.11"
  assert started(tmp_path, "run", budget)[2] == 2
  stage = tmp_path / "run" / "train"  # begun anew, in the folder of a run that was planned
  shutil.rmtree(stage / "checkpoints")
  (stage / "chapter.json").unlink()
  assert started(tmp_path, "run", budget)[2] == 1


@pytest.mark.slow
def test_the_number_is_within_15_percent_of_a_gpus_own_peak(tmp_path):
  if jax.default_backend() != "gpu":
    pytest.skip("no GPU: a CPU does not tell its peak")
  bench = wired(changed(train=dict(batch_size=256)), tmp_path, str(tmp_path))
  _, run = losses(bench)
  peak = jax.devices()[0].memory_stats()["peak_bytes_in_use"]
  print(f"planned {run.memory / 1e9:.3f} GB, peak {peak / 1e9:.3f} GB")
  assert math.isclose(run.memory, peak, rel_tol=0.15)
