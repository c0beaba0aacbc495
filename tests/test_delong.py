"""DeLong's intervals and tests: published examples, R's pROC, all pairs by brute force."""

import dataclasses
import math

import numpy as np
import pytest

from medjax import contract, metrics
from medjax.metrics import delong

# DeLong, DeLong and Clarke-Pearson (1988): 43 complete patients with ovarian cancer; albumin, total
# protein, Krebs-Goplerud score (high is bad), and whether surgery helped. What SAS prints of them
# is in the example "Comparing Receiver Operating Characteristic Curves" of PROC LOGISTIC.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""
# Of 113 patients after a haemorrhage those with a poor and a good outcome by WFNS grade, 1 to 5
# (Turck et al. 2010). pROC prints: AUC 0.8237, 95% CI 0.7485-0.8988 (DeLong).
GRADES = ((2, 37), (12, 20), (1, 3), (8, 8), (18, 4))


def _ovarian() -> tuple[np.ndarray, np.ndarray]:
  """Who was helped [43], and albumin, the score turned round, and protein [43, 3]."""
  rows = np.array(OVARIAN.split(), float).reshape(-1, 4)
  return rows[:, 3] == 1, np.stack([rows[:, 0], 10 - rows[:, 2], rows[:, 1]], 1)


def _table(positive, scores, groups=None) -> contract.Predictions:
  ids = np.arange(len(positive)).astype(str)
  return contract.Predictions(
    ids=ids,
    groups=ids if groups is None else np.asarray(groups).astype(str),
    split="test",
    labels=np.asarray(positive, int),
    scores=np.stack([1 - scores, scores], 1),
    classes=("negative", "positive"),
  )


def test_ovarian_example_is_as_published():
  positive, scores = _ovarian()
  found = delong.areas(positive, scores, np.arange(43))
  np.testing.assert_allclose(found.value, (0.7366, 0.7258, 0.6478), atol=5e-5)
  errors = np.sqrt(np.diag(found.covariance))
  np.testing.assert_allclose(errors, (0.0927, 0.1028, 0.1000), atol=5e-5)


@pytest.mark.parametrize(
  ("column", "printed"),
  [
    (0, (0.0108, -0.1761, 0.1976, 0.9102)),  # albumin
    (2, (-0.0780, -0.2830, 0.1271, 0.4561)),  # total protein
  ],
)
def test_ovarian_contrasts_to_the_score_are_as_published(column, printed):
  positive, scores = _ovarian()
  first, score = (_table(positive, scores[:, c]) for c in (column, 1))
  d = delong.paired(first, score)["positive"]
  np.testing.assert_allclose((d.value, d.low, d.high, d.p), printed, atol=5e-5)


def test_interval_is_that_of_proc():
  poor, good = np.array(GRADES).T
  grades = np.concatenate([np.repeat(np.arange(5), each) for each in (poor, good)])
  positive = np.repeat([True, False], [poor.sum(), good.sum()])
  found = delong.intervals(_table(positive, grades / 4))["positive"]
  np.testing.assert_allclose(found[:3], (0.8237, 0.7485, 0.8988), atol=5e-5)


def _all_pairs(positive, scores, groups):
  """Obuchowski (1997) as it is written: every pair of a positive and a negative, group by group."""
  ours, theirs = scores[positive], scores[~positive]
  wins = (ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)  # [M, N, S]
  area, m, n = wins.mean((0, 1)), len(ours), len(theirs)
  v10, v01 = wins.mean(1), wins.mean(0)
  known = np.unique(groups)
  with_positives = [g for g in known if (groups[positive] == g).any()]
  with_negatives = [g for g in known if (groups[~positive] == g).any()]
  s10 = s01 = s11 = 0
  for g in known:
    a = (v10[groups[positive] == g] - area).sum(0)
    b = (v01[groups[~positive] == g] - area).sum(0)
    s10, s01, s11 = s10 + np.outer(a, a), s01 + np.outer(b, b), s11 + np.outer(a, b)
  s10 = s10 * len(with_positives) / (len(with_positives) - 1) / m
  s01 = s01 * len(with_negatives) / (len(with_negatives) - 1) / n
  s11 = s11 * len(known) / (len(known) - 1)
  return area, s10 / m + s01 / n + (s11 + s11.T) / (m * n)


@pytest.mark.parametrize("seed", range(20))
def test_areas_are_those_of_all_pairs(seed):
  rng = np.random.default_rng(seed)
  n = rng.integers(12, 60)
  groups = rng.integers(n // 3 + 3, size=n) if seed % 2 else np.arange(n)
  positive = rng.random(n) < 0.4
  positive[:6] = np.arange(6) % 2
  groups[:6] = np.arange(6) % len(np.unique(groups))
  scores = np.round(rng.normal(size=(n, 3)) + positive[:, None], seed % 3)
  found = delong.areas(positive, scores, groups)
  area, covariance = _all_pairs(positive, scores, groups)
  np.testing.assert_allclose(found.value, area, atol=1e-12)
  np.testing.assert_allclose(found.covariance, covariance, atol=1e-12)


def test_copies_of_an_image_in_its_group_tell_nothing_new():
  rng = np.random.default_rng(0)
  positive = rng.random(80) < 0.5
  scores = rng.normal(size=80) + positive
  each = np.repeat(np.arange(80), 4)
  alone = delong.areas(positive, scores[:, None], np.arange(80)).covariance
  copied = delong.areas(positive[each], scores[each, None], each).covariance
  blind = delong.areas(positive[each], scores[each, None], np.arange(320)).covariance
  np.testing.assert_allclose(copied, alone, rtol=1e-12)
  np.testing.assert_allclose(blind, alone / 4, rtol=0.03)


def test_a_table_does_not_differ_from_itself_and_swapping_turns_the_sign():
  positive, scores = _ovarian()
  first, second = (_table(positive, scores[:, c]) for c in (0, 2))
  assert delong.paired(first, first)["positive"] == (0, 0, 0, 1, 1)
  there, back = delong.paired(first, second), delong.paired(second, first)
  np.testing.assert_allclose(back["positive"].value, -there["positive"].value)
  np.testing.assert_allclose(back["positive"][1:3], [-x for x in there["positive"][2:0:-1]])
  assert back["positive"].p == pytest.approx(there["positive"].p)


def test_paired_tables_may_be_in_any_order():
  positive, scores = _ovarian()
  first, second = (_table(positive, scores[:, c]) for c in (0, 2))
  turned = second.rows(np.arange(43)[::-1])
  assert delong.paired(first, second) == delong.paired(first, turned)
  with pytest.raises(ValueError, match="hold other images"):
    delong.paired(first, second.rows(np.arange(42)))


def test_what_too_few_groups_cannot_tell_does_not_exist():
  scores = np.array([0.9, 0.8, 0.3, 0.2])
  lone = _table([1, 1, 0, 0], scores, groups=[0, 0, 1, 2])
  found = delong.intervals(lone)["positive"]
  assert found.value == 1 and found.defined == 0
  assert delong.paired(lone, lone)["positive"].defined == 0
  none = delong.intervals(_table([0, 0, 0, 0], scores))["positive"]
  assert none == (0, 0, 0, 0)
  assert all(map(math.isfinite, found))


def test_every_class_of_several_has_its_own():
  rng = np.random.default_rng(1)
  labels = rng.integers(3, size=90)
  z = rng.normal(size=(90, 3)) + np.eye(3)[labels]
  scores = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  ids = np.arange(90).astype(str)
  table = contract.Predictions(ids, ids, "test", labels, scores, ("a", "b", "c"))
  several = dataclasses.replace(table, labels=np.eye(3, dtype=np.float32)[labels])
  found = delong.intervals(table)
  assert found == delong.intervals(several) and list(found) == ["a", "b", "c"]
  for c, name in enumerate(found):
    alone = delong.intervals(_table(labels == c, scores[:, c]))["positive"]
    np.testing.assert_allclose(found[name], alone, atol=1e-12)


def test_delong_and_the_bootstrap_agree_on_a_large_table():
  rng = np.random.default_rng(2)
  group = rng.integers(600, size=1500)
  positive = rng.random(600)[group] < 0.4
  scores = 0.5 * rng.normal(size=600)[group] + 0.9 * rng.normal(size=1500) + positive
  table = _table(positive, 1 / (1 + np.exp(-scores)), groups=group)
  ours = delong.intervals(table)["positive"]
  drawn = metrics.intervals(table, ["auc"], 2000, seed=0)["auc"]
  assert ours.value == pytest.approx(drawn.value)
  assert ours.high - ours.low == pytest.approx(drawn.high - drawn.low, rel=0.06)


def test_a_million_scores_take_seconds():
  """Sorting, not all pairs: these would be 2.1e11."""
  rng = np.random.default_rng(0)
  positive = rng.random(1_000_000) < 0.3
  scores = rng.normal(size=(1_000_000, 1)) + positive[:, None]
  found = delong.areas(positive, scores, rng.integers(200_000, size=1_000_000))
  assert found.value[0] == pytest.approx(0.7602, abs=0.003)  # the normal's Phi(1 / sqrt(2))
