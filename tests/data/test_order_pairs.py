"""Orders that lay two images of one group side by side, counted by brute force."""

import collections

import jax
import numpy as np
import pytest

from medjax import contract, settings
from medjax import mesh as mesh_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib
from medjax.data.feed import order

GROUPS = np.array([f"patient {i}" for i, n in enumerate([1, 2, 3, 4, 5, 1, 7]) for _ in range(n)])
GROUPS = GROUPS[np.random.default_rng(0).permutation(len(GROUPS))]
EPOCH = 2 * sum(-(-n // 2) for n in [1, 2, 3, 4, 5, 1, 7])


def make(seed: int = 5, batch_size: int = 6, **feeding) -> order.Order:
  cfg = settings.Feeding(**feeding)
  return order.make(len(GROUPS), batch_size, seed, cfg, groups=GROUPS)


def drawn(of: order.Order, draws: int) -> np.ndarray:
  return of.rows(range(-(-draws // of.batch_size))).ravel()[:draws]


def test_pairs_are_of_one_group_and_of_two_images_where_it_has_two():
  for one, other in drawn(make(), 40 * EPOCH).reshape(-1, 2):
    assert GROUPS[one] == GROUPS[other]
    assert (one == other) == ((GROUPS[one] == GROUPS).sum() == 1)


def test_an_epoch_holds_every_row_and_one_of_each_odd_group_twice():
  for epoch in drawn(make(), 10 * EPOCH).reshape(10, EPOCH):
    times = np.bincount(epoch, minlength=len(GROUPS))
    assert times.min() == 1 and times.max() == 2
    twice = GROUPS[times == 2].tolist()
    odd = [name for name, n in collections.Counter(GROUPS.tolist()).items() if n % 2]
    assert sorted(twice) == sorted(odd)


def test_every_image_meets_every_other_of_its_group():
  pairs = {tuple(sorted(pair)) for pair in drawn(make(), 200 * EPOCH).reshape(-1, 2).tolist()}
  rows = range(len(GROUPS))
  assert {p for p in pairs if p[0] != p[1]} == {
    (a, b) for a in rows for b in rows if a < b and GROUPS[a] == GROUPS[b]
  }


def test_groups_come_in_random_order():
  firsts = [GROUPS[drawn(make(seed), 2)[0]] for seed in range(200)]
  pairs = {name: -(-n // 2) for name, n in collections.Counter(GROUPS.tolist()).items()}
  for name, count in pairs.items():
    expected = 200 * count * 2 / EPOCH
    assert abs(firsts.count(name) - expected) < 4 * np.sqrt(expected)


def test_a_batch_is_of_seed_and_step_alone():
  one, other = make(), make()
  for step in (30, 3, 0, 17, 3):
    np.testing.assert_array_equal(
      one.rows(range(step, step + 1))[0], drawn(other, 6 * step + 6)[-6:]
    )
  assert not np.array_equal(drawn(one, 120), drawn(make(6), 120))


@pytest.mark.parametrize("devices", [1, 8])
def test_a_feed_lays_pairs_into_neighbouring_slots(devices):
  images = np.arange(len(GROUPS), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), "u1")
  labels = np.full(len(GROUPS), contract.UNLABELLED, np.int32)
  part = catalogue.Part("train", GROUPS, GROUPS, labels, images.__getitem__, images)
  mesh = mesh_lib.make(jax.devices()[:devices])
  feed = feed_lib.training(part, 14, 3, mesh, "resident", pairs=True)
  ticket = jax.device_get(feed.next(5))
  slots = ticket[contract.SLOT][0]
  assert (ticket[contract.MASK] == (slots < 14)).all()
  for rows in ticket[contract.INDEX]:
    by_slot = rows[np.argsort(slots)][:14]
    np.testing.assert_array_equal(GROUPS[by_slot[0::2]], GROUPS[by_slot[1::2]])


@pytest.mark.parametrize(
  ("asked", "text"),
  [
    (dict(batch_size=5), r"train\.batch_size=5 is odd"),
    (dict(shards=2), r"data\.feeding\.shards=2 does not go with .* set it to 1"),
    (dict(block=8), r"data\.feeding\.block=8 does not go with .* set it to 0"),
    (dict(sampling="square_root"), r"sampling='square_root' .* set it to 'shuffled'"),
    (dict(weights=(1.0,)), r"data\.feeding\.weights=\(1\.0,\) does not go with .* set it to \(\)"),
  ],
)
def test_what_does_not_go_with_pairs_is_told(asked, text):
  with pytest.raises(ValueError, match=text):
    make(**asked)


def test_images_without_others_of_their_group_are_counted():
  assert order.alone(GROUPS) == 2
