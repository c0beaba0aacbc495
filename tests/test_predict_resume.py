"""A table of predictions that was cut off: completed without a double row, whatever the cut."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import files_to_predict
import numpy as np
import pytest
import untrained

from medjax.predict import __main__ as command
from medjax.predict import table

ABOUT = {"models": ["w"]}
ROWS = [
  table.Row("plain.png", "a", np.array([0.75, 0.25])),
  table.Row('odd, "name"\nand\r\nlines.png', "b", np.array([0.1, 0.9])),
  table.Row("cut.png", "", None, "damaged: it ends"),
  table.Row(os.fsdecode(b"no \xff utf-8.png"), "a|b", np.array([1e-30, 1.0])),
  table.Row("plain.png", "a", np.array([0.75, 0.25])),  # named twice
]


def write(path: pathlib.Path, rows: list[table.Row], resume: bool = False) -> None:
  """Adds the rows that are not there yet."""
  with table.Table(path, ["a", "b"], ABOUT, resume) as begun:
    done, left = begun.done.copy(), []
    for row in rows:
      if done[row.path]:
        done[row.path] -= 1
      else:
        left.append(row)
    begun.add(left)


def cut(path: pathlib.Path, data: bytes) -> None:
  """Leaves a table as a kill does."""
  path.write_bytes(data)
  path.with_name(f".{path.name}.unfinished").write_text('{"models": ["w"]}\n')


def test_a_table_cut_anywhere_is_completed_to_the_same_bytes(tmp_path):
  write(tmp_path / "whole.csv", ROWS)
  whole = (tmp_path / "whole.csv").read_bytes()
  with (tmp_path / "whole.csv").open(
    newline="", encoding="utf-8", errors="surrogateescape"
  ) as file:
    head, *found = csv.reader(file)
  assert head == ["path", "predicted", "score_a", "score_b", "error"]
  assert [row[0] for row in found] == [row.path for row in ROWS]
  assert found[1][2:] == ["0.1", "0.9", ""] and found[2][1:] == ["", "", "", "damaged: it ends"]
  for length in range(len(whole) + 1):
    cut(tmp_path / "p.csv", whole[:length])
    write(tmp_path / "p.csv", ROWS, resume=True)
    assert (tmp_path / "p.csv").read_bytes() == whole, length


def test_rows_are_on_disk_before_the_table_is_closed(tmp_path):
  begun = table.Table(tmp_path / "p.csv", ["a", "b"], ABOUT, False)
  begun.add(ROWS[:3])
  assert (tmp_path / "p.csv").read_bytes().endswith(b"damaged: it ends\r\n")
  assert begun.failed == 1
  with pytest.raises(ZeroDivisionError), begun:
    raise ZeroDivisionError
  with pytest.raises(ValueError, match="was cut off: complete it with --resume"):
    write(tmp_path / "p.csv", ROWS)
  write(tmp_path / "p.csv", ROWS, resume=True)
  assert list(tmp_path.iterdir()) == [tmp_path / "p.csv"]


def test_a_table_is_gone_on_with_by_its_own_model_alone(tmp_path):
  cut(tmp_path / "p.csv", b"path,predicted,score_a,score_b,error\r\n")
  with pytest.raises(ValueError, match=r"was begun by .*'w'.* and this is .*'v'"):
    table.Table(tmp_path / "p.csv", ["a", "b"], {"models": ["v"]}, True)
  write(tmp_path / "p.csv", ROWS, resume=True)
  with pytest.raises(ValueError, match="and not path,predicted,score_a,score_c,error"):
    table.Table(tmp_path / "p.csv", ["a", "c"], ABOUT, True)


def test_a_killed_prediction_goes_on(tmp_path):
  drawn = files_to_predict.phantoms(60, 24)
  paths = files_to_predict.write(tmp_path / "mixed", drawn, broken_every=7)
  data = dict(name="phantom", image_size=16, patients=40, cache=f"{tmp_path}/decoded")
  workdir = untrained.workdir(tmp_path / "w", data=data)
  out = tmp_path / "p.csv"
  given = [str(workdir), str(tmp_path / "mixed"), "--batch-size=8", "--out", str(out)]
  killed = subprocess.Popen(
    [sys.executable, "-m", "medjax.predict", *given],
    stdout=subprocess.DEVNULL,
    start_new_session=True,
  )
  while killed.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < 10):
    time.sleep(0.02)
  os.killpg(killed.pid, signal.SIGKILL)
  assert killed.wait() == -signal.SIGKILL
  before = out.read_bytes()
  assert 10 <= before.count(b"\n") < 61
  out.write_bytes(before + str(paths[-1]).encode())  # torn
  assert command.main(given) == 1
  assert command.main([*given, "--resume"]) == 0
  assert out.read_bytes().startswith(before)
  with out.open(newline="") as file:
    _, *found = csv.reader(file)
  assert [row[0] for row in found] == [str(path) for path in paths]
  assert [bool(row[-1]) for row in found] == [i % 7 == 6 for i in range(60)]
