"""What a stage of a run is made of: its parts wired together, compiled where they must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh
import numpy as np

from medjax import augment, contract, metrics, objectives, optim, sampling, settings
from medjax import evaluate as evaluate_lib
from medjax import mesh as mesh_lib
from medjax import train as train_lib
from medjax import views as views_lib
from medjax.augment import scales
from medjax.data import catalogue
from medjax.data import feed as feed_lib
from medjax.data.feed import order as order_lib
from medjax.metrics import prevalence
from medjax.models import gan
from medjax.models import net as net_lib
from medjax.objectives import base


@dataclasses.dataclass(frozen=True)
class Program:
  """The training step of a stage, compiled for all calls that are left; `Bench.program` makes it.

  Attributes:
    course: the size of a step's images. feed: where the tickets come from.
    by_size: what is called for images of each size.
  """

  course: scales.Course
  feed: feed_lib.Feed
  by_size: Mapping[int, train_lib.Compiled]

  def __call__(
    self, state: base.TrainState, resident: Any, tickets: Any, lrs: jax.Array, key: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """Takes the steps of a ticket that the feed has just given."""
    begun = self.feed.position - len(lrs)  # the feed has already moved on by this call's steps
    return self.by_size[self.course.at(begun)](state, resident, tickets, lrs, key)

  @property
  def memory(self) -> int:
    """Bytes of each device that the largest call takes, see `train.Compiled`."""
    return max(compiled.memory for compiled in self.by_size.values())


@dataclasses.dataclass(frozen=True)
class Bench:
  """Everything a stage is made of, ready to run.

  Attributes:
    seed: of the stage. stage: its settings. folder: of its files. mesh: of the run.
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
    """Whether the stage learns a classifier, and there is a part to score its predictions on."""
    return classifies(self.stage) and len(self.splits.parts) > 1

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
    """The endless feed of the train part, from a step on; for MICLe, in pairs of one group."""
    size, threads = self.stage.train.batch_size, self.stage.data.threads
    part, kind = self.splits.parts["train"], self.splits.feed
    accumulate, order = self.optimizer.accumulate, self.stage.data.feeding
    pairs = isinstance(self.stage.objective, settings.MICLe)
    return self._kept(
      feed_lib.training(
        part, size, self.seed, self.mesh, kind, step, threads, accumulate, order, pairs
      )
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

  def revised(self, accumulate: int, remat: bool) -> Bench:
    """The same, but for how a step is computed; see `optimizer.accumulate` and `train.remat`."""
    optimizer = dataclasses.replace(self.stage.optimizer, accumulate=accumulate)
    train = dataclasses.replace(self.stage.train, remat=remat)
    stage = dataclasses.replace(self.stage, optimizer=optimizer, train=train)
    if stage == self.stage:
      return self
    built = _built(self.seed, stage, self.splits, self.folder, self.mesh)
    return dataclasses.replace(built, feeds=self.feeds)

  def program(self, feed: feed_lib.Feed, step: int) -> Program:
    """The training step, compiled for every call from `step` to the end."""
    course, state = self._course(), mesh_lib.like(self.mesh, self.shapes)
    calls = course.calls(step, self.total, self.stage.train.steps_per_dispatch)
    programs = {}
    for size, ks in calls.items():
      take = scales.resized(feed.take, size)
      dispatch = train_lib.dispatcher(self.objective, take, self.mesh, feed.spec)
      programs[size] = train_lib.compiled(dispatch, state, feed, self.mesh, sorted(ks))
    return Program(course, feed, programs)

  def _course(self) -> scales.Course:
    """The sizes of the images over the stage: one for all steps unless there are `train.sizes`."""
    cfg = self.stage.train
    if not cfg.sizes:
      return scales.Course((self.stage.data.image_size,), self.total, self.seed)
    return scales.Course(cfg.sizes, self.steps(cfg.sizes_every), self.seed)

  @functools.cached_property
  def scorer(self) -> Callable[..., contract.Predictions]:
    """(part, state as it is evaluated, views of each image) -> predictions.

    It is compiled once for all parts and views; without views each image is scored as it is.
    """
    size, classes = self.stage.eval.batch_size, self.splits.info.classes
    feeds = {part: self.ordered(part, size) for part in self.splits.parts if part != "train"}
    state = mesh_lib.like(self.mesh, jax.eval_shape(base.evaluated, self.shapes))
    ticket = next(iter(feeds.values())).like(1)
    score = evaluate_lib.scorer(self.objective, self.mesh).lower(state, ticket).compile()

    def scored(
      part: str, state: base.TrainState, views: Sequence[views_lib.View] = ()
    ) -> contract.Predictions:
      look = evaluate_lib.averaged(score, views) if views else score
      return evaluate_lib.predict(look, state, feeds[part], self.splits.parts[part], classes)

    return scored

  @functools.cached_property
  def views(self) -> list[views_lib.View]:
    """What each image is scored by once the stage is trained: itself and `eval.augment` more."""
    return views(self.seed, self.stage, self.augmenter, self.mesh)

  @functools.cached_property
  def paint(self) -> sampling.Painter | None:
    """(state as it is evaluated, labels) -> generated images; None without a generator."""
    if not isinstance(self.objective, base.Sampler):
      return None
    shapes = jax.eval_shape(base.evaluated, self.shapes)
    return sampling.make(self.objective, self.mesh, shapes, self.seed)

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


def views(
  seed: int, stage: settings.Stage, augmenter: augment.Augmenter, mesh: Mesh
) -> list[views_lib.View]:
  """What each image is scored by once a stage is trained, see `Bench.views`.

  Args:
    seed: of the stage. stage: its settings. augmenter: its augmentation. mesh: to run on.
  """
  if not stage.eval.augment:
    return []
  key = base.named(jax.random.key(seed), "views")
  return [views_lib.plain, *views_lib.drawn(augmenter, key, stage.eval.augment, mesh)]


def classifies(stage: settings.Stage) -> bool:
  """Whether a stage learns a network that gives scores."""
  return objectives.classifies(stage.objective)


def wire(
  seed: int, stage: settings.Stage, splits: catalogue.Splits, folder: pathlib.Path, mesh: Mesh
) -> Bench:
  """Builds the network, the objective and the optimizer of a stage.

  Args:
    seed: of the stage. stage: its settings. splits: its data. folder: for its files.
    mesh: to run on.
  """
  _check_monitors(stage, splits)
  _check_frozen_stats(stage)
  _check_labels(stage)
  _check_sizes(stage, splits.info)
  bench, how = _built(seed, stage, splits, folder, mesh), execution(stage.train)
  bench.say(*splits.notes, *_pairs(stage, splits), splits.table, _machine(mesh, how))
  return bench


def _built(
  seed: int, stage: settings.Stage, splits: catalogue.Splits, folder: pathlib.Path, mesh: Mesh
) -> Bench:
  augmenter, net = augment.make(stage.augment), network(stage, splits.info, execution(stage.train))
  length = _length(stage, len(splits.parts["train"]))
  optimizer = optim.make(stage.optimizer, *length, net.stages)
  objective = objectives.make(stage.objective, net, optimizer, augmenter, splits.info)
  return Bench(seed, stage, folder, mesh, splits, augmenter, objective, optimizer)


def network(
  stage: settings.Stage, info: contract.DataInfo, execution: net_lib.Execution
) -> net_lib.Net | gan.Pair:
  """The network of a stage, with the end that its objective needs, or the pair of a GAN."""
  return objectives.network(stage.objective, stage.model, info, execution)


def _check_monitors(stage: settings.Stage, splits: catalogue.Splits) -> None:
  """Raises ValueError now for what the first validation would not find."""
  stop, plateau = stage.train.stop, stage.optimizer.plateau
  watched = {
    "eval.select": stage.eval.select,
    "train.stop.monitor": stop.monitor,
    "optimizer.plateau.monitor": plateau.monitor,
  }
  known = metrics.names(len(splits.info.classes), splits.info.multi_label)
  if stage.eval.prevalence:
    prevalence.check(stage.eval.prevalence, len(splits.info.classes), splits.info.multi_label)
  for key, name in watched.items():
    if splits.info.classes and name and name not in known:
      raise ValueError(f"no metric {key}={name!r}; there are {', '.join(known)}")
  validates = classifies(stage) and "val" in splits.parts
  if (stop.patience or plateau.patience) and not validates:
    raise ValueError(
      f"stage {stage.name!r} is never validated, so train.stop and optimizer.plateau would wait "
      "for ever: set their patience to 0 there"
    )


def _check_labels(stage: settings.Stage) -> None:
  """Raises ValueError where images without a label meet an objective that asks each for its own."""
  bare = stage.data.split.rest == "unlabelled" and stage.data.split.fraction < 1
  if bare and isinstance(stage.objective, settings.Supervised | settings.GANCond):
    raise ValueError(
      f"data.split.rest=unlabelled keeps images without labels, of which "
      f"objective.name={stage.objective.name} can make nothing: set it to drop, or take gan_semi"
    )


def _check_sizes(stage: settings.Stage, info: contract.DataInfo) -> None:
  """Raises ValueError for a network whose weights go by the size of its images."""
  if stage.train.sizes and isinstance(stage.objective, settings.Adversarial):
    raise ValueError("train.sizes: a GAN draws images of one size, so leave it empty")
  net: Any = network(stage, info, execution(stage.train))

  def shapes(size: int) -> Any:
    images = jax.ShapeDtypeStruct((1, size, size, info.image_shape[2]), np.float32)
    return jax.eval_shape(net.init, jax.random.key(0), images)

  for size in stage.train.sizes:
    if shapes(size) != shapes(info.image_shape[0]):
      raise ValueError(
        f"train.sizes: {stage.model.name} has other weights for {size} pixels than for the "
        f"{info.image_shape[0]} of data.image_size: take a network that ends in a global average "
        "(model.pool=gap, where it has that setting), or leave train.sizes empty"
      )


def _pairs(stage: settings.Stage, splits: catalogue.Splits) -> list[str]:
  """Where images come in pairs, a sentence about those that are paired with themselves."""
  if not isinstance(stage.objective, settings.MICLe):
    return []
  groups = splits.parts["train"].groups
  alone = order_lib.alone(groups)
  return [f"pairs: {alone:,} of {len(groups):,} images have no other of their group but themselves"]


def _check_frozen_stats(stage: settings.Stage) -> None:
  """Raises ValueError where `train.freeze_stats` finds no statistics or something moves them."""
  if not stage.train.freeze_stats:
    return
  against = {
    "eval.recalibrate estimates them anew: set it to 0": stage.eval.recalibrate,
    "train.bn_group groups the statistics of batches: set it to 0": stage.train.bn_group,
    "init_from is empty, so there are none yet: name a stage or a checkpoint": not stage.init_from,
  }
  for reason, holds in against.items():
    if holds:
      raise ValueError(
        f"stage {stage.name!r}: train.freeze_stats keeps batch norm's statistics, and {reason}"
      )


def _length(stage: settings.Stage, train_size: int) -> tuple[int, int]:
  """Steps of the stage, and of its warm-up."""
  size = stage.train.batch_size
  total = max(1, stage.train.length.steps(size, train_size))
  return total, stage.optimizer.warmup.steps(size, train_size, total)


def execution(cfg: settings.Train) -> net_lib.Execution:
  """How networks run here; `auto` is resolved now and told, not while tracing."""
  form = cfg.ops
  if form == "auto":
    form = "cpu" if jax.default_backend() == "cpu" else "plain"
  return net_lib.Execution(
    form, cfg.precision, cfg.bn_group, contract.AXIS, cfg.remat, cfg.freeze_stats
  )


def _machine(mesh: Mesh, execution: net_lib.Execution) -> str:
  kind = mesh.devices.flat[0].device_kind
  return f"runs on {mesh.size} x {kind} in {execution.dtype}, convolutions: {execution.form} form"
