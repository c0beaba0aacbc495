"""Several processes are one run: its losses, its scores, its files, and its end.

The processes are real ones, of two devices each, and meet on this machine.
"""

from __future__ import annotations

import csv
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from medjax import checkpoint, main, writer
from medjax import place as place_lib

ROOT = pathlib.Path(__file__).parents[1]
GAN = pathlib.Path(__file__).with_name("gan.py")
TINY = pathlib.Path(__file__).with_name("tiny.py")
SMALL = (
  f"--config={TINY}",
  "--config.model.widths=(4,)",
  "--config.model.streams=('cs3',)",
  "--config.model.convs_per_block=1",
  "--config.model.sep_convs_per_block=1",
)
FIFTY = ("--config.train.length=50 steps", "--config.train.log_every=2 steps")


def start(
  workdir: pathlib.Path, count: int, *args: str, devices: int = 2, **environment: str
) -> list[subprocess.Popen]:
  """The processes of a run; `environment` may hold {process} where each has its own value."""
  meeting = (
    () if environment else (f"--coordinator=localhost:{free_port()}", f"--processes={count}")
  )
  flags = f"--xla_force_host_platform_device_count={devices}"
  base = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": "1"}
  started = []
  for process in range(count):
    own = {name: value.format(process=process) for name, value in environment.items()}
    which = (*meeting, f"--process={process}") if meeting and count > 1 else ()
    started.append(
      subprocess.Popen(
        [sys.executable, "-m", "medjax.main", *args, f"--workdir={workdir}", *which],
        env=base | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return started


def free_port() -> int:
  with socket.socket() as listening:
    listening.bind(("", 0))
    return listening.getsockname()[1]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
  """Status, stdout and stderr of each."""
  texts = [process.communicate(timeout=300) for process in processes]
  return [(p.returncode, *text) for p, text in zip(processes, texts, strict=True)]


def run(workdir: pathlib.Path, count: int, *args: str, **how) -> list[tuple[int, str, str]]:
  """A whole run, which must go well."""
  found = ended(start(workdir, count, *args, **how))
  assert [status for status, _, _ in found] == [0] * count, found
  return found


def until(process: subprocess.Popen, words: str) -> None:
  """Reads what a process prints until a line holds the words."""
  assert process.stdout is not None
  assert any(words in line for line in process.stdout), words


def numbers(workdir: pathlib.Path) -> list[dict]:
  return writer.read(workdir / "train" / "metrics.jsonl")


def scores(workdir: pathlib.Path, part: str) -> tuple[list[str], np.ndarray]:
  """Ids and scores [n, 3] of a part."""
  with (workdir / "train" / f"predictions_{part}.csv").open(newline="") as file:
    rows = list(csv.DictReader(file))
  names = [name for name in rows[0] if name.startswith("score_")]
  return [row["id"] for row in rows], np.array([[float(row[n]) for n in names] for row in rows])


def files(workdir: pathlib.Path) -> list[str]:
  """Names of all files, less those in which a library puts the time or a random number."""
  found = (str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file())
  return sorted(name for name in found if "tfevents" not in name and "/d/" not in name)


def assert_same_numbers(one: pathlib.Path, other: pathlib.Path) -> None:
  """Equal to rounding in float64."""
  ours, theirs = numbers(one), numbers(other)
  assert [row["step"] for row in ours] == [row["step"] for row in theirs]
  losses = [[row["loss"] for row in rows] for rows in (ours, theirs)]
  np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-9)
  print("largest difference of losses", np.abs(np.subtract(*losses)).max())
  for part in ("val", "test"):
    (ids, expected), (names, found) = scores(one, part), scores(other, part)
    assert ids == names
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    print(f"of {part} scores", np.abs(found - expected).max())


def assert_same_run(one: pathlib.Path, other: pathlib.Path) -> None:
  """The same numbers, and the same files."""
  assert_same_numbers(one, other)
  assert files(one) == files(other)


def slurm(job: int, process: str = "{process}") -> dict[str, str]:
  """What srun sets, of a task of a job of two on this machine."""
  return {
    "SLURM_JOB_ID": str(job),
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": process,
    "SLURM_LOCALID": process,
  }


def job_of_a_free_port() -> int:
  """A job whose port nobody has."""
  for job in range(os.getpid(), os.getpid() + 100):
    place = place_lib.found(environment=slurm(job, "0"))
    assert place is not None
    with socket.socket() as listening:
      if listening.connect_ex(("localhost", int(place.coordinator.split(":")[1]))):
        return job
  raise AssertionError("no port is free")


def test_slurms_variables_alone_make_one_run_of_two_processes(tmp_path):
  few = ("--config.train.length=4 steps", "--config.eval.every=4 steps")
  alone = start(tmp_path / "one", 1, *SMALL, *few, devices=1)
  found = run(tmp_path / "two", 2, *SMALL, *few, **slurm(job_of_a_free_port()))
  assert ended(alone)[0][0] == 0
  assert_same_run(tmp_path / "one", tmp_path / "two")
  assert "runs on 4 x" in found[0][1] and found[1][1] == ""


@pytest.fixture(scope="module", params=["resident", "streamed"])
def alone(request, tmp_path_factory) -> tuple[pathlib.Path, tuple[str, ...]]:
  """Fifty steps of one process on one device, and how they were asked for."""
  args = (*SMALL, *FIFTY, f"--config.data.feed={request.param}")
  workdir = tmp_path_factory.mktemp("alone") / request.param
  run(workdir, 1, *args, devices=1)
  return workdir, args


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_fifty_steps_of_several_processes_are_those_of_one(alone, tmp_path, count):
  workdir, args = alone
  run(tmp_path / "several", count, *args)
  assert_same_run(workdir, tmp_path / "several")


@pytest.mark.slow
@pytest.mark.parametrize(
  "args", [(f"--config={TINY}:stages", *SMALL[1:]), (f"--config={GAN}",)], ids=["stages", "gan"]
)
def test_monitors_judges_and_stages_see_the_same(tmp_path, args):
  few = "--config.train.length=8 steps"
  run(tmp_path / "one", 1, *args, few, devices=1)
  run(tmp_path / "two", 2, *args, few)
  assert files(tmp_path / "one") == files(tmp_path / "two")
  logs = sorted(path.relative_to(tmp_path / "one") for path in tmp_path.glob("one/*/metrics.jsonl"))
  assert logs
  for log in logs:
    ours, theirs = (writer.read(tmp_path / name / log) for name in ("one", "two"))
    for one, other in zip(ours, theirs, strict=True):
      assert one.pop("stage") == other.pop("stage")
      assert one == pytest.approx(other, rel=1e-6, abs=1e-6)


@pytest.mark.slow
def test_a_signal_to_one_of_four_saves_the_same_step_and_one_process_goes_on(tmp_path):
  args = (*SMALL, *FIFTY, "--config.train.checkpoint_every=50 steps")
  run(tmp_path / "whole", 1, *args, devices=1)
  started = start(tmp_path / "cut", 4, *args)
  until(started[0], "step 10/50")
  started[2].send_signal(signal.SIGTERM)
  found = ended(started)
  assert [status for status, _, _ in found] == [main.STOPPED] * 4, found
  assert "stopped at step" in found[0][1]
  saved = checkpoint.Checkpoints(tmp_path / "cut" / "train" / "checkpoints")
  step = saved.latest(checkpoint.LAST)
  saved.close()
  assert step is not None and f"stopped at step {step} " in found[0][1]
  text = run(tmp_path / "cut", 1, *args, devices=1)[0][1]
  assert f"resumed from step {step}" in text
  assert_same_numbers(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_a_signal_ends_all_while_they_compile(tmp_path):
  started = start(tmp_path / "w", 2, *SMALL)
  until(started[0], "compiling")
  started[1].send_signal(signal.SIGTERM)
  found = ended(started)
  assert [status for status, _, _ in found] == [main.STOPPED] * 2, found
  assert "process 1 was stopped by a signal" in found[0][2]


@pytest.mark.slow
def test_another_run_is_refused(tmp_path):
  args = *SMALL, "--config.train.length=5000 steps"  # so that the first is there all the while
  started = start(tmp_path / "w", 2, *args)
  until(started[0], "compiling")
  ((status, _, text),) = ended(start(tmp_path / "w", 1, *args, devices=1))
  assert status == 1 and "another run works in" in text
  started[1].send_signal(signal.SIGTERM)
  assert [status for status, _, _ in ended(started)] == [main.STOPPED] * 2


@pytest.mark.slow
def test_two_processes_go_on_where_one_stopped(tmp_path):
  args = (*SMALL, *FIFTY)
  run(tmp_path / "whole", 1, *args, devices=1)
  (started,) = start(tmp_path / "cut", 1, *args, devices=3)
  until(started, "step 10/50")
  started.kill()
  ended([started])
  assert "resumed from step" in run(tmp_path / "cut", 2, *args)[0][1]
  assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
def test_four_processes_of_which_one_was_killed_end_soon_and_go_on_exactly(tmp_path, victim):
  args = (*SMALL, *FIFTY, "--config.train.checkpoint_every=4 steps")
  run(tmp_path / "whole", 4, *args)
  started = start(tmp_path / "cut", 4, *args)
  until(started[0], "step 20/50")
  started[victim].kill()
  died = time.monotonic()
  found = ended(started)
  print("seconds until all had ended", time.monotonic() - died)
  assert time.monotonic() - died < 30
  for process, (status, _, text) in enumerate(found):
    if process != victim:
      assert status not in (0, main.STOPPED)
      assert f"process {victim} of this run was killed or lost; the same command goes on" in text
  assert "resumed from step" in run(tmp_path / "cut", 4, *args)[0][1]
  assert numbers(tmp_path / "whole") == numbers(tmp_path / "cut")
  for part in ("val", "test"):
    np.testing.assert_array_equal(
      scores(tmp_path / "whole", part)[1], scores(tmp_path / "cut", part)[1]
    )


@pytest.mark.slow
def test_an_error_of_all_ends_all_with_one_line_each(tmp_path):
  found = ended(start(tmp_path / "w", 2, *SMALL, "--config.eval.select=nonsense"))
  assert [status for status, _, _ in found] == [1, 1]
  assert all("no metric eval.select='nonsense'" in text for _, _, text in found)


@pytest.mark.parametrize(
  "environment",
  [
    {},
    {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "a[1-4]"},  # salloc's shell
    slurm(7, "0") | {"SLURM_NTASKS": "1"},
    {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    {"JOB_COMPLETION_INDEX": "3"},  # an Indexed Job of separate runs
    {"MEDJAX_COORDINATOR": "job-0.jobs:61500", "MEDJAX_PROCESSES": "1", "MEDJAX_PROCESS": "0"},
  ],
  ids=["nothing", "salloc", "one task", "one rank", "job of folds", "job of one"],
)
def test_a_single_process_joins_nobody(environment):
  assert place_lib.found(environment=environment) is None


@pytest.mark.parametrize(
  ("nodes", "first"),
  [
    ("node7", "node7"),
    ("n007,login", "n007"),
    ("gpu[007-010,12],x", "gpu007"),
    ("rack1-n[3,5]", "rack1-n3"),
  ],
)
def test_slurms_first_node_is_where_all_meet(nodes, first):
  tasks = [place_lib.found(environment=slurm(7, p) | {"SLURM_STEP_NODELIST": nodes}) for p in "01"]
  assert [(task.process, task.processes) for task in tasks] == [(0, 2), (1, 2)]
  assert len({task.coordinator for task in tasks}) == 1
  assert tasks[0].coordinator.split(":")[0] == first
  other = place_lib.found(environment=slurm(8, "0"))
  assert other.coordinator.split(":")[1] != tasks[0].coordinator.split(":")[1]


@pytest.mark.parametrize(
  ("environment", "devices"),
  [
    ({}, None),  # no GPU is named: whatever is there
    ({"SLURM_GTIDS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1"}, (1,)),
    ({"SLURM_GTIDS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (2, 3)),
    ({"SLURM_GTIDS": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, None),  # one process a host
    ({"SLURM_GTIDS": "0,1", "CUDA_VISIBLE_DEVICES": "1"}, None),  # each task sees its own
    (
      {"SLURM_GTIDS": "0,1", "CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"},
      None,
    ),
  ],
)
def test_processes_of_a_host_share_its_gpus(environment, devices):
  task = slurm(7, "1") | {"CUDA_VISIBLE_DEVICES": ""} | environment
  assert place_lib.found(environment=task).devices == devices


def test_open_mpi_and_kubernetes_say_the_place():
  ranks = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
  uri = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"}
  place = place_lib.found(environment=ranks | uri)
  assert (place.processes, place.process) == (4, 3)
  assert place.coordinator.startswith("10.96.0.1:")
  here = place_lib.found(environment=ranks | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
  assert here.coordinator.startswith("localhost:")
  with pytest.raises(ValueError, match="--coordinator"):
    place_lib.found(environment=ranks | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"})
  job = {"MEDJAX_COORDINATOR": "job-0.jobs:61500", "MEDJAX_PROCESSES": "8"}
  place = place_lib.found(environment=job | {"JOB_COMPLETION_INDEX": "5"})
  assert (place.coordinator, place.processes, place.process) == ("job-0.jobs:61500", 8, 5)


@pytest.mark.parametrize(
  "flags", [("node1:61500", 0, 0), ("node1", 2, 0), ("", 2, 0), ("node1:61500", 2, 2)]
)
def test_half_a_place_is_refused(flags):
  with pytest.raises(ValueError, match="give all three"):
    place_lib.found(*flags, environment={})


def test_what_is_no_number_is_told():
  with pytest.raises(ValueError, match="MEDJAX_PROCESSES=two"):
    place_lib.found(environment={"MEDJAX_PROCESSES": "two"})
