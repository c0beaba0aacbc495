"""The loop's bookkeeping: intervals, rows, losses that are not finite, signals."""

import os
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import train


class Counting:
  """A feed and a step in one: the state is the number of steps done, the loss its square."""

  def __init__(self):
    self.calls, self.resident = [], {}

  def next(self, k):
    self.calls.append(k)
    return k

  @staticmethod
  def run(state, resident, k, lrs, key):
    steps = np.arange(state, state + k, dtype=np.float32)
    return state + k, {"loss": jax.device_put(steps**2)}


CALLS = dict(clock=train.Clock(), lrs=list, key=None, step=0, total=9, per_dispatch=2)


def rows_of(total: int, per_dispatch: int, every: int, step: int = 0, pending=None):
  feed, rows = Counting(), []
  record = train.Record(lambda at, row: rows.append((at, row["loss"])), str, pending)
  hook = train.Hook(every, lambda at, state: record.flush(at))
  end = train.train(
    feed.run,
    step,
    feed,
    [hook],
    record,
    train.Clock(),
    lrs=list,
    key=None,
    step=step,
    total=total,
    per_dispatch=per_dispatch,
  )
  return rows, feed.calls, end, record


def test_calls_begin_at_multiples_of_k_and_the_rest_is_shorter():
  _, calls, end, _ = rows_of(total=10, per_dispatch=4, every=4)
  assert calls == [4, 4, 2] and end.step == end.state == 10 and not end.stopped


def test_rows_hold_the_mean_since_the_row_before():
  rows, *_ = rows_of(total=6, per_dispatch=2, every=4)
  assert rows == [(4, (0 + 1 + 4 + 9) / 4), (6, (16 + 25) / 2)]


def test_a_row_that_was_begun_before_the_run_was_cut_off_comes_out_equal():
  whole, *_ = rows_of(total=8, per_dispatch=2, every=4)
  begun = {"loss": [0.0, 1.0]}
  resumed, *_ = rows_of(total=8, per_dispatch=2, every=4, step=2, pending=begun)
  assert resumed == whole


class Unread:
  """A metric [K] on a device that may only be read once its row is due."""

  def __init__(self, values, may_be_read):
    self._values, self._may_be_read = values, may_be_read

  def block_until_ready(self):
    return self

  def is_ready(self):
    return True

  def __array__(self, dtype=None, copy=None):
    assert self._may_be_read(), "read between two rows of the log"
    return np.asarray(self._values, dtype)

  def __float__(self):
    raise AssertionError("read by float(...)")

  item = tolist = __iter__ = __bool__ = __float__


def test_metrics_are_read_at_rows_alone():
  """The transfer guard does not see `np.asarray` or `.item()` on CPU; this does."""
  feed, rows, flushing = Counting(), [], []
  record = train.Record(lambda step, row: rows.append((step, row["loss"])), str)

  def run(*args):
    state, metrics = feed.run(*args)
    return state, {"loss": Unread(np.asarray(metrics["loss"]), lambda: bool(flushing))}

  def flush(step, state):
    flushing.append(step)
    record.flush(step)
    flushing.clear()

  train.train(run, 0, feed, [train.Hook(4, flush)], record, **CALLS)
  assert rows == [(4, 3.5), (8, (16 + 25 + 36 + 49) / 4), (9, 64)]


def test_a_loop_that_reads_between_rows_is_caught():
  """The test above can fail: a hook that looks at every call's metrics."""
  record = train.Record(lambda *_: None, str)
  record.add({"loss": Unread([1.0], lambda: False)})
  with pytest.raises(AssertionError, match="between two rows"):
    record.pending(1)


def test_the_clock_tells_where_time_went():
  clock = train.Clock()
  for name, seconds in (("device", 0.06), ("host", 0.02)):
    with clock(name):
      time.sleep(seconds)
  shares = clock.shares()
  assert list(shares) == ["device", "host"] and sum(shares.values()) == pytest.approx(1)
  assert shares["device"] == pytest.approx(0.75, abs=0.1)
  with clock("log"):
    pass
  assert clock.shares() == {"log": 1}


def test_what_a_checkpoint_took_does_not_grow_while_it_is_written():
  record = train.Record(lambda *_: None, str)
  record.add({"loss": jnp.asarray([1.0, 2.0])})
  taken = record.pending(step=2)
  record.add({"loss": jnp.asarray([3.0])})
  assert record.pending(step=3) == {"loss": [1, 2, 3]} and taken == {"loss": [1, 2]}


def test_the_step_of_a_loss_that_is_not_finite_is_told():
  record = train.Record(lambda *_: None, lambda step: f"images of {step}")
  record.add({"loss": jnp.asarray([0.0, 1.0])})
  record.add({"loss": jnp.asarray([jnp.nan, 1.0])})
  with pytest.raises(FloatingPointError, match=r"nan at step 6. images of 6"):
    record.pending(step=8)


def test_a_hook_can_end_the_stage():
  feed, record = Counting(), train.Record(lambda *_: None, str)
  hooks = [train.Hook(4, lambda step, state: True)]
  end = train.train(feed.run, 0, feed, hooks, record, **CALLS)
  assert end.step == 4 and not end.stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_loop_after_the_call_it_came_in(number):
  feed, record = Counting(), train.Record(lambda *_: None, str)
  hooks = [train.Hook(4, lambda step, state: os.kill(os.getpid(), number))]
  end = train.train(feed.run, 0, feed, hooks, record, **CALLS)
  assert end.step == 4 and end.stopped


def test_intervals_are_multiples_of_k():
  assert [train.interval(n, 4) for n in (0, 1, 4, 5, 13)] == [4, 4, 4, 8, 16]


def test_a_line_shows_stage_step_rate_time_left_and_loss():
  progress = train.Progress("pretrain", 0, 100, 32, ("loss",))
  line = progress.line(50, {"loss": 0.25, "lr": 1.0}, {"device": 0.9, "host": 0.1})
  for word in ("pretrain", "step 50/100", "steps/s", "images/s", "ETA", "loss 0.2500", "host 10%"):
    assert word in line
  assert "lr" not in line
