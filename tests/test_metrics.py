"""Metrics and their intervals against scikit-learn, published tables and plain Python loops."""

import dataclasses
import time

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from medjax import contract, metrics
from medjax.metrics import rates

# Confusion matrices (TP, FP, FN, TN) recovered from Table III of Ali et al. 2021 by arithmetic, and
# the row printed there. Its "sensitivity" and "specificity" are PPV and NPV: the paper's matrices
# are transposed. The largest error, 0.00125, is that of the last row's PPV; one F1 does not fit.
TABLE_III = {
  "pneumonia/DenseNet": ((86, 2, 14, 98), (0.978, 0.875, 0.920, 0.915)),
  "pneumonia/Inception": ((74, 1, 26, 99), (0.987, 0.792, 0.865, 0.846)),
  "pneumonia/MobileNet": ((92, 0, 8, 100), (1.000, 0.926, 0.960, 0.958)),
  "pneumonia/ResNet": ((72, 6, 28, 94), (0.924, 0.771, 0.830, 0.809)),
  "pneumonia/VGG": ((95, 1, 5, 99), (0.990, 0.952, 0.970, 0.969)),
  "pneumonia/Xception": ((91, 7, 9, 93), (0.929, 0.912, 0.920, 0.919)),
  "pneumonia/QuadSNet": ((97, 1, 3, 99), (0.990, 0.971, 0.980, 0.980)),
  "covid/DenseNet": ((151, 21, 0, 22), (0.877, 1.000, 0.891, 0.934)),
  "covid/Inception": ((151, 7, 0, 36), (0.956, 1.000, 0.964, 0.977)),
  "covid/MobileNet": ((151, 12, 0, 31), (0.926, 1.000, 0.938, 0.961)),
  "covid/ResNet": ((151, 23, 0, 20), (0.867, 1.000, 0.881, 0.928)),
  "covid/VGG": ((149, 6, 2, 37), (0.961, 0.949, 0.959, 0.974)),
  "covid/Xception": ((146, 2, 5, 41), (0.987, 0.892, 0.964, 0.976)),
  "covid/QuadSNet": ((151, 6, 0, 37), (0.962, 1.000, 0.969, 0.980)),
  "skin/DenseNet": ((258, 19, 102, 281), (0.932, 0.734, 0.817, 0.810)),
  "skin/Inception": ((316, 129, 44, 171), (0.711, 0.796, 0.738, 0.785)),
  "skin/MobileNet": ((299, 46, 61, 254), (0.867, 0.807, 0.838, 0.848)),
  "skin/ResNet": ((65, 1, 295, 299), (0.985, 0.504, 0.552, 0.305)),
  "skin/VGG": ((296, 38, 64, 262), (0.887, 0.804, 0.846, 0.853)),
  "skin/Xception": ((300, 71, 60, 229), (0.809, 0.793, 0.802, 0.821)),
  "skin/QuadSNet": ((335, 23, 25, 277), (0.937, 0.917, 0.928, 0.945)),
}
MISFIT = "skin/QuadSNet"  # F1 is 0.933 by its matrix; 0.945 is the accuracy of Table IV


def _matrix(name: str) -> np.ndarray:
  tp, fp, fn, tn = TABLE_III[name][0]
  return np.array([[tn, fp], [fn, tp]])


def _table(n=60, k=3, groups=15, seed=0, decimals=1, classes=None) -> contract.Predictions:
  """A noisy classifier whose rounded scores tie often."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(k, size=n)
  z = rng.normal(size=(n, k)) + np.eye(k)[labels]
  scores = np.round(np.exp(z) / np.exp(z).sum(1, keepdims=True), decimals)
  return contract.Predictions(
    ids=np.array([f"image{i}" for i in range(n)]),
    groups=rng.integers(groups, size=n).astype(str),
    split="test",
    labels=labels,
    scores=scores,
    classes=classes or tuple(f"class{i}" for i in range(k)),
  )


def _rows(table: contract.Predictions, rows: np.ndarray) -> contract.Predictions:
  columns = {f: getattr(table, f)[rows] for f in ("ids", "groups", "labels", "scores")}
  return dataclasses.replace(table, **columns)


@pytest.mark.parametrize("name", TABLE_III)
def test_recovered_matrices_print_the_published_row(name):
  matrix, published = _matrix(name), TABLE_III[name][1]
  found = [f(matrix).value[1] for f in (rates.ppv, rates.npv)]
  found += [rates.accuracy(matrix).value, rates.f_beta(matrix).value[1]]
  fits = 3 if name == MISFIT else 4
  np.testing.assert_allclose(found[:fits], published[:fits], rtol=0, atol=0.00125)
  if name == MISFIT:
    assert found[3] == pytest.approx(0.933, abs=5e-4)


def test_transposed_table_is_told_from_the_true_rates():
  matrix = _matrix("pneumonia/QuadSNet")
  assert rates.sensitivity(matrix).value[1] == pytest.approx(0.97)
  assert rates.specificity(matrix).value[1] == pytest.approx(0.99)
  np.testing.assert_array_equal(rates.ppv(matrix).value, rates.sensitivity(matrix.T).value)


def test_rates_of_a_hand_worked_matrix():
  matrix = np.array([[5, 1, 0], [2, 3, 1], [0, 0, 4]])  # 16 images
  counts = rates.counts(matrix)
  np.testing.assert_array_equal(counts.tp, [5, 3, 4])
  np.testing.assert_array_equal(counts.fp, [2, 1, 1])
  np.testing.assert_array_equal(counts.fn, [1, 3, 0])
  np.testing.assert_array_equal(counts.tn, [8, 9, 11])
  np.testing.assert_allclose(rates.sensitivity(matrix).value, [5 / 6, 3 / 6, 1])
  np.testing.assert_allclose(rates.specificity(matrix).value, [8 / 10, 9 / 10, 11 / 12])
  np.testing.assert_allclose(rates.ppv(matrix).value, [5 / 7, 3 / 4, 4 / 5])
  np.testing.assert_allclose(rates.npv(matrix).value, [8 / 9, 9 / 12, 1])
  np.testing.assert_allclose(rates.f_beta(matrix).value, [10 / 13, 6 / 10, 8 / 9])
  np.testing.assert_allclose(rates.f_beta(matrix, 2).value, [25 / 31, 15 / 28, 20 / 21])
  np.testing.assert_allclose(rates.ovr_accuracy(matrix).value, [13 / 16, 12 / 16, 15 / 16])
  assert rates.accuracy(matrix).value == 12 / 16
  assert rates.balanced_accuracy(matrix).value == pytest.approx((5 / 6 + 3 / 6 + 1) / 3)
  both = (5 / 6 + 8 / 10 + 3 / 6 + 9 / 10 + 1 + 11 / 12) / 6
  assert rates.ovr_balanced(matrix).value == pytest.approx(both)


@pytest.mark.parametrize("k", [2, 3, 7])
def test_rates_agree_with_scikit_learn(k):
  table = _table(n=300, k=k)
  truth, guess = table.labels, table.predicted
  matrix = rates.confusion(truth, guess, k)
  np.testing.assert_array_equal(matrix, sk.confusion_matrix(truth, guess))
  for beta in (0.5, 1, 2, 5):
    ppv, recall, f, support = sk.precision_recall_fscore_support(truth, guess, beta=beta)
    np.testing.assert_allclose(rates.ppv(matrix).value, ppv)
    np.testing.assert_allclose(rates.sensitivity(matrix).value, recall)
    np.testing.assert_allclose(rates.f_beta(matrix, beta).value, f)
    np.testing.assert_array_equal(rates.support(matrix), support)


def test_many_matrices_are_one_call():
  matrices = np.random.default_rng(0).integers(0, 9, size=(4, 5, 3, 3))
  fns = (rates.sensitivity, rates.specificity, rates.ppv, rates.npv, rates.f_beta)
  for fn in (*fns, rates.ovr_accuracy, rates.accuracy, rates.balanced_accuracy):
    together = fn(matrices).value
    assert together.shape[:2] == (4, 5)
    for i in np.ndindex(4, 5):
      np.testing.assert_array_equal(together[i], fn(matrices[i]).value)


@pytest.mark.parametrize("k", [2, 4])
def test_summary_agrees_with_scikit_learn(k):
  table = _table(n=250, k=k)
  truth, guess, found = table.labels, table.predicted, metrics.summary(table)
  assert tuple(found) == metrics.names(k)
  onehot = np.eye(k)[truth]
  classes = [1] if k == 2 else range(k)
  auc = [sk.roc_auc_score(onehot[:, c], table.scores[:, c]) for c in classes]
  ap = [sk.average_precision_score(onehot[:, c], table.scores[:, c]) for c in classes]
  expected = {
    "accuracy": sk.accuracy_score(truth, guess),
    "balanced_accuracy": sk.balanced_accuracy_score(truth, guess),
    "macro_f1": sk.f1_score(truth, guess, average="macro"),
    "weighted_f1": sk.f1_score(truth, guess, average="weighted"),
    "macro_ppv": sk.precision_score(truth, guess, average="macro"),
    "auc": np.mean(auc),
    "ap": np.mean(ap),
  }
  if k == 2:
    expected["f1"] = sk.f1_score(truth, guess)
    expected["sensitivity"] = sk.recall_score(truth, guess)
    expected["specificity"] = sk.recall_score(truth, guess, pos_label=0)
    expected["npv"] = sk.precision_score(truth, guess, pos_label=0)
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, abs=1e-12), name


def test_log_loss_agrees_with_scikit_learn():
  many = _table(k=3, decimals=9)
  shares = many.scores / many.scores.sum(1, keepdims=True)
  many = dataclasses.replace(many, scores=shares)
  assert metrics.summary(many)["log_loss"] == pytest.approx(sk.log_loss(many.labels, shares))


def test_log_loss_of_a_certain_error_is_finite():
  wrong = dataclasses.replace(_table(n=2, k=2), scores=np.eye(2), labels=np.array([1, 0]))
  assert metrics.summary(wrong)["log_loss"] == pytest.approx(-np.log(1e-7))


def test_brier_agrees_with_scikit_learn():
  two = _table(k=2, decimals=9)
  positive = two.scores[:, 1] / two.scores.sum(1)
  two = dataclasses.replace(two, scores=np.stack([1 - positive, positive], 1))
  assert metrics.summary(two)["brier"] == pytest.approx(sk.brier_score_loss(two.labels, positive))
  many = _table(k=5)
  distance = ((many.scores - np.eye(5)[many.labels]) ** 2).sum(1).mean()
  assert metrics.summary(many)["brier"] == pytest.approx(distance)


def test_calibration_of_a_hand_worked_table():
  # Confidence 0.90 in (13/15, 14/15]: 3 images, 2 right. 0.62 in (9/15, 10/15]: 2 images, 2 right.
  positive = np.array([0.9, 0.9, 0.9, 0.38, 0.38])
  table = contract.Predictions(
    ids=np.arange(5).astype(str),
    groups=np.arange(5).astype(str),
    split="test",
    labels=np.array([1, 1, 0, 0, 0]),
    scores=np.stack([1 - positive, positive], 1),
    classes=("benign", "malignant"),
  )
  found = metrics.reliability(table)
  np.testing.assert_array_equal(np.flatnonzero(found.images), [9, 13])
  np.testing.assert_allclose(found.images[[9, 13]], [2, 3])
  np.testing.assert_allclose(found.accuracy[[9, 13]], [1, 2 / 3])
  np.testing.assert_allclose(found.confidence[[9, 13]], [0.62, 0.9])
  expected = 2 / 5 * (1 - 0.62) + 3 / 5 * (0.9 - 2 / 3)
  assert metrics.summary(table)["ece"] == pytest.approx(expected)


def test_group_recognition_weighs_patients_not_images():
  table = _table(n=5, k=2)
  groups, right = np.array(["a", "a", "a", "a", "b"]), np.array([1, 1, 1, 0, 0])
  table = dataclasses.replace(
    table, groups=groups, labels=np.where(right, table.predicted, 1 - table.predicted)
  )
  found = metrics.summary(table)
  assert found["group_recognition"] == pytest.approx((3 / 4 + 0) / 2)
  assert found["accuracy"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_curves_with_ties_agree_with_scikit_learn(decimals):
  rng = np.random.default_rng(decimals)
  positive = rng.random(400) < 0.3
  scores = np.round(rng.normal(size=400) + positive, decimals)
  ranking = rates.ranking(positive, scores)
  auc, ap = rates.areas(rates.order(positive, scores))
  assert auc.value == pytest.approx(sk.roc_auc_score(positive, scores))
  assert ap.value == pytest.approx(sk.average_precision_score(positive, scores))
  fpr, tpr, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
  np.testing.assert_allclose(rates.roc_curve(ranking), [fpr, tpr])
  precision, recall, thresholds = sk.precision_recall_curve(positive, scores)
  np.testing.assert_allclose(rates.pr_curve(ranking), [recall[-2::-1], precision[-2::-1]])
  np.testing.assert_array_equal(ranking.thresholds, thresholds[::-1])


def test_areas_of_weighted_images_are_those_of_repeated_rows():
  rng = np.random.default_rng(3)
  positive, scores = rng.random(50) < 0.5, np.round(rng.random(50), 1)
  weights = rng.integers(0, 4, size=(6, 50))
  order = rates.order(positive, scores)
  auc, ap = rates.areas(order, weights[:, order.positives], weights[:, order.negatives])
  for i, times in enumerate(weights):
    repeated = np.repeat(positive, times), np.repeat(scores, times)
    assert auc.value[i] == pytest.approx(sk.roc_auc_score(*repeated))
    assert ap.value[i] == pytest.approx(sk.average_precision_score(*repeated))


def test_a_million_scores_rank_under_a_second():
  rng = np.random.default_rng(0)
  positive, scores = rng.random(1_000_000) < 0.3, rng.normal(size=1_000_000)
  start = time.process_time()
  rates.areas(rates.order(positive, scores))
  assert time.process_time() - start < 1


def test_zero_denominators_are_0_and_flagged():
  never_guessed = np.array([[4, 0, 0], [2, 0, 0], [0, 0, 0]])
  ppv, sens = rates.ppv(never_guessed), rates.sensitivity(never_guessed)
  np.testing.assert_array_equal(ppv.value[1:], [0, 0])
  np.testing.assert_array_equal(ppv.defined, [True, False, False])
  np.testing.assert_array_equal(sens.defined, [True, True, False])
  assert rates.balanced_accuracy(never_guessed).value == 0.5  # the empty class is left out
  auc, ap = rates.areas(rates.order(np.ones(5, bool), np.arange(5)))
  assert auc == (0, False) and ap == (1, True)
  assert rates.accuracy(np.zeros((2, 2))) == (0, False)


def test_one_class_alone_gives_finite_numbers_and_says_what_does_not_exist():
  table = _table(k=2)
  table = dataclasses.replace(table, labels=np.zeros_like(table.labels))
  assert metrics.absent_classes(table) == ("class1",)
  found = metrics.summary(table)
  assert np.isfinite(list(found.values())).all()
  assert found["auc"] == 0 and found["sensitivity"] == 0
  intervals = metrics.intervals(table, metrics.names(2), 50, seed=0)
  assert intervals["auc"] == (0, 0, 0, 0)
  assert intervals["accuracy"].defined == 1
  assert np.isfinite([tuple(i) for i in intervals.values()]).all()


def _brute_force(table, drawn):
  """The summaries of resamples of whole groups, by repeating rows."""
  known = np.unique(table.groups)
  for times in drawn:
    rows = [
      np.repeat(np.flatnonzero(table.groups == g), t) for g, t in zip(known, times, strict=True)
    ]
    yield metrics.summary(_rows(table, np.concatenate(rows)))


@pytest.mark.parametrize("k", [2, 3])
def test_intervals_are_those_of_a_loop_over_repeated_rows(k):
  table = _table(n=40, k=k, groups=12)
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
  table = _table()
  shuffled = _rows(table, np.random.default_rng(9).permutation(len(table.ids)))
  first, second = (metrics.intervals(t, metrics.names(3), 200, seed=2) for t in (table, shuffled))
  for name in first:
    np.testing.assert_allclose(first[name], second[name], atol=1e-12)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
  rng, hits, tables = np.random.default_rng(0), 0, 150
  for seed in range(tables):
    right = rng.random(120) < 0.8
    table = dataclasses.replace(_table(n=120, k=2), groups=np.arange(120))
    table = dataclasses.replace(table, labels=np.where(right, table.predicted, 1 - table.predicted))
    low, high = metrics.intervals(table, ["accuracy"], 400, seed)["accuracy"][1:3]
    hits += low <= 0.8 <= high
  assert 0.88 <= hits / tables <= 0.99


def test_groups_widen_the_interval_where_their_images_agree():
  table = _table(n=40, k=2, groups=40)
  copies = _rows(table, np.repeat(np.arange(40), 5))
  alone = dataclasses.replace(copies, groups=np.arange(200).astype(str))
  grouped = dataclasses.replace(copies, groups=np.repeat(np.arange(40), 5).astype(str))
  width = {}
  for name, t in (("alone", alone), ("grouped", grouped)):
    _, low, high, _ = metrics.intervals(t, ["accuracy"], 2000, seed=0)["accuracy"]
    width[name] = high - low
  assert width["grouped"] == pytest.approx(np.sqrt(5) * width["alone"], rel=0.15)


def test_a_table_does_not_differ_from_itself():
  table = _table()
  shuffled = _rows(table, np.random.default_rng(1).permutation(len(table.ids)))
  for name, found in metrics.paired(table, shuffled, metrics.names(3), 300, seed=0).items():
    np.testing.assert_allclose(found, (0, 0, 0, 1, 1), atol=1e-12, err_msg=name)


def test_paired_difference_is_that_of_a_loop_and_narrower_than_two_intervals():
  a, noise = _table(n=60, k=2, groups=20, decimals=9), np.random.default_rng(4).normal(size=(60, 2))
  b = dataclasses.replace(a, scores=a.scores + 0.15 * noise)
  found = metrics.paired(a, b, ["auc"], 80, seed=3)["auc"]
  drawn = np.concatenate(list(metrics.draws(len(np.unique(a.groups)), 80, seed=3, rows=80)))
  each = [np.array([s["auc"] for s in _brute_force(t, drawn)]) for t in (a, b)]
  np.testing.assert_allclose(found[1:3], np.percentile(each[0] - each[1], [2.5, 97.5]), atol=1e-12)
  assert found.value == pytest.approx(metrics.summary(a)["auc"] - metrics.summary(b)["auc"])
  widths = [np.ptp(np.percentile(e, [2.5, 97.5])) for e in each]
  assert found.high - found.low < sum(widths)


def test_paired_p_value_is_small_only_for_a_real_difference():
  good = _table(n=200, k=2, groups=200, decimals=9)
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
  table = _table()
  fewer = _rows(table, np.arange(59))
  with pytest.raises(ValueError, match=r"60 and 59 rows, 1 only in the first .* image59"):
    metrics.paired(table, fewer, ["auc"], 10, seed=0)
  relabelled = dataclasses.replace(table, labels=(table.labels + 1) % 3)
  with pytest.raises(ValueError, match="another label or group, first 'image0'"):
    metrics.paired(table, relabelled, ["auc"], 10, seed=0)
  with pytest.raises(ValueError, match="other classes"):
    metrics.paired(table, dataclasses.replace(table, classes=("x", "y", "z")), ["auc"], 10, seed=0)


def test_errors_name_the_image_and_the_known_metrics():
  table = _table(k=2)
  with pytest.raises(KeyError, match=r"'f3' of 2 classes.*macro_f1.*sensitivity"):
    metrics.intervals(table, ["f3"], 10, seed=0)
  unlabelled = table.labels.copy()
  unlabelled[7] = contract.UNLABELLED
  with pytest.raises(ValueError, match=r"1 of 60 images have no label .*'image7'"):
    metrics.summary(dataclasses.replace(table, labels=unlabelled))
  broken = table.scores.copy()
  broken[3, 1] = np.nan
  with pytest.raises(ValueError, match="not finite, first 'image3'"):
    metrics.summary(dataclasses.replace(table, scores=broken))
  with pytest.raises(ValueError, match="0 images"):
    metrics.summary(_rows(table, np.arange(0)))
  with pytest.raises(ValueError, match="need"):
    metrics.summary(dataclasses.replace(table, scores=table.scores[:, :1]))


def test_kappa_and_matthews_of_hand_worked_tables():
  matrix = np.array([[20, 5], [10, 15]])  # observed 0.7, by chance (25 * 30 + 25 * 20) / 2500 = 0.5
  assert rates.kappa(matrix).value == pytest.approx(0.4)
  assert rates.kappa(matrix, power=2).value == pytest.approx(0.4)  # of two classes the same
  assert rates.matthews(matrix).value == pytest.approx(
    (20 * 15 - 10 * 5) / np.sqrt(25 * 25 * 30 * 20)
  )
  far = np.array([[4, 0, 2], [0, 4, 0], [0, 0, 4]])  # off by two steps
  cost, chance = 2 * 4 / 14, (4 * (6 * 6 + 4 * 4) + 6 * 4 + 4 * 4 + 4 * 6 + 4 * 4) / 14**2
  assert rates.kappa(far, power=2).value == pytest.approx(1 - cost / chance)
  alone = np.array([[3, 0], [0, 0]])
  assert rates.kappa(alone) == (0, False) and rates.matthews(alone) == (0, False)


def test_wilson_bounds_are_those_of_scipy():
  hits, total = np.array([0, 1, 5, 9, 10, 481]), np.array([10, 10, 10, 10, 10, 500])
  low, high = rates.wilson(hits, total)
  for i, (k, n) in enumerate(zip(hits, total, strict=True)):
    expected = stats.binomtest(k, n).proportion_ci(method="wilson")
    np.testing.assert_allclose((low[i], high[i]), expected, atol=1e-12)
  np.testing.assert_array_equal(rates.wilson(0, 0), (0, 1))


@pytest.mark.parametrize("several", [False, True])
def test_wilson_intervals_of_a_table_are_those_of_its_counts(several):
  table = _table(n=50, k=3, decimals=2)
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
  table = dataclasses.replace(_table(n=20, k=2), labels=np.arange(20) % 2)
  table = dataclasses.replace(table, scores=np.eye(2)[table.labels])
  assert metrics.by_class(table, 50, seed=0)["sensitivity"][1][:3] == (1, 1, 1)
  wilson = metrics.wilson(table)["sensitivity"][1]
  np.testing.assert_allclose(
    wilson[:3], (1, 1 / (1 + rates.Z95**2 / 10), 1)
  )  # closed form, 10 of 10


def test_intervals_of_a_class_are_those_of_it_against_the_rest():
  table = _table(n=80, k=3, groups=30, decimals=6)
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
  table = _table(n=200, k=2, groups=120)
  assert metrics.cautions(table) == []
  few = dataclasses.replace(table, groups=np.arange(200) % 49)
  assert ["Only 49 groups" in said for said in metrics.cautions(few)] == [True]
  assert metrics.cautions(dataclasses.replace(table, groups=np.arange(200) % 50)) == []
  for images, told in ((9, True), (10, False)):
    rare = dataclasses.replace(table, labels=(np.arange(200) < images).astype(int))
    assert ["images of class1 (9)" in said for said in metrics.cautions(rare)] == [True] * told


def test_weights_that_are_none_are_refused():
  table = _table(k=2)
  for weights in (np.ones(59), np.full(60, -1.0), np.full(60, np.nan)):
    with pytest.raises(ValueError, match="for 60 images: give each a finite one"):
      metrics.summary(table, weights)
