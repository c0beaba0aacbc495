"""From a trained generator to a folder of images with an account of where they come from."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import numpy as np
from PIL import Image

from medjax import config as config_lib
from medjax import fidelity, judge, sampling, settings, trained, wiring
from medjax import mesh as mesh_lib
from medjax.data import generated
from medjax.objectives import adversarial, base

MOST_COMPARED = 5000  # images of a kind, in distances


@dataclasses.dataclass(frozen=True)
class Generator:
  """A trained generator; made by `opened`.

  Attributes:
    bench: its stage. state: its best weights, on the mesh. place: the checkpoint.
  """

  bench: wiring.Bench
  state: base.TrainState
  place: str

  @property
  def classes(self) -> tuple[str, ...]:
    """What it can be asked for, in the order of its training set; () for images of any class."""
    conditional = isinstance(self.bench.stage.objective, settings.GANCond)
    return self.bench.splits.info.classes if conditional else ()

  def images(self, labels: np.ndarray, seed: int) -> np.ndarray:
    """Images [n, H, W, C] uint8 of `labels` [n]; see `sampling.Painter`."""
    key = mesh_lib.put(self.bench.mesh, jax.random.key(seed))
    return dataclasses.replace(self._paint, key=key)(self.state, labels)

  @functools.cached_property
  def _paint(self) -> sampling.Painter:
    assert isinstance(self.bench.objective, base.Sampler)
    return sampling.make(self.bench.objective, self.bench.mesh, self.state, seed=0)


def opened(workdir: pathlib.Path, stage: str = "") -> Generator:
  """The generator of a run.

  Args:
    workdir: of the run. stage: its name; may be empty where one stage alone has a generator.

  Raises:
    FileNotFoundError: no run is there, or it has no checkpoint yet.
    ValueError: the stage has no generator, or several have.
  """
  config = workdir / trained.CONFIG
  if not config.is_file():
    raise FileNotFoundError(f"{workdir} is no workdir of medjax: it has no {trained.CONFIG}")
  found = config_lib.parse(json.loads(config.read_text()))
  names = [s.name for s in found.stages if isinstance(s.objective, settings.Adversarial)]
  fitting = [name for name in names if name == (stage or name)]
  if len(fitting) != 1:
    raise ValueError(f"name a stage of {workdir} with a generator, --stage NAME: {names or 'none'}")
  bench = judge.opened(workdir / fitting[0], mesh_lib.make())
  return Generator(bench, *judge.weights(bench))


def balancing(counts: Sequence[int], share: float) -> list[int]:
  """How many images bring every class up to a share of the largest one.

  In all never more than there are real images: half of a training part at most is generated.

  Args:
    counts: real images of each class. share: from 0 to 1.

  Returns:
    Generated images of each class.

  Raises:
    ValueError: a share that is none.
  """
  if not 0 < share <= 1:
    raise ValueError(f"--balance {share:g}: give a share of the largest class, above 0 and up to 1")
  wanted = np.maximum(0, round(share * max(counts)) - np.asarray(counts))
  scale = min(1.0, sum(counts) / max(1, wanted.sum()))
  return np.floor(wanted * scale).astype(int).tolist()


def write(
  maker: Generator,
  images: np.ndarray,
  labels: np.ndarray,
  out: pathlib.Path,
  more: dict[str, Any],
) -> None:
  """Makes a folder of images that `data.generated` can name; `generated.json` comes last.

  Args:
    maker: of the images [n, H, W, C] uint8. labels: [n] that it was asked for.
    out: a new or empty folder. more: entries of the account, besides.
  """
  names = maker.classes or ("images",)
  for label, name in enumerate(names):
    folder, rows = out / name, np.flatnonzero(labels == label)
    folder.mkdir(parents=True, exist_ok=True)
    for number, row in enumerate(rows):
      Image.fromarray(images[row].squeeze()).save(folder / f"{number:06d}.png")
  counts = np.bincount(labels, minlength=len(names)).tolist()
  told = account(maker) | {"images": dict(zip(names, counts, strict=True))} | more
  (out / generated.ACCOUNT).write_text(json.dumps(told, indent=2) + "\n")


def account(maker: Generator) -> dict[str, Any]:
  """Where the images of a generator come from, and by which real ones they were learnt."""
  bench = maker.bench
  return {
    "synthetic": True,
    "run": f"{bench.folder.parent.name}/{bench.stage.name}",
    "checkpoint": maker.place,
    "weights_sha256": _digest(maker.state),
    "data": config_lib.to_dict(bench.stage.data),
    "learnt_from": generated.digests(bench.splits.parts["train"].ids),
  }


def _digest(state: base.TrainState) -> str:
  """Of the generator's weights and statistics."""
  digest = hashlib.sha256()
  for tree in (state.params, state.stats):
    for leaf in jax.tree.leaves(jax.device_get(tree[adversarial.GENERATOR])):
      digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def judged(
  maker: Generator, images: np.ndarray, labels: np.ndarray, folder: pathlib.Path
) -> dict[str, Any]:
  """What a classifier says of generated images.

  Args:
    maker: of the images, whose data they are compared with. images: [n, H, W, C] uint8.
    labels: [n] that it was asked for. folder: of the classifier's stage.

  Returns:
    `fid` and `kid` against the training images of each class (of all, where the generator knows no
    classes), and over all images the fields of `fidelity.Copying`.

  Raises:
    ValueError: there is no real image that the generator has not seen; see `judge.make`.
  """
  train, unseen = maker.bench.splits.parts["train"], judge.held_out(maker.bench)
  if unseen is None:
    raise ValueError(f"stage {maker.bench.stage.name} has no val or test part to tell copies by")
  look = judge.make(folder, maker.bench)
  rows = np.random.default_rng(0).permutation(len(images))[:MOST_COMPARED]
  real, own = judge.pixels(train, MOST_COMPARED)
  known, new = look(real), look(judge.pixels(unseen, MOST_COMPARED)[0])
  made, asked = look(images[rows]), labels[rows]
  own = own if maker.classes else np.zeros_like(own)
  distances: dict[str, dict[str, float]] = {"fid": {}, "kid": {}}
  for label, name in enumerate(maker.classes or ("all",)):
    ours, theirs = made[asked == label], known[own == label]
    if min(len(ours), len(theirs)) > 1:
      distances["fid"][name] = fidelity.frechet(theirs, ours)
      distances["kid"][name] = fidelity.kernel(theirs, ours)
  copying = dataclasses.asdict(fidelity.copying(made, known, new))
  return {"judge": look.place} | distances | copying
