"""Paths in nested dicts, and the account of weights that move to another net."""

import numpy as np

from medjax import trees


def test_flatten_and_back():
  tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
  flat = trees.flatten(tree)
  assert flat == {"a/b": 1, "a/c/d": 2, "e": 3}
  assert trees.unflatten(flat) == tree


def test_count():
  assert trees.count({"a": np.zeros((2, 3)), "b": {"c": np.float32(1)}}) == 7


def test_every_tensor_is_accounted_for():
  target = {"same": np.zeros(2), "head": np.zeros((4, 3)), "stem": np.zeros((3, 3, 1, 2))}
  source = {"same": np.ones(2), "head": np.ones((4, 2)), "stem": np.ones((3, 3, 3, 2)), "old": 1}
  merged, account = trees.transfer(target, source)
  assert account == trees.Account(("same",), ("stem",), ("head",), ("head", "old"))
  np.testing.assert_array_equal(merged["same"], 1)
  np.testing.assert_array_equal(merged["head"], 0)
  for path in ("same", "stem", "head", "old"):
    assert path in str(account) or path in account.loaded


def test_a_colour_stem_on_grey_images_gives_what_it_gave_on_grey_in_colour():
  rng = np.random.default_rng(0)
  colour, grey = rng.normal(size=(1, 1, 3, 5)), rng.normal(size=(7, 1))
  one, _ = trees.transfer({"k": np.zeros((1, 1, 1, 5))}, {"k": colour})
  np.testing.assert_allclose(grey @ one["k"][0, 0], np.repeat(grey, 3, 1) @ colour[0, 0])
  three, _ = trees.transfer({"k": np.zeros((1, 1, 3, 5))}, {"k": one["k"]})
  np.testing.assert_allclose(np.repeat(grey, 3, 1) @ three["k"][0, 0], grey @ one["k"][0, 0])


def test_types_stay_the_targets():
  merged, _ = trees.transfer({"k": np.zeros(2, np.float32)}, {"k": np.ones(2, np.float64)})
  assert merged["k"].dtype == np.float32
