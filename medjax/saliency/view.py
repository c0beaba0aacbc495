"""A network that is asked about images: its evidence for a class, and its maps by name."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from medjax import contract
from medjax.models import net as net_lib

Evidence = Callable[[jax.Array], jax.Array]  # logits [b, K] to what grows with each class [b, K]
Baseline = Literal["black", "mean"]


@dataclasses.dataclass(frozen=True)
class View:
  """A network with its weights, and what belongs to the images of one batch.

  Attributes:
    net: the network. params, stats: its weights.
    beside: what the batch holds besides images, such as `contract.METADATA`.
    mean: of the training pixels, a number a channel.
    evidence: how logits are read.
  """

  net: net_lib.Net
  params: contract.Tree
  stats: contract.Tree
  beside: contract.Batch
  mean: tuple[float, ...]
  evidence: Evidence

  def result(self, images: jax.Array, **how: Any) -> net_lib.Result:
    """What the network says of images [b, H, W, C] in [0, 1]; `how` as `Net.apply` takes it."""
    batch = {**self.beside, contract.IMAGE: images}
    return self.net.apply(self.params, self.stats, batch, train=False, **how)[0]

  def of(self, result: net_lib.Result, targets: jax.Array) -> jax.Array:
    """[b] the evidence for the classes `targets` [b]."""
    return jnp.take_along_axis(self.evidence(result.output), targets[:, None], axis=1)[:, 0]

  def score(self, images: jax.Array, targets: jax.Array) -> jax.Array:
    """[b] the evidence for the classes `targets` [b] in images."""
    return self.of(self.result(images), targets)

  def gradient(self, images: jax.Array, targets: jax.Array) -> jax.Array:
    """[b, H, W, C] of each image's evidence by its own pixels."""
    return jax.grad(lambda images: self.score(images, targets).sum())(images)

  def filled(self, images: jax.Array, baseline: Baseline) -> jax.Array:
    """[b, H, W, C] images that show nothing: black, or the mean of the training pixels."""
    value = jnp.asarray(self.mean if baseline == "mean" else 0.0, images.dtype)
    return jnp.broadcast_to(value, images.shape)


class Method(Protocol):
  """Makes maps; every attribute of a method is a setting with a default."""

  def __call__(self, view: View, images: jax.Array, targets: jax.Array) -> jax.Array:
    """Maps [b, h, w], of any height and width, of images [b, H, W, C] for classes [b]."""


def shapes(view: View, images: jax.Array) -> dict[str, jax.ShapeDtypeStruct]:
  """Every end point that is a map [b, h, w, C], in the order in which an image passes them."""
  names: list[str] = []

  def look(images: jax.Array) -> dict[str, jax.Array]:
    found = view.result(images, endpoints=[net_lib.EVERY]).endpoints
    names.extend(found)  # the order would be lost with the result, which comes back sorted
    return found

  found = jax.eval_shape(look, images)
  return {name: found[name] for name in names if found[name].ndim == 4}


def last_map(view: View, images: jax.Array) -> str:
  """The last end point with several positions and several channels.

  Raises:
    ValueError: the network has none.
  """
  for name, found in reversed(shapes(view, images).items()):
    _, height, width, channels = found.shape
    if height * width > 1 and channels > 1:
      return name
  raise ValueError("this network has no map to look at: choose a method of pixels, e.g. occlusion")
