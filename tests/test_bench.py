"""The bench: how it is asked, how sides take turns, what it prints and keeps.

The environment of these tests has no PyTorch, so sides are small programs of their own, run in real
processes as the bench runs them; a comparison with all libraries is marked slow.
"""

import contextlib
import csv
import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
from jax import lax
import numpy as np
import pytest

from medjax import contract
from medjax import mesh as mesh_lib
from medjax.bench import __main__ as door
from medjax.bench import options

ROOT = pathlib.Path(__file__).parents[1]
PEERS = ROOT / "tests/peers"
LINE = re.compile(r"model=(\S+) peer=(\S+) medjax=(\S+) peer_seconds=(\S+) ratio=(\S+)")

SIDE = """
import pathlib, time
import rounds

def side(library, variant, options):
  if variant == "dies":
    raise OSError("no such library")
  log = pathlib.Path(options["log"])

  def run():
    with log.open("a") as file:
      file.write(library + "\\n")

  return rounds.Work(run, {"versions": {library: "1.0"}})
"""
ROWS = """
import results, rounds

def good(asked):
  for library, seconds in (("medjax", (1.0, 2.0, 3.0)), ("torch", (4.0, 4.0, 6.0))):
    yield [results.Measured("scan", library, results.STEP, library, "", seconds)]

def bad(asked):
  raise rounds.Failed("torch ended with 1")
  yield
"""


@pytest.fixture
def peers(monkeypatch):
  """Imports a module of `tests/peers`."""
  monkeypatch.syspath_prepend(str(PEERS))
  return importlib.import_module


def _python(*args: object, **env: str) -> subprocess.CompletedProcess:
  command = [sys.executable, *map(str, args)]
  env = os.environ | {"PYTHONPATH": str(ROOT)} | env
  return subprocess.run(command, capture_output=True, text=True, env=env, cwd=env.get("AT", ROOT))


def test_the_help_names_every_row():
  done = _python("-m", "medjax.bench", "--help")
  assert done.returncode == 0, done.stderr
  for row in options.ROWS:
    assert re.search(rf"^ +{row.number} +{row.name} .*{row.says}$", done.stdout, re.M), row


def test_rows_are_asked_for_by_number_or_name_and_come_once():
  assert options.parse(["--rows", "8, scan,3"]).rows == ("start_up", "scan")


def test_without_rows_a_device_is_given_its_own():
  cpu, gpu = (options.parse([f"--device={name}"]).rows for name in ("cpu", "gpu"))
  assert {options.BY_NAME[name].number for name in cpu} == {*"12345678", "13", ""}
  assert {options.BY_NAME[name].number for name in gpu} == {"9", "10", "11", "12", "13"}


@pytest.mark.parametrize("asked", ["--rows=14", "--rows=,", "--rounds=0", "--size=x"])
def test_a_wrong_option_is_told_before_anything_is_installed(asked, capfd):
  with pytest.raises(SystemExit, match="2"):
    door.main([asked])
  assert asked.partition("=")[2] in capfd.readouterr().err


def test_without_a_checkout_it_says_what_to_clone(tmp_path):
  shutil.copytree(ROOT / "medjax/bench", tmp_path / "medjax/bench")
  for name in ("__init__", "command"):
    shutil.copy(ROOT / f"medjax/{name}.py", tmp_path / "medjax")
  done = _python("-m", "medjax.bench", "--quick", PYTHONPATH=str(tmp_path), AT=str(tmp_path))
  assert done.returncode == 1
  assert re.fullmatch(r"error: \S+ is no checkout of medjax.*Clone it.*\n", done.stderr)


def test_the_options_and_the_status_are_handed_on(tmp_path, capfd):
  script = tmp_path / "tests/peers/run.sh"
  script.parent.mkdir(parents=True)
  script.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
  script.chmod(0o755)
  assert door.start(tmp_path, ["--rows", "1,2", "--quick"]) == 3
  assert capfd.readouterr().out == "bench.py --rows 1,2 --quick\n"


def test_every_row_has_something_that_measures_it(peers):
  for row in options.ROWS:
    assert callable(peers("bench")._of(row.name))


@pytest.fixture
def started(peers, tmp_path, monkeypatch):
  """(library, variant) -> a side in a process of its own, which logs its rounds."""
  (tmp_path / "logging_side.py").write_text(SIDE)
  monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
  rounds, log = peers("rounds"), tmp_path / "log"
  with contextlib.ExitStack() as stack:
    yield lambda library, variant: rounds.start(
      stack, "logging_side", library, variant, {"log": str(log)}
    )


def test_sides_take_turns_and_each_begins_a_round(peers, started, tmp_path):
  sides = [started(name, "fast") for name in ("medjax", "keras", "torch")]
  (tmp_path / "log").unlink()  # of the rounds before the first
  peers("rounds").alternate(sides, 3, 2)
  order = (tmp_path / "log").read_text().split()
  first, second, third = ["medjax", "keras", "torch"], ["keras", "torch", "medjax"], ["torch"]
  assert order == [*first, *second, *third, "medjax", "keras"]
  assert all(len(side.seconds) == 3 and side.peak > 1 for side in sides)
  assert all(side.about["first"] > 0 for side in sides)


def test_a_side_that_dies_is_named(peers, started):
  with pytest.raises(peers("rounds").Failed, match=r"torch dies ended with 1"):
    started("torch", "dies")


def _measured(results, model="net", row="training"):
  made = lambda library, variant, seconds, wanted="": results.Measured(  # noqa: E731
    row, model, results.STEP, library, variant, seconds, 7, f"{library} 1", wanted
  )
  return [
    made("medjax", "slow", (3.0, 4.0, 5.0)),
    made("medjax", "fast", (1.0, 2.0, 4.0)),
    made("keras", "only", (6.0, 5.0, 7.0), ">= 3.5"),
    made("torch", "only", (1.0, 1.0, 1.0), ">= 0.5"),
    results.figure("devices", model, "all-gathers", 2, "<= 0"),
  ]


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  return list(csv.DictReader(path.read_text().splitlines()))


def test_lines_compare_the_best_variants_by_their_medians(peers):
  results = peers("results")
  *lines, figure = results.lines(_measured(results))
  found = [LINE.fullmatch(line).groups() for line in lines]
  assert found == [("net", "keras", "2", "6", "3"), ("net", "torch", "2", "1", "0.5")]
  assert figure == 'model=net of="medjax" what="all-gathers" value=2 wanted="<= 0" met=no'


def test_the_csv_keeps_every_side_with_its_ratio_and_circumstances(peers, tmp_path):
  results, path = peers("results"), tmp_path / "a folder/found.csv"
  results.write(path, _measured(results), {"commit": "abc", "command": "run, again"})
  rows = _rows(path)
  assert [row["library"] for row in rows] == ["medjax", "medjax", "keras", "torch", "medjax"]
  keras = rows[2]
  assert [float(keras[name]) for name in ("median", "minimum", "maximum")] == [6, 5, 7]
  ratios = [float(keras[f"ratio_{name}"]) for name in ("median", "minimum", "maximum")]
  assert ratios == [3, 1.75, 6]
  assert [row["met"] for row in rows] == ["", "", "no", "yes", "no"]
  assert rows[1]["ratio_median"] == ""
  assert {row["commit"] for row in rows} == {"abc"}
  assert {row["command"] for row in rows} == {"run, again"}
  assert keras["peak_mb"] == "7"


def test_models_and_rows_are_not_compared_with_each_other(peers):
  results = peers("results")
  found = [
    results.Measured("training", "a", results.STEP, "medjax", "", (1.0,)),
    results.Measured("training", "b", results.STEP, "keras", "", (1.0,)),
    results.Measured("scan", "a", results.STEP, "keras", "", (1.0,)),
  ]
  assert results.compared(found) == []


def test_a_row_that_fails_is_said_and_loses_no_other(peers, tmp_path, monkeypatch, capfd):
  (tmp_path / "made_rows.py").write_text(ROWS.replace("library, results.STEP", "'n', results.STEP"))
  monkeypatch.syspath_prepend(str(tmp_path))
  bench, out = peers("bench"), tmp_path / "out"
  monkeypatch.setattr(sys, "argv", ["bench.py", "--rows=2,3"])
  monkeypatch.setitem(bench.PLACES, "depthwise", ("made_rows", "bad"))
  monkeypatch.setitem(bench.PLACES, "scan", ("made_rows", "good"))
  assert bench.main(["--rows=2,3", f"--out={out}"]) == 1
  said = capfd.readouterr()
  assert "depthwise failed: torch ended with 1" in said.err
  assert "command: ./tests/peers/run.sh bench.py --rows=2,3" in said.out
  (kept,) = out.glob("*.csv")
  assert [row["library"] for row in _rows(kept)] == ["medjax", "torch"]
  assert kept.with_suffix(".png").stat().st_size > 1000


def test_tables_show_medians_with_the_range_of_the_rounds(peers):
  results = peers("results")
  pairs, figures = results.markdown(_measured(results)).split("\n\n")
  keras = "| net | 2 (1 to 4) | keras | only | 6 (5 to 7) | 3.00 (1.75 to 6.00) | >= 3.5 | 7 | 7 |"
  assert pairs.splitlines()[2] == keras
  assert figures.splitlines()[2] == "| devices | net | all-gathers | medjax | 2 | <= 0 | no |"


def test_collectives_are_counted_in_the_compiled_program(peers):
  mesh = mesh_lib.make(jax.devices()[:2])

  def gathered(x):
    return lax.all_gather(x, contract.AXIS), lax.psum(x, contract.AXIS)

  program = mesh_lib.mapped(gathered, mesh, mesh_lib.cut(), mesh_lib.REPLICATED)
  counts = peers("devices").collectives(program.lower(np.zeros(4, np.float32)).compile())
  assert counts["all-gather"] == counts["all-reduce"] == 1
  assert sum(counts.values()) == 2


@pytest.mark.parametrize("size", [7, 28, 64, 65])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (5, 2), (3, 1), (2, 2)])
def test_torch_is_padded_as_jax_pads(peers, size, window, stride):
  expected = lax.padtype_to_pads((size,), (window,), (stride,), "SAME")
  assert [peers("problem").same_pads(size, window, stride)] == expected


def _losses(peers, library: str, variant: str, **task) -> list[float]:
  with contextlib.ExitStack() as stack:
    side = peers("rounds").start(stack, "curves", library, variant, task)
    return side.about["losses"]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["quadsnet", "mednet_8", "pneumonia_cnn"])
def test_keras_begins_with_the_same_loss_and_a_loop_is_a_step_after_the_other(
  peers, monkeypatch, network
):
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("XLA_FLAGS", "")
  task = dict(network=network, side=32, batch=4, steps=4, precision="float64")
  ours = _losses(peers, "medjax", "4 steps a dispatch", **task)
  assert max(ours) - min(ours) > 1e-3  # it moves
  keras = _losses(peers, "keras", "1 step", **task)  # its batch norm computes in float32
  np.testing.assert_allclose(keras[0], ours[0], rtol=0, atol=1e-5)
  called = _losses(peers, "medjax", "called from Python", **task)
  np.testing.assert_allclose(called, ours, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_the_bench_compares_all_libraries(tmp_path):
  if not (PEERS / ".venv/requirements.txt").is_file():
    pytest.skip("tests/peers/.venv is not there: python -m medjax.bench makes it")
  asked = ["--rows=1", "--networks", "mednet_8", "--rounds=1", "--steps=4", "--batch=2"]
  done = _python("-m", "medjax.bench", *asked, f"--out={tmp_path}", XLA_FLAGS="")
  assert done.returncode == 0, done.stderr
  found = [match.groups() for match in LINE.finditer(done.stdout)]
  assert {"keras", "torch"} <= {peer for _, peer, *_ in found}
  for _, _, ours, theirs, ratio in found:
    assert float(ratio) == pytest.approx(float(theirs) / float(ours), rel=0.01)
