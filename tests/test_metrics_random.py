"""Every metric on 200 random tables, against scikit-learn and, where it has none, plain loops."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from medjax import contract, metrics

BETAS = {"f0.5": 0.5, "f1": 1, "f2": 2, "f5": 5}


def _weights(rng, n) -> np.ndarray | None:
  return (None, rng.uniform(0.1, 3, n), rng.integers(1, 4, n))[rng.integers(3)]


def _table(rng, labels: np.ndarray, scores: np.ndarray) -> contract.Predictions:
  """Scores are rounded, so that they tie more or less often."""
  n, k = scores.shape
  return contract.Predictions(
    ids=np.arange(n).astype(str),
    groups=rng.integers(max(2, n // 3), size=n).astype(str),
    split="test",
    labels=labels,
    scores=np.round(scores, rng.choice([1, 2, 6])),
    classes=tuple(f"class{c}" for c in range(k)),
  )


def _one_class_an_image(seed: int) -> tuple[contract.Predictions, np.ndarray | None]:
  """Every third table lacks a class."""
  rng = np.random.default_rng(seed)
  n, k = rng.integers(6, 90), rng.integers(2, 6)
  held = rng.permutation(k)[: k - (seed % 3 == 0)]
  labels = rng.choice(held, n)
  z = rng.normal(size=(n, k)) + 1.2 * np.eye(k)[labels]
  scores = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  return _table(rng, labels, scores), _weights(rng, n)


def _several_classes_an_image(seed: int) -> tuple[contract.Predictions, np.ndarray | None]:
  """Many images have none; every third table lacks a class, every fifth has one in all images."""
  rng = np.random.default_rng(seed)
  n, k = rng.integers(6, 90), rng.integers(2, 6)
  labels = (rng.random((n, k)) < rng.uniform(0.1, 0.5, k)).astype(np.float32)
  labels[:, 0] *= seed % 3 > 0
  labels[:, 1] = np.maximum(labels[:, 1], seed % 5 == 0)
  labels[rng.random(n) < 0.3] *= seed % 5 == 0  # rows of zeros
  return _table(rng, labels, 1 / (1 + np.exp(-rng.normal(size=(n, k)) - labels))), _weights(rng, n)


def _share(hits, total):
  return np.divide(hits, total, out=np.zeros(len(hits)), where=total > 0)


def _of_classes(truth, guess, weights, k) -> dict[str, np.ndarray]:
  """Rates [K] of each class, 0 where they do not exist."""
  counts = sk.multilabel_confusion_matrix(truth, guess, sample_weight=weights, labels=range(k))
  tn, fp, fn, tp = counts.reshape(k, 4).T.astype(float).round(9)  # TN is a difference there
  found = {"specificity": _share(tn, tn + fp), "npv": _share(tn, tn + fn)}
  for name, beta in BETAS.items():
    ppv, recall, found[name], _ = sk.precision_recall_fscore_support(
      truth, guess, beta=beta, labels=range(k), sample_weight=weights, zero_division=0
    )
  return found | {"ppv": ppv, "sensitivity": recall, "support": tp + fn}


def _averages(found: dict[str, np.ndarray]) -> dict[str, float]:
  support = found["support"]
  kinds = {"macro": support > 0, "weighted": support}
  return {
    f"{kind}_{name}": np.average(values, weights=weight) if weight.any() else 0
    for kind, weight in kinds.items()
    for name, values in found.items()
    if name != "support"
  }


def _areas(members, scores, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """AUC and AP of each class, and which have both sides."""
  both = members.any(0) & ~members.all(0)
  pairs = [
    [
      f(members[:, c], scores[:, c], sample_weight=weights) if both[c] else 0
      for c in range(len(both))
    ]
    for f in (sk.roc_auc_score, sk.average_precision_score)
  ]
  return np.array(pairs[0]), np.array(pairs[1]), both


def _mean(values, weights) -> float:
  return float(np.average(values, weights=weights)) if np.any(weights) else 0.0


def _ece(confidence, right, weights) -> float:
  """Over 15 bins (low, high]."""
  error = 0.0
  for low in range(15):
    inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
    inside |= (low == 0) & (confidence == 0)
    if inside.any():
      w = weights[inside]
      gap = abs(np.average(right[inside], weights=w) - np.average(confidence[inside], weights=w))
      error += w.sum() * gap
  return error / weights.sum()


def _recognition(table, right, weights) -> float:
  """Mean over groups; an image of a group of m counts 1 / m of its weight."""
  hits = total = 0.0
  for group in np.unique(table.groups):
    own = table.groups == group
    hits += (weights * right)[own].sum() / own.sum()
    total += weights[own].sum() / own.sum()
  return hits / total


def _agrees(found: dict[str, float], expected: dict[str, float]) -> None:
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert found[name] == pytest.approx(np.nan_to_num(value), abs=1e-9), name


@pytest.fixture(autouse=True)
def _quiet():
  """scikit-learn warns of tables that lack a class."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    yield


@pytest.mark.parametrize("block", range(4))
def test_every_metric_of_one_class_an_image(block):
  for seed in range(30 * block, 30 * block + 30):
    table, given = _one_class_an_image(seed)
    truth, guess, scores, k = table.labels, table.predicted, table.scores, len(table.classes)
    weights = np.ones(len(truth)) if given is None else given
    right = truth == guess
    each = _of_classes(truth, guess, weights, k)
    averages = _averages(each)
    expected = {
      "accuracy": sk.accuracy_score(truth, guess, sample_weight=weights),
      "misclassification": sk.zero_one_loss(truth, guess, sample_weight=weights),
      "balanced_accuracy": averages.pop("macro_sensitivity"),
      "ovr_balanced": _mean((each["sensitivity"] + each["specificity"]) / 2, each["support"] > 0),
      "kappa": sk.cohen_kappa_score(truth, guess, labels=range(k), sample_weight=weights),
      "quadratic_kappa": sk.cohen_kappa_score(
        truth, guess, labels=range(k), weights="quadratic", sample_weight=weights
      ),
      "mcc": sk.matthews_corrcoef(truth, guess, sample_weight=weights),
      "log_loss": _mean(-np.log(np.maximum(scores[np.arange(len(truth)), truth], 1e-7)), weights),
      "brier": _mean(((scores - np.eye(k)[truth]) ** 2).sum(1), weights) / (2 if k == 2 else 1),
      "ece": _ece(scores.max(1), right, weights),
      "group_recognition": _recognition(table, right, weights),
    } | averages
    assert expected.pop("weighted_sensitivity") == pytest.approx(expected["accuracy"])
    auc, ap, both = _areas(table.members, scores, weights)
    if k == 2:
      lone = truth.all()
      expected |= {"auc": auc[1], "ap": 1.0 if lone else ap[1]}
      expected |= {name: values[1] for name, values in each.items() if name != "support"}
    else:
      expected |= {"auc": _mean(auc, both), "ap": _mean(ap, both)}
      shares = both * each["support"]
      expected |= {"weighted_auc": _mean(auc, shares), "weighted_ap": _mean(ap, shares)}
    _agrees(metrics.summary(table, given), expected)


@pytest.mark.parametrize("block", range(4))
def test_every_metric_of_several_classes_an_image(block):
  for seed in range(20 * block, 20 * block + 20):
    table, given = _several_classes_an_image(seed)
    truth, guess, scores = table.labels.astype(int), table.predicted, table.scores
    n, k = truth.shape
    weights = np.ones(n) if given is None else given
    each = _of_classes(truth, guess, weights, k)
    held, columns = each["support"] > 0, range(k)
    auc, ap, both = _areas(table.members, scores, weights)
    pairs = [(truth[:, c], guess[:, c]) for c in columns]
    of = {"sample_weight": weights}
    kappas = [sk.cohen_kappa_score(*p, labels=[0, 1], **of) for p in pairs]
    present = np.where(table.members, scores, 1 - scores)
    expected = _averages(each) | {
      "exact_match": sk.accuracy_score(truth, guess, **of),
      "label_accuracy": 1 - sk.hamming_loss(truth, guess, **of),
      # where all images have a class, its specificity does not exist and its sensitivity stands
      "ovr_balanced": _mean(
        np.where(
          truth.all(0), each["sensitivity"], (each["sensitivity"] + each["specificity"]) / 2
        ),
        held,
      ),
      "macro_kappa": _mean(np.nan_to_num(kappas), held),
      "macro_mcc": _mean([sk.matthews_corrcoef(*p, **of) for p in pairs], held),
      "auc": _mean(auc, both),
      "ap": _mean(ap, both),
      "weighted_auc": _mean(auc, both * each["support"]),
      "weighted_ap": _mean(ap, both * each["support"]),
      "brier": _mean(((scores - truth) ** 2).mean(1), weights),
      "log_loss": _mean(-np.log(np.maximum(present, 1e-7)).mean(1), weights),
      "ece": _ece(scores.ravel(), truth.ravel().astype(bool), np.repeat(weights, k)),
    }
    _agrees(metrics.summary(table, given), expected)


@pytest.mark.parametrize("make", [_one_class_an_image, _several_classes_an_image])
def test_metrics_of_each_class(make):
  for seed in range(30):
    table, _ = make(seed)
    truth = table.labels.astype(int)
    expected = _of_classes(truth, table.predicted, None, len(table.classes))
    expected["accuracy"] = (table.members == table.assigned).mean(0)
    auc, ap, both = _areas(table.members, table.scores, None)
    found = metrics.by_class(table, resamples=5, seed=0)
    assert found.keys() == (expected.keys() - {"support"}) | {"auc", "ap"}
    for name, intervals in found.items():
      for c, interval in enumerate(intervals):
        if name in ("auc", "ap"):
          if both[c]:
            assert interval.value == pytest.approx((auc if name == "auc" else ap)[c], abs=1e-9)
          continue
        assert interval.value == pytest.approx(expected[name][c], abs=1e-9), (name, c)
