"""BYOL: views of an image agree without negatives (Grill et al. 2020, "Bootstrap your own latent").

From the projection of one view a predictor must tell how a moving average of the network, the
target, projects the other view. The target gets no gradient.
"""

from __future__ import annotations

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from medjax import augment, contract, losses, optim, settings
from medjax.models import heads
from medjax.models import net as net_lib
from medjax.objectives import base, views


@dataclasses.dataclass(frozen=True)
class BYOL:
  """Minimises 2 - 2 cos between predictions and the target's projections; an `Objective`.

  Both views predict the other one, and the loss is the mean over both: half the paper's sum. A
  batch-norm group counts views, those of both sides together.

  Attributes:
    net: with predictions [b, D] as its output and projections [b, D] as an end point.
    optimizer: how parameters move.
    augmenter: draws the views.
    decay: of the target at the first step; at the last it is 1.
    image_shape: (height, width, channels).
  """

  net: net_lib.Net
  optimizer: optim.Optimizer
  augmenter: augment.Augmenter
  decay: float
  image_shape: tuple[int, int, int]

  def init(self, key: jax.Array) -> base.TrainState:
    """See `Objective`; the target starts as the network itself."""
    state = base.initial_state(self.net, self.optimizer, self.image_shape, key)
    target = {"params": state.params, "stats": state.stats}
    return state.replace(extra={**state.extra, base.TARGET: target})

  def step(
    self, state: base.TrainState, batch: contract.Batch, key: jax.Array, lr: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """See `Objective`.

    The metrics are loss, alignment (mean cosine of prediction and target, 1 at best), feature_std
    (see `views.spread`: towards 0 the projections collapse) and grad_norm.
    """
    target = state.extra[base.TARGET]

    def fn(params, batch):
      seen = views.augmented(self.augmenter, batch, base.named(key, "augment"))
      result, stats = self._projected(params, state.stats, seen, base.named(key, "dropout"))
      wanted, _ = self._projected(**target, seen=seen, key=base.named(key, "target"))
      aims = views.others(losses.unit_length(wanted.endpoints[heads.PROJECTION]))
      alignment = (losses.unit_length(result.output) * aims).sum(axis=-1)
      ours = losses.unit_length(result.endpoints[heads.PROJECTION])
      rest = stats, _spread_everywhere(lax.stop_gradient(ours), seen[contract.MASK])
      return 2 - 2 * alignment, ({"alignment": alignment}, rest)

    grads, metrics, (stats, spread) = base.reduced_gradients(
      fn, self.optimizer, state.params, views.doubled(batch)
    )
    after = base.updated(state, self.optimizer, grads, stats, lr)
    extra = {**after.extra, base.TARGET: self._followed(target, after, state.step)}
    return after.replace(extra=extra), {**metrics, "feature_std": spread}

  def forward(self, state: base.TrainState, batch: contract.Batch) -> contract.Outputs:
    """See `Objective`; there are no scores."""
    return base.embedded(self.net, state, batch)

  def recalibrate(self, state: base.TrainState, batch: contract.Batch) -> contract.Tree:
    """See `Objective`."""
    return base.batch_statistics(self.net, state, batch)

  def _projected(
    self, params: contract.Tree, stats: contract.Tree, seen: contract.Batch, key: jax.Array
  ) -> tuple[net_lib.Result, contract.Tree]:
    wanted = (heads.PROJECTION,)
    return self.net.apply(params, stats, seen, train=True, key=key, endpoints=wanted)

  def _followed(
    self, target: contract.Tree, after: base.TrainState, step: jax.Array
  ) -> contract.Tree:
    """The target one step later: nearer to the network, by the paper's equation for tau."""
    decay = 1 - (1 - self.decay) * (jnp.cos(jnp.pi * step / self.optimizer.total) + 1) / 2
    now = {"params": after.params, "stats": after.stats}
    return jax.tree.map(lambda new, old: new + (old - new) * decay.astype(new.dtype), now, target)


def make(
  cfg: settings.BYOL,
  net: net_lib.Net,
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> BYOL:
  """Builds the objective; `cfg.projector` and `cfg.predictor` are for who builds the net."""
  return BYOL(net, optimizer, augmenter, cfg.decay, info.image_shape)


def _spread_everywhere(embeddings: jax.Array, mask: jax.Array) -> jax.Array:
  """`views.spread` over all devices."""
  gathered = (lax.all_gather(x, contract.AXIS, tiled=True) for x in (embeddings, mask))
  return views.spread(*gathered)
