"""A generator against a discriminator: the one step of all GANs, and the games they play.

In a step the discriminator learns first, then the generator against what it has become. A generated
image has the slot of the real one beside it in the batch: its latents go by that slot, and so does
the augmentation that both undergo alike, as it must be differentiated (Zhao et al. 2020,
"Differentiable Augmentation for Data-Efficient GAN Training"). What is random is thus independent
of the devices, and a slot that only pads the batch has no part in either half.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from medjax import augment, contract, losses, optim, settings
from medjax.models import gan
from medjax.models import net as net_lib
from medjax.objectives import base

GENERATOR, DISCRIMINATOR = "generator", "discriminator"  # keys of params, stats and opt_state


@dataclasses.dataclass(frozen=True)
class Game:
  """What the two play for. Losses and metrics are [b]; results are the discriminator's.

  Attributes:
    discriminator: (result of real images, of generated ones, batch) -> (loss, other metrics).
    generator: (result of generated images, of real ones, batch) -> loss.
    log_odds: logits -> [b], above 0 for what is taken for real.
    scores: logits -> class probabilities; None where the discriminator knows no classes.
  """

  discriminator: Callable[
    [net_lib.Result, net_lib.Result, contract.Batch], tuple[jax.Array, contract.Metrics]
  ]
  generator: Callable[[net_lib.Result, net_lib.Result, contract.Batch], jax.Array]
  log_odds: Callable[[jax.Array], jax.Array]
  scores: Callable[[jax.Array], jax.Array] | None = None


@dataclasses.dataclass(frozen=True)
class Adversarial:
  """Trains both by turns; an `Objective` and a `Sampler`.

  Attributes:
    pair: the networks. optimizer: how the parameters of either move.
    augmenter: of real and generated images alike.
    game: the losses.
    lr_ratio: learning rate of the discriminator over that of the generator.
    d_steps: turns of the discriminator in a step.
    image_shape: (height, width, channels).
  """

  pair: gan.Pair
  optimizer: optim.Optimizer
  augmenter: augment.Augmenter
  game: Game
  lr_ratio: float
  d_steps: int
  image_shape: tuple[int, int, int]

  def init(self, key: jax.Array) -> base.TrainState:
    """See `Objective`."""
    nets = {
      GENERATOR: (self.pair.generator, (self.pair.latent,)),
      DISCRIMINATOR: (self.pair.discriminator, self.image_shape),
    }
    drawn = {
      name: net.init(base.named(key, name), jnp.zeros((1, *shape)))
      for name, (net, shape) in nets.items()
    }
    params, stats = ({name: both[i] for name, both in drawn.items()} for i in (0, 1))
    opt_state = {name: self.optimizer.init(each) for name, each in params.items()}
    return base.started(self.optimizer, params, stats, opt_state)

  def step(
    self, state: base.TrainState, batch: contract.Batch, key: jax.Array, lr: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """See `Objective`.

    The metrics are d_loss and g_loss, loss (their sum, so that either is noticed where it is not
    finite), d_accuracy (of telling real from generated: about 0.5 where it cannot), the norms of
    both gradients, and those of the game.
    """
    batch = self._conditioned(base.with_floats(batch))

    def turn(state, number):
      own = jax.random.fold_in(base.named(key, DISCRIMINATOR), number)
      return self._discriminated(state, batch, own, lr * self.lr_ratio)

    state, turns = lax.scan(turn, state, jnp.arange(self.d_steps))
    d_metrics = jax.tree.map(lambda series: series.mean(0), turns)
    state, g_metrics = self._generated(state, batch, base.named(key, GENERATOR), lr)
    loss = d_metrics["d_loss"] + g_metrics["g_loss"]
    return base.advanced(state, self.optimizer), {"loss": loss, **d_metrics, **g_metrics}

  def _discriminated(
    self, state: base.TrainState, batch: contract.Batch, key: jax.Array, lr: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """The state and metrics after a turn of the discriminator."""
    made, _ = self._made(state.params[GENERATOR], state, batch, key)
    change = self._change(batch, key)
    both = {**batch, contract.IMAGE: jnp.stack([change(batch[contract.IMAGE]), change(made)], 1)}

    def fn(params, both):
      real, fake, stats = self._told_apart(params, state, both, key)
      loss, metrics = self.game.discriminator(real, fake, both)
      right = self.game.log_odds(real.output) > 0
      caught = self.game.log_odds(fake.output) <= 0
      metrics["d_accuracy"] = (right.astype(loss.dtype) + caught.astype(loss.dtype)) / 2
      return loss, (metrics, stats)

    params = state.params[DISCRIMINATOR]
    grads, metrics, stats = base.reduced_gradients(fn, self.optimizer, params, both)
    return self._moved(state, DISCRIMINATOR, grads, stats, lr), _named("d", metrics)

  def _generated(
    self, state: base.TrainState, batch: contract.Batch, key: jax.Array, lr: jax.Array
  ) -> tuple[base.TrainState, contract.Metrics]:
    """The state and metrics after a turn of the generator."""
    change = self._change(batch, key)

    def fn(params, batch):
      made, stats = self._made(params, state, batch, key)
      seen = functools.partial(self._seen, state.params[DISCRIMINATOR], state, batch)
      fake, real = seen(change(made)), seen(change(batch[contract.IMAGE]))
      return self.game.generator(fake, real, batch), ({}, stats)

    params = state.params[GENERATOR]
    grads, metrics, stats = base.reduced_gradients(fn, self.optimizer, params, batch)
    return self._moved(state, GENERATOR, grads, stats, lr), _named("g", metrics)

  def _conditioned(self, batch: contract.Batch) -> contract.Batch:
    """The batch with the classes that conditional networks are told: those of the real images."""
    return {**batch, contract.CONDITION: batch[contract.LABEL]} if self.pair.classes else batch

  def _change(self, batch: contract.Batch, key: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """The augmentation of the batch's slots, the same at every call."""
    key = base.named(key, "augment")
    return lambda images: self.augmenter(key, images, batch[contract.SLOT])

  def _made(
    self, params: contract.Tree, state: base.TrainState, batch: contract.Batch, key: jax.Array
  ) -> tuple[jax.Array, contract.Tree]:
    """Generated images [b, H, W, C] and the generator's new statistics."""
    drawn = latents(base.named(key, "latents"), batch[contract.SLOT], self.pair.latent)
    inputs = {**batch, contract.IMAGE: drawn.astype(batch[contract.IMAGE].dtype)}
    result, stats = self.pair.generator.apply(
      params, state.stats[GENERATOR], inputs, train=True, key=base.named(key, "dropout")
    )
    return result.output.astype(batch[contract.IMAGE].dtype), stats

  def _told_apart(
    self, params: contract.Tree, state: base.TrainState, both: contract.Batch, key: jax.Array
  ) -> tuple[net_lib.Result, net_lib.Result, contract.Tree]:
    """What the discriminator says of real and generated images [b, 2, H, W, C], in one pass."""
    images = both[contract.IMAGE]
    doubled = {name: jnp.repeat(value, 2, axis=0) for name, value in both.items()}
    doubled[contract.IMAGE] = images.reshape(-1, *images.shape[2:])
    result, stats = self.pair.discriminator.apply(
      params, state.stats[DISCRIMINATOR], doubled, train=True, key=base.named(key, "dropout")
    )
    real, fake = (net_lib.Result(result.output[i::2], result.embedding[i::2]) for i in (0, 1))
    return real, fake, stats

  def _seen(
    self,
    params: contract.Tree,
    state: base.TrainState,
    batch: contract.Batch,
    images: jax.Array,
  ) -> net_lib.Result:
    """What the discriminator says of images, without learning from them."""
    inputs = {**batch, contract.IMAGE: images}
    return self.pair.discriminator.apply(params, state.stats[DISCRIMINATOR], inputs, train=False)[0]

  def _moved(
    self,
    state: base.TrainState,
    name: str,
    grads: contract.Tree,
    stats: contract.Tree,
    lr: jax.Array,
  ) -> base.TrainState:
    """The state after an update of one of the two."""
    params, opt_state = self.optimizer.apply(grads, state.opt_state[name], state.params[name], lr)
    return state.replace(
      params={**state.params, name: params},
      stats={**state.stats, name: stats},
      opt_state={**state.opt_state, name: opt_state},
    )

  def forward(self, state: base.TrainState, batch: contract.Batch) -> contract.Outputs:
    """See `Objective`; scores where the discriminator is a classifier."""
    batch = base.with_floats(batch)
    if self.pair.classes:  # features do not depend on what is told
      batch[contract.CONDITION] = jnp.zeros_like(batch[contract.SLOT])
    images = batch[contract.IMAGE]
    result = self._seen(state.params[DISCRIMINATOR], state, batch, images)
    scores = self.game.scores(result.output) if self.game.scores else None
    return contract.Outputs(scores, result.embedding)

  def recalibrate(self, state: base.TrainState, batch: contract.Batch) -> contract.Tree:
    """See `Objective`; the discriminator, which `forward` asks, has no batch norm."""
    del batch
    return state.stats

  def sample(
    self, state: base.TrainState, key: jax.Array, numbers: jax.Array, labels: jax.Array
  ) -> jax.Array:
    """See `base.Sampler`."""
    batch = {
      contract.IMAGE: latents(key, numbers, self.pair.latent),
      contract.CONDITION: labels,
    }
    params, stats = (tree[GENERATOR] for tree in (state.params, state.stats))
    return self.pair.generator.apply(params, stats, batch, train=False)[0].output


def latents(key: jax.Array, slots: jax.Array, size: int) -> jax.Array:
  """[b, size] standard normal numbers, those of each slot by itself."""
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, slots)
  return jax.vmap(lambda key: jax.random.normal(key, (size,)))(keys)


def _named(side: str, metrics: contract.Metrics) -> contract.Metrics:
  """Metrics of one of the two, those that both have by its letter."""
  return {f"{side}_{n}" if n in ("loss", "grad_norm") else n: v for n, v in metrics.items()}


def _vanilla(cfg: settings.GANVanilla) -> Game:
  def discriminator(real, fake, batch):
    del batch
    return losses.real(_only(real)) + losses.generated(_only(fake)), {}

  def generator(fake, real, batch):
    del real, batch
    return -losses.generated(_only(fake)) if cfg.saturating else losses.real(_only(fake))

  return Game(discriminator, generator, lambda logits: logits[:, 0])


def _hinge(cfg: settings.GANCond) -> Game:
  del cfg

  def discriminator(real, fake, batch):
    del batch
    return losses.hinge_real(_only(real)) + losses.hinge_generated(_only(fake)), {}

  def generator(fake, real, batch):
    del real, batch
    return -_only(fake)

  return Game(discriminator, generator, lambda logits: logits[:, 0])


def _only(result: net_lib.Result) -> jax.Array:
  """[b] of a discriminator with one logit."""
  return result.output[:, 0]


def _semi(cfg: settings.GANSemi) -> Game:
  def discriminator(real, fake, batch):
    labels, share = batch[contract.LABEL], _share_of_labelled(batch)
    logits = real.output
    entropy = losses.softmax_ce(logits, labels)
    apart = losses.real(losses.log_odds(logits)) + losses.generated(losses.log_odds(fake.output))
    hits = (logits.argmax(-1) == labels).astype(logits.dtype)
    return share * entropy + cfg.unsupervised * apart, {"accuracy": share * hits}

  def generator(fake, real, batch):
    if cfg.generator == "nonsaturating":
      return losses.real(losses.log_odds(fake.output))
    between = _mean(real.embedding, batch) - _mean(fake.embedding, batch)
    return jnp.full(len(fake.output), (between**2).sum())

  return Game(discriminator, generator, losses.log_odds, jax.nn.softmax)


def _mean(values: jax.Array, batch: contract.Batch) -> jax.Array:
  """[D] mean of [b, D] over the global batch."""
  mask = batch[contract.MASK].astype(values.dtype)
  sums = lax.psum((mask[:, None] * values).sum(0), contract.AXIS)
  return sums / lax.psum(mask.sum(), contract.AXIS)


def _share_of_labelled(batch: contract.Batch) -> jax.Array:
  """[b] weights whose mean over the global batch is that over its labelled images; or all 0."""
  mask = batch[contract.MASK].astype(jnp.result_type(float))
  known = mask * (batch[contract.LABEL] != contract.UNLABELLED)
  images, labelled = lax.psum((mask.sum(), known.sum()), contract.AXIS)
  return known * images / jnp.maximum(labelled, 1)


# Settings -> the end of the discriminator that the game needs, and the game.
GAMES: dict[type[settings.Adversarial], tuple[gan.End, Callable[[Any], Game]]] = {
  settings.GANVanilla: ("real", _vanilla),
  settings.GANSemi: ("classes", _semi),
  settings.GANCond: ("projection", _hinge),
}


def end(cfg: settings.Adversarial) -> gan.End:
  """How the discriminator of a game must end."""
  return GAMES[type(cfg)][0]


def make(
  cfg: settings.Adversarial,
  net: gan.Pair,
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> Adversarial:
  """Builds the objective; `net` is a pair that ends as `end` says.

  Raises:
    ValueError: for settings of the optimizer that fit one network alone.
  """
  if optimizer.accumulate > 1 or optimizer.freeze:
    raise ValueError(
      f"objective.name={cfg.name} trains two networks by turns: set optimizer.accumulate to 1 and "
      "leave optimizer.freeze empty"
    )
  game = GAMES[type(cfg)][1](cfg)
  return Adversarial(net, optimizer, augmenter, game, cfg.lr_ratio, cfg.d_steps, info.image_shape)
