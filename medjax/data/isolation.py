"""Decoding in worker processes, where a decoder that dies, hangs or swells costs one file."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import process
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import resource
import signal
import time
from typing import Any, Generic, TypeVar

import pebble

from medjax.data.readers import frame

Job = TypeVar("Job")
Value = TypeVar("Value")

_CHUNK = 16  # jobs sent together: one message each would cost more than most images
_AHEAD = 3  # chunks a worker, so that none waits for the slowest
_LOOK = 0.5  # seconds between looks at whether the pool still stands
_BROKEN = 3  # pools in a row that may break before it is no accident
_STARTING = 60.0  # seconds that a pool may need before its first chunk runs
# Imported once, in the process that workers are forked from, so that a dead one is soon replaced.
_PRELOADED = ("medjax.data.readers.dicom", "medjax.data.readers.volumes")


@dataclasses.dataclass(frozen=True)
class Result(Generic[Job, Value]):
  """What became of a job.

  Attributes:
    job: as it was given.
    value: what the function returned; None where it failed.
    reason: why there is no value; empty where there is one.
  """

  job: Job
  value: Value | None
  reason: str = ""


@dataclasses.dataclass(frozen=True)
class _Limits:
  seconds: float
  gigabytes: float


def decoded(
  jobs: Iterable[Job],
  decode: Callable[[Job], Value],
  workers: int,
  seconds: float,
  gigabytes: float,
  chunk: int = _CHUNK,
) -> Iterator[Result[Job, Value]]:
  """Runs `decode` on every job in worker processes.

  Jobs travel in chunks. A chunk that is lost is done again job by job, so that only the job at
  fault fails. Which worker does what changes nothing in the results.

  Args:
    jobs: what to decode, taken lazily, a bounded number ahead of what is handed out.
    decode: a function at the top level of a module; jobs and values must be picklable. The texts
      of its `readers.Unreadable` and OSError become reasons; other errors are mistakes in the
      program and end the run.
    workers: processes.
    seconds: a job that takes longer is given up.
    gigabytes: address space that a worker may take beyond what it starts with.
    chunk: jobs that travel together; 1 where each is long.

  Yields:
    One result a job, in their order.
  """
  crew = _Crew(decode, workers, _Limits(seconds, gigabytes))
  remaining = iter(jobs)
  try:
    for together in iter(lambda: list(itertools.islice(remaining, chunk)), []):
      crew.send(together)
      if len(crew) > workers * _AHEAD:
        yield from crew.take()
    while len(crew):
      yield from crew.take()
  finally:
    crew.close()


class _Crew:
  """Worker processes and the chunks that they were sent.

  Whoever is killed from outside while it holds the pipe that all share takes the pool with it, or
  loses its chunk without a word: then there is a new pool, and all that is open is sent again.
  """

  def __init__(self, decode: Callable, workers: int, limits: _Limits):
    self._decode, self._workers, self._limits = decode, workers, limits
    self._open: collections.deque[tuple[list[Any], futures.Future]] = collections.deque()
    self._broken = 0  # pools in a row
    self._pool = self._hired()

  def __len__(self) -> int:
    return len(self._open)

  def send(self, chunk: list[Any]) -> None:
    """Sends a chunk to whoever is free next."""
    self._open.append((chunk, self._sent(chunk)))

  def take(self) -> Iterator[Result]:
    """The results of the oldest chunk; of one that was lost, those of each job sent alone."""
    chunk, sent = self._open.popleft()
    try:
      outcomes = self._waited(sent)
    except (futures.TimeoutError, pebble.ProcessExpired, process.BrokenProcessPool):
      outcomes = [self._alone(job) for job in chunk]
    yield from (Result(job, *outcome) for job, outcome in zip(chunk, outcomes, strict=True))

  def close(self) -> None:
    """Ends the processes."""
    self._pool.stop()
    self._pool.join()

  def _hired(self) -> pebble.ProcessPool:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, self._decode.__module__])
    own = (self._decode, self._limits.gigabytes)
    return pebble.ProcessPool(self._workers, initializer=_begin, initargs=own, context=context)

  def _sent(self, chunk: list[Any]) -> futures.Future:
    work = (self._decode, chunk, self._limits.gigabytes)
    try:
      return self._pool.schedule(_outcomes, work, timeout=self._limits.seconds)
    except RuntimeError:  # it is broken, and nobody has waited for a chunk of it yet
      self._replace()
      return self._pool.schedule(_outcomes, work, timeout=self._limits.seconds)

  def _waited(self, sent: futures.Future) -> list[tuple[Any, str]]:
    """What came of a chunk; a broken pool is replaced before that is told."""
    try:
      found = self._heard(sent)
    except process.BrokenProcessPool:
      self._replace()
      raise
    self._broken = 0
    return found

  def _heard(self, sent: futures.Future) -> list[tuple[Any, str]]:
    # Whatever runs before the oldest chunk, and then itself, may take the limit once.
    patience = time.monotonic() + 2 * self._limits.seconds + _STARTING
    while not sent.done():
      futures.wait([sent], _LOOK)
      if not sent.done() and (not self._pool.active or time.monotonic() > patience):
        raise process.BrokenProcessPool
    return sent.result()

  def _replace(self) -> None:
    self.close()
    self._broken += 1
    if self._broken > _BROKEN:
      raise RuntimeError(
        f"{_BROKEN} pools of worker processes died in a row before any of them finished a job: is"
        " there memory for --workers of them?"
      )
    self._pool = self._hired()
    waiting, self._open = self._open, collections.deque()
    for chunk, sent in waiting:
      self._open.append((chunk, sent if _is_well(sent) else self._sent(chunk)))

  def _alone(self, job: Any, again: bool = True) -> tuple[Any, str]:
    try:
      return self._waited(self._sent([job]))[0]
    except futures.TimeoutError:
      return None, f"took longer than {self._limits.seconds:g} s"
    except pebble.ProcessExpired as error:
      if error.exitcode == -signal.SIGKILL and again:  # by another's hand: the file may be well
        return self._alone(job, again=False)
      return None, f"its decoder died ({_death(error.exitcode)})"
    except process.BrokenProcessPool:
      return self._alone(job)


def _is_well(sent: futures.Future) -> bool:
  return sent.done() and sent.exception() is None


def _death(exitcode: int | None) -> str:
  if exitcode is not None and -exitcode in set(signal.Signals):
    return signal.Signals(-exitcode).name
  return f"exit status {exitcode}"


def _outcomes(decode: Callable, chunk: list[Any], gigabytes: float) -> list[tuple[Any, str]]:
  """In the worker: value and reason of each job."""
  return [_outcome(decode, job, gigabytes) for job in chunk]


def _outcome(decode: Callable, job: Any, gigabytes: float) -> tuple[Any, str]:
  try:
    return decode(job), ""
  except (frame.Unreadable, OSError) as error:
    return None, str(error)
  except MemoryError:
    return None, f"needs more than {gigabytes:g} GB to decode"


def _begin(decode: Callable, gigabytes: float) -> None:
  """In the worker, first of all; `decode` is named so that its imports are done by now."""
  own = pathlib.Path("/proc/self/statm")
  if own.exists():  # elsewhere than on Linux, address space cannot be limited
    most = int(own.read_text().split()[0]) * resource.getpagesize() + int(gigabytes * 1e9)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
  quiet = os.open(os.devnull, os.O_WRONLY)
  os.dup2(quiet, 2)  # C decoders write about damage; reasons travel another way
