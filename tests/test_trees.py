"""Paths in nested dicts, and the account of weights that move to another net."""

import itertools

import numpy as np

from medjax import trees


def test_flatten_and_back():
  tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
  flat = trees.flatten(tree)
  assert flat == {"a/b": 1, "a/c/d": 2, "e": 3}
  assert trees.unflatten(flat) == tree


NET = {"a": {"kernel": 1, "bias": 2}, "b": {"c": {"kernel": 3}}, "bias": 4}


def test_split_by_path():
  biases, others = trees.split(NET, lambda path: path.endswith("bias"))
  assert biases == {"a": {"bias": 2}, "bias": 4}
  assert others == {"a": {"kernel": 1}, "b": {"c": {"kernel": 3}}}  # no empty branch


def test_all_or_nothing_may_be_wanted():
  assert trees.split(NET, lambda path: True) == (NET, {})
  assert trees.split(NET, lambda path: False) == ({}, NET)


def test_merge_gives_back_what_was_split():
  paths = list(trees.flatten(NET))
  for chosen in itertools.product([False, True], repeat=len(paths)):
    wanted = dict(zip(paths, chosen, strict=True))
    first, second = trees.split(NET, wanted.__getitem__)
    assert trees.count(first) == sum(chosen)
    assert trees.merge(first, second) == trees.merge(second, first) == NET


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
