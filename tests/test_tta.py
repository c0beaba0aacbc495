"""Test-time augmentation: views go by the image and the seed, and their scores are averaged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import augment as augment_lib
from medjax import contract, evaluate, settings, views
from medjax import mesh as mesh_lib
from medjax.data import catalogue, feed

N, CLASSES = 43, ("a", "b", "c")
AUGMENT = settings.Augment(brightness=0.3, hflip=True, noise=0.1)
KEY = jax.random.key(7)


def part(dtype: type = np.uint8) -> catalogue.Part:
  rng = np.random.default_rng(0)
  images = rng.integers(0, np.iinfo(dtype).max, (N, 16, 16, 1), dtype, endpoint=True)
  ids = np.asarray([f"{i}.png" for i in range(N)])
  labels = rng.integers(0, 3, N).astype(np.int32)
  return catalogue.Part("test", ids, ids, labels, images.__getitem__, images)


def drawn(mesh, batch_size: int, count: int, dtype: type = np.uint8) -> list[np.ndarray]:
  """The images [n, H, W, C] of each view, through batches on a mesh."""
  images = part(dtype)
  batches = feed.sequential(images, batch_size, mesh)
  found = views.drawn(augment_lib.make(AUGMENT), KEY, count, mesh)
  try:
    return [
      evaluate.table(lambda _, ticket, view=view: view(ticket)[contract.IMAGE], None, batches)
      for view in found
    ]
  finally:
    batches.close()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_view_is_the_augmentation_by_the_images_number(mesh1, dtype):
  found, top = drawn(mesh1, 16, 2, dtype), np.iinfo(dtype).max
  augmenter = jax.jit(augment_lib.make(AUGMENT))
  for number, seen in enumerate(found):
    key, pixels = jax.random.fold_in(KEY, number), np.float32(part(dtype).images / top)
    truth = augmenter(key, pixels, np.arange(N))
    assert seen.dtype == dtype
    np.testing.assert_allclose(seen / top, np.clip(truth, 0, 1), atol=0.51 / top + 1e-5)
  assert (found[0] != found[1]).any() and (found[0] != part(dtype).images).any()


@pytest.fixture(scope="module")
def alone():
  return drawn(mesh_lib.make(jax.devices()[:1]), 64, 1)[0]


def test_views_depend_neither_on_batches_nor_on_devices_nor_on_how_many_there_are(mesh, alone):
  found = drawn(mesh, 10, 3)[0]
  # Devices may round a pixel that lies between two greys to either.
  assert np.abs(found.astype(int) - alone).max() <= 1
  assert (found != alone).mean() < 0.01


class Rule:
  """An objective whose network is a rule: classes by the grey of an image's halves."""

  def forward(self, state, batch) -> contract.Outputs:
    grey = batch[contract.IMAGE][..., 0] / 255
    halves = [grey[:, :8].mean((1, 2)), grey[:, 8:].mean((1, 2)), grey[:, :, 8:].mean((1, 2))]
    return contract.Outputs(jax.nn.softmax(state * jnp.stack(halves, axis=-1)), jnp.zeros(()))


def test_the_scores_of_views_are_averaged():
  mesh, images, state = mesh_lib.make(jax.devices()[:3]), part(), jnp.asarray(9.0)
  seen = [images.images, *drawn(mesh, 10, 2)]
  each = [np.asarray(Rule().forward(state, {contract.IMAGE: one}).scores) for one in seen]
  looks = [views.plain, *views.drawn(augment_lib.make(AUGMENT), KEY, 2, mesh)]
  look = evaluate.averaged(evaluate.scorer(Rule(), mesh), looks)
  batches = feed.sequential(images, 10, mesh)
  found = evaluate.predict(look, mesh_lib.put(mesh, state), batches, images, CLASSES)
  np.testing.assert_allclose(found.scores, np.mean(each, axis=0), atol=1e-5)
  assert np.abs(found.scores - each[0]).max() > 1e-3


def test_what_is_known_of_the_patients_goes_with_the_scores(mesh1):
  images = dataclasses.replace(part(), facts={"sex": np.array(["f", "m"])[np.arange(N) % 2]})
  batches = feed.sequential(images, 16, mesh1)
  found = evaluate.predict(lambda _, ticket: jnp.ones((1, 16, 3)), None, batches, images, CLASSES)
  np.testing.assert_array_equal(found.metadata["sex"], images.facts["sex"])
