"""One stage of a run: its parts wired together, trained, and scored."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from medjax import (
  augment,
  checkpoint,
  contract,
  data,
  figures,
  metrics,
  models,
  objectives,
  optim,
  pixels,
  settings,
  trees,
)
from medjax import evaluate as evaluate_lib
from medjax import mesh as mesh_lib
from medjax import train as train_lib
from medjax import writer as writer_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib
from medjax.models import net as net_lib
from medjax.objectives import base

CHECKPOINTS = "checkpoints"
_SHOWN = 16  # augmented images in TensorBoard


@dataclasses.dataclass(frozen=True)
class Bench:
  """Everything a stage is made of, ready to run.

  Attributes:
    seed: of the run. stage: its settings. folder: of its files. mesh: of the run.
    splits: its data. augmenter: its augmentation. objective: what a step does.
    schedule: step -> learning rate. total: steps.
    feeds: closes every feed that was opened here.
  """

  seed: int
  stage: settings.Stage
  folder: pathlib.Path
  mesh: Mesh
  splits: catalogue.Splits
  augmenter: augment.Augmenter
  objective: base.Objective
  schedule: Callable[[int], Any]
  total: int
  feeds: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)

  @property
  def scores(self) -> bool:
    """Whether the stage learns a classifier, whose predictions can be scored."""
    return isinstance(self.stage.objective, settings.Supervised)

  @property
  def validates(self) -> bool:
    """Whether there is a val part to choose the best checkpoint by."""
    return self.scores and "val" in self.splits.parts

  @property
  def shapes(self) -> base.TrainState:
    """The state's structure, without its arrays."""
    return jax.eval_shape(self.objective.init, jax.random.key(self.seed))

  def say(self, *lines: str) -> None:
    """Prints lines under the stage's name."""
    for line in "\n".join(lines).splitlines():
      print(f"{self.stage.name}  {line}", flush=True)

  def steps(self, duration: settings.Duration) -> int:
    """An interval of this stage in steps, a multiple of the steps a dispatch."""
    train = self.stage.train
    steps = duration.steps(train.batch_size, len(self.splits.parts["train"]), self.total)
    return train_lib.interval(steps, train.steps_per_dispatch)

  def shuffled(self, step: int) -> feed_lib.Feed:
    """The endless feed of the train part, from a step on."""
    size, threads = self.stage.train.batch_size, self.stage.data.threads
    part, kind = self.splits.parts["train"], self.splits.feed
    return self._kept(feed_lib.training(part, size, self.seed, self.mesh, kind, step, threads))

  def ordered(self, part: str, batch_size: int) -> feed_lib.Feed:
    """A feed of each image of a part once."""
    kind, threads = self.splits.feed, self.stage.data.threads
    table = self.splits.parts[part]
    return self._kept(feed_lib.sequential(table, batch_size, self.mesh, kind, threads))

  def _kept(self, feed: feed_lib.Feed) -> feed_lib.Feed:
    self.feeds.callback(feed.close)
    return feed


def wire(seed: int, stage: settings.Stage, folder: pathlib.Path, mesh: Mesh) -> Bench:
  """Reads the data and builds the network, the objective and the optimizer of a stage.

  Args:
    seed: of the run. stage: its settings. folder: for its files, made where missing.
    mesh: to run on.
  """
  folder.mkdir(parents=True, exist_ok=True)
  splits = data.make(stage.data, folder / "quarantine.tsv")
  _check_select(stage, splits.info.classes)
  total, warmup = _length(stage, len(splits.parts["train"]))
  tx, schedule = optim.make(stage.optimizer, total, warmup)
  augmenter, execution = augment.make(stage.augment), _execution(stage.train)
  projector = getattr(stage.objective, "projector", None)
  net = models.make(stage.model, splits.info, execution, projector)
  objective = objectives.make(stage.objective, net, tx, augmenter, splits.info)
  bench = Bench(seed, stage, folder, mesh, splits, augmenter, objective, schedule, total)
  bench.say(*splits.notes, splits.table, _machine(mesh, execution))
  return bench


def _check_select(stage: settings.Stage, classes: tuple[str, ...]) -> None:
  """Raises ValueError now for a metric that the first validation would not find."""
  known = metrics.names(len(classes))
  if classes and stage.eval.select not in known:
    raise ValueError(f"no metric eval.select={stage.eval.select!r}; there are {', '.join(known)}")


def _length(stage: settings.Stage, train_size: int) -> tuple[int, int]:
  """Steps of the stage, and of its warm-up."""
  size = stage.train.batch_size
  total = max(1, stage.train.length.steps(size, train_size))
  return total, stage.optimizer.warmup.steps(size, train_size, total)


def _execution(cfg: settings.Train) -> net_lib.Execution:
  """How networks run here; `auto` is resolved now and told, not while tracing."""
  form = cfg.ops
  if form == "auto":
    form = "cpu" if jax.default_backend() == "cpu" else "plain"
  return net_lib.Execution(form, cfg.precision, cfg.bn_group, contract.AXIS)


def _machine(mesh: Mesh, execution: net_lib.Execution) -> str:
  kind = mesh.devices.flat[0].device_kind
  return f"runs on {mesh.size} x {kind} in {execution.dtype}, convolutions: {execution.form} form"


def fit(bench: Bench, sources: dict[str, pathlib.Path]) -> None:
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
    writer = stack.enter_context(contextlib.closing(_writer(bench, step)))
    feed = bench.shuffled(step)
    record = train_lib.Record(
      _row_writer(bench, writer, step), _explainer(bench, feed, saved), meta.get("pending")
    )
    course = _Course(bench, saved, writer, record, optim.Best(**meta.get("best", {})))
    if course.over:
      return
    bench.say("compiling the step, unless an earlier start has")
    end = train_lib.train(
      train_lib.dispatcher(bench.objective, feed.take, bench.mesh),
      mesh_lib.put(bench.mesh, state),
      feed,
      course.hooks(),
      record,
      key=mesh_lib.put(bench.mesh, jax.random.key(bench.seed)),
      step=step,
      total=bench.total,
      per_dispatch=bench.stage.train.steps_per_dispatch,
    )
    course.save(end.step, end.state)
    saved.wait()
  if end.stopped:
    raise KeyboardInterrupt(f" at step {end.step} of stage {bench.stage.name}")


def _checkpoints(bench: Bench) -> contextlib.closing[checkpoint.Checkpoints]:
  return contextlib.closing(checkpoint.Checkpoints(bench.folder / CHECKPOINTS))


def _resumed(
  bench: Bench, saved: checkpoint.Checkpoints
) -> tuple[base.TrainState, dict[str, Any]] | None:
  """The last checkpoint, where there is one."""
  found = saved.resume(bench.shapes)
  if found is not None:
    bench.say(f"resumed from step {int(found[0].step)}")
  return found


def _initial(bench: Bench, sources: dict[str, pathlib.Path]) -> base.TrainState:
  """Random weights, or those that `init_from` names; step 0 and a fresh optimizer either way.

  Every stage draws from the same key, so two stages that are compared differ by what the config
  says alone.
  """
  state = jax.jit(bench.objective.init)(jax.random.key(bench.seed))
  bench.say(f"{bench.stage.model.name}, {trees.count(state.params):,} parameters to train")
  if not (name := bench.stage.init_from):
    return state
  source, place = checkpoint.weights(sources.get(name, pathlib.Path(name).expanduser()))
  target = jax.device_get({"params": state.params, "stats": state.stats})
  moved, account = trees.transfer(target, source)
  bench.say(f"init_from {place}:", str(account))
  if strays := [path for path in account.new if path.split("/")[1] == "encoder"]:
    raise ValueError(
      f"init_from {place} is a checkpoint of another model: {len(strays)} tensors of this encoder "
      f"are missing there or differ in shape, for example {strays[0]}; give both the same model.*"
    )
  return state.replace(**moved)


def _writer(bench: Bench, step: int) -> writer_lib.Writer:
  """The stage's log; at its beginning, with the settings and a look at augmented images."""
  writer = writer_lib.make(bench.folder, bench.stage.name, step)
  if step == 0:
    writer.hparams(trees.flatten(dataclasses.asdict(bench.stage)))
    writer.images(0, {"augmented": _augmented(bench)})
  return writer


def _augmented(bench: Bench) -> np.ndarray:
  """The first images of the train part as a step would see them, [n, H, W, C]."""
  part = bench.splits.parts["train"]
  slots = np.arange(min(_SHOWN, len(part)))
  images = pixels.to_float(jnp.asarray(np.stack([part.fetch(int(row)) for row in slots])))
  key = jax.random.key(bench.seed)
  return np.asarray(jax.jit(bench.augmenter)(key, images, jnp.asarray(slots)))


def _row_writer(
  bench: Bench, writer: writer_lib.Writer, step: int
) -> Callable[[int, dict[str, float]], None]:
  """What happens with a row of the log: it goes to the files and, shortened, to the terminal."""
  stage, shown = bench.stage, ("loss", "accuracy", "alignment", f"val/{bench.stage.eval.select}")
  progress = train_lib.Progress(stage.name, step, bench.total, stage.train.batch_size, shown)

  def write(step: int, row: dict[str, float]) -> None:
    with jax.transfer_guard("allow"):  # one number, when a row is written
      lr = float(bench.schedule(step))
    writer.scalars(step, row | {"lr": lr})
    writer.timings(step, {"steps_per_second": progress.rate(step)})
    print(progress.line(step, row), flush=True)

  return write


def _explainer(
  bench: Bench, feed: feed_lib.Feed, saved: checkpoint.Checkpoints
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
  """What happens on the way through a stage: validation, rows of the log, checkpoints."""

  def __init__(
    self,
    bench: Bench,
    saved: checkpoint.Checkpoints,
    writer: writer_lib.Writer,
    record: train_lib.Record,
    best: optim.Best,
  ):
    self._bench, self._saved, self._writer = bench, saved, writer
    self._record, self._best = record, best
    self._score = _Scorer(bench, "val") if bench.validates else None
    self._calibrated = _calibrator(bench)

  @property
  def over(self) -> bool:
    """Whether the stage went without improvement for as long as the settings allow."""
    return self._best.exhausts(self._bench.stage.train.patience)

  def hooks(self) -> list[train_lib.Hook]:
    """In order: validation writes its row and the best state; then the log; then the last state."""
    stage, steps = self._bench.stage, self._bench.steps
    hooks = [
      train_lib.Hook(steps(stage.train.log_every), lambda step, _: self._record.flush(step)),
      train_lib.Hook(steps(stage.train.checkpoint_every), self.save),
    ]
    if self._score is not None:
      hooks.insert(0, train_lib.Hook(steps(stage.eval.every), self._validate))
    return hooks

  def save(self, step: int, state: base.TrainState) -> None:
    """Saves the state and all that the loop needs to go on from it."""
    meta = {"pending": self._record.pending(step), "best": dataclasses.asdict(self._best)}
    self._saved.save(checkpoint.LAST, step, state, meta)

  def _validate(self, step: int, state: base.TrainState) -> bool:
    assert self._score is not None
    self._record.pending(step)  # tells a loss that is not finite before it spoils the scores
    select, min_delta = self._bench.stage.eval.select, self._bench.stage.train.min_delta
    state = self._calibrated(state)
    table = self._score(state)
    found = metrics.summary(table)
    value = -found[select] if select in metrics.LOWER_IS_BETTER else found[select]
    self._best = self._best.track(value, step, min_delta)
    self._record.flush(step, {f"val/{name}": number for name, number in found.items()})
    if self._best.step == step:
      self._writer.figure(step, "val/confusion", figures.confusion_matrix(table))
      self._saved.save(checkpoint.BEST, step, state, {"best": dataclasses.asdict(self._best)})
    return self.over


class _Scorer:
  """Scores a part."""

  def __init__(self, bench: Bench, part: str):
    self._part, self._classes = bench.splits.parts[part], bench.splits.info.classes
    self._feed = bench.ordered(part, bench.stage.eval.batch_size)
    self._score = evaluate_lib.scorer(bench.objective, self._feed.take, bench.mesh)

  def __call__(self, state: base.TrainState) -> contract.Predictions:
    return evaluate_lib.predict(self._score, state, self._feed, self._part, self._classes)


def _calibrator(bench: Bench) -> Callable[[base.TrainState], base.TrainState]:
  """Estimates batch-norm statistics over the first `eval.recalibrate` images of the train part."""
  size = bench.stage.train.batch_size
  steps = min(bench.stage.eval.recalibrate, len(bench.splits.parts["train"])) // size
  if steps == 0:
    return lambda state: state
  feed = bench.ordered("train", size)
  calibrate = evaluate_lib.calibrator(bench.objective, feed.take, bench.mesh)

  def calibrated(state: base.TrainState) -> base.TrainState:
    feed.position = 0
    return calibrate(state, feed.resident, feed.next(steps))

  return calibrated


def score(bench: Bench) -> dict[str, contract.Predictions]:
  """Scores the val and test parts by the best checkpoint and writes their predictions.

  Returns:
    Part -> table; empty for a stage without a classifier.
  """
  if not bench.scores:
    return {}
  state = _chosen(bench)
  tables = {}
  for part in bench.splits.parts:
    if part != "train":
      tables[part] = _Scorer(bench, part)(state)
      evaluate_lib.write(bench.folder / f"predictions_{part}.csv", tables[part])
  return tables


def _chosen(bench: Bench) -> base.TrainState:
  """The best state, saved as it was scored; or the last one of a stage without a val part."""
  with _checkpoints(bench) as saved:
    if saved.latest(checkpoint.BEST) is not None:
      return mesh_lib.put(bench.mesh, saved.restore(checkpoint.BEST, bench.shapes)[0])
    state, _ = saved.restore(checkpoint.LAST, bench.shapes)
  return _calibrator(bench)(mesh_lib.put(bench.mesh, state))
