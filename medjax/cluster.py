"""Processes that are one run: how they meet, wait for each other, tell each other, and end.

The first process, the lead, writes the files and prints; each of the others does the same on files
of its own, which it takes away at the end. So hardly anything has to ask who it is: collective are
only arrays over all devices (`mesh`), checkpoints, and what is told here. A run of one process
connects to nothing.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
import contextlib
import itertools
import os
import pathlib
import shutil
import socket
import sys
import tempfile
from typing import TypeVar

import jax

from medjax import lifeline
from medjax import place as place_lib

_PATIENCE = 7 * 24 * 3600 * 1000  # ms: the lead may decode a large set for days
_PIECE = 2**24  # bytes that are told at once
_STOP = "medjax/stop"
_SMALL = 2**20  # bytes of a file that others than the lead read, too
Made = TypeVar("Made")

_calls = itertools.count()  # every process tells and hears in the same order


@contextlib.contextmanager
def joined(place: place_lib.Place | None, workdir: pathlib.Path) -> Iterator[pathlib.Path]:
  """Connects to the other processes before JAX is asked for its devices, and leaves them after.

  An error or a signal inside ends all of them, and so does a process that is killed.

  Args:
    place: of this process. workdir: of the run, which all processes see.

  Yields:
    The folder that this process works in: the workdir itself for the lead. The others begin with a
    copy of its small files, without checkpoints.
  """
  if place is None:
    yield workdir
    return
  with tempfile.TemporaryDirectory(prefix="medjax-") as name:
    scratch = pathlib.Path(name)
    _meet(place)
    line = _lifeline(place, lambda: shutil.rmtree(scratch, ignore_errors=True))
    try:
      yield _own(workdir, scratch / workdir.resolve().name)
    except Stopped:
      _leave(line)
      raise
    except BaseException as error:
      _part(line, place, error)
      raise
    _leave(line)


def _meet(place: place_lib.Place) -> None:
  # SIGTERM is ours to answer: JAX's service would take it from Python's handlers.
  jax.config.update("jax_enable_preemption_service", False)
  where = f"{place.processes} processes at {place.coordinator} ({place.source})"
  print(f"process {place.process} of {where}", file=sys.stderr, flush=True)
  try:
    jax.distributed.initialize(
      place.coordinator,
      place.processes,
      place.process,
      place.devices,
      cluster_detection_method="deactivate",
      initialization_timeout=lifeline.MEETING,
    )
  except RuntimeError as error:
    raise RuntimeError(
      f"not all of {where} have met within {lifeline.MEETING} s: start every one of them (under"
      f" SLURM with srun), and see that the port is free and open. {str(error)[:200]}"
    ) from error


def _lifeline(place: place_lib.Place, cleanup: Callable[[], None]) -> lifeline.Line:
  host, key = place.coordinator.rsplit(":", 1)[0], "medjax/lifeline"
  if place.process > 0:
    address = _client().blocking_key_value_get(key, lifeline.MEETING * 1000)
    return lifeline.spoke(address, place.process, cleanup)
  return lifeline.hub(
    host, place.processes - 1, cleanup, lambda address: _client().key_value_set(key, address)
  )


def _own(workdir: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
  """The folder that this process works in; of stdout, only the lead's is left."""
  if not lead():
    if workdir.is_dir():
      shutil.copytree(workdir, scratch, ignore=_left_out)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # also of what is no Python
  barrier("begin")  # from here on the lead changes the workdir
  return workdir if lead() else scratch


def _left_out(folder: str, names: list[str]) -> list[str]:
  """Of a workdir: what takes room, and what only the lead holds."""
  files = [path for name in names if (path := pathlib.Path(folder, name)).is_file()]
  large = [path.name for path in files if path.stat().st_size > _SMALL]
  return [*large, "checkpoints", ".lock"]


def _leave(line: lifeline.Line) -> None:
  barrier("end")
  line.leave()
  jax.distributed.shutdown()


def _part(line: lifeline.Line, place: place_lib.Place, error: BaseException) -> None:
  """Tells the others why this process ends, unless it is they who broke something here."""
  if isinstance(error, jax.errors.JaxRuntimeError):
    line.broken(seconds=10)
  stopped = isinstance(error, KeyboardInterrupt)
  said, status = f"was stopped by a signal; {lifeline.ON}", 75
  if not stopped:
    said, status = f"ends: {error}", 1
  line.leave(status, f"process {place.process} {said}")
  atexit.register(_quit, status)


def _quit(status: int) -> None:
  """Ends this process at once: JAX would wait for the others, minutes long, and they are gone."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


class Stopped(KeyboardInterrupt):
  """All processes ended at the same step, since one of them was asked to; see `Stop`."""


def processes() -> int:
  """How many run together."""
  return jax.process_count()


def lead() -> bool:
  """Whether this process writes files and prints; of several, the first."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when every process has come here; all call this in the same order."""
  if processes() > 1:
    _client().wait_at_barrier(f"medjax/{name}/{next(_calls)}", _PATIENCE)


def in_turn(make: Callable[[], Made]) -> Made:
  """What `make` returns; of the processes on a host, one calls it before the others.

  They find in the host's caches what the first one put there.
  """
  first = _first_here()
  made = [make()] if first else []
  barrier("first")
  return made[0] if first else make()


def _first_here() -> bool:
  """Whether this is the first process on its host."""
  if processes() == 1:
    return True
  client, host, key = _client(), socket.gethostname(), f"medjax/hosts/{next(_calls)}"
  client.key_value_set(f"{key}/{jax.process_index():06d}", host)
  barrier("hosts")
  beside = [name for name, where in client.key_value_dir_get(key) if where == host]
  return min(beside).endswith(f"/{jax.process_index():06d}")


def told(of_lead: Callable[[], bytes]) -> bytes:
  """What the lead's function returns, in every process; all call this in the same order.

  Args:
    of_lead: called by the lead alone.
  """
  if processes() == 1:
    return of_lead()
  client, key = _client(), f"medjax/told/{next(_calls)}"
  if lead():
    data = of_lead()
    for start in range(0, len(data) or 1, _PIECE):
      client.key_value_set_bytes(f"{key}/{start}", data[start : start + _PIECE])
    client.key_value_set(f"{key}/size", str(len(data)))
  else:
    size = int(client.blocking_key_value_get(f"{key}/size", _PATIENCE))
    starts = range(0, size or 1, _PIECE)
    pieces = (client.blocking_key_value_get_bytes(f"{key}/{at}", _PATIENCE) for at in starts)
    data = b"".join(pieces)
  barrier("told")
  if lead():
    client.key_value_delete(key)
  return data


class Stop:
  """When a loop ends that a process was asked to stop: after the same call in all of them."""

  def __init__(self, asked: Callable[[], bool], ahead: int):
    """Begins with the loop.

    Args:
      asked: whether this process was. ahead: calls that the loop starts without waiting for the
        devices; each needs all processes, so none is further ahead of another.
    """
    self._asked, self._ahead = asked, ahead
    self._calls, self._last = 0, -1

  def __call__(self) -> bool:
    """Whether the next call is not to be made; asked before each."""
    if processes() == 1:
      return self._asked()
    if self._last < 0:
      self._propose(self._calls + self._ahead)
      self._last = self._proposed()
    self._calls += 1
    return 0 <= self._last < self._calls - 1

  def asked(self) -> bool:
    """Whether any process was asked, after the loop's end; all call this."""
    if processes() == 1:
      return self._asked()
    self._propose(self._calls)
    barrier("loop")
    return self._proposed() >= 0

  def _propose(self, last: int) -> None:
    """Says which call is to be the last of all, if this process was asked to stop.

    It has not made its next call, and without that the others come `ahead` calls further and no
    more: they see the proposal before they pass it.
    """
    if self._asked():
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was faster
        _client().key_value_set(_STOP, str(last))

  def _proposed(self) -> int:
    """The last call of all, -1 where nobody was asked to stop."""
    try:
      return int(_client().key_value_try_get(_STOP))
    except jax.errors.JaxRuntimeError:  # not there
      return -1


def _client():
  from jax._src import distributed  # there is no public way to the processes' common memory

  return distributed.global_state.client
