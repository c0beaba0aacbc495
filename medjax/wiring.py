"""What a stage of a run is made of: its parts wired together, compiled where they must be."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import functools
import pathlib

import jax
from jax.sharding import Mesh
import numpy as np

from medjax import (
  augment,
  contract,
  data,
  metrics,
  models,
  objectives,
  optim,
  settings,
)
from medjax import evaluate as evaluate_lib
from medjax import mesh as mesh_lib
from medjax import train as train_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib
from medjax.models import net as net_lib
from medjax.objectives import base


@dataclasses.dataclass(frozen=True)
class Bench:
  """Everything a stage is made of, ready to run.

  Attributes:
    seed: of the run. stage: its settings. folder: of its files. mesh: of the run.
    splits: its data. augmenter: its augmentation. objective: what a step does.
    optimizer: how parameters move.
    feeds: closes every feed that was opened here.
  """

  seed: int
  stage: settings.Stage
  folder: pathlib.Path
  mesh: Mesh
  splits: catalogue.Splits
  augmenter: augment.Augmenter
  objective: base.Objective
  optimizer: optim.Optimizer
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
  def total(self) -> int:
    """Steps of the whole stage."""
    return self.optimizer.total

  @functools.cached_property
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
    accumulate, order = self.optimizer.accumulate, self.stage.data.feeding
    return self._kept(
      feed_lib.training(part, size, self.seed, self.mesh, kind, step, threads, accumulate, order)
    )

  def ordered(self, part: str, batch_size: int) -> feed_lib.Feed:
    """A feed of each image of a part once."""
    table, threads = self.splits.parts[part], self.stage.data.threads
    return self._kept(feed_lib.sequential(table, batch_size, self.mesh, threads))

  def _kept(self, feed: feed_lib.Feed) -> feed_lib.Feed:
    self.feeds.callback(feed.close)
    return feed

  def lrs(self, scale: Callable[[], float]) -> Callable[[range], jax.Array]:
    """Learning rates of steps, on every device; `scale` is asked for each time."""

    def put(steps: range) -> jax.Array:
      rates = [self.optimizer.schedule(step) * scale() for step in steps]
      return mesh_lib.put(self.mesh, np.asarray(rates))

    return put

  def program(self, feed: feed_lib.Feed, step: int) -> Callable:
    """The training step, compiled for every call from `step` to the end."""
    ks = train_lib.lengths(step, self.total, self.stage.train.steps_per_dispatch)
    dispatch = train_lib.dispatcher(self.objective, feed.take, self.mesh, feed.spec)
    state = mesh_lib.like(self.mesh, self.shapes)
    return train_lib.compiled(dispatch, state, feed, self.mesh, ks)

  @functools.cached_property
  def scorer(self) -> Callable[[str, base.TrainState], contract.Predictions]:
    """(part, state as it is evaluated) -> predictions; compiled once for all parts."""
    size, classes = self.stage.eval.batch_size, self.splits.info.classes
    feeds = {part: self.ordered(part, size) for part in self.splits.parts if part != "train"}
    state = mesh_lib.like(self.mesh, jax.eval_shape(base.evaluated, self.shapes))
    ticket = next(iter(feeds.values())).like(1)
    score = evaluate_lib.scorer(self.objective, self.mesh).lower(state, ticket).compile()

    def scored(part: str, state: base.TrainState) -> contract.Predictions:
      return evaluate_lib.predict(score, state, feeds[part], self.splits.parts[part], classes)

    return scored

  @functools.cached_property
  def evaluated(self) -> Callable[[base.TrainState], base.TrainState]:
    """The state as it is evaluated: averaged where the stage averages, then calibrated.

    Calibration estimates the batch-norm statistics over the first `eval.recalibrate` images of the
    train part.
    """
    size = self.stage.train.batch_size
    steps = min(self.stage.eval.recalibrate, len(self.splits.parts["train"])) // size
    if steps == 0:
      return base.evaluated
    feed = self.ordered("train", size)
    state = mesh_lib.like(self.mesh, jax.eval_shape(base.evaluated, self.shapes))
    calibrate = evaluate_lib.calibrator(self.objective, self.mesh)
    program = calibrate.lower(state, feed.like(steps)).compile()

    def calibrated(state: base.TrainState) -> base.TrainState:
      feed.position, state = 0, base.evaluated(state)
      return state.replace(stats=program(state, feed.next(steps)))

    return calibrated


def wire(seed: int, stage: settings.Stage, folder: pathlib.Path, mesh: Mesh) -> Bench:
  """Reads the data and builds the network, the objective and the optimizer of a stage.

  Args:
    seed: of the run. stage: its settings. folder: for its files, made where missing.
    mesh: to run on.
  """
  folder.mkdir(parents=True, exist_ok=True)
  splits = data.make(stage.data, folder / "quarantine.tsv")
  _check_monitors(stage, splits)
  optimizer = optim.make(stage.optimizer, *_length(stage, len(splits.parts["train"])))
  augmenter, execution = augment.make(stage.augment), _execution(stage.train)
  projector = getattr(stage.objective, "projector", None)
  cosine = isinstance(getattr(stage.objective, "loss", None), settings.LDAM)
  net = models.make(stage.model, splits.info, execution, projector, cosine)
  objective = objectives.make(stage.objective, net, optimizer, augmenter, splits.info)
  bench = Bench(seed, stage, folder, mesh, splits, augmenter, objective, optimizer)
  bench.say(*splits.notes, splits.table, _machine(mesh, execution))
  return bench


def _check_monitors(stage: settings.Stage, splits: catalogue.Splits) -> None:
  """Raises ValueError now for what the first validation would not find."""
  stop, plateau = stage.train.stop, stage.optimizer.plateau
  watched = {
    "eval.select": stage.eval.select,
    "train.stop.monitor": stop.monitor,
    "optimizer.plateau.monitor": plateau.monitor,
  }
  known = metrics.names(len(splits.info.classes))
  for key, name in watched.items():
    if splits.info.classes and name and name not in known:
      raise ValueError(f"no metric {key}={name!r}; there are {', '.join(known)}")
  validates = isinstance(stage.objective, settings.Supervised) and "val" in splits.parts
  if (stop.patience or plateau.patience) and not validates:
    raise ValueError(
      f"stage {stage.name!r} is never validated, so train.stop and optimizer.plateau would wait "
      "for ever: set their patience to 0 there"
    )


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
  return net_lib.Execution(form, cfg.precision, cfg.bn_group, contract.AXIS, cfg.remat)


def _machine(mesh: Mesh, execution: net_lib.Execution) -> str:
  kind = mesh.devices.flat[0].device_kind
  return f"runs on {mesh.size} x {kind} in {execution.dtype}, convolutions: {execution.form} form"
