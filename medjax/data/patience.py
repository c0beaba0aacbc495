"""Threads that read and may hang, as on a drive that went away: whoever waits for them gives up.

A thread that hangs cannot be ended, only left behind. Python waits at its end for every thread of
an executor, so these are daemons: the run can tell what hung, and end.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
import contextlib
import queue
import threading
from typing import Any

import numpy as np

Read = Callable[[np.ndarray], np.ndarray]


class Crew:
  """Some threads that take jobs, as those of an executor; a context that lets them go."""

  def __init__(self, threads: int):
    self._jobs: queue.SimpleQueue = queue.SimpleQueue()
    self._threads = threads
    for _ in range(threads):
      threading.Thread(target=self._work, daemon=True).start()

  def __enter__(self) -> Crew:
    return self

  def __exit__(self, *error: object) -> None:
    with contextlib.suppress(queue.Empty):  # nobody waits for what was not begun
      while True:
        self._jobs.get_nowait()
    for _ in range(self._threads):
      self._jobs.put(None)

  def submit(self, job: Callable[..., Any], *args: Any) -> futures.Future:
    """Sends a job to whoever is free next."""
    future: futures.Future = futures.Future()
    self._jobs.put((future, job, args))
    return future

  def _work(self) -> None:
    while task := self._jobs.get():
      future, job, args = task
      try:
        future.set_result(job(*args))
      except BaseException as error:  # the one who waits raises it
        future.set_exception(error)
      del task, future  # neither outlives the wait for the next job


def result(future: futures.Future, seconds: float, what: str) -> Any:
  """What a job gave; waits for it.

  Args:
    future: of the job. seconds: how long to wait; 0 for ever. what: is being read, for the error.

  Raises:
    TimeoutError: longer than that.
  """
  try:
    return future.result(seconds or None)
  except TimeoutError:
    if future.done():  # the job's own
      raise
    raise TimeoutError(
      f"{what} could not be read within data.patience={seconds:g} seconds: look whether its disk or"
      " network drive is well, then start the same command again, with a larger"
      " --config.data.patience if it is only slow"
    ) from None


def limited(read: Read, seconds: float, where: str) -> Read:
  """`read`, which raises TimeoutError where it takes longer than some seconds; 0 waits for ever.

  Args:
    read: rows -> pixels. seconds: for one call. where: the pixels lie, for the error.
  """

  def patient(rows: np.ndarray) -> np.ndarray:
    with Crew(1) as reader:
      return result(reader.submit(read, rows), seconds, where)

  return patient if seconds else read
