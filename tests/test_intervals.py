"""Intervals and paired differences against plain Python loops, scipy and the truth they cover."""

import dataclasses

import noisy
import numpy as np
import pytest
from scipy import stats

from medjax import metrics
from medjax.metrics import rates


def _brute_force(table, drawn):
  """The summaries of resamples of whole groups, by repeating rows."""
  known = np.unique(table.groups)
  for times in drawn:
    rows = [
      np.repeat(np.flatnonzero(table.groups == g), t) for g, t in zip(known, times, strict=True)
    ]
    yield metrics.summary(noisy.rows(table, np.concatenate(rows)))


@pytest.mark.parametrize("k", [2, 3])
def test_intervals_are_those_of_a_loop_over_repeated_rows(k):
  table = noisy.table(n=40, k=k, groups=12)
  wanted = [n for n in metrics.names(k) if n != "group_recognition"]  # repeats split a group there
  found = metrics.intervals(table, wanted, 80, seed=5)
  drawn = np.concatenate(list(metrics.draws(len(np.unique(table.groups)), 80, seed=5, rows=80)))
  looped = list(_brute_force(table, drawn))
  for name in wanted:
    assert found[name].value == pytest.approx(metrics.summary(table)[name], abs=1e-12)
    assert found[name].defined == 1
    expected = np.percentile([each[name] for each in looped], [2.5, 97.5])
    np.testing.assert_allclose(found[name][1:3], expected, atol=1e-12, err_msg=name)


def test_draws_are_multinomial_and_do_not_depend_on_the_blocks():
  whole = next(metrics.draws(7, 4000, seed=1, rows=4000))
  parts = np.concatenate(list(metrics.draws(7, 4000, seed=1, rows=333)))
  np.testing.assert_array_equal(whole, parts)
  np.testing.assert_array_equal(whole.sum(1), 7)
  np.testing.assert_allclose(whole.mean(0), 1, atol=0.06)  # standard error 0.015
  np.testing.assert_allclose(whole.var(0), 6 / 7, atol=0.1)


def test_intervals_do_not_depend_on_the_order_of_rows():
  table = noisy.table()
  shuffled = noisy.rows(table, np.random.default_rng(9).permutation(len(table.ids)))
  first, second = (metrics.intervals(t, metrics.names(3), 200, seed=2) for t in (table, shuffled))
  for name in first:
    np.testing.assert_allclose(first[name], second[name], atol=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
  rng, hits, tables = np.random.default_rng(0), 0, 150
  for seed in range(tables):
    right = rng.random(120) < 0.8
    table = dataclasses.replace(noisy.table(n=120, k=2), groups=np.arange(120))
    table = dataclasses.replace(table, labels=np.where(right, table.predicted, 1 - table.predicted))
    low, high = metrics.intervals(table, ["accuracy"], 400, seed)["accuracy"][1:3]
    hits += low <= 0.8 <= high
  assert 0.88 <= hits / tables <= 0.99


def test_groups_widen_the_interval_where_their_images_agree():
  table = noisy.table(n=40, k=2, groups=40)
  copies = noisy.rows(table, np.repeat(np.arange(40), 5))
  alone = dataclasses.replace(copies, groups=np.arange(200).astype(str))
  grouped = dataclasses.replace(copies, groups=np.repeat(np.arange(40), 5).astype(str))
  width = {}
  for name, t in (("alone", alone), ("grouped", grouped)):
    _, low, high, _ = metrics.intervals(t, ["accuracy"], 2000, seed=0)["accuracy"]
    width[name] = high - low
  assert width["grouped"] == pytest.approx(np.sqrt(5) * width["alone"], rel=0.15)


def test_a_table_does_not_differ_from_itself():
  table = noisy.table()
  shuffled = noisy.rows(table, np.random.default_rng(1).permutation(len(table.ids)))
  for name, found in metrics.paired(table, shuffled, metrics.names(3), 300, seed=0).items():
    np.testing.assert_allclose(found, (0, 0, 0, 1, 1), atol=1e-12, err_msg=name)


def test_paired_difference_is_that_of_a_loop_and_narrower_than_two_intervals():
  a, noise = (
    noisy.table(n=60, k=2, groups=20, decimals=9),
    np.random.default_rng(4).normal(size=(60, 2)),
  )
  b = dataclasses.replace(a, scores=a.scores + 0.15 * noise)
  found = metrics.paired(a, b, ["auc"], 80, seed=3)["auc"]
  drawn = np.concatenate(list(metrics.draws(len(np.unique(a.groups)), 80, seed=3, rows=80)))
  each = [np.array([s["auc"] for s in _brute_force(t, drawn)]) for t in (a, b)]
  np.testing.assert_allclose(found[1:3], np.percentile(each[0] - each[1], [2.5, 97.5]), atol=1e-12)
  assert found.value == pytest.approx(metrics.summary(a)["auc"] - metrics.summary(b)["auc"])
  widths = [np.ptp(np.percentile(e, [2.5, 97.5])) for e in each]
  assert found.high - found.low < sum(widths)


def test_paired_p_value_is_small_only_for_a_real_difference():
  good = noisy.table(n=200, k=2, groups=200, decimals=9)
  good = dataclasses.replace(good, groups=good.ids)
  coin = np.random.default_rng(0).random(200)
  chance = dataclasses.replace(good, scores=np.stack([1 - coin, coin], 1))
  other = dataclasses.replace(good, scores=np.stack([coin, 1 - coin], 1))
  better = metrics.paired(good, chance, ["auc"], 999, seed=0)["auc"]
  assert better.low > 0 and better.p == pytest.approx(2 / 1000)
  worse = metrics.paired(chance, good, ["auc"], 999, seed=0)["auc"]
  np.testing.assert_allclose(worse[:3], (-better.value, -better.high, -better.low))
  assert metrics.paired(chance, other, ["accuracy"], 999, seed=0)["accuracy"].p > 0.05


def test_tables_of_other_images_labels_or_classes_are_not_compared():
  table = noisy.table()
  fewer = noisy.rows(table, np.arange(59))
  with pytest.raises(ValueError, match=r"60 and 59 rows, 1 only in the first .* image59"):
    metrics.paired(table, fewer, ["auc"], 10, seed=0)
  relabelled = dataclasses.replace(table, labels=(table.labels + 1) % 3)
  with pytest.raises(ValueError, match="another label or group, first 'image0'"):
    metrics.paired(table, relabelled, ["auc"], 10, seed=0)
  with pytest.raises(ValueError, match="other classes"):
    metrics.paired(table, dataclasses.replace(table, classes=("x", "y", "z")), ["auc"], 10, seed=0)


def test_wilson_bounds_are_those_of_scipy():
  hits, total = np.array([0, 1, 5, 9, 10, 481]), np.array([10, 10, 10, 10, 10, 500])
  low, high = rates.wilson(hits, total)
  for i, (k, n) in enumerate(zip(hits, total, strict=True)):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose((low[i], high[i]), expected, atol=1e-12)
  np.testing.assert_array_equal(rates.wilson(0, 0), (0, 1))


@pytest.mark.parametrize("several", [False, True])
def test_wilson_intervals_of_a_table_are_those_of_its_counts(several):
  table = noisy.table(n=50, k=3, decimals=2)
  if several:
    table = dataclasses.replace(table, labels=np.eye(3, dtype=np.float32)[table.labels])
  found = metrics.wilson(table)
  own, given = table.members, table.assigned
  for c in range(3):
    cells = {
      "sensitivity": given[own[:, c], c],
      "specificity": ~given[~own[:, c], c],
      "ppv": own[given[:, c], c],
      "npv": ~own[~given[:, c], c],
      "accuracy": own[:, c] == given[:, c],
    }
    assert found.keys() == cells.keys()
    for name, right in cells.items():
      bounds = stats.binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
      np.testing.assert_allclose(found[name][c], (right.mean(), *bounds, 1), atol=1e-12)


def test_a_perfect_rate_has_a_wilson_interval_with_width_and_no_bootstrap_one():
  table = dataclasses.replace(noisy.table(n=20, k=2), labels=np.arange(20) % 2)
  table = dataclasses.replace(table, scores=np.eye(2)[table.labels])
  assert metrics.by_class(table, 50, seed=0)["sensitivity"][1][:3] == (1, 1, 1)
  wilson = metrics.wilson(table)["sensitivity"][1]
  np.testing.assert_allclose(
    wilson[:3], (1, 1 / (1 + rates.Z95**2 / 10), 1)
  )  # closed form, 10 of 10


def test_intervals_of_a_class_are_those_of_it_against_the_rest():
  table = noisy.table(n=80, k=3, groups=30, decimals=6)
  found = metrics.by_class(table, 90, seed=4)
  for c in range(3):
    chosen = (table.predicted == c).astype(float)
    two = dataclasses.replace(
      table,
      labels=(table.labels == c).astype(int),
      scores=np.stack([1 - chosen, chosen], 1),
      classes=("rest", "class"),
    )
    ranked = dataclasses.replace(
      two, scores=np.stack([1 - table.scores[:, c], table.scores[:, c]], 1)
    )
    expected = metrics.intervals(two, ("sensitivity", "ppv", "f0.5", "accuracy"), 90, seed=4)
    expected |= metrics.intervals(ranked, ("auc", "ap"), 90, seed=4)
    for name, interval in expected.items():
      np.testing.assert_allclose(found[name][c], interval, atol=1e-12, err_msg=name)


def test_few_groups_and_rare_classes_are_told():
  table = noisy.table(n=200, k=2, groups=120)
  assert metrics.cautions(table) == []
  few = dataclasses.replace(table, groups=np.arange(200) % 49)
  assert ["Only 49 groups" in said for said in metrics.cautions(few)] == [True]
  assert metrics.cautions(dataclasses.replace(table, groups=np.arange(200) % 50)) == []
  for images, told in ((9, True), (10, False)):
    rare = dataclasses.replace(table, labels=(np.arange(200) < images).astype(int))
    assert ["images of class1 (9)" in said for said in metrics.cautions(rare)] == [True] * told


def test_weights_that_are_none_are_refused():
  table = noisy.table(k=2)
  for weights in (np.ones(59), np.full(60, -1.0), np.full(60, np.nan)):
    with pytest.raises(ValueError, match="for 60 images: give each a finite one"):
      metrics.summary(table, weights)
