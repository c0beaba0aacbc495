"""Metrics against scikit-learn, published tables and cases worked by hand."""

import dataclasses
import time

import noisy
import numpy as np
import pytest
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
  table = noisy.table(n=300, k=k)
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
  table = noisy.table(n=250, k=k)
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
  many = noisy.table(k=3, decimals=9)
  shares = many.scores / many.scores.sum(1, keepdims=True)
  many = dataclasses.replace(many, scores=shares)
  assert metrics.summary(many)["log_loss"] == pytest.approx(sk.log_loss(many.labels, shares))


def test_log_loss_of_a_certain_error_is_finite():
  wrong = dataclasses.replace(noisy.table(n=2, k=2), scores=np.eye(2), labels=np.array([1, 0]))
  assert metrics.summary(wrong)["log_loss"] == pytest.approx(-np.log(1e-7))


def test_brier_agrees_with_scikit_learn():
  two = noisy.table(k=2, decimals=9)
  positive = two.scores[:, 1] / two.scores.sum(1)
  two = dataclasses.replace(two, scores=np.stack([1 - positive, positive], 1))
  assert metrics.summary(two)["brier"] == pytest.approx(sk.brier_score_loss(two.labels, positive))
  many = noisy.table(k=5)
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
  table = noisy.table(n=5, k=2)
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
  table = noisy.table(k=2)
  table = dataclasses.replace(table, labels=np.zeros_like(table.labels))
  assert metrics.absent_classes(table) == ("class1",)
  found = metrics.summary(table)
  assert np.isfinite(list(found.values())).all()
  assert found["auc"] == 0 and found["sensitivity"] == 0
  intervals = metrics.intervals(table, metrics.names(2), 50, seed=0)
  assert intervals["auc"] == (0, 0, 0, 0)
  assert intervals["accuracy"].defined == 1
  assert np.isfinite([tuple(i) for i in intervals.values()]).all()


def test_errors_name_the_image_and_the_known_metrics():
  table = noisy.table(k=2)
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
    metrics.summary(noisy.rows(table, np.arange(0)))
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
