"""Two views must find each other among all others: SimCLR (Chen et al. 2020) and MICLe.

SimCLR's two views are of one image; those of MICLe (Azizi et al. 2021, "Big self-supervised models
advance medical image classification", section 3.2) are of two images of one patient, lesion or
study, which the order of the images lays side by side.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from medjax import augment, contract, losses, optim, settings
from medjax.models import net as net_lib
from medjax.objectives import base, views


@dataclasses.dataclass(frozen=True)
class Contrastive:
  """Minimises NT-Xent with the negatives of all devices; an `Objective`.

  A batch-norm group counts views.

  Attributes:
    net: with projections [b, D] as its output.
    optimizer: how parameters move.
    augmenter: draws the views.
    laid: the batch's images as they become views, see `views`.
    temperature: of NT-Xent.
    image_shape: (height, width, channels).
  """

  net: net_lib.Net
  optimizer: optim.Optimizer
  augmenter: augment.Augmenter
  laid: Callable[[contract.Batch], contract.Batch]
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
    `views.spread`: towards 0 the projections collapse) and grad_norm.
    """
    seen = views.augmented(self.augmenter, self.laid(batch), base.named(key, "augment"))
    mask = seen[contract.MASK]
    everyones_mask = lax.all_gather(mask, contract.AXIS, tiled=True)
    row = lax.axis_index(contract.AXIS) * len(mask) + jnp.arange(len(mask))

    def fn(params, seen):
      dropout = base.named(key, "dropout")
      result, stats = self.net.apply(params, state.stats, seen, train=True, key=dropout)
      ours = losses.unit_length(result.output)  # [b', D]
      everyones = lax.all_gather(ours, contract.AXIS, tiled=True)  # [B', D]
      loss = losses.nt_xent(
        ours,
        everyones,
        own=row,
        positive=row ^ 1,
        mask=everyones_mask,
        temperature=self.temperature,
      )
      alignment = (ours * everyones[row ^ 1]).sum(axis=-1)
      return loss, ({"alignment": alignment}, (stats, everyones))

    grads, metrics, (stats, everyones) = base.reduced_gradients(
      fn, self.optimizer, state.params, seen
    )
    metrics["feature_std"] = views.spread(everyones, everyones_mask)
    return base.updated(state, self.optimizer, grads, stats, lr), metrics

  def forward(self, state: base.TrainState, batch: contract.Batch) -> contract.Outputs:
    """See `Objective`; there are no scores."""
    return base.embedded(self.net, state, batch)

  def recalibrate(self, state: base.TrainState, batch: contract.Batch) -> contract.Tree:
    """See `Objective`."""
    return base.batch_statistics(self.net, state, batch)


def simclr(
  cfg: settings.SimCLR,
  net: net_lib.Net,
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> Contrastive:
  """Builds SimCLR; `cfg.projector` is for who builds the net.

  Raises:
    ValueError: for accumulated gradients, whose micro-batches would not see each other's negatives.
  """
  _check(cfg, optimizer)
  return Contrastive(net, optimizer, augmenter, views.doubled, cfg.temperature, info.image_shape)


def micle(
  cfg: settings.MICLe,
  net: net_lib.Net,
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> Contrastive:
  """Builds MICLe, whose batches come in pairs; see `simclr` for the rest."""
  _check(cfg, optimizer)
  return Contrastive(net, optimizer, augmenter, views.paired, cfg.temperature, info.image_shape)


def _check(cfg: settings.SimCLR, optimizer: optim.Optimizer) -> None:
  if optimizer.accumulate > 1:
    raise ValueError(
      f"optimizer.accumulate={optimizer.accumulate} would take the negatives of {cfg.name} from a "
      "micro-batch alone: set it to 1, and train.batch_size to what fits"
    )
