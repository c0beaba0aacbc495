"""Classification of what needs no annotation: how an image was turned, and where it is from."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from medjax import augment, contract, losses, optim, settings
from medjax.models import net as net_lib
from medjax.objectives import base, supervised, views

TURNS = ("0", "90", "180", "270")  # degrees, against the clock


@dataclasses.dataclass(frozen=True)
class Rotation:
  """Tells the quarter turns of images apart (Gidaris et al. 2018, RotNet); an `Objective`.

  Each image gets one turn, drawn by its slot, where the paper shows all four.

  Attributes:
    net: with logits [b, 4] as its output.
    optimizer: how parameters move.
    augmenter: of the images, before they are turned.
    image_shape: (height, width, channels); height and width are equal.
  """

  net: net_lib.Net
  optimizer: optim.Optimizer
  augmenter: augment.Augmenter
  image_shape: tuple[int, int, int]

  def init(self, key: jax.Array) -> base.TrainState:
    """See `Objective`."""
    return base.initial_state(self.net, self.optimizer, self.image_shape, key)

  def step(
    self, state: base.TrainState, batch: contract.Batch, key: jax.Array, lr: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """See `Objective`; the metrics are loss, accuracy and grad_norm."""

    def fn(params, batch):
      seen = views.augmented(self.augmenter, batch, base.named(key, "augment"))
      turns = drawn_turns(base.named(key, "turn"), batch[contract.SLOT])
      seen[contract.IMAGE] = turned(seen[contract.IMAGE], turns)
      dropout = base.named(key, "dropout")
      result, stats = self.net.apply(params, state.stats, seen, train=True, key=dropout)
      hits = (result.output.argmax(axis=-1) == turns).astype(result.output.dtype)
      return losses.softmax_ce(result.output, turns), ({"accuracy": hits}, stats)

    grads, metrics, stats = base.reduced_gradients(fn, self.optimizer, state.params, batch)
    return base.updated(state, self.optimizer, grads, stats, lr), metrics

  def forward(self, state: base.TrainState, batch: contract.Batch) -> contract.Outputs:
    """See `Objective`; there are no scores: the turns are no classes of the data."""
    return base.embedded(self.net, state, batch)

  def recalibrate(self, state: base.TrainState, batch: contract.Batch) -> contract.Tree:
    """See `Objective`."""
    return base.batch_statistics(self.net, state, batch)


def drawn_turns(key: jax.Array, slots: jax.Array) -> jax.Array:
  """[b] int32 in 0 ... 3 of [b] slots of the global batch."""
  draw = lambda slot: jax.random.bits(jax.random.fold_in(key, slot))  # noqa: E731
  return (jax.vmap(draw)(slots) % len(TURNS)).astype(jnp.int32)


def turned(images: jax.Array, turns: jax.Array) -> jax.Array:
  """Turns square images [b, S, S, C] by [b] quarters against the clock."""
  turns = turns[:, None, None, None]
  images = jnp.where(turns >= 2, images[:, ::-1, ::-1], images)
  return jnp.where(turns % 2 == 1, jnp.rot90(images, axes=(1, 2)), images)


def turns_as_classes(info: contract.DataInfo) -> contract.DataInfo:
  """The data as a network is told of them that tells turns apart."""
  counts = (info.train_size,) * len(TURNS)
  return dataclasses.replace(info, classes=TURNS, class_counts=counts, multi_label=False)


def rotation(
  cfg: settings.Rotation,
  net: net_lib.Net,
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> Rotation:
  """Builds the objective; the net is made for `turns_as_classes`."""
  del cfg
  return Rotation(net, optimizer, augmenter, info.image_shape)


def source_label(
  cfg: settings.SourceLabel,
  net: net_lib.Net,
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> supervised.Supervised:
  """Builds a classifier of where images are from.

  Raises:
    ValueError: the data's labels are not their sources; and see `supervised.make`.
  """
  if info.target != "source":
    raise ValueError(
      "objective.name=source_label learns where an image is from, and these labels are of another "
      "kind: set data.target=source, or objective.name=supervised"
    )
  return supervised.make(cfg, net, optimizer, augmenter, info)
