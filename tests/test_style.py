"""The linter, the formatter and the type checker are part of the suite."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CHECKS = [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)]


@pytest.mark.parametrize("check", CHECKS, ids=" ".join)
def test_clean(check):
  if importlib.util.find_spec(check[0]) is None:
    pytest.skip(f"{check[0]} is not installed: it comes with the test extras")
  done = subprocess.run(
    [sys.executable, "-m", *check], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout + done.stderr
