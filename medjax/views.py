"""Other views of the images that a trained network scores: drawn at random, or bereft of something.

A view takes a ticket, batches of a feed on the mesh, to one that differs in its images alone, so
that the network which is compiled for the one scores the other. Images stay integers: what a view
makes of them is rounded to their type.
"""

from __future__ import annotations

from collections.abc import Callable
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from medjax import augment, contract, pixels
from medjax import mesh as mesh_lib

Ticket = dict[str, jax.Array]
View = Callable[[Ticket], Ticket]
# (key, images [b, H, W, C] in [0, 1], the images' numbers in their part [b]) -> images alike
Change = augment.Augmenter

BLOCKS = 4  # to a side, that `shuffled` puts elsewhere


def plain(ticket: Ticket) -> Ticket:
  """The images as they are."""
  return ticket


def of(change: Change, mesh: Mesh) -> Callable[[jax.Array, Ticket], Ticket]:
  """(key, ticket) -> ticket with changed images; compiled once for all keys.

  What is random about an image goes by the key and its number in its part, so that neither batches
  nor devices matter.
  """

  def changed(key: jax.Array, images: jax.Array, numbers: jax.Array) -> jax.Array:
    top = jnp.iinfo(images.dtype).max
    seen = jnp.clip(change(key, pixels.to_float(images), numbers), 0, 1)
    return jnp.round(seen * top).astype(images.dtype)

  def each(key: jax.Array, images: jax.Array, numbers: jax.Array) -> jax.Array:
    return lax.map(lambda batch: changed(key, *batch), (images, numbers))

  cut = mesh_lib.cut(1)
  program = mesh_lib.mapped(each, mesh, (mesh_lib.REPLICATED, cut, cut), cut)

  def view(key: jax.Array, ticket: Ticket) -> Ticket:
    images = program(key, ticket[contract.IMAGE], ticket[contract.INDEX])
    return {**ticket, contract.IMAGE: images}

  return view


def drawn(augmenter: augment.Augmenter, key: jax.Array, count: int, mesh: Mesh) -> list[View]:
  """Views by a stage's own augmentation; more views begin with those of fewer.

  Args:
    augmenter: draws them. key: of all of them. count: how many. mesh: on which the tickets lie.
  """
  view = of(augmenter, mesh)
  keys = [mesh_lib.put(mesh, jax.random.fold_in(key, number)) for number in range(count)]
  return [functools.partial(view, each) for each in keys]


def hidden(where: np.ndarray, mean: tuple[float, ...]) -> Change:
  """Paints over a part of every image.

  Args:
    where: [H, W] bool. mean: what is painted, a value in [0, 1] a channel.
  """
  return lambda key, images, numbers: jnp.where(where[..., None], jnp.asarray(mean), images)


def centre(shape: tuple[int, int, int]) -> np.ndarray:
  """[H, W] bool, the middle rectangle that holds half of an image."""
  rows, columns = (
    np.abs(2 * np.arange(side) + 1 - side) < side * np.sqrt(0.5) for side in shape[:2]
  )
  return rows[:, None] & columns


def shuffled(key: jax.Array, images: jax.Array, numbers: jax.Array) -> jax.Array:
  """Puts `BLOCKS` x `BLOCKS` blocks of every image elsewhere; rows and columns over stay there."""
  high, wide = (side // BLOCKS for side in images.shape[1:3])

  def one(image: jax.Array, number: jax.Array) -> jax.Array:
    order = jax.random.permutation(jax.random.fold_in(key, number), BLOCKS * BLOCKS)
    inner = image[: high * BLOCKS, : wide * BLOCKS]
    blocks = inner.reshape(BLOCKS, high, BLOCKS, wide, -1).swapaxes(1, 2)
    moved = blocks.reshape(BLOCKS * BLOCKS, high, wide, -1)[order].reshape(blocks.shape)
    return image.at[: high * BLOCKS, : wide * BLOCKS].set(moved.swapaxes(1, 2).reshape(inner.shape))

  return jax.vmap(one)(images, numbers)
