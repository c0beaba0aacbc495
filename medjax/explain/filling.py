"""From files to a folder of their maps, some at a time, and the test of the first ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import itertools

import numpy as np

from medjax import explain
from medjax.data import inputs, progress
from medjax.explain import folder
from medjax.predict import known as known_lib

SUSPECT = 0.5  # a correlation above this with the maps of random weights is told; the line is ours


@dataclasses.dataclass(frozen=True)
class Block:
  """Images that are explained together.

  Attributes:
    paths: of the n images. pixels: [n, H, W, C]. targets: [n] the classes of their maps.
    metadata: [n, M] encoded, or None.
  """

  paths: Sequence[str]
  pixels: np.ndarray
  targets: np.ndarray
  metadata: np.ndarray | None

  def __len__(self) -> int:
    return len(self.paths)


def fill(
  out: folder.Folder,
  explainer: explain.Explainer,
  listing: inputs.Listing,
  workers: int,
  known: known_lib.Known | None = None,
  target: int | None = None,
) -> Block | None:
  """Explains files in their order, and tells how far it is.

  Args:
    out: where everything goes. explainer: what makes the maps. listing: the files.
    workers: processes that decode. known: metadata, for a network that takes them.
    target: the class that all maps are about; None for that of each image's highest score.

  Returns:
    The first images that could be read, `explain.BATCH` at most; None without any.
  """
  network = explainer.network
  view = inputs.View(network.image_shape[0], network.image_shape[2], network.reading)
  seen = progress.told(inputs.seen(listing, [view], workers), len(listing), "images")
  good = _good(seen, known, out)
  first = None
  for some in iter(lambda: list(itertools.islice(good, explain.BATCH)), []):
    block = _explained(explainer, some, known, target, out)
    first = first or block
  return first


def _good(
  seen: Iterator[inputs.Seen], known: known_lib.Known | None, out: folder.Folder
) -> Iterator[inputs.Seen]:
  """Images that could be read and are known; the others go to the folder's list."""
  for each in seen:
    error = each.error or (known.missing(each.path) if known else "")
    if error:
      out.refuse(each.path, error)
    else:
      yield each


def _explained(
  explainer: explain.Explainer,
  seen: Sequence[inputs.Seen],
  known: known_lib.Known | None,
  target: int | None,
  out: folder.Folder,
) -> Block:
  paths, pixels = [each.path for each in seen], np.stack([each.pixels[0] for each in seen])
  metadata = known.of(paths)[0] if known else None
  scores = explainer.scores(pixels, metadata)
  best = scores.argmax(axis=1)
  block = Block(paths, pixels, best if target is None else np.full_like(best, target), metadata)
  maps = explainer(pixels, block.targets, metadata)
  classes = explainer.classes
  for i, path in enumerate(paths):
    predicted, shown = classes[best[i]], int(block.targets[i])
    score = float(scores[i, shown])
    out.add(folder.Explained(path, pixels[i], predicted, classes[shown], score, maps[i]))
  return block


def check(out: folder.Folder, explainer: explain.Explainer, block: Block | None) -> None:
  """Tells on the sheet, and in the terminal, how maps change when the network forgets.

  Args:
    out: gets the table. explainer: whose maps are checked. block: images; None tells of none.
  """
  if block is None:
    return
  rows, strip, last = [], [], 0.0
  for drawn in explainer.randomised(block.pixels, block.targets, block.metadata):
    last = float(drawn.correlation.mean())
    rows.append((drawn.stage, f"{last:.2f}"))
    strip.append((explain.overlay(block.pixels[0], drawn.maps[0]), drawn.stage))
    print(f"drawn anew down to {drawn.stage}: rank correlation {last:.2f}", flush=True)
  verdict = (
    "The maps follow what the network has learnt: they are others with random weights."
    if last <= SUSPECT
    else "Doubtful: random weights give much the same maps, which then show the image and not what"
    " was learnt. Take another method."
  )
  print(verdict)
  out.sanity(rows, strip, f"{verdict} Against the trained network, {len(block)} images.")
