"""Where a network looks: maps of what speaks for a class, as pure functions of its weights.

Every map is about the evidence for one class, its logit, and is made of images in [0, 1], before
the network's own preprocessing. A method is a small object, called with a `View` of the network,
images and classes; `compiled` makes a program of it. Nothing here is random but by a seed, and the
map of an image does not depend on what lies beside it in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from medjax import contract, pixels
from medjax.models import net as net_lib
from medjax.saliency import inner, outer
from medjax.saliency import view as view_lib

Evidence = view_lib.Evidence

METHODS: dict[str, type[Any]] = {
  "gradcam": inner.GradCAM,
  "gradcam++": inner.GradCAMPlus,
  "attention": inner.Attention,
  "integrated_gradients": outer.IntegratedGradients,
  "smoothgrad": outer.SmoothGrad,
  "occlusion": outer.Occlusion,
}


def make(name: str, **options: Any) -> view_lib.Method:
  """A method by its name in `METHODS`, with some of its settings.

  Raises:
    KeyError: there is no such method. ValueError: it has no such setting, or not that value.
  """
  if name not in METHODS:
    raise KeyError(f"no method {name!r}: choose one of {', '.join(METHODS)}")
  known = {field.name: field.default for field in dataclasses.fields(METHODS[name])}
  for key, value in options.items():
    if key not in known:
      raise ValueError(f"{name} has no setting {key!r}; it has {', '.join(known) or 'none'}")
    kinds = (int, float) if isinstance(known[key], float) else type(known[key])
    if not isinstance(value, kinds):
      raise ValueError(f"{key}={value!r}: give a value such as {known[key]!r}")
  return METHODS[name](**options)


def compiled(
  net: net_lib.Net,
  method: view_lib.Method,
  mean: tuple[float, ...],
  evidence: Evidence = lambda logits: logits,
) -> Callable[[contract.Tree, contract.Tree, contract.Batch, jax.Array], jax.Array]:
  """A jitted function (params, stats, batch, classes [b] int32) -> maps [b, H, W] float32.

  Args:
    net: a classifier. method: of its maps, which are brought to the images' size, bilinearly.
    mean: of the training pixels in [0, 1], a number a channel. evidence: how logits are read.

  Returns:
    The function; its batch holds integer pixels, and whatever else the network needs.
  """

  @jax.jit
  def look(params, stats, batch, targets):
    beside = {name: value for name, value in batch.items() if name != contract.IMAGE}
    images = pixels.to_float(batch[contract.IMAGE])
    view = view_lib.View(net, params, stats, beside, mean, evidence)
    found = method(view, images, targets)
    return jax.image.resize(found, images.shape[:3], "linear").astype(jnp.float32)

  return look
