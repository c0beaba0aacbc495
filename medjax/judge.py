"""A trained classifier whose features say how near generated images are to real ones."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import pathlib

import jax
import numpy as np

from medjax import checkpoint, data, evaluate, fidelity, trained, wiring
from medjax import mesh as mesh_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib
from medjax.objectives import base

REFERENCE = 1024  # real images, at most, that generated ones are compared with on the way


@dataclasses.dataclass(frozen=True)
class Judge:
  """A classifier that is ready to run; made by `make`.

  Attributes:
    place: the checkpoint. embed: from `evaluate.embedder`. state: its weights, on the mesh.
    mesh: to run on. batch_size: images at a time.
  """

  place: str
  embed: Callable
  state: base.TrainState
  mesh: jax.sharding.Mesh
  batch_size: int

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """[n, D] features of images [n, H, W, C] uint8."""
    rows = np.arange(len(images))
    names = rows.astype(str)
    part = catalogue.Part("train", names, names, rows, images.__getitem__, images)
    feed = feed_lib.sequential(part, self.batch_size, self.mesh)
    try:
      return evaluate.table(self.embed, self.state, feed)
    finally:
      feed.close()


def opened(folder: pathlib.Path, mesh: jax.sharding.Mesh) -> wiring.Bench:
  """A stage of a finished run, wired again.

  Args:
    folder: of the stage, in its workdir. mesh: to run on.

  Raises:
    FileNotFoundError: it is no stage's folder.
  """
  stage, seed = trained.stage_of(folder)
  return wiring.wire(seed, stage, data.make(stage.data), folder, mesh)


def weights(bench: wiring.Bench) -> tuple[base.TrainState, str]:
  """The best state of a stage, as it is evaluated and without its optimizer, and its place."""
  state, place = trained.weights(bench.folder, checkpoint.heard_weights)
  return mesh_lib.put(bench.mesh, state), place


def make(folder: pathlib.Path, bench: wiring.Bench) -> Judge:
  """Opens a classifier for the images of another stage.

  Args:
    folder: of the classifier's stage, in its workdir. bench: whose images it is to judge.

  Raises:
    FileNotFoundError: it has no checkpoint.
    ValueError: it sees images of another shape, or gives no scores.
  """
  judging = opened(folder, bench.mesh)
  with judging.feeds:
    ours, theirs = bench.splits.info.image_shape, judging.splits.info.image_shape
    if ours != theirs or not judging.scores:
      kind = "is a classifier" if judging.scores else "is none"
      raise ValueError(
        f"{folder} cannot judge images of {ours}: it {kind} and sees images of {theirs}. Train a "
        f"classifier with data.image_size={ours[0]} and data.channels={ours[2]}"
      )
  state, place = weights(judging)
  embed = evaluate.embedder(judging.objective, bench.mesh)
  return Judge(place, embed, state, bench.mesh, judging.stage.eval.batch_size)


def held_out(bench: wiring.Bench) -> catalogue.Part | None:
  """The val part, else the test part, else None: real images that the generator has not seen."""
  return bench.splits.parts.get("val") or bench.splits.parts.get("test")


def pixels(part: catalogue.Part, most: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Images [n, H, W, C] and labels [n] of a part, of a random choice where there are more."""
  rows = np.random.default_rng(seed).permutation(len(part))[:most]
  return np.stack([part.fetch(int(row)) for row in rows]), part.labels[rows]


class Watch:
  """Follows a generator: the kernel distance of its images to real ones of the same classes."""

  def __init__(self, bench: wiring.Bench, folder: pathlib.Path):
    """Compiles everything that a look needs. `folder` is that of the judge's stage."""
    images, self._labels = pixels(held_out(bench) or bench.splits.parts["train"], REFERENCE)
    self._judge, self._paint = make(folder, bench), bench.paint
    self._real = self._judge(images)

  def __call__(self, state: base.TrainState) -> dict[str, float]:
    """`kid` of a state as it is evaluated."""
    assert self._paint is not None
    made = self._judge(self._paint(state, np.maximum(self._labels, 0)))
    return {"kid": fidelity.kernel(self._real, made)}
