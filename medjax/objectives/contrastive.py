"""SimCLR: two views of an image must find each other among all others (Chen et al. 2020)."""

from __future__ import annotations

import dataclasses
import math

import jax
from jax import lax
import jax.numpy as jnp

from medjax import augment, contract, losses, optim, settings
from medjax.models import net as net_lib
from medjax.objectives import base


@dataclasses.dataclass(frozen=True)
class SimCLR:
  """Minimises NT-Xent with the negatives of all devices; an `Objective`.

  The two views of an image are neighbours: the doubled batch has slots 2i and 2i + 1 for slot i, so
  whatever goes by slot (randomness, batch-norm groups) stays independent of the devices. A
  batch-norm group counts views.

  Attributes:
    net: with projections [b, D] as its output.
    optimizer: how parameters move.
    augmenter: draws the views.
    temperature: of NT-Xent.
    image_shape: (height, width, channels).
  """

  net: net_lib.Net
  optimizer: optim.Optimizer
  augmenter: augment.Augmenter
  temperature: float
  image_shape: tuple[int, int, int]

  def init(self, key: jax.Array) -> base.TrainState:
    """See `Objective`."""
    return base.initial_state(self.net, self.optimizer, self.image_shape, key)

  def step(
    self, state: base.TrainState, batch: contract.Batch, key: jax.Array, lr: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """See `Objective`.

    The metrics are loss, alignment (mean cosine of two views, 1 at best), feature_std (see
    `spread`: towards 0 the projections collapse) and grad_norm.
    """
    views = self._views(batch, base.named(key, "augment"))
    mask = views[contract.MASK]
    everyones_mask = lax.all_gather(mask, contract.AXIS, tiled=True)
    row = lax.axis_index(contract.AXIS) * len(mask) + jnp.arange(len(mask))

    def fn(params, views):
      dropout = base.named(key, "dropout")
      result, stats = self.net.apply(params, state.stats, views, train=True, key=dropout)
      ours = losses.unit_length(result.output)  # [2b, D]
      everyones = lax.all_gather(ours, contract.AXIS, tiled=True)  # [2B, D]
      loss = losses.nt_xent(
        ours,
        everyones,
        own=row,
        positive=row ^ 1,
        mask=everyones_mask,
        temperature=self.temperature,
      )
      return loss, ({"alignment": _pair_cosines(ours)}, (stats, everyones))

    grads, metrics, (stats, everyones) = base.reduced_gradients(
      fn, self.optimizer, state.params, views
    )
    metrics["feature_std"] = spread(everyones, everyones_mask)
    return base.updated(state, self.optimizer, grads, stats, lr), metrics

  def forward(self, state: base.TrainState, batch: contract.Batch) -> contract.Outputs:
    """See `Objective`; there are no scores."""
    result, _ = self.net.apply(state.params, state.stats, base.with_floats(batch), train=False)
    return contract.Outputs(None, result.embedding)

  def recalibrate(self, state: base.TrainState, batch: contract.Batch) -> contract.Tree:
    """See `Objective`."""
    return base.batch_statistics(self.net, state, batch)

  def _views(self, batch: contract.Batch, key: jax.Array) -> contract.Batch:
    """The doubled batch [2b], two views of each image after each other."""
    doubled = {
      name: jnp.repeat(batch[name], 2, axis=0)
      for name in (contract.IMAGE, contract.MASK, contract.SLOT)
    }
    slots = 2 * doubled[contract.SLOT] + jnp.arange(len(doubled[contract.SLOT])) % 2
    views = base.with_floats({**doubled, contract.SLOT: slots})
    return {**views, contract.IMAGE: self.augmenter(key, views[contract.IMAGE], slots)}


def make(
  cfg: settings.SimCLR,
  net: net_lib.Net,
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> SimCLR:
  """Builds the objective; `cfg.projector` is for who builds the net.

  Raises:
    ValueError: for accumulated gradients, whose micro-batches would not see each other's negatives.
  """
  if optimizer.accumulate > 1:
    raise ValueError(
      f"optimizer.accumulate={optimizer.accumulate} would take the negatives of simclr from a "
      "micro-batch alone: set it to 1, and train.batch_size to what fits"
    )
  return SimCLR(net, optimizer, augmenter, cfg.temperature, info.image_shape)


def spread(embeddings: jax.Array, mask: jax.Array) -> jax.Array:
  """Standard deviation of unit-length embeddings, times the square root of their dimension.

  Args:
    embeddings: [n, D] of length 1.
    mask: [n] 0 for rows that do not count.

  Returns:
    A number about 1 for embeddings all over the sphere and 0 for equal ones; below 0.2 means
    collapse.
  """
  mask = mask.astype(embeddings.dtype)[:, None]
  count = mask.sum()
  centred = embeddings - (mask * embeddings).sum(axis=0) / count
  deviation = jnp.sqrt((mask * centred**2).sum(axis=0) / count)
  return deviation.mean() * math.sqrt(embeddings.shape[1])


def _pair_cosines(embeddings: jax.Array) -> jax.Array:
  """[2b] cosine of each row's unit-length embedding with that of the image's other view."""
  first, second = embeddings[0::2], embeddings[1::2]
  return jnp.repeat((first * second).sum(axis=-1), 2)
