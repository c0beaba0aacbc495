"""Two views of an image side by side, and what their embeddings tell.

Views are neighbours: slots 2i and 2i + 1 hold what belongs together, so that whatever goes by slot
(randomness, batch-norm groups) stays independent of the devices, and the positive of slot s is
s ^ 1.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from medjax import augment, contract
from medjax.objectives import base

_KEPT = (contract.IMAGE, contract.MASK, contract.SLOT)  # no label is looked at


def doubled(batch: contract.Batch) -> contract.Batch:
  """[2b]: each image of the batch twice, in slots 2i and 2i + 1 for its slot i."""
  twice = {name: jnp.repeat(batch[name], 2, axis=0) for name in _KEPT}
  sides = jnp.arange(len(twice[contract.SLOT])) % 2
  return {**twice, contract.SLOT: 2 * twice[contract.SLOT] + sides}


def paired(batch: contract.Batch) -> contract.Batch:
  """[b]: the batch of an order that itself lays pairs into slots 2i and 2i + 1."""
  return {name: batch[name] for name in _KEPT}


def augmented(
  augmenter: augment.Augmenter, batch: contract.Batch, key: jax.Array
) -> contract.Batch:
  """The batch with its pixels in [0, 1], changed at random by slot."""
  floats = base.with_floats(batch)
  images = augmenter(key, floats[contract.IMAGE], batch[contract.SLOT])
  return {**floats, contract.IMAGE: images}


def others(values: jax.Array) -> jax.Array:
  """[2b, ...] each row's neighbour: rows 2i and 2i + 1 exchanged."""
  return values.reshape(-1, 2, *values.shape[1:])[:, ::-1].reshape(values.shape)


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
