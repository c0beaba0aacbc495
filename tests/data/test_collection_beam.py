"""Needs Apache Beam, in an environment of its own: `pip install -e '.[beam]' pytest` there."""

import importlib.util
import subprocess
import sys

import pytest
import trees_of_files as trees

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="apache_beam is not installed"
  ),
]

SHARDS = 10  # more than one bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """(tree, what this machine's processes make of it)."""
  root = tmp_path_factory.mktemp("local")
  trees.mixed_tree(root / "tree")
  trees.many(root / "tree", 256 * (SHARDS - 1))
  _prepare(root / "tree", root / "out", "--workers", "2")
  return root / "tree", trees.contents(root / "out")


def _prepare(tree, out, *options, check=True):
  command = [sys.executable, "-m", "medjax.data", "prepare", tree, "--out", out]
  shared = ["--size", "32", "--salt", "pepper"]
  return subprocess.run([*command, *shared, *options], check=check, capture_output=True, text=True)


@pytest.mark.parametrize(
  "options",
  [
    [],
    ["direct_num_workers=1"],
    ["direct_running_mode=multi_processing", "direct_num_workers=2"],
  ],
)
def test_beam_makes_the_same_bytes(made, tmp_path, options):
  tree, wanted = made
  flags = [part for option in options for part in ("--runner-option", option)]
  _prepare(tree, tmp_path / "out", "--runner", "DirectRunner", *flags)
  assert len([name for name in wanted if name.startswith("shards/")]) == SHARDS
  assert trees.contents(tmp_path / "out") == wanted


def test_an_option_without_a_value_is_told(made, tmp_path):
  options = ("--runner", "DirectRunner", "--runner-option", "direct_num_workers")
  done = _prepare(made[0], tmp_path / "out", *options, check=False)
  assert done.returncode == 1 and "write NAME=VALUE" in done.stderr
