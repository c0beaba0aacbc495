"""What a trained classifier goes by: maps of images, overlays of them, and a test of the maps.

network = trained.opened(pathlib.Path("runs/quickstart"))
maps = explain.maps(network, images, "gradcam")  # [n, H, W]
picture = explain.overlay(images[0], maps[0])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax import contract, losses, saliency, settings
from medjax import trained as trained_lib
from medjax.data import readers
from medjax.models import gan
from medjax.objectives import adversarial
from medjax.predict import scoring
from medjax.saliency import cascade

BATCH = 16  # images that are looked at together
OPACITY = 0.65  # of an overlay where its map is at its largest
SCALE = 99.0  # percentile of a map's absolute values from which on an overlay has full colour


@dataclasses.dataclass(frozen=True)
class Drawn:
  """Maps of a network whose weights are drawn anew from the head down to a stage.

  Attributes:
    stage: the last one that was drawn anew. maps: [n, H, W].
    correlation: [n] Spearman's, of each map with that of the trained network.
  """

  stage: str
  maps: np.ndarray
  correlation: np.ndarray


class Explainer:
  """Makes maps of images, by one method; it is compiled once for all batches.

  Attributes:
    network: what is explained, which also gives scores.
    classes: its classes.
  """

  def __init__(
    self,
    opened: trained_lib.Trained,
    method: str = "gradcam",
    batch_size: int = BATCH,
    **options: Any,
  ):
    """Prepares a method.

    Args:
      opened: a trained classifier. method: a name in `saliency.METHODS`.
      batch_size: images that are looked at together. options: the method's settings.

    Raises:
      KeyError: there is no such method.
      ValueError: it has no such setting, the network gives no scores, or the method has no use for
        this network.
    """
    chosen = saliency.make(method, **options)
    self.network = scoring.Network(opened)
    self.classes = self.network.classes
    self._batch_size = batch_size
    self._net, self._weights = _classifier(opened)
    self._look = saliency.compiled(
      self._net, chosen, opened.info.mean, _evidence(opened.stage.objective)
    )
    self._check()

  def _check(self) -> None:
    """Traces the method, so that what it cannot do is told before any image is read."""
    size, network = self._batch_size, self.network
    pixel = np.uint16 if network.reading.depth == 16 else np.uint8
    batch = {contract.IMAGE: jax.ShapeDtypeStruct((size, *network.image_shape), pixel)}
    if network.encoding:
      width = network.opened.info.metadata
      batch[contract.METADATA] = jax.ShapeDtypeStruct((size, width), np.float32)
    jax.eval_shape(self._look, *self._weights, batch, jax.ShapeDtypeStruct((size,), np.int32))

  def scores(self, images: np.ndarray, metadata: np.ndarray | None = None) -> np.ndarray:
    """[n, K] as `medjax.predict` gives them; see `__call__`."""
    blocks = [self.network.scores(*block) for _, block in self._blocks(images, metadata)]
    return np.concatenate([np.zeros((0, len(self.classes))), *blocks])[: len(images)]

  def __call__(
    self,
    images: np.ndarray,
    classes: Sequence[int] | np.ndarray | None = None,
    metadata: np.ndarray | None = None,
  ) -> np.ndarray:
    """Maps of images.

    Args:
      images: [n, H, W, C] of the network's shape, uint8 or uint16.
      classes: [n] indices of the class that each map is about; None for that of the highest score.
      metadata: [n, M] encoded, for a network that takes them.

    Returns:
      [n, H, W] float32; what the values are, the method says.

    Raises:
      ValueError: images of another shape or type.
    """
    if classes is None:
      classes = self.scores(images, metadata).argmax(axis=1)
    return self._maps(self._weights, images, np.asarray(classes), metadata)

  def randomised(
    self,
    images: np.ndarray,
    classes: Sequence[int] | np.ndarray | None = None,
    metadata: np.ndarray | None = None,
    seed: int = 0,
  ) -> Iterator[Drawn]:
    """The same maps of a network that forgets, stage by stage (Adebayo et al. 2018, section 3).

    A method that shows what was learnt gives other maps: the correlations fall.

    Args:
      images, classes, metadata: as for maps. seed: of the weights that are drawn.

    Raises:
      ValueError: no order of stages runs through the network.
    """
    if not self._net.stages:
      raise ValueError(
        "no order of stages runs through this network, so it cannot forget by stages"
      )
    if classes is None:
      classes = self.scores(images, metadata).argmax(axis=1)
    classes = np.asarray(classes)
    before = self._maps(self._weights, images, classes, metadata)
    shape = jnp.zeros((1, *images.shape[1:]))
    key = jax.random.key(seed)
    for stage, params, stats in cascade.anew(self._net, *self._weights, key, shape):
      found = self._maps((params, stats), images, classes, metadata)
      yield Drawn(stage, found, cascade.rank_correlation(before, found))

  def _maps(
    self,
    weights: tuple[contract.Tree, contract.Tree],
    images: np.ndarray,
    classes: np.ndarray,
    metadata: np.ndarray | None,
  ) -> np.ndarray:
    if classes.shape != (len(images),):
      raise ValueError(f"classes are {list(classes.shape)} for {len(images)} images: one for each")
    found = [np.zeros((0, *images.shape[1:3]), np.float32)]
    for start, (pixels, known) in self._blocks(images, metadata):
      batch = {contract.IMAGE: jnp.asarray(pixels)}
      if known is not None:
        batch[contract.METADATA] = jnp.asarray(known)
      targets = scoring.padded(classes[start : start + len(pixels)], len(pixels))
      found.append(np.asarray(self._look(*weights, batch, jnp.asarray(targets, jnp.int32))))
    return np.concatenate(found)[: len(images)]

  def _blocks(
    self, images: np.ndarray, metadata: np.ndarray | None
  ) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray | None]]]:
    """Where each batch begins, its images and its metadata, the last ones with filling."""
    if images.shape[1:] != self.network.image_shape:
      raise ValueError(
        f"images are {list(images.shape)}, and the network sees {list(self.network.image_shape)}:"
        " fit them as medjax.data.readers.read does"
      )
    for start in range(0, len(images), self._batch_size):
      rows = slice(start, start + self._batch_size)
      known = None if metadata is None else scoring.padded(metadata[rows], self._batch_size)
      yield start, (scoring.padded(images[rows], self._batch_size), known)


def maps(
  opened: trained_lib.Trained,
  images: np.ndarray,
  method: str = "gradcam",
  classes: Sequence[int] | np.ndarray | None = None,
  endpoint: str = "",
  metadata: np.ndarray | None = None,
) -> np.ndarray:
  """Maps [n, H, W] float32 of images [n, H, W, C]; see `Explainer`, whose arguments these are.

  Args:
    endpoint: name of the map inside the network, for the methods that look at one; empty for the
      last one.
  """
  options = {"endpoint": endpoint} if endpoint else {}
  size = max(1, min(BATCH, len(images)))
  return Explainer(opened, method, size, **options)(images, classes, metadata)


def overlay(image: np.ndarray, map_: np.ndarray) -> np.ndarray:
  """A map over its image: what speaks for the class from red to yellow, what is against it in blue.

  Colour and opacity go by the value's share of the map's `SCALE`-th percentile of absolute values,
  so that maps of different images, or methods, cannot be compared by their colours.

  Args:
    image: [H, W, C] uint8 or uint16, grey or RGB. map_: [H, W].

  Returns:
    [H, W, 3] uint8.
  """
  most = np.percentile(abs(map_), SCALE) or abs(map_).max() or 1.0
  value = np.clip(map_ / most, -1, 1)[..., None]
  shade = abs(value)
  colour = np.where(
    value > 0,
    np.concatenate([np.ones_like(shade), shade, np.zeros_like(shade)], axis=-1),
    np.concatenate([np.zeros_like(shade), shade, np.ones_like(shade)], axis=-1),
  )
  opacity = OPACITY * shade
  below = np.broadcast_to(readers.to_8_bit(image), colour.shape)
  return np.round((1 - opacity) * below + 255 * opacity * colour).astype(np.uint8)


def _classifier(
  opened: trained_lib.Trained,
) -> tuple[Any, tuple[contract.Tree, contract.Tree]]:
  """The network that gives the scores and its weights; of a GAN, the discriminator."""
  state = opened.state
  if not isinstance(opened.net, gan.Pair):
    return opened.net, (state.params, state.stats)
  name = adversarial.DISCRIMINATOR
  return opened.net.discriminator, (state.params[name], state.stats[name])


def _evidence(objective: settings.Objective) -> saliency.Evidence:
  """How logits are read: as they are, but by their lengths where a loss has taught lengths."""
  loss = getattr(objective, "loss", None)
  if isinstance(loss, settings.Margin) and loss.score == "capsule":
    return losses.capsule_lengths
  return lambda logits: logits
