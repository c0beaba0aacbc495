"""A trace of a few steps of training: what host and devices do when, for Perfetto and TensorBoard.

It begins and ends with a call of the training step and waits for the devices there, and nowhere
else. The phases that `train.Clock` counts are in it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import pathlib
from typing import Any

import jax

from medjax import cluster

FOLDER = "profile"  # of a stage
CALL = "dispatch"  # what a call of the training step is named in the trace


@contextlib.contextmanager
def traced(
  run: Callable, folder: pathlib.Path, wanted: tuple[int, ...], steps: range, say: Callable
) -> Iterator[Callable]:
  """`run`, and a trace of what goes on while it takes some of the steps.

  Args:
    run: the compiled training step, `(state, resident, tickets, lrs, key) -> (state, metrics)`.
    folder: to write the trace to, by the lead process.
    wanted: the first step of the trace and the one after its last; empty for none. Calls of several
      steps are traced whole.
    steps: that `run` will be asked for, in order.
    say: told where the trace is, or why there is none.
  """
  if not wanted or not cluster.lead():
    yield run
    return
  if not range(max(wanted[0], steps.start), min(wanted[1], steps.stop)):
    say(f"no trace: train.profile={wanted}, and steps {steps.start} to {steps.stop} are left")
  tracer = _Tracer(run, folder, range(*wanted), steps.start, say)
  try:
    yield tracer
  finally:
    tracer.end()


class _Tracer:
  """The training step; the profiler runs from the first call with a wanted step to the last."""

  def __init__(self, run: Callable, folder: pathlib.Path, wanted: range, step: int, say: Callable):
    self._run, self._folder, self._wanted, self._say = run, folder, wanted, say
    self._step, self._begun = step, -1

  def __call__(
    self, state: Any, resident: Any, tickets: Any, lrs: jax.Array, key: jax.Array
  ) -> tuple[Any, Any]:
    """See `traced`."""
    begin, self._step = self._step, self._step + len(lrs)
    if self._begun < 0 and begin < self._wanted.stop and self._step > self._wanted.start:
      self._begin(begin, state)
    with jax.profiler.StepTraceAnnotation(CALL, step_num=begin):
      state, metrics = self._run(state, resident, tickets, lrs, key)
    if self._step >= self._wanted.stop:
      self.end(metrics)
    return state, metrics

  def _begin(self, step: int, state: Any) -> None:
    jax.block_until_ready(state)  # what was asked for before is no part of the trace
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every call of a function would hide the phases
    jax.profiler.start_trace(self._folder, profiler_options=options)
    self._begun = step

  def end(self, metrics: Any = ()) -> None:
    """Writes the trace, where one was begun and is not yet written."""
    if self._begun < 0:
      return
    jax.block_until_ready(metrics)
    text = f"profile: steps {self._begun} to {self._step}"
    self._begun, self._wanted = -1, range(0)
    try:
      jax.profiler.stop_trace()
    except (OSError, RuntimeError) as error:  # training is worth more than its trace
      self._say(f"{text} could not be written to {self._folder}: {error}")
      return
    file = max(self._folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    self._say(
      f"{text} in {file}: open it at https://ui.perfetto.dev, or the folder by tensorboard"
      f" --logdir={self._folder} (pip install tensorboard-plugin-profile)"
    )
