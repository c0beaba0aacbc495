"""Under what circumstances something was measured."""

from __future__ import annotations

import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[2]


def command() -> str:
  """What was typed, with the script as `run.sh` takes it."""
  script, *arguments = sys.argv
  return shlex.join(["./tests/peers/run.sh", pathlib.Path(script).name, *arguments])


def told() -> str:
  """A line on the machine."""
  return f"{os.cpu_count()} x {processor()}, python {platform.python_version()}"


def load() -> float:
  """How many processes want a core, over the last minute."""
  return os.getloadavg()[0]


def processor() -> str:
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor()


def word() -> str:
  """The machine, for a file's name."""
  return re.sub(r"[^a-z0-9]+", "-", f"{os.cpu_count()}x {processor()}".lower()).strip("-")


def commit() -> str:
  """Of the checkout, with a `+` where something in it was changed since; "" outside git."""
  asked = ["git", "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
  try:
    done = subprocess.run(asked, cwd=_ROOT, capture_output=True, text=True)
  except FileNotFoundError:
    return ""
  return done.stdout.strip()
