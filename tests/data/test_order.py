"""Orders against what they promise, counted by brute force."""

import numpy as np
import pytest

from medjax import settings
from medjax.data.feed import order

LABELS = np.repeat([0, 1, 2, 3], [300, 60, 30, 3])
POLICIES = {
  "shuffled": settings.Feeding(),
  "balanced": settings.Feeding(sampling="class_balanced"),
  "root": settings.Feeding(sampling="square_root"),
  "weights": settings.Feeding(weights=(3.0, 1.0)),
  "balanced, weights": settings.Feeding(sampling="class_balanced", weights=(1.0, 1.0)),
  "sharded": settings.Feeding(shards=4),
  "balanced, sharded": settings.Feeding(sampling="class_balanced", shards=2),
  "blocks": settings.Feeding(block=10, window=5),
  "blocks, sharded": settings.Feeding(block=10, window=8, shards=4),
}
SETS = np.arange(len(LABELS)) % 7 // 6  # one in seven is of the second set


def make(name: str, batch_size: int = 12, seed: int = 5) -> order.Order:
  return order.make(len(LABELS), batch_size, seed, POLICIES[name], 1, LABELS, SETS)


def drawn(of: order.Order, draws: int) -> np.ndarray:
  return of.rows(range(-(-draws // of.batch_size))).ravel()[:draws]


def test_shuffled_epochs_stay_what_they_were():
  """Runs of old must go on as they began; these rows were drawn by the first version."""
  rows = drawn(order.make(13, 4, 7, settings.Feeding()), 24)
  first, second = [9, 4, 3, 7, 0, 6, 1, 12, 8, 2, 11, 10, 5], [6, 11, 12, 4, 5, 9, 1, 10, 2, 8, 3]
  assert rows.tolist() == first + second


@pytest.mark.parametrize("name", POLICIES)
def test_a_batch_is_of_seed_and_step_alone(name):
  one, other = make(name), make(name)
  for step in (70, 3, 0, 41, 3):  # as resumed runs ask, in no order
    np.testing.assert_array_equal(
      one.rows(range(step, step + 1))[0], drawn(other, 12 * step + 12)[-12:]
    )
  assert not np.array_equal(drawn(one, 120), drawn(make(name, seed=6), 120))


@pytest.mark.parametrize("name", ["shuffled", "blocks"])
def test_an_epoch_holds_every_row_once(name):
  epochs = drawn(make(name), 3 * len(LABELS)).reshape(3, -1)
  np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(len(LABELS)), (3, 1)))
  assert not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("name", [name for name in POLICIES if "block" not in name])
def test_every_row_of_a_stratum_comes_once_before_any_comes_again(name):
  of = make(name)
  rows = drawn(of, 5000)
  class_of = LABELS if "balanced" in name or name == "root" else np.zeros_like(LABELS)
  shard_of = np.empty_like(LABELS)
  for shard, members in enumerate(of.members):
    shard_of[members] = shard
  set_of = SETS if "weights" in name else np.zeros_like(LABELS)
  for stratum in set(zip(class_of, shard_of, set_of, strict=True)):
    chosen = (class_of == stratum[0]) & (shard_of == stratum[1]) & (set_of == stratum[2])
    series, size = rows[chosen[rows]], chosen.sum()
    for epoch in range(len(series) // size):
      assert len(set(series[epoch * size : (epoch + 1) * size])) == size


@pytest.mark.parametrize(
  ("name", "shares"),
  [
    ("balanced", [1, 1, 1, 1]),
    ("balanced, sharded", [1, 1, 1, 1]),
    ("root", np.sqrt([300, 60, 30, 3])),
    ("shuffled", [300, 60, 30, 3]),
  ],
)
def test_classes_are_drawn_by_their_shares(name, shares):
  counts = np.bincount(LABELS[drawn(make(name), 40_000)])
  expected = 40_000 * np.asarray(shares) / np.sum(shares)
  np.testing.assert_allclose(counts, expected, rtol=0.02, atol=20)


def test_balanced_classes_are_mixed_within_every_few_batches():
  """Not class by class: the draws of 120 have a spread as a shuffle has."""
  windows = LABELS[drawn(make("balanced"), 12_000)].reshape(100, 120)
  counts = np.stack([np.bincount(window, minlength=4) for window in windows])
  assert counts.min() > 10 and counts.max() < 50  # 30 expected, 4 deviations of 4.7


def test_sets_are_drawn_by_their_weights():
  assert SETS[drawn(make("weights"), 40_000)].mean() == pytest.approx(0.25, abs=0.002)
  both = drawn(make("balanced, weights"), 40_000)
  assert SETS[both].mean() == pytest.approx(0.5, abs=0.005)
  for number in (0, 1):
    present = np.unique(LABELS[number == SETS])
    shares = np.bincount(LABELS[both[SETS[both] == number]]) / (SETS[both] == number).sum()
    np.testing.assert_allclose(shares[present], 1 / len(present), atol=0.01)


@pytest.mark.parametrize("shards", [2, 4, 6])
@pytest.mark.parametrize("block", [0, 10])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_shard_has_rows_and_slots_of_its_own(shards, block, accumulate):
  cfg = settings.Feeding(shards=shards, block=block)
  of = order.make(397, 24, 3, cfg, accumulate)
  sizes = list(map(len, of.members))
  np.testing.assert_array_equal(np.sort(np.concatenate(of.members)), np.arange(397))
  assert max(sizes) - min(sizes) <= 1
  slots = np.repeat(np.tile(np.arange(shards), accumulate), 24 // shards // accumulate)
  for step in range(40):
    rows = of.rows(range(step, step + 1))[0]
    for shard in range(shards):
      assert set(rows[slots == shard]) <= set(of.members[shard])


def test_rows_of_blocks_lie_in_few_runs_of_neighbours():
  """1,000 rows in blocks of 50, windows of 4: at most 4 runs and two cut ones a window."""
  stream = order.local(1000, 1000, 50, 200, 11)
  for window in range(12):
    rows = stream.run(window)
    lying = np.sort(rows)
    assert len(rows) == 200
    assert (np.diff(lying) > 1).sum() + 1 <= 6
    assert (np.diff(rows) == 1).sum() < 10  # shuffled: 1 expected
  for epoch in range(2):
    windows = [set(stream.run(5 * epoch + number)) for number in range(5)]
    assert set().union(*windows) == set(range(1000))
  assert set(stream.run(0)) != set(stream.run(5))  # other blocks meet in the next epoch


def test_windows_of_all_shards_start_and_end_together():
  of = make("blocks, sharded")
  assert len({tuple(stream.starts) for stream in of.streams}) == 1
  assert {len(m) for m in of.members} == {98, 99}
  counts = np.bincount(drawn(of, 99 * 4), minlength=len(LABELS))
  assert counts.min() == 1 and counts.max() == 2 and (counts == 2).sum() == 3  # 4 x 99 - 393


@pytest.mark.parametrize(
  ("cfg", "text"),
  [
    (settings.Feeding(shards=5), "shards=5 does not divide the 12 images"),
    (settings.Feeding(sampling="class_balanced", block=8), "set data.feeding.block=0"),
    (settings.Feeding(weights=(1.0,)), "must be 2 numbers above 0"),
    (settings.Feeding(weights=(1.0, 0.0)), "must be 2 numbers above 0"),
    (settings.Feeding(sampling="class_balanced", shards=4), "a class of 3 images .* set that to 3"),
  ],
)
def test_settings_that_do_not_fit_are_told(cfg, text):
  with pytest.raises(ValueError, match=text):
    order.make(len(LABELS), 12, 0, cfg, 1, LABELS, SETS)


@pytest.mark.parametrize("labels", [np.zeros((9, 2), np.float32), np.full(9, -1)])
def test_sampling_by_class_needs_one_class_an_image(labels):
  with pytest.raises(ValueError, match="needs one class an image"):
    order.make(9, 3, 0, settings.Feeding(sampling="square_root"), 1, labels)


def test_more_shards_than_images():
  with pytest.raises(ValueError, match="shards=4 are more than the part's 3 images"):
    order.make(3, 8, 0, settings.Feeding(shards=4))
