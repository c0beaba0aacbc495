"""The loop. A new idea is a new objective; nothing here knows what is being learnt.

In this order, every K steps: take a ticket for K batches, run K steps on the devices in one call,
remember their metrics there, and run the hooks that are due. Every interval is a multiple of K, and
where a call begins depends on the global step alone, so a run that was cut off and resumed makes
the very same calls as one that was not.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import signal
import threading
import time
from typing import Any

import jax
from jax import lax
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from medjax import cluster, contract
from medjax import mesh as mesh_lib
from medjax.objectives import base

_AHEAD = 2  # calls that may wait on the device: enough to keep it busy, few enough to stop soon


@dataclasses.dataclass(frozen=True)
class Hook:
  """Something that happens every so many steps, and after the last.

  Attributes:
    every: steps, a multiple of the steps a dispatch.
    run: called with the global step and the state; True ends the stage.
  """

  every: int
  run: Callable[[int, base.TrainState], bool | None]


@dataclasses.dataclass(frozen=True)
class End:
  """Where the loop ended: at which step, with which state, and whether a signal asked for it."""

  step: int
  state: base.TrainState
  stopped: bool


def interval(steps: int, per_dispatch: int) -> int:
  """An interval in steps, rounded up to a multiple of the steps a dispatch."""
  return max(1, math.ceil(steps / per_dispatch)) * per_dispatch


def dispatcher(
  objective: base.Objective,
  take: Callable,
  mesh: Mesh,
  spec: PartitionSpec = mesh_lib.REPLICATED,
) -> jax.stages.Wrapped:
  """The jitted function of K steps; its state is donated.

  Args:
    objective: whose `step` is written for one replica.
    take: of the feed that the tickets come from.
    mesh: to run on.
    spec: how the feed's resident arrays are cut.

  Returns:
    (state, resident, tickets, learning rates [K], key) -> (state, metrics [K]).
  """

  def dispatch(state, resident, tickets, lrs, key):
    def step(state, inputs):
      ticket, lr = inputs
      batch = take(resident, ticket)
      return objective.step(state, batch, jax.random.fold_in(key, state.step), lr)

    return lax.scan(step, state, (tickets, lrs))

  whole = mesh_lib.REPLICATED
  specs = (whole, spec, mesh_lib.cut(1), whole, whole)
  return mesh_lib.mapped(dispatch, mesh, specs, (whole, whole), donate=(0,))


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What `compiled` makes; called as the function of `dispatcher` is.

  Attributes:
    by_length: the program for calls of each number of steps.
  """

  by_length: Mapping[int, jax.stages.Compiled]

  def __call__(
    self, state: base.TrainState, resident: Any, tickets: Any, lrs: jax.Array, key: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """Runs as many steps as there are learning rates."""
    return self.by_length[len(lrs)](state, resident, tickets, lrs, key)

  @property
  def memory(self) -> int:
    """Bytes of each device that a call takes, its arguments included, by XLA's analysis."""
    return max(_taken(program.memory_analysis()) for program in self.by_length.values())


def _taken(found: Any) -> int:
  """Bytes of an analysis; 0 where a backend has none."""
  if found is None:
    return 0
  whole = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
  return whole - found.alias_size_in_bytes


def compiled(
  dispatch: jax.stages.Wrapped, state: base.TrainState, feed: Any, mesh: Mesh, ks: Sequence[int]
) -> Compiled:
  """`dispatch`, from `dispatcher`, compiled for calls of each of `ks` steps and for no other."""
  key = mesh_lib.like(mesh, jax.eval_shape(jax.random.key, 0))
  return Compiled(
    {
      k: dispatch.lower(state, feed.resident, feed.like(k), _lrs_like(mesh, k), key).compile()
      for k in ks
    }
  )


def _lrs_like(mesh: Mesh, k: int) -> jax.ShapeDtypeStruct:
  return mesh_lib.like(mesh, np.zeros(k))


def train(
  run: Callable,
  state: base.TrainState,
  feed: Any,
  hooks: Sequence[Hook],
  record: Record,
  clock: Clock,
  *,
  lrs: Callable[[range], jax.Array],
  key: jax.Array,
  step: int,
  total: int,
  per_dispatch: int,
) -> End:
  """Trains from `step` to `total`, or until a hook or a signal ends it.

  Args:
    run: from `dispatcher` or `compiled`. state, feed: at `step`. hooks: run in order where due.
    record: gathers the metrics. clock: is told where the time goes.
    lrs: puts the learning rates of steps on every device. key: on every device. per_dispatch: K.
  """
  waiting: collections.deque = collections.deque()
  with _signals() as asked, jax.transfer_guard("disallow"):
    stop = cluster.Stop(asked.is_set, _AHEAD)
    while step < total and not stop():
      k = min(per_dispatch, total - step)
      with clock("host", hidden=lambda: _busy(waiting)):
        ticket, rates = feed.next(k), lrs(range(step, step + k))
      step += k
      due = [hook for hook in hooks if step % hook.every == 0 or step == total]
      with clock("device"):
        state, metrics = run(state, feed.resident, ticket, rates, key)
        record.add(metrics)
        waiting.append(metrics)
        while len(waiting) > (0 if due else _AHEAD):  # hooks read what is on the devices
          jax.block_until_ready(waiting.popleft())
      with clock("log"):
        ended = [hook.run(step, state) for hook in due]
      if any(ended):
        break
    return End(step, state, stop.asked())


def _busy(waiting: Sequence[contract.Metrics]) -> bool:
  """Whether the devices have not come to the end of the last call; waits for nothing."""
  return bool(waiting) and not all(leaf.is_ready() for leaf in jax.tree.leaves(waiting[-1]))


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
  """An event that SIGTERM and Ctrl-C set; a second one ends the process as usual."""
  asked = threading.Event()
  previous: dict[int, Any] = {}

  def ask(number, frame):
    del frame
    asked.set()
    signal.signal(number, previous[number])

  for number in (signal.SIGTERM, signal.SIGINT):
    previous[number] = signal.signal(number, ask)
  try:
    yield asked
  finally:
    for caught, handler in previous.items():
      signal.signal(caught, handler)


class Record:
  """Metrics on their way from the devices to the log; they are read only when a row is due.

  A row holds the mean over the steps since the row before. Steps not yet in a row are part of a
  checkpoint (`pending`), so that the rows of a resumed run equal those of an unbroken one.
  """

  def __init__(
    self,
    write: Callable[[int, dict[str, float]], None],
    explain: Callable[[int], str],
    pending: dict[str, list[float]] | None = None,
  ):
    """Starts a record.

    Args:
      write: called with a step and its row. explain: says what was in the batch of a step.
      pending: of the checkpoint that the run goes on from.
    """
    self._write, self._explain = write, explain
    self._values: dict[str, list[float]] = dict(pending or {})
    self._on_device: list[contract.Metrics] = []

  def add(self, metrics: contract.Metrics) -> None:
    """Keeps the metrics [K] of one call, unread."""
    self._on_device.append(metrics)

  def pending(self, step: int) -> dict[str, list[float]]:
    """A copy of the values since the last row, read from the devices.

    A copy, because a checkpoint writes it in the background while later steps add to the record.

    Args:
      step: the one just finished.

    Raises:
      FloatingPointError: the loss of a step is not finite; tells the step and its images.
    """
    for metrics in jax.device_get(self._on_device):
      for name, values in metrics.items():
        self._values.setdefault(name, []).extend(np.asarray(values, np.float64).tolist())
    self._on_device.clear()
    losses = self._values.get("loss", [])
    bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is not None:
      at = step - len(losses) + bad
      raise FloatingPointError(f"the loss is {losses[bad]} at step {at}. {self._explain(at)}")
    return {name: list(series) for name, series in self._values.items()}

  def flush(self, step: int, more: dict[str, float] | None = None) -> None:
    """Writes the row of a step, with `more` beside the means; nothing where no step is pending."""
    if values := self.pending(step):
      means = {name: float(np.mean(series)) for name, series in values.items()}
      self._values = {}
      self._write(step, means | (more or {}))


class Collapse:
  """Tells when all images get one embedding: `feature_std` stays low for several rows of the log.

  `feature_std` is about 1 where embeddings lie all over the sphere; see `objectives.views.spread`.
  """

  LOW, ROWS = 0.2, 3

  def __init__(self, before: Iterable[Mapping[str, Any]], warn: Callable[[str], None]):
    """Goes on after the rows `before`; `warn` is called once each time that it sets in."""
    self._warn, self._low = warn, 0
    for row in before:
      self._count(row)

  def __call__(self, row: dict[str, float]) -> dict[str, float]:
    """The row with `alarm/collapse`, 0 or 1, where it tells a `feature_std`."""
    if "feature_std" not in row:
      return row
    self._count(row)
    if self._low == self.ROWS:
      self._warn(
        f"WARNING: the embeddings collapse: feature_std below {self.LOW} for {self.ROWS} rows of "
        "the log. Try a smaller optimizer.lr or a larger train.batch_size; byol needs its predictor"
      )
    return {**row, "alarm/collapse": float(self._low >= self.ROWS)}

  def _count(self, row: Mapping[str, Any]) -> None:
    spread = row.get("feature_std")
    if spread is not None:
      self._low = self._low + 1 if spread < self.LOW else 0


class Starving:
  """Tells when the devices wait for their images, for several rows of the log on end."""

  SHARE, ROWS = 0.2, 3

  def __init__(self, warn: Callable[[str], None]):
    """`warn` is called once each time that it sets in."""
    self._warn, self._rows = warn, 0

  def __call__(self, shares: Mapping[str, float]) -> None:
    """Looks at the clock's shares of a row."""
    self._rows = self._rows + 1 if shares.get("host", 0.0) > self.SHARE else 0
    if self._rows == self.ROWS:
      self._warn(
        f"WARNING: the devices wait for images: host above {self.SHARE:.0%} for {self.ROWS} rows of"
        " the log. Streamed images: more data.threads, data.feed=resident where the devices can"
        " hold them, or a prepared collection (python -m medjax.data prepare); resident ones: more"
        " train.steps_per_dispatch. train.profile shows where the time goes"
      )


class Clock:
  """Where the loop's time goes; the phases have the same names in a trace of `profiling`.

  `host`: the devices have nothing to do until the host has the next batches ready. `device`: the
  loop waits for the devices, as it should, or made batches ready while they were at work. `log`:
  rows, validation and checkpoints, while the devices have nothing to do.
  """

  def __init__(self):
    self._seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def __call__(self, name: str, hidden: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Counts the time inside as time for `name`, or for `device` where it was `hidden` behind.

    Args:
      name: of the phase.
      hidden: asked at the end whether the devices were at work all the while. Where they ran out of
        work half way, all of it counts for `name`.
    """
    began = time.perf_counter()
    try:
      with jax.profiler.TraceAnnotation(name):
        yield
    finally:
      counted = "device" if hidden() else name
      self._seconds[counted] = self._seconds.get(counted, 0.0) + time.perf_counter() - began

  def shares(self) -> dict[str, float]:
    """Share of each name in the time counted since the last call."""
    seconds, self._seconds = self._seconds, {}
    return {name: seconds[name] / sum(seconds.values()) for name in sorted(seconds)}


class Progress:
  """One line a row on stdout: stage, step, rate, time left, loss, and where the time went."""

  def __init__(self, stage: str, step: int, total: int, batch_size: int, shown: Sequence[str]):
    """Starts at `step`; of a row, the metrics in `shown` are printed."""
    self._stage, self._total, self._batch_size, self._shown = stage, total, batch_size, shown
    self._first, self._began = step, time.perf_counter()

  def rate(self, step: int) -> float:
    """Steps a second since the start, everything included."""
    return (step - self._first) / (time.perf_counter() - self._began)

  def line(self, step: int, row: dict[str, float], shares: dict[str, float]) -> str:
    """The line to print."""
    rate = self.rate(step)
    left = int((self._total - step) / rate)
    shown = [f"{name} {row[name]:.4f}" for name in self._shown if name in row]
    spent = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return (
      f"{self._stage}  step {step}/{self._total}  {rate:.2f} steps/s  "
      f"{rate * self._batch_size:.0f} images/s  ETA {left // 60}:{left % 60:02d}  "
      + "  ".join(shown)
      + f"  ({spent})"
    )
