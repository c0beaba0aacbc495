"""Decoding in worker processes, where a decoder that dies, hangs or swells costs one file."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
import dataclasses
import itertools
import multiprocessing
import os
import pathlib
import resource
import signal
from typing import Any, Generic, TypeVar

import pebble

from medjax.data.readers import frame

Job = TypeVar("Job")
Value = TypeVar("Value")

_CHUNK = 16  # jobs sent together: one message each would cost more than most images
_AHEAD = 3  # chunks a worker, so that none waits for the slowest
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
  limits = _Limits(seconds, gigabytes)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([*_PRELOADED, decode.__module__])
  pool = pebble.ProcessPool(
    workers, initializer=_begin, initargs=(decode, gigabytes), context=context
  )
  remaining = iter(jobs)
  chunks = iter(lambda: list(itertools.islice(remaining, chunk)), [])
  pending: collections.deque[tuple[list[Job], futures.Future]] = collections.deque()
  try:
    for together in chunks:
      pending.append((together, _sent(pool, decode, together, limits)))
      if len(pending) > workers * _AHEAD:
        yield from _results(pool, decode, *pending.popleft(), limits)
    while pending:
      yield from _results(pool, decode, *pending.popleft(), limits)
  finally:
    pool.stop()
    pool.join()


def _sent(
  pool: pebble.ProcessPool, decode: Callable, chunk: list[Any], limits: _Limits
) -> futures.Future:
  return pool.schedule(_outcomes, (decode, chunk, limits.gigabytes), timeout=limits.seconds)


def _results(
  pool: pebble.ProcessPool,
  decode: Callable,
  chunk: list[Any],
  sent: futures.Future,
  limits: _Limits,
) -> Iterator[Result]:
  """A chunk's results; of one that was lost, those of each job sent alone."""
  try:
    outcomes = sent.result()
  except (futures.TimeoutError, pebble.ProcessExpired):
    outcomes = [_alone(pool, decode, job, limits) for job in chunk]
  yield from (Result(job, *outcome) for job, outcome in zip(chunk, outcomes, strict=True))


def _alone(
  pool: pebble.ProcessPool, decode: Callable, job: Any, limits: _Limits
) -> tuple[Any, str]:
  try:
    return _sent(pool, decode, [job], limits).result()[0]
  except futures.TimeoutError:
    return None, f"took longer than {limits.seconds:g} s"
  except pebble.ProcessExpired as error:
    return None, f"its decoder died ({_death(error.exitcode)})"


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
