"""What goes wrong around a run: disks, files, workers, other runs, kills.

Each is told in a line that says what to do, and what was learnt before it is not lost. Kills of one
process are in `test_resume`, what a user types wrong in `test_main`.
"""

import contextlib
import dataclasses
import errno
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest

from medjax import checkpoint, config, data, lock, main, settings, writer
from medjax.data import cache, catalogue, patience
from medjax.data import feed as feed_lib
from medjax.objectives import base

TINY = f"--config={processes.TINY}"


def told(capsys, *args: object) -> str:
  """The error of a run that must fail, as the user sees it."""
  assert main.main([str(arg) for arg in args]) == 1
  text = capsys.readouterr().err
  assert text.startswith("error: ") and "Traceback" not in text
  return text


# Checkpoints that the disk damaged.


def a_state(step: int = 0) -> base.TrainState:
  rng = np.random.default_rng(step)
  params = {"encoder": {"kernel": jnp.asarray(rng.normal(size=(40, 40)), jnp.float32)}}
  return base.TrainState(jnp.asarray(step, jnp.int32), params, {}, (), {})


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> pathlib.Path:
  """Two last checkpoints and a best one."""
  folder = tmp_path_factory.mktemp("written") / "checkpoints"
  saved = checkpoint.Checkpoints(folder)
  for step in (2, 4):
    saved.save(checkpoint.LAST, step, a_state(step), {"pending": {"loss": [0.25, 0.5]}})
  saved.save(checkpoint.BEST, 4, a_state(4), {})
  saved.wait()
  saved.close()
  return folder


def cut(file: pathlib.Path) -> None:
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garbled(file: pathlib.Path) -> None:
  """One bit in the middle is another."""
  found = bytearray(file.read_bytes())
  found[len(found) // 2] ^= 1
  file.write_bytes(found)


def emptied(file: pathlib.Path) -> None:
  file.write_bytes(b"")


# Orbax leaves an unfinished read of a missing file to its closed event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
  "damage",
  [
    cut,
    garbled,
    pytest.param(emptied, marks=pytest.mark.slow),
    pytest.param(pathlib.Path.unlink, marks=pytest.mark.slow),
  ],
)
def test_instead_of_a_damaged_newest_checkpoint_the_one_before_is_taken(written, tmp_path, damage):
  """Each of its files in turn: what is read is either as it was written, or of the step before."""
  newest = written / "last" / "4"
  files = [f.relative_to(newest) for f in newest.rglob("*") if f.is_file() and f.stat().st_size]
  fell = set()
  for number, file in enumerate(sorted(files)):
    folder, told = tmp_path / str(number), []
    shutil.copytree(written, folder)
    damage(folder / "last" / "4" / file)
    with contextlib.closing(checkpoint.Checkpoints(folder)) as saved:
      state, meta = saved.resume(jax.eval_shape(a_state), told.append)
      jax.tree.map(np.testing.assert_array_equal, state, a_state(int(state.step)))
      assert meta == {"pending": {"loss": [0.25, 0.5]}}
      if state.step == 2:
        assert "last/4 is damaged: " in told[0] and f"aside as {folder}/damaged/4" in told[0]
        assert (folder / "damaged" / "4" / "state").is_dir() and saved.latest("last") == 2
        fell.add(file.parts[0])
        saved.save(checkpoint.LAST, 4, a_state(4), {})  # the run comes by again
        saved.wait()
        assert saved.resume(jax.eval_shape(a_state), told.append)[0].step == 4
      else:
        assert not told
  assert fell >= {"state", "meta"}


def test_where_no_checkpoint_is_whole_nothing_is_started_anew(written, tmp_path):
  shutil.copytree(written, tmp_path / "c")
  for step in "24":
    garbled(tmp_path / "c" / "last" / step / "meta" / "metadata")
  saved = checkpoint.Checkpoints(tmp_path / "c")
  with pytest.raises(ValueError, match=r"last/4 is damaged: meta .* Bring it back from a copy"):
    saved.resume(jax.eval_shape(a_state))
  saved.close()
  assert (tmp_path / "c" / "last" / "4").is_dir()


def test_a_damaged_best_checkpoint_is_told_to_whoever_wants_its_weights(written, tmp_path):
  shutil.copytree(written, tmp_path / "checkpoints")
  best = tmp_path / "checkpoints" / "best" / "4"
  largest = max(best.rglob("ocdbt.process_0/d/*"), key=lambda file: file.stat().st_size)
  garbled(largest)
  with pytest.raises(ValueError, match=r"kernel is not what was written.*move it away"):
    checkpoint.weights(tmp_path)
  saved = checkpoint.Checkpoints(tmp_path / "checkpoints")
  with pytest.raises(ValueError, match="best/4 is damaged"):
    saved.restore(checkpoint.BEST, jax.eval_shape(a_state))
  saved.close()
  shutil.rmtree(best)
  assert checkpoint.weights(tmp_path)[1].endswith("last/4")


def test_a_checkpoint_from_before_there_were_checksums_is_read(written, tmp_path):
  shutil.copytree(written, tmp_path / "c")
  shutil.rmtree(tmp_path / "c" / "last" / "4" / "sums")
  with contextlib.closing(checkpoint.Checkpoints(tmp_path / "c")) as saved:
    assert saved.resume(jax.eval_shape(a_state))[0].step == 4


@pytest.mark.slow
def test_a_run_whose_newest_checkpoint_was_damaged_ends_as_an_unbroken_one(tmp_path):
  args = TINY, "--config.train.log_images=True"
  whole = processes.start(tmp_path / "whole", *args)
  assert whole.communicate()[0] and whole.returncode == 0
  process = processes.start(tmp_path / "cut", *args)
  processes.until_step(process, 20)
  process.kill()
  process.communicate()
  last = tmp_path / "cut" / "train" / "checkpoints" / "last"
  newest = max((path for path in last.iterdir() if path.name.isdigit()), key=lambda p: int(p.name))
  cut(newest / "state" / "_METADATA")
  process = processes.start(tmp_path / "cut", *args)
  text, _ = process.communicate()
  assert process.returncode == 0 and f"last/{newest.name} is damaged" in text
  assert f"resumed from step {int(newest.name) - 2}\n" in text
  processes.assert_equal(processes.final(tmp_path / "whole"), processes.final(tmp_path / "cut"))


# Two runs in one workdir.


@dataclasses.dataclass
class Stopped:
  """A run that has some way to go; the errors that others had in its workdir, and its process."""

  folder: pathlib.Path
  refusals: list[str]
  pid: int


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Stopped:
  folder = tmp_path_factory.mktemp("stopped") / "w"
  process = processes.start(folder, TINY, "--config.train.length=9999 steps")
  processes.until_step(process, 8)
  refusals = []
  for task in ("train", "evaluate"):
    with contextlib.redirect_stderr(io.StringIO()) as error:
      assert main.main([f"--task={task}", f"--workdir={folder}"]) == 1
    refusals.append(error.getvalue())
  assert process.poll() is None
  process.kill()
  process.communicate()
  return Stopped(folder, refusals, process.pid)


def test_a_second_run_in_a_workdir_is_refused_until_the_first_is_killed(stopped):
  for text in stopped.refusals:
    assert f"error: another run works in {stopped.folder}: process {stopped.pid} on " in text
    assert "give this one another --workdir" in text
  with lock.held(stopped.folder):
    assert f"process {os.getpid()} " in (stopped.folder / lock.FILE).read_text()
    with pytest.raises(BlockingIOError, match="another run"), lock.held(stopped.folder):
      pass
  with lock.held(stopped.folder):
    pass


def test_a_lock_goes_with_its_holder_and_not_with_the_children_that_outlive_it(tmp_path):
  child = tmp_path / "child"
  script = f"""
import pathlib, subprocess, time
from medjax import lock
with lock.held(pathlib.Path({str(tmp_path)!r})):
  left = subprocess.Popen(["sleep", "60"])
  pathlib.Path({str(child)!r}).write_text(str(left.pid))
  print("held", flush=True)
  time.sleep(60)
"""
  command = [sys.executable, "-c", script]
  environment = os.environ | {"PYTHONPATH": str(processes.ROOT)}
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} "), lock.held(tmp_path):
      pass
    holder.kill()
  try:
    with lock.held(tmp_path):
      pass
  finally:
    os.kill(int(child.read_text()), signal.SIGKILL)


# Disks and drives.


def _hanging(release: threading.Event):
  """A drive that gives no answer until it is let go."""

  def read(row):
    release.wait()
    raise OSError(errno.EIO, "gone")

  return read


@pytest.fixture
def release():
  event = threading.Event()
  yield event
  event.set()


def test_a_file_that_cannot_be_read_in_time_is_named(tmp_path, release):
  pixels = np.zeros((8, 8), np.uint8)
  hanging = _hanging(release)
  rows = catalogue.Catalogue(
    ids=("a.png", "b.png", "c.png"),
    groups=("a", "b", "c"),
    labels=np.zeros(3, np.int32),
    parts=np.array(["train"] * 3),
    classes=("x",),
    read=lambda row: hanging(row) if row == 1 else pixels,
    content="",
  )
  cfg = settings.Phantom(image_size=8, threads=2, cache=str(tmp_path), patience=0.3)
  with pytest.raises(ValueError, match=r"b\.png could not be read within data\.patience=0\.3 s"):
    cache.load(rows, cfg)
  assert not list(tmp_path.iterdir())  # no half of a cache stays


def test_a_batch_that_cannot_be_read_in_time_ends_the_feed(mesh1, release):
  images = np.zeros((40, 4, 4, 1), np.uint8)
  hanging = _hanging(release)
  names = np.array([f"{i}.png" for i in range(40)])

  def read(rows: np.ndarray) -> np.ndarray:
    return hanging(rows) if 33 in rows else images[rows]

  limited = patience.limited(read, 0.3, "/drive/shards")
  fetch = lambda row: limited(np.array([row]))[0]  # noqa: E731
  part = catalogue.Part(
    "train", names, names, np.zeros(40, np.int32), fetch, None, fetch_many=limited
  )
  cfg = settings.Feeding(memory_gb=0)
  feed = feed_lib.training(part, 8, 0, mesh1, "streamed", threads=2, cfg=cfg)
  with pytest.raises(ValueError, match=r"one of 8 images, \d+.png .* /drive/shards could not be"):
    for _ in range(5):
      feed.next(1)
  feed.close()


def test_a_run_on_a_drive_that_hangs_ends_with_a_line(tmp_path, capsys):
  """A shard that is a pipe nobody writes to blocks whoever opens it, for ever."""
  quick = "--config.train.length=2 steps", f"--config.data.cache={tmp_path}/cache"
  streamed = TINY, f"--workdir={tmp_path}/w", *quick, "--config.data.feed=streamed"
  rows, cfg = _phantoms(tmp_path)
  cache.load(rows, cfg)
  (shard,) = (tmp_path / "cache").glob("*/shards/*")
  shard.unlink()
  os.mkfifo(shard)
  before = time.monotonic()
  text = told(capsys, *streamed, "--config.data.patience=0.5")
  assert f"{shard.parents[1]} could not be read within data.patience=0.5 seconds" in text
  assert time.monotonic() - before < 30
  with shard.open("wb"):  # lets the thread go
    pass


def _phantoms(tmp_path: pathlib.Path) -> tuple[catalogue.Catalogue, settings.Phantom]:
  """The images of `tiny.py`."""
  from medjax.data.datasets import phantom

  cfg = settings.Phantom(image_size=16, patients=40, cache=str(tmp_path / "cache"))
  return phantom.catalogue(cfg), cfg


@pytest.mark.parametrize("damage", [cut, garbled, pathlib.Path.unlink])
def test_a_damaged_shard_is_told_and_is_made_anew_once_it_is_taken_away(tmp_path, damage):
  rows, cfg = _phantoms(tmp_path)
  every = np.arange(len(rows))
  before = cache.load(rows, cfg).read(every)
  (shard,) = (tmp_path / "cache").glob("*/shards/*")
  damage(shard)
  with pytest.raises(ValueError, match="is damaged or missing") as error:
    cache.load(rows, cfg).read(every)
  assert str(shard) in str(error.value) and f"take the folder {shard.parents[1]} away" in str(
    error.value
  )
  shutil.rmtree(shard.parents[1])
  np.testing.assert_array_equal(cache.load(rows, cfg).read(every), before)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_a_run_which_then_goes_on_as_an_unbroken_one(tmp_path, tmpfs):
  args = TINY, "--config.train.log_images=True"
  whole = processes.start(tmp_path / "whole", *args)
  assert whole.communicate()[0] and whole.returncode == 0
  place = tmpfs("size=16m")
  process = processes.start(place / "w", *args)
  processes.until_step(process, 12)
  with (place / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
    while filler.write(bytes(1 << 16)):
      pass
  text, _ = process.communicate()
  assert process.returncode == 1 and "No space left on device" in text
  # Threads of the storage library may complain before, after and between.
  assert "error: " in text and "start the same command again" in text
  (place / "filler").unlink()
  process = processes.start(place / "w", *args)
  text, _ = process.communicate()
  assert process.returncode == 0 and "resumed from step" in text
  processes.assert_equal(processes.final(tmp_path / "whole"), processes.final(place / "w"))


# A batch that holds what is no number.


def test_a_nan_in_a_batch_ends_a_run_which_then_goes_on_as_an_unbroken_one(
  tmp_path, capsys, monkeypatch
):
  """One image, which comes for the first time after the first checkpoint, has a pixel of NaN."""
  args = TINY, "--config.train.log_images=True"
  assert main.main([*args, f"--workdir={tmp_path}/whole"]) == 0
  lines = (tmp_path / "whole" / "train" / "images.jsonl").read_text().splitlines()
  given = [set(json.loads(line)["ids"]) for line in lines]
  image = min(given[3] - given[2] - given[1] - given[0])
  part = data.make(config.parse(config.load(str(processes.TINY))).stages[0].data).parts["train"]
  pixels = jnp.asarray(part.fetch(part.ids.tolist().index(image)))

  def planted(batch):
    hit = (batch["image"] == pixels).all((1, 2, 3))
    found = floats(batch)
    return {**found, "image": found["image"].at[:, 3, 5].add(jnp.where(hit, jnp.nan, 0)[:, None])}

  floats = base.with_floats
  with monkeypatch.context() as planting:
    planting.setattr(base, "with_floats", planted)
    text = told(capsys, *args, f"--workdir={tmp_path}/cut")
  assert "the loss is nan at step 3. " in text and image in text
  assert "The last good checkpoint is of step 2;" in text
  assert main.main([*args, f"--workdir={tmp_path}/cut"]) == 0
  assert "resumed from step 2\n" in capsys.readouterr().out
  processes.assert_equal(processes.final(tmp_path / "whole"), processes.final(tmp_path / "cut"))


# A run that goes on otherwise than it began.


def test_another_batch_size_is_refused_and_the_way_that_is_told_works(stopped, tmp_path, capsys):
  folder, size = stopped.folder, "--config.train.batch_size=8"
  text = told(capsys, f"--workdir={folder}", size)
  assert "They differ in stages[0].train.batch_size: 16 there, 8 here" in text
  assert f"--config.init_from={folder}/train and another --workdir" in text
  quick = "--config.train.length=2 steps", f"--workdir={tmp_path}/w"
  assert main.main([TINY, size, *quick, f"--config.init_from={folder}/train"]) == 0
  assert "tensors loaded" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1)])
def test_a_run_goes_on_with_other_devices(tmp_path, before, after):
  """The same images in the same steps; numbers differ by rounding, which grows in float32."""
  args = TINY, "--config.train.log_images=True", "--config.optimizer.lr=1e-4"
  whole = processes.start(tmp_path / "whole", *args, devices=before)
  assert whole.communicate()[0] and whole.returncode == 0
  process = processes.start(tmp_path / "cut", *args, devices=before)
  processes.until_step(process, 40)
  process.kill()
  process.communicate()
  process = processes.start(tmp_path / "cut", *args, devices=after)
  text, _ = process.communicate()
  assert process.returncode == 0 and "resumed from step" in text and f"runs on {after} x" in text
  one, other = (processes.final(tmp_path / name) for name in ("whole", "cut"))
  assert one[2][-1] == other[2][-1] and one[2][-1].count(b"\n") == 60
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), one[0], other[0])


# Kills, one after the other.


def _killed(process: subprocess.Popen, folder: pathlib.Path, rng: np.random.Generator) -> bool:
  """Kills a run some rows on: at any moment, or while it writes a checkpoint; whether it did."""
  for _ in range(rng.integers(1, 6)):
    processes.until_step(process, 0)
  time.sleep(rng.uniform(0, 0.1))
  writing = rng.random() < 0.5
  while writing and process.poll() is None and not list(folder.glob("train/checkpoints/*/*tmp*")):
    pass
  process.kill()
  seen = bool(list(folder.glob("train/checkpoints/*/*tmp*")))
  process.communicate()
  assert process.returncode == -signal.SIGKILL, "the run was over before it was killed"
  return seen


@pytest.mark.slow
def test_twenty_kills_in_a_row_lose_no_step_and_double_none(tmp_path):
  args = TINY, "--config.train.length=360 steps", "--config.eval.every=40 steps"
  args = *args, "--config.train.log_images=True"
  whole = processes.start(tmp_path / "whole", *args, "--config.train.checkpoint_every=360 steps")
  assert whole.communicate()[0] and whole.returncode == 0
  rng, folder = np.random.default_rng(0), tmp_path / "cut"
  torn = sum(_killed(processes.start(folder, *args), folder, rng) for _ in range(20))
  assert torn >= 3, "too few were killed while a checkpoint was being written"
  last = processes.start(folder, *args)
  text, _ = last.communicate()
  assert last.returncode == 0 and "resumed from step" in text
  steps = [row["step"] for row in writer.read(folder / "train" / "images.jsonl")]
  assert steps == list(range(1, 361))
  processes.assert_equal(processes.final(tmp_path / "whole"), processes.final(folder))
