"""One stage of a run: trained to its end, and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import gc
import json
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax import (
  checkpoint,
  cluster,
  contract,
  figures,
  metrics,
  models,
  monitors,
  optim,
  pixels,
  planner,
  points,
  probing,
  profiling,
  sampling,
  settings,
  trees,
  wiring,
  witness,
)
from medjax import judge as judge_lib
from medjax import mesh as mesh_lib
from medjax import train as train_lib
from medjax import writer as writer_lib
from medjax.data import feed as feed_lib
from medjax.models import pretrained
from medjax.objectives import base

CHECKPOINTS = "checkpoints"
_SHOWN, _PAINTED = 16, 64  # augmented and generated images in TensorBoard
_LAGGING = 0.1  # share of the first running statistics from which on a warning is due


def fit(bench: wiring.Bench, sources: dict[str, pathlib.Path]) -> None:
  """Trains the stage from its last checkpoint, or from its beginning, to its end.

  Args:
    bench: the stage. sources: folders of the stages that `init_from` may name.

  Raises:
    KeyboardInterrupt: a signal asked to stop; the state is saved.
    FloatingPointError: a loss was not finite.
  """
  with contextlib.ExitStack() as stack:
    saved = stack.enter_context(_checkpoints(bench))
    state, meta = _resumed(bench, saved) or (_initial(bench, sources), {})
    step = int(state.step)
    standing = optim.Standing.from_json(meta.get("standing", {}))
    if step == bench.total or standing.stop.exhausts(bench.stage.train.stop.patience):
      return
    writer = stack.enter_context(contextlib.closing(_writer(bench, step)))
    (feed, run), clock = _compiled(bench, step), train_lib.Clock()
    state = mesh_lib.put(bench.mesh, state)
    watch = _watched(bench, state)
    record = train_lib.Record(
      _row_writer(bench, writer, clock, step), _explainer(bench, feed, saved), meta.get("pending")
    )
    seen = _witness(bench, step, stack)
    run = seen.watching(run) if seen else run
    course = _Course(bench, saved, writer, record, standing, watch, _judge(bench, sources), seen)
    wanted, left = bench.stage.train.profile, range(step, bench.total)
    where = bench.folder / profiling.FOLDER
    stack.enter_context(_settled())
    end = train_lib.train(
      stack.enter_context(profiling.traced(run, where, wanted, left, bench.say)),
      state,
      feed,
      course.hooks(),
      record,
      clock,
      lrs=bench.lrs(lambda: course.scale),
      key=mesh_lib.put(bench.mesh, jax.random.key(bench.seed)),
      step=step,
      total=bench.total,
      per_dispatch=bench.stage.train.steps_per_dispatch,
    )
    course.save(end.step, end.state)
    saved.wait()
    cluster.barrier("saved")  # nobody goes on with what is not on the disk
  if end.stopped:
    raise cluster.Stopped(f" at step {end.step} of stage {bench.stage.name}")


def _compiled(bench: wiring.Bench, step: int) -> tuple[feed_lib.Feed, Callable]:
  """The feed and the training step; compiles all else that the stage will run, too."""
  bench.say("compiling, or reading what an earlier start compiled")
  began = time.perf_counter()
  fitted = planner.fitted(bench, step)
  if bench.scores:
    _ = bench.scorer
  if bench.paint or bench.scores or bench.stage.eval.monitors:
    _ = bench.evaluated
  cluster.barrier("compiled")  # the first collective gives up where one is half a minute late
  bench.say(f"compiled in {time.perf_counter() - began:.1f} s")
  return fitted


@contextlib.contextmanager
def _settled() -> Iterator[None]:
  """Lets Python's collector pass over what is there by now, so that it is quick in the loop."""
  gc.freeze()
  try:
    yield
  finally:
    gc.unfreeze()


def _watched(bench: wiring.Bench, state: base.TrainState) -> monitors.Monitors | None:
  """The monitors, if there are any, compiled by a first look, which is told."""
  if not bench.stage.eval.monitors:
    return None
  watch = monitors.make(bench)
  bench.say(monitors.told(int(state.step), watch(bench.evaluated(state))))
  return watch


def _judge(bench: wiring.Bench, sources: dict[str, pathlib.Path]) -> judge_lib.Watch | None:
  """Follows a generator by the classifier that its objective names, if it names one."""
  name = getattr(bench.stage.objective, "judge", "")
  if not name:
    return None
  return judge_lib.Watch(bench, sources.get(name, pathlib.Path(name).expanduser()))


def _checkpoints(bench: wiring.Bench) -> contextlib.closing[checkpoint.Checkpoints]:
  snapshots = bench.stage.train.snapshots
  return contextlib.closing(checkpoint.Checkpoints(bench.folder / CHECKPOINTS, snapshots))


def _resumed(
  bench: wiring.Bench, saved: checkpoint.Checkpoints
) -> tuple[base.TrainState, dict[str, Any]] | None:
  """The last checkpoint, where there is one."""
  found = saved.resume(bench.shapes, bench.say)
  if found is not None:
    bench.say(f"resumed from step {int(found[0].step)}")
  return found


def _initial(bench: wiring.Bench, sources: dict[str, pathlib.Path]) -> base.TrainState:
  """Random weights, or those that `init_from` names; step 0 and a fresh optimizer either way.

  Every stage draws from the same key, so two stages that are compared differ by what the config
  says alone.
  """
  state = jax.jit(bench.objective.init)(jax.random.key(bench.seed))
  bench.say(f"{bench.stage.model.name}, {trees.count(state.params):,} parameters to train")
  if not (name := bench.stage.init_from):
    _warn_of_lag(bench, state)
    return state
  where = sources.get(name, pathlib.Path(name).expanduser())
  target = jax.device_get({"params": state.params, "stats": state.stats})
  taken = _from_file if where.suffix in pretrained.SUFFIXES else _from_checkpoint
  moved, account, place = taken(target, where, bench.stage)
  bench.say(f"init_from {place}:", str(account))
  _check_frozen_stats(bench.stage, account)
  return base.with_weights(state, **moved)


def _warn_of_lag(bench: wiring.Bench, state: base.TrainState) -> None:
  """Tells where running statistics will still be near those of no image when they are scored."""
  normed = any(path.endswith("/var") for path in trees.flatten(state.stats))
  momentum = models.bn_momentum(bench.stage.model)
  left = momentum**bench.total
  if normed and bench.scores and not bench.stage.eval.recalibrate and left > _LAGGING:
    bench.say(
      f"WARNING: after {bench.total:,} steps {left:.0%} of batch norm's running statistics will be"
      f" what they began as (bn_momentum={momentum:g}), so that scores may be those of chance: set"
      " eval.recalibrate=1024, which estimates them over so many training images, or bn_momentum"
    )


def _from_file(
  target: contract.Tree, where: pathlib.Path, stage: settings.Stage
) -> tuple[contract.Tree, trees.Account, str]:
  """Fills `target` from a weight file, of which `init_allow` says what may be left over."""
  return *pretrained.transfer(target, where, stage.model, stage.init_allow), str(where)


def _from_checkpoint(
  target: contract.Tree, where: pathlib.Path, stage: settings.Stage
) -> tuple[contract.Tree, trees.Account, str]:
  """Fills `target` from a checkpoint, whose encoder must be the same as the stage's."""
  source, place = checkpoint.heard_weights(where)
  _check_alike(target["params"], source["params"], place)
  moved, account = trees.transfer(target, source)
  if strays := [path for path in account.new if path.split("/")[1] == "encoder"]:
    raise ValueError(
      f"init_from {place} is a checkpoint of another model than {stage.model.name}: {len(strays)} "
      f"tensors of this encoder are missing there or differ in shape, for example {strays[0]}; "
      "give both the same model.*"
    )
  return moved, account, place


def _check_alike(ours: contract.Tree, theirs: contract.Tree, place: str) -> None:
  """Raises ValueError where one is a network of the table and the other a GAN's two."""
  if ("encoder" in ours) != ("encoder" in theirs):
    raise ValueError(
      f"init_from {place} holds {' and '.join(theirs)}, and this stage trains"
      f" {' and '.join(ours)}: a GAN's networks are no encoder of another objective, and no encoder"
      " is one of them; name a stage that trains this model"
    )


def _check_frozen_stats(stage: settings.Stage, account: trees.Account) -> None:
  """Raises ValueError where statistics that nothing was learnt for would be kept for ever."""
  fresh = [path for path in account.new if path.startswith("stats/")]
  if fresh and stage.train.freeze_stats:
    raise ValueError(
      f"stage {stage.name!r}: train.freeze_stats keeps batch norm's statistics, and init_from"
      f" {stage.init_from} has none for {len(fresh)} of them, such as {fresh[0]}: set it to False"
    )


def _writer(bench: wiring.Bench, step: int) -> writer_lib.Writer:
  """The stage's log; at its beginning, with the settings and a look at augmented images."""
  shown = {} if step else {"augmented": _augmented(bench)}
  writer = writer_lib.make(bench.folder, bench.stage.name, step)
  if shown:
    writer.hparams(trees.flatten(dataclasses.asdict(bench.stage)))
    writer.images(0, shown)
  return writer


def _augmented(bench: wiring.Bench) -> np.ndarray:
  """The first images of the train part as a step would see them, [n, H, W, C]."""
  part = bench.splits.parts["train"]
  slots = np.arange(min(_SHOWN, len(part)))
  images = pixels.to_float(jnp.asarray(np.stack([part.fetch(int(row)) for row in slots])))
  key = jax.random.key(bench.seed)
  return np.asarray(jax.jit(bench.augmenter)(key, images, jnp.asarray(slots)))


def _witness(bench: wiring.Bench, step: int, stack: contextlib.ExitStack) -> witness.Witness | None:
  """What writes down which images the steps from here on are given, where that is asked for."""
  if not bench.stage.train.log_images:
    return None
  ids = bench.splits.parts["train"].ids
  seen = witness.Witness(bench.folder, bench.stage.name, ids, step)
  return stack.enter_context(contextlib.closing(seen))


def _row_writer(
  bench: wiring.Bench, writer: writer_lib.Writer, clock: train_lib.Clock, step: int
) -> Callable[[int, dict[str, float]], None]:
  """What happens with a row of the log: it goes to the files and, shortened, to the terminal."""
  stage, shown = bench.stage, ("loss", "accuracy", "alignment", f"val/{bench.stage.eval.select}")
  progress = train_lib.Progress(stage.name, step, bench.total, stage.train.batch_size, shown)
  collapse = train_lib.Collapse(writer_lib.read(bench.folder / writer_lib.FILE), bench.say)
  starving = train_lib.Starving(bench.say)

  def write(step: int, row: dict[str, float]) -> None:
    shares, row = clock.shares(), collapse(row)
    starving(shares)
    writer.scalars(step, row)
    writer.timings(step, {"steps_per_second": progress.rate(step)})
    writer.timings(step, {f"time/{name}": share for name, share in shares.items()})
    print(progress.line(step, row, shares), flush=True)

  return write


def _explainer(
  bench: wiring.Bench, feed: feed_lib.Feed, saved: checkpoint.Checkpoints
) -> Callable[[int], str]:
  """Says what a step saw, and where to go on from, when its loss is not finite."""

  def explain(step: int) -> str:
    ids = bench.splits.parts["train"].ids[feed.rows(step)]
    return (
      f"Stage {bench.stage.name}; the batch held {', '.join(ids)}. "
      f"The last good checkpoint is of step {saved.latest(checkpoint.LAST)}; "
      "try a smaller optimizer.lr, optimizer.clip=1, or look at these images"
    )

  return explain


class _Course:
  """What happens on the way through a stage: validation, rows of the log, checkpoints.

  Attributes:
    scale: by which the plateau rule has multiplied the learning rate.
  """

  def __init__(
    self,
    bench: wiring.Bench,
    saved: checkpoint.Checkpoints,
    writer: writer_lib.Writer,
    record: train_lib.Record,
    standing: optim.Standing,
    watch: monitors.Monitors | None,
    judge: judge_lib.Watch | None,
    seen: witness.Witness | None,
  ):
    self._bench, self._saved, self._writer = bench, saved, writer
    self._record, self._standing, self._watch = record, standing, watch
    self._judge, self._seen = judge, seen

  @property
  def scale(self) -> float:
    return self._standing.scale

  def hooks(self) -> list[train_lib.Hook]:
    """In order: evaluation writes its row and the best state; then the log; then the last state."""
    stage, steps = self._bench.stage, self._bench.steps
    hooks = [
      train_lib.Hook(steps(stage.train.log_every), lambda step, _: self._flush(step, {})),
      train_lib.Hook(steps(stage.train.checkpoint_every), self.save),
    ]
    if self._bench.validates or self._watch or self._bench.paint:
      hooks.insert(0, train_lib.Hook(steps(stage.eval.every), self._evaluate))
    return hooks

  def save(self, step: int, state: base.TrainState) -> None:
    """Saves the state and all that the loop needs to go on from it."""
    standing = dataclasses.asdict(self._standing)
    meta = {"pending": self._record.pending(step), "standing": standing}
    if self._seen:
      self._seen.write()
    self._saved.save(checkpoint.LAST, step, state, meta)

  def _flush(self, step: int, found: dict[str, float]) -> None:
    """Writes a row, with the learning rate of the step just done."""
    lr = self._bench.optimizer.schedule(step - 1) * self.scale
    self._record.flush(step, {"lr": lr} | found)

  def _evaluate(self, step: int, state: base.TrainState) -> bool:
    gc.collect()  # the last one's figures: with their canvases they lie in circles of megabytes
    self._record.pending(step)  # tells a loss that is not finite before it spoils the scores
    state = self._bench.evaluated(state)
    seen = self._look(step, state)
    if self._bench.validates:
      return self._validate(step, state, seen)
    self._flush(step, seen)
    return False

  def _look(self, step: int, state: base.TrainState) -> dict[str, float]:
    """What the monitors say, for the row; their pictures go to TensorBoard."""
    seen: dict[str, float] = {}
    looks = self._watch(state) if self._watch else []
    if looks:
      self._bench.say(monitors.told(step, looks))
    for look in looks:
      figure = look.figure(last=step == self._bench.total)
      self._writer.figure(step, f"embeddings/{look.name}", figure)
      seen |= look.scalars
    if self._bench.paint:
      labels = sampling.by_class(_PAINTED, len(self._bench.splits.info.classes))
      self._writer.images(step, {"generated": self._bench.paint(state, labels)})
      seen |= self._judge(state) if self._judge else {}
    return seen

  def _validate(self, step: int, state: base.TrainState, seen: dict[str, float]) -> bool:
    bench, stage = self._bench, self._bench.stage
    table = bench.scorer("val", state)
    found = json.loads(cluster.told(lambda: json.dumps(metrics.summary(table)).encode()))
    self._flush(step, seen | {f"val/{name}": value for name, value in found.items()})
    before, stop = self._standing, stage.train.stop
    self._standing = before.after(found, step, stage.eval.select, stop, stage.optimizer)
    if self._standing.chosen.step == step:
      self._writer.figure(step, "val/confusion", figures.confusion_matrix(table))
      self._saved.save(checkpoint.BEST, step, state, {"best": found})
    if self.scale != before.scale:
      bench.say(f"no improvement: the learning rate falls to {self.scale:.3g} of its schedule")
    return self._standing.stop.exhausts(stop.patience)


def score(bench: wiring.Bench) -> dict[str, contract.Predictions]:
  """Scores every part but train by the best checkpoint and writes what is found.

  Returns:
    Part -> table, see `points.settled`; empty for a stage without a classifier.
  """
  if not bench.scores:
    return {}
  state = _chosen(bench)
  parts = [part for part in bench.splits.parts if part != "train"]
  raw = {part: bench.scorer(part, state, bench.views) for part in parts}
  tables = points.settled(bench.stage.eval, raw, bench.folder)
  probing.score(bench, state)
  return tables


def _chosen(bench: wiring.Bench) -> base.TrainState:
  """The best state, saved as it was scored; or the last one of a stage without a val part."""
  with _checkpoints(bench) as saved:
    if saved.latest(checkpoint.BEST) is not None:
      shapes = jax.eval_shape(base.evaluated, bench.shapes)
      return mesh_lib.put(bench.mesh, saved.restore(checkpoint.BEST, shapes)[0])
    state, _ = saved.restore(checkpoint.LAST, bench.shapes)
  return bench.evaluated(mesh_lib.put(bench.mesh, state))
