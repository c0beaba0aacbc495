"""`launch/sweep.py`: the lines of a grid, and what is gathered of its runs."""

import csv
import itertools
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

from medjax import main

ROOT = pathlib.Path(__file__).parents[1]
SWEEP = ROOT / "launch/sweep.py"
TINY = ROOT / "tests/tiny.py"
QUICK = ("--config.train.length=4 steps", "--config.eval.bootstrap=20")
SBATCH = """#!/bin/sh
echo "$MEDJAX_ROOT"
for word; do echo "$word"; done
"""


def sweep(*args: object, **env: str) -> subprocess.CompletedProcess:
  command = [sys.executable, SWEEP, *map(str, args)]
  return subprocess.run(
    command, env=os.environ | env, capture_output=True, text=True, check=False, timeout=140
  )


def lines(*args: object) -> list[list[str]]:
  """The words of each command line that is printed."""
  done = sweep("--config=configs/x.py", "--root=runs/it", "--program=start here", *args)
  assert done.returncode == 0, done.stderr
  return [shlex.split(line) for line in done.stdout.splitlines()]


def told(*args: object) -> str:
  """The one line of an error."""
  done = sweep(*args)
  assert done.returncode == 1 and not done.stdout and len(done.stderr.splitlines()) == 1
  return done.stderr


# Lines.


def test_a_grid_has_every_pair_of_values_in_a_workdir_of_its_own():
  found = lines("optimizer.lr=1e-4,3e-4", "model.name=quadsnet,mednet")
  assert [line[:3] for line in found] == [["start", "here", "--config=configs/x.py"]] * 4
  pairs = list(itertools.product(("1e-4", "3e-4"), ("quadsnet", "mednet")))
  assert [line[3:] for line in found] == [
    [
      f"--workdir=runs/it/lr={lr},name={name}",
      f"--config.optimizer.lr={lr}",
      f"--config.model.name={name}",
    ]
    for lr, name in pairs
  ]


def test_zipped_keys_move_together():
  found = lines("--zip", "optimizer.lr=1e-4,3e-4", "train.batch_size=16,32")
  assert [line[4:] for line in found] == [
    ["--config.optimizer.lr=1e-4", "--config.train.batch_size=16"],
    ["--config.optimizer.lr=3e-4", "--config.train.batch_size=32"],
  ]


def test_seeds_and_folds_are_axes():
  found = lines("--seeds=2", "--folds=3")
  assert {(line[-2], line[-1]) for line in found} == {
    (f"--config.data.split.fold={fold}", f"--config.seed={seed}")
    for fold in range(3)
    for seed in range(2)
  }
  assert all("--config.data.split.folded=test" in line for line in found)
  assert found[0][3] == "--workdir=runs/it/fold=0,seed=0"  # named by what moves alone


def test_settings_that_hold_for_all_come_first_so_that_an_axis_wins():
  (line,) = lines("optimizer.lr=1", "--config.optimizer.lr=2", "--config.data.root=a b")
  assert line[4:] == [
    "--config.optimizer.lr=2",
    "--config.data.root=a b",
    "--config.optimizer.lr=1",
  ]


def test_commas_in_brackets_part_nothing_and_names_stay_distinct():
  found = lines("model.widths=(4,8),(8,16)", "eval.maps='a,b',\"\"")
  assert [line[4:] for line in found] == [
    [f"--config.model.widths={widths}", f"--config.eval.maps={maps}"]
    for widths in ("(4,8)", "(8,16)")
    for maps in ("'a,b'", '""')
  ]
  names = [pathlib.Path(line[3].split("=", 1)[1]).name for line in found]
  assert len(set(names)) == 4 and not any(set(name) & set("()'\"/ ") for name in names)


def test_two_keys_of_one_last_name_are_told_apart():
  (line,) = lines("model.name=quadsnet", "objective.name=supervised")
  assert line[3] == "--workdir=runs/it/model.name=quadsnet,objective.name=supervised"


def test_long_values_have_names_that_a_disk_takes():
  found = lines(f"data.root={'a' * 300},{'a' * 301}")
  names = {pathlib.Path(line[3]).name for line in found}
  assert len(names) == 2 and max(map(len, names)) < 200


def test_the_lines_are_understood_by_the_program(capsys):
  """As far as the first thing that is missing."""
  (line,) = lines("optimizer.lr=1e-4", "--config.train.length=4 steps")
  assert line[4:] == ["--config.train.length=4 steps", "--config.optimizer.lr=1e-4"]
  assert main.main(line[2:]) == 1
  assert capsys.readouterr().err.startswith("error: no config file configs/x.py")


@pytest.mark.parametrize(
  ("args", "words"),
  [
    (["--config=c"], "say what to sweep"),
    (["a=1"], "say what to sweep"),
    (["--config=c", "a"], "a is no axis"),
    (["--config=c", "a=1,,2"], "parted by commas"),
    (["--config=c", "a=(1,2"], "brackets and quotes are closed"),
    (["--config=c", "a=1,1"], "given twice"),
    (["--config=c", "a=1", "--zip", "a=2"], "a is on two axes"),
    (["--config=c", "--zip", "a=2", "a=3"], "a is there twice"),
    (["--config=c", "--zip", "a=1,2", "b=1"], "2 of a, 1 of b"),
    (["--config=c", "seed=1", "--seeds=2"], "seed is on two axes"),
    (["--config=c", "a=1", "--lr=3"], "unknown flag --lr=3"),
    (["--config=c", "a=1\t2", "--submit=sbatch"], "tabs or line breaks"),
    (["--gather"], "no folder"),
  ],
)
def test_mistakes_are_told_in_a_line(args, words, tmp_path):
  assert words in told(f"--root={tmp_path / 'r'}", *args)


# Starting.


def test_an_array_job_has_a_line_a_run(tmp_path):
  (tmp_path / "sbatch").write_text(SBATCH)
  (tmp_path / "sbatch").chmod(0o755)
  root = tmp_path / "a root"
  args = ["--config=c", f"--root={root}", "data.root=a b,c", "--submit=sbatch"]
  env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  done = sweep(*args, "--sbatch=--time=1:00:00", **env)
  assert done.returncode == 0, done.stderr
  (file,) = root.glob("runs-*.tsv")
  command = ["--array=0-1", "--time=1:00:00", str(ROOT / "launch/slurm.sbatch"), f"@{file}"]
  assert done.stdout.splitlines()[1:] == [str(ROOT), *command]
  rows = [line.split("\t") for line in file.read_text().splitlines()]
  assert [row[-1] for row in rows] == ["--config.data.root=a b", "--config.data.root=c"]
  sweep(*args, "--seeds=2", **env)
  assert len(file.read_text().splitlines()) == 2  # the first array may still wait


def test_local_runs_follow_each_other_and_a_failed_one_is_told_at_the_end(tmp_path):
  program = tmp_path / "program"
  program.write_text('#!/bin/sh\necho "$2"; case "$2" in *lr=2) exit 1 ;; esac\n')
  program.chmod(0o755)
  done = sweep("--config=c", "--root=r", "lr=1,2,3", "--submit=local", f"--program={program}")
  assert [line for line in done.stdout.splitlines() if line.startswith("--")] == [
    f"--workdir=r/lr={lr}" for lr in (1, 2, 3)
  ]
  assert done.returncode == 1 and done.stderr == "error: 1 of 3 runs failed\n"


def test_a_signal_stops_the_run_that_goes_and_those_after_it(tmp_path):
  program = tmp_path / "program"
  stop = f"trap 'kill $!; echo saved; exit {main.STOPPED}' TERM"
  program.write_text(f'#!/bin/sh\nsleep 60 &\n{stop}\necho "ready $2"; wait\n')
  program.chmod(0o755)
  args = ["--config=c", "--root=r", "lr=1,2", "--submit=local", f"--program={program}"]
  process = subprocess.Popen([sys.executable, SWEEP, *args], stdout=subprocess.PIPE, text=True)
  while not process.stdout.readline().startswith("ready"):
    pass
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=30)
  assert process.returncode == main.STOPPED and out == "saved\n"


@pytest.mark.parametrize("last", ["while :; do sleep 0.1; done", "exit 0"])
def test_a_signal_as_a_run_begins_or_ends_is_not_lost(tmp_path, last):
  program = tmp_path / "program"
  program.write_text(f"#!/bin/sh\ntrap 'exit {main.STOPPED}' TERM\nkill $PPID\n{last}\n")
  program.chmod(0o755)
  done = sweep("--config=c", "--root=r", "lr=1,2", "--submit=local", f"--program={program}")
  assert done.returncode == main.STOPPED and "run 2" not in done.stdout


# Gathering.


def _finished(workdir: pathlib.Path, value: float) -> None:
  """What `runs` leaves, as far as it is gathered."""
  workdir.mkdir(parents=True)
  (workdir / "config.json").write_text("{}")
  numbers = {"value": value, "low": value - 0.1, "high": value + 0.1, "defined": 9}
  metrics = {"accuracy": numbers, "auc": {"value": None, "low": None, "high": None}}
  stages = [
    {"name": "pretrain", "test": None},
    {"name": "finetune", "test": {"images": 30, "metrics": metrics}},
  ]
  report = {"primary": "accuracy", "stages": stages}
  (workdir / "report.json").write_text(json.dumps(report))


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  with path.open(newline="") as file:
    return list(csv.DictReader(file))


def test_runs_are_gathered_with_those_that_are_missing_or_unfinished(tmp_path):
  _finished(tmp_path / "lr=1,seed=0", 0.5)
  _finished(tmp_path / "lr=1,seed=1", 0.75)
  (tmp_path / "lr=2,seed=0").mkdir()
  (tmp_path / "lr=2,seed=0/config.json").write_text("{}")
  done = sweep(f"--root={tmp_path}", "optimizer.lr=1,2", "--seeds=2", "--gather")
  rows = _rows(tmp_path / "sweep.csv")
  states = [(row["optimizer.lr"], row["seed"], row["state"], row["value"]) for row in rows]
  assert states == [
    ("1", "0", "finished", "0.5"),
    ("1", "1", "finished", "0.75"),
    ("2", "0", "unfinished", ""),
    ("2", "1", "missing", ""),
  ]
  assert {row["stage"] for row in rows[:2]} == {"finetune"} and rows[0]["images"] == "30"
  assert done.returncode == 1 and "2 of 4 runs are finished" in done.stdout
  assert "lr=1,seed=0  finetune  accuracy 0.500 (0.400 to 0.600)\n" in done.stdout
  mean = "optimizer.lr=1  finetune  accuracy  mean 0.625 of 2, spread 0.177\n"  # 0.25 / sqrt(2)
  assert mean in done.stdout


def test_a_root_is_gathered_without_its_grid_and_studies_go_to_a_table_of_their_own(tmp_path):
  _finished(tmp_path / "a", 0.5)
  _finished(tmp_path / "b", 0.25)
  (tmp_path / "b/study_summary.csv").write_text("arm,value\nsoftmax,0.5\nfocal,0.75\n")
  (tmp_path / "no run").mkdir()
  done = sweep(f"--root={tmp_path}", "--gather")
  assert done.returncode == 0, done.stderr
  assert [row["run"] for row in _rows(tmp_path / "sweep.csv")] == ["a", "b"]
  study = _rows(tmp_path / "sweep_study.csv")
  assert study == [
    {"run": "b", "arm": "softmax", "value": "0.5"},
    {"run": "b", "arm": "focal", "value": "0.75"},
  ]


@pytest.mark.slow
def test_a_sweep_runs_goes_on_and_is_gathered(tmp_path):
  """Two seeds of the real program; the second is taken away and made again."""
  args = [f"--config={TINY}", f"--root={tmp_path / 'runs'}", "--seeds=2", *QUICK]
  program = f"--program={sys.executable} -m medjax.main"
  env = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  first = sweep(*args, program, "--submit=local", **env)
  assert first.returncode == 0, first.stdout + first.stderr
  before = (tmp_path / "runs/seed=0/train/predictions_test.csv").read_bytes()
  shutil.rmtree(tmp_path / "runs/seed=1")
  assert sweep(*args, "--gather").returncode == 1
  again = sweep(*args, program, "--submit=local", **env)
  assert again.returncode == 0 and again.stdout.count("finished before") == 1
  assert (tmp_path / "runs/seed=0/train/predictions_test.csv").read_bytes() == before
  assert sweep(*args, "--gather").returncode == 0
  for row in _rows(tmp_path / "runs/sweep.csv"):
    report = json.loads((tmp_path / "runs" / row["run"] / "report.json").read_text())
    metrics = report["stages"][0]["test"]["metrics"]
    assert float(row["value"]) == metrics[report["primary"]]["value"]
    assert float(row["log_loss"]) == metrics["log_loss"]["value"]
