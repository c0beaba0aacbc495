import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from medjax.data import isolation, readers


def _act(job):
  """What a decoder may do with a file."""
  what, value = job
  if what == "die":
    os.kill(os.getpid(), signal.SIGSEGV)
  if what == "hang":
    time.sleep(60)
  if what == "swell":
    return np.ones(value, np.uint8).sum()
  if what == "damaged":
    raise readers.Unreadable("damaged")
  if what == "gone":
    raise FileNotFoundError("gone")
  if what == "mistake":
    raise TypeError("a mistake in the program")
  return value * 2


def _run(jobs, workers=2, seconds=3.0, gigabytes=1.0):
  return list(isolation.decoded(jobs, _act, workers, seconds, gigabytes))


def test_results_come_in_order_whatever_the_number_of_workers():
  jobs = [("double", i) for i in range(100)]
  for workers in (1, 3):
    results = _run(jobs, workers)
    assert [r.job for r in results] == jobs
    assert [r.value for r in results] == [2 * i for i in range(100)]
    assert not any(r.reason for r in results)


BAD = {
  3: (("die", 0), "its decoder died (SIGSEGV)"),
  21: (("hang", 0), "took longer than 2 s"),
  22: (("swell", 2 * 10**9), "needs more than 1 GB to decode"),
  50: (("damaged", 0), "damaged"),
  51: (("gone", 0), "gone"),
}


def test_a_bad_file_costs_one_file_whatever_it_does():
  jobs = [BAD[i][0] if i in BAD else ("double", i) for i in range(60)]
  results = _run(jobs, seconds=2.0)
  assert [r.value for r in results] == [None if i in BAD else 2 * i for i in range(60)]
  reasons = {i: r.reason for i, r in enumerate(results) if r.reason}
  assert reasons == {i: reason for i, (_, reason) in BAD.items()}


def test_several_deaths_in_one_chunk():
  jobs = [("die", 0) if i % 5 == 0 else ("double", i) for i in range(20)]
  values = [r.value for r in _run(jobs)]
  assert values == [None if i % 5 == 0 else 2 * i for i in range(20)]


def test_a_mistake_in_the_program_is_no_bad_file():
  with pytest.raises(TypeError, match="a mistake in the program"):
    _run([("mistake", 0)])


def test_jobs_are_taken_lazily():
  taken = []

  def jobs():
    for i in range(10_000):
      taken.append(i)
      yield ("double", i)

  results = isolation.decoded(jobs(), _act, 1, 3.0, 1.0)
  assert next(results).value == 0
  assert len(taken) < 200
  results.close()


_PARENT = """
import sys, time
sys.path[:0] = {folders!r}
import test_isolation
from medjax.data import isolation
if __name__ == "__main__":
  results = isolation.decoded([0.1] * 400, test_isolation._pid_after, 3, 9.0, 1.0, chunk=1)
  print(*{{next(results).value for _ in range(40)}}, flush=True)
  time.sleep(60)
"""


def _pid_after(seconds):
  time.sleep(seconds)
  return os.getpid()


def test_workers_end_when_their_parent_is_killed(tmp_path):
  script = tmp_path / "parent.py"
  here = pathlib.Path(__file__).parent
  script.write_text(_PARENT.format(folders=[str(here), str(here.parents[1])]))
  with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
    workers = {int(pid) for pid in parent.stdout.readline().split()}
    parent.kill()
  assert len(workers) == 3
  for _ in range(50):
    if not any(pathlib.Path(f"/proc/{worker}").exists() for worker in workers):
      return
    time.sleep(0.1)
  pytest.fail(f"some of the workers {workers} live on")
