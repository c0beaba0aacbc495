"""How often 95 % intervals hold the truth, in simulated sets whose truth is known.

    ./launch/test.sh -m slow -n 0 -s tests/test_metrics_coverage.py

prints the table that README shows. What few groups or images of a class cost is told, not tuned.
"""

import time

import numpy as np
import pytest
from scipy import stats

from medjax import contract, metrics
from medjax.metrics import delong

SETS, RESAMPLES = 1000, 1000
APART = 1.19  # of the two normals, in standard deviations
AUC = float(stats.norm.cdf(APART / np.sqrt(2)))  # 0.800
CUT = APART / 2
SENSITIVITY = float(stats.norm.cdf(APART - CUT))  # 0.724
AGREEMENT = 0.6  # correlation of the images of a group


def _drawn(rng, groups: int, most: int, positives: int) -> contract.Predictions:
  """Groups of 1 to `most` images, each of one class; `positives` of them are positive."""
  group = np.repeat(np.arange(groups), rng.integers(1, most + 1, groups))
  labels = (group < positives).astype(int)
  shared, own = rng.normal(size=groups)[group], rng.normal(size=len(group))
  z = APART * labels + np.sqrt(AGREEMENT) * shared + np.sqrt(1 - AGREEMENT) * own - CUT
  p = 1 / (1 + np.exp(-z))
  return contract.Predictions(
    ids=np.arange(len(group)).astype(str),
    groups=group,
    split="test",
    labels=labels,
    scores=np.stack([1 - p, p], 1),
    classes=("negative", "positive"),
  )


def _coverage(groups: int, most: int, positives: int) -> dict[str, float]:
  """Share of the sets in which each interval holds the truth."""
  rng, held = np.random.default_rng(0), []
  for seed in range(SETS):
    table = _drawn(rng, groups, most, positives)
    drawn = metrics.intervals(table, ("auc", "sensitivity"), RESAMPLES, seed)
    found = {
      "AUC, bootstrap": (drawn["auc"], AUC),
      "AUC, DeLong": (delong.intervals(table)["positive"], AUC),
      "sensitivity, bootstrap": (drawn["sensitivity"], SENSITIVITY),
      "sensitivity, Wilson": (metrics.wilson(table)["sensitivity"][1], SENSITIVITY),
    }
    held.append([each.low <= truth <= each.high for each, truth in found.values()])
  return dict(zip(found, np.mean(held, axis=0).tolist(), strict=True))


def _told(groups, most, positives, found) -> None:
  shares = "  ".join(f"{name} {share:.1%}" for name, share in found.items())
  print(f"\n{groups} groups of 1 to {most} images, {positives} positive: {shares}")


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 5])
def test_intervals_of_200_groups_hold_the_truth_as_often_as_they_say(most):
  found = _coverage(200, most, 80)
  _told(200, most, 80, found)
  assert 0.91 <= found["AUC, bootstrap"] <= 0.98
  assert 0.91 <= found["AUC, DeLong"] <= 0.98
  assert 0.91 <= found["sensitivity, bootstrap"] <= 0.98
  # Wilson's takes images for patients: right of one image a group, too narrow of several.
  assert (found["sensitivity, Wilson"] > 0.91) == (most == 1)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 5])
@pytest.mark.parametrize(("groups", "positives"), [(49, 20), (30, 12), (20, 8), (10, 4)])
def test_coverage_of_few_groups_is_told(groups, positives, most):
  found = _coverage(groups, most, positives)
  _told(groups, most, positives, found)
  assert 0.5 < found["AUC, bootstrap"] < 1  # published, not tuned


@pytest.mark.slow
@pytest.mark.parametrize("positives", [9, 5, 3])
def test_coverage_of_few_images_of_a_class_is_told(positives):
  found = _coverage(200, 1, positives)
  _told(200, 1, positives, found)
  assert 0.3 < found["AUC, bootstrap"] < 1


@pytest.mark.slow
def test_paired_differences_of_equals_hold_0_as_often_as_they_say():
  """Two readers of the same images, alike good, who agree as two looks at one patient do."""
  rng, held = np.random.default_rng(1), []
  for seed in range(SETS // 2):
    a = _drawn(rng, 200, 5, 80)
    noise = rng.normal(size=(2, len(a.ids))) * 0.7
    pair = []
    for each in noise:
      z = np.log(a.scores[:, 1] / a.scores[:, 0]) + each
      p = 1 / (1 + np.exp(-z))
      pair.append(
        contract.Predictions(a.ids, a.groups, a.split, a.labels, np.stack([1 - p, p], 1), a.classes)
      )
    d = metrics.paired(*pair, ("auc",), RESAMPLES, seed)["auc"], delong.paired(*pair)["positive"]
    held.append([each.low <= 0 <= each.high for each in d])
  bootstrap, by_delong = np.mean(held, axis=0)
  print(f"\npaired AUC of equals: bootstrap {bootstrap:.1%}, DeLong {by_delong:.1%}")
  assert 0.91 <= bootstrap <= 0.98 and 0.91 <= by_delong <= 0.98


@pytest.mark.slow
def test_a_million_scores_are_resampled_in_seconds():
  """Seconds of one core; 1,000 resamples of 200,000 groups."""
  rng = np.random.default_rng(0)
  n = 1_000_000
  labels = (rng.random(n) < 0.3).astype(int)
  p = 1 / (1 + np.exp(-rng.normal(size=n) - labels))
  table = contract.Predictions(
    ids=np.arange(n).astype(str),
    groups=rng.integers(200_000, size=n),
    split="test",
    labels=labels,
    scores=np.stack([1 - p, p], 1),
    classes=("negative", "positive"),
  )
  start, wall = time.process_time(), time.perf_counter()
  found = metrics.intervals(table, ["auc"], 1000, seed=0)["auc"]
  spent, passed = time.process_time() - start, time.perf_counter() - wall
  print(f"\n1,000 resamples of a million scores: {spent:.1f} s of one core, {passed:.1f} s passed")
  assert found.low < found.value < found.high
  assert spent < 20


@pytest.mark.slow
def test_ten_thousand_resamples_of_every_metric_take_seconds():
  """Seconds of one core; 10,000 images of 2,000 groups."""
  rng = np.random.default_rng(0)
  table = _drawn(rng, 2000, 9, 800)
  names = metrics.names(2)
  start = time.process_time()
  found = metrics.intervals(table, names, 10_000, seed=0)
  spent = time.process_time() - start
  print(f"\n10,000 resamples of {len(table.ids):,} images, {len(names)} metrics: {spent:.1f} s")
  assert found["accuracy"].low < found["accuracy"].value < found["accuracy"].high
  assert spent < 20
