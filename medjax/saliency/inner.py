"""Methods that look at a map inside the network."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from medjax.saliency import view as view_lib

ATTENTION = "attention"  # the end point of soft attention's own maps


@dataclasses.dataclass(frozen=True)
class GradCAM:
  """Channels of a map, weighed by the mean of their gradients (Selvaraju et al. 2017, section 3).

  Attributes:
    endpoint: name of the map; empty for the last one, see `last_map`.
  """

  endpoint: str = ""

  def __call__(self, view: view_lib.View, images: jax.Array, targets: jax.Array) -> jax.Array:
    """[b, h, w], at least 0: what speaks against the class is left out."""
    values, slopes = _map_and_gradient(view, images, targets, self.endpoint)
    weights = slopes.mean((1, 2), keepdims=True)
    return jax.nn.relu((weights * values).sum(-1))


@dataclasses.dataclass(frozen=True)
class GradCAMPlus:
  """Grad-CAM++, for classes that show in several places (Chattopadhay et al. 2018, eq. 10, 19).

  The paper's factor exp(logit), the same for all pixels of an image, is left out: no overlay shows
  it, and it overflows.

  Attributes:
    endpoint: name of the map; empty for the last one, see `last_map`.
  """

  endpoint: str = ""

  def __call__(self, view: view_lib.View, images: jax.Array, targets: jax.Array) -> jax.Array:
    """[b, h, w], at least 0."""
    values, slopes = _map_and_gradient(view, images, targets, self.endpoint)
    below = 2 * slopes**2 + values.sum((1, 2), keepdims=True) * slopes**3
    alphas = jnp.where(below == 0, 0, slopes**2 / jnp.where(below == 0, 1, below))
    weights = (alphas * jax.nn.relu(slopes)).sum((1, 2), keepdims=True)
    return jax.nn.relu((weights * values).sum(-1))


@dataclasses.dataclass(frozen=True)
class Attention:
  """The maps of a soft-attention network themselves, added up; the same for every class."""

  def __call__(self, view: view_lib.View, images: jax.Array, targets: jax.Array) -> jax.Array:
    """[b, h, w], whose sum is the number of maps."""
    del targets
    if ATTENTION not in view_lib.shapes(view, images):
      raise ValueError("this network has no soft attention: choose another method, such as gradcam")
    return view.result(images, endpoints=[ATTENTION]).endpoints[ATTENTION][..., 0]


def _map_and_gradient(
  view: view_lib.View, images: jax.Array, targets: jax.Array, endpoint: str
) -> tuple[jax.Array, jax.Array]:
  """An end point's map [b, h, w, C], and the gradient of the evidence by it."""
  known = view_lib.shapes(view, images)
  name = endpoint or view_lib.last_map(view, images)
  if name not in known:
    raise ValueError(f"this network has no map {name!r}; it has {', '.join(known) or 'none'}")

  def evidence(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
    result = view.result(images, endpoints=[name], offsets={name: offset})
    return view.of(result, targets).sum(), result.endpoints[name]

  zeros = jnp.zeros(known[name].shape, known[name].dtype)
  slopes, values = jax.grad(evidence, has_aux=True)(zeros)
  return values.astype(images.dtype), slopes.astype(images.dtype)
