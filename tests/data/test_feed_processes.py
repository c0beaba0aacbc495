"""Two processes that feed one mesh give what one process gives, and each reads its own share."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

PROGRAM = pathlib.Path(__file__).with_name("feeds_of_a_process.py")
KINDS = ("resident", "split", "chunked", "streamed", "sequential")


def run(processes: int, folder: pathlib.Path) -> dict[str, list[dict[str, np.ndarray]]]:
  """Kind of feed -> what each process had on its devices."""
  folder.mkdir()
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{free.getsockname()[1]}"
  environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])}
  commands = [
    [sys.executable, str(PROGRAM), address, str(processes), str(number), str(folder)]
    for number in range(processes)
  ]
  started = [subprocess.Popen(command, env=environment) for command in commands]
  assert [process.wait(timeout=200) for process in started] == [0] * processes
  return {
    kind: [dict(np.load(folder / f"{kind}-{number}.npz")) for number in range(processes)]
    for kind in KINDS
  }


def test_two_processes_feed_as_one_does(tmp_path):
  (alone, together) = (run(n, tmp_path / str(n)) for n in (1, 2))
  for kind in KINDS:
    (whole,), halves = alone[kind], together[kind]
    assert whole["image"].any()
    for name in whole.keys() - {"rows"}:
      found = np.concatenate([half[name] for half in halves], axis=1)
      assert found.dtype == whole[name].dtype
      np.testing.assert_array_equal(found, whole[name], err_msg=f"{kind} {name}")
  for kind in ("split", "chunked", "streamed"):
    first, second = (set(half["rows"]) - {0} for half in together[kind])  # 0 tells the shape
    assert not first & second  # of virtual shards, each process has its own
    assert min(len(first), len(second)) > 60  # 8 steps of 8 images
