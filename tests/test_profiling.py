"""Traces that users ask for, and the word about devices that wait for their images."""

import gzip
import json
import pathlib
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import config, main, profiling, settings, train
from medjax import mesh as mesh_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib

TINY = pathlib.Path(__file__).with_name("tiny.py")


class Lines(list):
  def __call__(self, line: str) -> None:
    self.append(line)


@jax.jit
def _steps(state, lrs):
  return state + len(lrs), {"loss": lrs * state}


class Feed:
  """A feed and a step in one, K steps a call."""

  resident = None

  def next(self, k):
    return k

  def run(self, state, resident, tickets, lrs, key):
    return _steps(state, lrs)


def looped(run, total: int, per_dispatch: int, step: int = 0, hooks=()) -> train.Clock:
  clock = train.Clock()
  train.train(
    run,
    jax.device_put(step),
    Feed(),
    hooks,
    train.Record(lambda *_: None, str),
    clock,
    lrs=lambda steps: jax.device_put(np.ones(len(steps), np.float32)),
    key=None,
    step=step,
    total=total,
    per_dispatch=per_dispatch,
  )
  return clock


def events(folder: pathlib.Path) -> list[dict]:
  (file,) = folder.rglob("*.trace.json.gz")
  return json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]


def traced_steps(folder: pathlib.Path) -> list[int]:
  found = [each for each in events(folder) if each.get("name") == profiling.CALL]
  return [int(each["args"]["step_num"]) for each in found]


@pytest.mark.parametrize(
  ("wanted", "expected"),
  [((4, 10), [4, 6, 8]), ((5, 9), [4, 6, 8]), ((6, 90), [6, 8, 10])],
  ids=["calls", "within", "end"],
)
def test_a_trace_has_the_calls_of_the_wanted_steps_and_the_phases_by_name(
  tmp_path, wanted, expected
):
  said = Lines()
  with profiling.traced(Feed().run, tmp_path, wanted, range(12), said) as run:
    looped(run, 12, 2, hooks=[train.Hook(2, lambda *_: None)])
  assert traced_steps(tmp_path) == expected
  names = {each.get("name") for each in events(tmp_path)}
  assert {"host", "device", "log"} <= names
  assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))  # what TensorBoard looks for
  (line,) = said
  assert f"steps {expected[0]} to {expected[-1] + 2} in " in line
  assert pathlib.Path(re.search(r" in (\S+): ", line)[1]).is_file()


def test_a_loop_that_ends_early_leaves_a_whole_trace(tmp_path):
  said = Lines()
  with (
    pytest.raises(ZeroDivisionError),
    profiling.traced(Feed().run, tmp_path, (2, 90), range(100), said) as run,
  ):
    looped(run, 100, 2, hooks=[train.Hook(6, lambda *_: 1 // 0)])
  assert traced_steps(tmp_path) == [2, 4] and "steps 2 to 6" in said[0]


@pytest.mark.parametrize("wanted", [(2, 4), (20, 30)], ids=["past", "never"])
def test_steps_that_do_not_come_are_told(tmp_path, wanted):
  said = Lines()
  with profiling.traced(Feed().run, tmp_path, wanted, range(6, 12), said) as run:
    looped(run, 12, 2, step=6)
  assert said == [f"no trace: train.profile={wanted}, and steps 6 to 12 are left"]
  assert not list(tmp_path.iterdir())


def test_nothing_is_in_the_way_where_no_trace_is_wanted(tmp_path):
  feed = Feed()
  with profiling.traced(feed.run, tmp_path, (), range(6), Lines()) as run:
    assert run == feed.run


def test_a_trace_waits_for_the_devices_at_its_ends_alone(tmp_path):
  """What the calls in between return is never waited for."""

  class Result:
    waited = 0

    def block_until_ready(self):
      Result.waited += 1
      return self

  def run(state, *_):
    return state, {"loss": Result()}

  waits = []
  with profiling.traced(run, tmp_path, (2, 8), range(10), Lines()) as call:
    for _ in range(5):
      call(Result(), None, None, [0, 0], None)
      waits.append(Result.waited)
  assert waits == [0, 1, 1, 2, 2]


@pytest.mark.parametrize("wrong", ["5", "7,7", "9,3", "-4,3", "1,2,3"])
def test_what_is_no_range_of_steps_is_told(wrong):
  with pytest.raises(ValueError, match="such as 100,110"):
    config.parse({}, [f"train.profile={wrong}"])


def test_a_run_writes_its_trace_into_the_stage(tmp_path, capsys):
  args = ["train.profile=2,6", "train.length=8 steps", "model.streams=cs3", "eval.bootstrap=20"]
  flags = [f"--config.{each}" for each in [*args, "data.feed=streamed", "data.threads=1"]]
  assert main.main([f"--config={TINY}", f"--workdir={tmp_path}", *flags]) == 0
  folder = tmp_path / "train" / profiling.FOLDER
  assert traced_steps(folder) == [2, 4]
  assert "read" in {each.get("name") for each in events(folder)}  # by the feed's threads
  assert "profile: steps 2 to 6 in " in capsys.readouterr().out


# Where the time goes.


class Work:
  """A call on a device that takes until it is released."""

  def __init__(self):
    self.done = threading.Event()

  def is_ready(self) -> bool:
    return self.done.is_set()

  def block_until_ready(self):
    self.done.set()
    return self


def phases(behind: bool) -> dict[str, float]:
  """Shares of a loop whose batches take all the time; `behind` the devices' work or not."""
  works: list[Work] = []

  class Slow(Feed):
    def next(self, k):
      threading.Event().wait(0.01)  # the reading itself
      if works and not behind:
        works[-1].done.set()
      return k

  def run(state, *_):
    works.append(Work())
    return state, {"loss": works[-1]}

  clock, record = train.Clock(), train.Record(lambda *_: None, str)
  none = dict(lrs=lambda steps: None, key=None, step=0, total=6, per_dispatch=1)
  train.train(run, 0, Slow(), [], record, clock, **none)
  return clock.shares()


def test_batches_made_ready_behind_the_devices_work_cost_no_time_of_the_host():
  assert phases(behind=True)["host"] < 0.3  # of six, the first one: there was no work yet
  assert phases(behind=False)["host"] > 0.7


def shares_of(host: float) -> dict[str, float]:
  return {"device": 1 - host, "host": host}


@pytest.mark.parametrize(
  ("hosts", "warnings"),
  [
    ([0.1] * 9, 0),
    ([0.3, 0.3], 0),
    ([0.3, 0.3, 0.1, 0.3, 0.3], 0),
    ([0.3] * 9, 1),
    ([0.3] * 4 + [0.1] + [0.3] * 4, 2),
  ],
)
def test_a_starving_device_is_told_once_each_time_it_sets_in(hosts, warnings):
  said = Lines()
  starving = train.Starving(said)
  for host in hosts:
    starving(shares_of(host))
  assert len(said) == warnings
  assert all("data.threads" in line and "data.feed=resident" in line for line in said)


@pytest.mark.parametrize("slow", [True, False])
def test_a_reader_that_is_really_slow_is_told_and_a_good_one_is_not(slow):
  """Streamed by threads, on the device that runs: reading is slower than a step, or faster."""
  images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
  never = threading.Event()

  def fetch(row: int) -> np.ndarray:
    never.wait(0.01 if slow else 0)
    return images[row]

  names = np.arange(64).astype(str)
  part = catalogue.Part("train", names, names, np.zeros(64, np.int32), fetch, None)
  mesh = mesh_lib.make(jax.devices()[:1])
  cfg = settings.Feeding(memory_gb=0)
  feed = feed_lib.training(part, 4, 0, mesh, "streamed", threads=1, cfg=cfg)

  @jax.jit
  def step(state, images):
    heavy = jnp.ones((1, 1)) if slow else jnp.ones((700, 700))
    for _ in range(8):
      heavy = heavy @ heavy
    return state + 1, {"loss": images.astype(float).mean() + 0 * heavy[0, 0]}

  def run(state, resident, ticket, lrs, key):
    return step(state, ticket["image"][0])

  said, clock = Lines(), train.Clock()
  starving = train.Starving(said)
  hooks = [train.Hook(5, lambda *_: starving(clock.shares()))]
  state, record = jax.device_put(0), train.Record(lambda *_: None, str)
  jax.block_until_ready(run(state, None, feed.next(1), None, None))
  none = dict(lrs=lambda steps: None, key=None, step=1, total=26, per_dispatch=1)
  train.train(run, state, feed, hooks, record, clock, **none)
  feed.close()
  assert len(said) == slow
