import pathlib
import subprocess
import sys

import numpy as np
import pytest
import trees_of_files as trees

from medjax.data import __main__ as commands
from medjax.data import collection


def _prepare(*args) -> int:
  return commands.main(["prepare", "--workers", "1", *map(str, args)])


@pytest.fixture
def tree(tmp_path) -> pathlib.Path:
  trees.mixed_tree(tmp_path / "tree")
  return tmp_path / "tree"


def test_the_command_makes_a_collection_and_tells_the_counts(tree, tmp_path):
  command = [sys.executable, "-m", "medjax.data", "prepare", tree, "--out", tmp_path / "out"]
  done = subprocess.run([*command, "--size", "16"], capture_output=True, text=True, check=True)
  assert "23 files = 13 read + 3 passed over, no images by name + 7 in quarantine" in done.stdout
  assert "13 images, 3 equal to an earlier one, 1 near to one" in done.stdout
  assert collection.open(tmp_path / "out").read([0]).shape == (1, 16, 16, 3)
  assert "Doe" not in done.stdout + done.stderr


def test_a_salt_is_made_once_and_kept_for_the_owner(tree, tmp_path):
  assert _prepare(tree, "--out", tmp_path / "a", "--size", 16) == 0
  assert _prepare(tree, "--out", tmp_path / "a", "--size", 16) == 0
  assert _prepare(tree, "--out", tmp_path / "b", "--size", 16) == 0
  salt = tmp_path / "a/salt"
  assert salt.stat().st_mode & 0o777 == 0o600
  assert len(salt.read_bytes()) == 64 and salt.read_bytes() != (tmp_path / "b/salt").read_bytes()
  assert _prepare(tree, "--out", tmp_path / "c", "--size", 16, "--salt", salt) == 0
  assert not (tmp_path / "c/salt").exists()
  same = trees.contents(tmp_path / "a")
  same.pop("salt")
  assert trees.contents(tmp_path / "c") == same


def test_a_salt_is_a_text_or_a_file_that_holds_it(tree, tmp_path):
  (tmp_path / "file").write_text("pepper\n")
  for name, salt in (("a", "pepper"), ("b", tmp_path / "file")):
    assert _prepare(tree, "--out", tmp_path / name, "--size", 16, "--salt", salt) == 0
  assert trees.contents(tmp_path / "a") == trees.contents(tmp_path / "b")


def test_reading_settings_reach_the_pixels(tree, tmp_path):
  options = ("--size", 16, "--salt", "s", "--keep-paths", "--depth", 16, "--channels", 1)
  assert _prepare(tree, "--out", tmp_path / "out", *options) == 0
  opened = collection.open(tmp_path / "out")
  assert opened.dtype == np.uint16 and opened.channels == 1


def test_the_status_tells_of_too_large_a_share(tree, tmp_path, capsys):
  options = ("--out", tmp_path / "out", "--size", 16, "--salt", "s", "--max-unreadable")
  assert _prepare(tree, *options, 0.36) == 0  # 7 of 20
  assert _prepare(tree, *options, 0.34) == 1
  assert "--max-unreadable 0.35" in capsys.readouterr().out
  assert len(collection.open(tmp_path / "out")) == 13


@pytest.mark.parametrize(
  ("change", "told"),
  [
    (["nowhere"], "nowhere does not exist: name a folder"),
    (["--size", "0"], "--size 0: give the height and width"),
    (["--seconds", "0"], "--seconds 0: give more than 0"),
    (["--gigabytes", "-1"], "--gigabytes -1: give more than 0"),
    (["--salt", ""], "is empty: give a text or the name of a file"),
    (["--frames", "some"], "write middle, all, or every:N:M"),
    (["--runner", "DirectRunner"], "--runner needs Apache Beam"),
  ],
)
def test_mistakes_are_told_with_what_to_type(tree, tmp_path, capsys, change, told):
  assert _prepare("--out", tmp_path / "out", "--size", 16, tree, *change) == 1
  assert told in capsys.readouterr().err


@pytest.mark.parametrize(
  ("command", "told"),
  [
    (["prepare", "--workers", "-3"], "--workers: -3 is too few: give 1 or more"),
    (["audit", "--workers", "0"], "--workers: 0 is too few: give 1 or more"),
    (["show", "--most", "-3"], "--most: -3 is too few: give 0 or more"),
    (["stats", "--group-pattern", "("], "--group-pattern: '(' is no regular expression"),
  ],
)
def test_odd_arguments_are_told_before_anything_is_done(tree, tmp_path, capsys, command, told):
  with pytest.raises(SystemExit) as ended:
    commands.main([*command, str(tree), "--out", str(tmp_path / "out")])
  assert ended.value.code == 2
  assert told in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_an_empty_source_is_told(tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  assert _prepare(tmp_path / "empty", "--out", tmp_path / "out") == 1
  assert "no file in" in capsys.readouterr().err


def test_generated_images_are_no_source(tree, tmp_path, capsys):
  trees.write(tree / "more/generated.json", b"{}")
  assert _prepare(tree, "--out", tmp_path / "out") == 1
  assert "holds generated images (more/generated.json)" in capsys.readouterr().err


def test_nothing_but_broken_files_is_no_collection_to_train_on(tmp_path, capsys):
  trees.write(tmp_path / "tree/a.png", b"broken")
  assert _prepare(tmp_path / "tree", "--out", tmp_path / "out", "--salt", "s") == 1
  assert "1 in quarantine" in capsys.readouterr().out
  opened = collection.open(tmp_path / "out")
  assert len(opened) == 0 and opened.read([]).shape == (0, 224, 224, 1)
