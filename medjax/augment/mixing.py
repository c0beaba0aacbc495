"""Images mixed with their neighbours, and the share of itself that each keeps: mixup and CutMix.

The partner of an image stands in the next slot, 2i with 2i + 1 of a micro-batch: at random, since
the order is. Both halves of a pair lie on one device, so that nothing is sent, and draw once by the
first one's slot, so that any number of devices mixes the same images in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

from medjax import contract

# (key, batch of float images) -> (batch, share [b] of itself that each image keeps)
Mixer = Callable[[jax.Array, contract.Batch], tuple[contract.Batch, jax.Array]]


def make(mixup: float, cutmix: float) -> Mixer | None:
  """Builds the mixing; where both kinds are asked for, each pair draws one of them.

  Args:
    mixup: alpha of Beta(alpha, alpha), from which the share is drawn that is the image's own in
      every pixel (Zhang et al. 2018, "mixup", section 2); 0 is off.
    cutmix: alpha of the same for the area outside a box, which the two images exchange (Yun et al.
      2019, "CutMix", section 3.1); 0 is off.

  Returns:
    None where nothing is mixed; else a mixer, whose images are [b, H, W, C] and keep their dtype.
    Metadata are mixed by the share. An image whose partner only pads the batch stays whole.

  Raises:
    ValueError: when called on an odd number of slots, in which the last one has no partner.
  """
  if not mixup and not cutmix:
    return None
  kept = functools.partial(_kept, mixup, cutmix)

  def mixer(key: jax.Array, batch: contract.Batch) -> tuple[contract.Batch, jax.Array]:
    _check(len(batch[contract.SLOT]))
    images = batch[contract.IMAGE]
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch[contract.SLOT][::2])
    height, width = images.shape[1:3]
    own = jax.vmap(lambda key: kept(key, (height, width), images.dtype))(keys)
    own = jnp.repeat(own, 2, axis=0)  # [b, H, W]
    own = jnp.where(partners(batch[contract.MASK])[:, None, None] > 0, own, 1)
    share = own.mean(axis=(1, 2))
    mixed = {contract.IMAGE: _blend(images, own[..., None])}
    if contract.METADATA in batch:
      mixed[contract.METADATA] = _blend(batch[contract.METADATA], share[:, None])
    return batch | mixed, share

  return mixer


def partners(values: jax.Array) -> jax.Array:
  """[b, ...] of each slot's partner."""
  pairs = values.reshape(-1, 2, *values.shape[1:])
  return pairs[:, ::-1].reshape(values.shape)


def over_labels(
  fn: Callable[[jax.Array], jax.Array], labels: jax.Array, share: jax.Array | None
) -> jax.Array:
  """What `fn` gives for the labels [b, ...]; of mixed images, for both labels by their shares.

  For a loss that is linear in the target this is the loss of the mixed target; for any other it is
  what mixup means.
  """
  if share is None:
    return fn(labels)
  return share * fn(labels) + (1 - share) * fn(partners(labels))


def _check(slots: int) -> None:
  if slots % 2:
    raise ValueError(
      f"objective.mixup and objective.cutmix take pairs of images, and each device has {slots} "
      "slots of a (micro-)batch: make train.batch_size / (devices x optimizer.accumulate) even"
    )


def _blend(values: jax.Array, own: jax.Array) -> jax.Array:
  return (own * values + (1 - own) * partners(values)).astype(values.dtype)


def _kept(
  mixup: float, cutmix: float, key: jax.Array, size: tuple[int, int], dtype: jnp.dtype
) -> jax.Array:
  """[H, W] in [0, 1]: how much of each of a pair's pixels stays its own."""
  which, share, box = jax.random.split(key, 3)
  boxed = jax.random.bernoulli(which) if mixup and cutmix else bool(cutmix)
  alpha = jnp.where(boxed, cutmix, mixup)
  kept = jax.random.beta(share, alpha, alpha, dtype=dtype)
  return jnp.where(boxed, _outside(box, kept, size, dtype), kept)


def _outside(key: jax.Array, area: jax.Array, size: tuple[int, int], dtype: jnp.dtype) -> jax.Array:
  """[H, W], 0 in a box about any pixel, cut off at the edges, and 1 in the share `area` or more."""
  rows, columns = (
    _outside_run(at, length, jnp.sqrt(1 - area))
    for at, length in zip(jax.random.split(key), size, strict=True)
  )
  return (rows[:, None] | columns).astype(dtype)


def _outside_run(key: jax.Array, length: int, share: jax.Array) -> jax.Array:
  """[length] bool, False in a run of `share` of the length, rounded down, about a random pixel."""
  side = (share * length).astype(jnp.int32)
  start = jax.random.randint(key, (), 0, length) - side // 2
  at = jnp.arange(length)
  return (at < start) | (at >= start + side)
