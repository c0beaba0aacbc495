"""Several images of one patient as one row: hand-worked pools, and what cannot be pooled."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from medjax import contract, metrics
from medjax.metrics import pooling


def table(groups, labels, scores, metadata=None, classes=None) -> contract.Predictions:
  scores = np.asarray(scores, float)
  ids = np.array([f"{i}.png" for i in range(len(scores))])
  classes = classes or tuple("abcd"[: scores.shape[1]])
  known = {name: np.asarray(column) for name, column in (metadata or {}).items()}
  groups, labels = np.asarray(groups), np.asarray(labels)
  return contract.Predictions(ids, groups, "test", labels, scores, classes, known)


def of_finding(*p) -> np.ndarray:
  return np.stack([1 - np.asarray(p), p], axis=1)


@pytest.mark.parametrize(
  ("rule", "truth"),
  [
    ("mean", [0.4, 0.5]),
    ("max", [0.6, 0.9]),
    ("noisy_or", [1 - 0.8 * 0.4, 1 - 0.9 * 0.5 * 0.1]),
  ],
)
def test_the_finding_is_pooled_and_the_other_class_is_what_remains(rule, truth):
  slices = table(
    ["q", "p", "q", "p", "q"], [1, 0, 1, 0, 1], of_finding(0.1, 0.2, 0.5, 0.6, 0.9), None
  )
  found = pooling.pooled(slices, rule)
  assert found.ids.tolist() == found.groups.tolist() == ["p", "q"]
  assert found.labels.tolist() == [0, 1] and found.split == "test"
  np.testing.assert_allclose(found.scores, of_finding(*truth), rtol=1e-12)


def test_of_three_classes_each_is_pooled_and_their_sum_is_one():
  images = table(["p", "p"], [2, 2], [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
  found = pooling.pooled(images, "max").scores
  np.testing.assert_allclose(found, [[0.7 / 1.6, 0.3 / 1.6, 0.6 / 1.6]], rtol=1e-12)
  np.testing.assert_allclose(pooling.pooled(images, "mean").scores, [[0.4, 0.25, 0.35]], rtol=1e-12)


def test_a_patient_has_every_class_that_one_of_its_images_has():
  labels = np.array([[1, 0], [0, 1], [0, 0]], np.float32)
  films = table(["p", "p", "q"], labels, [[0.9, 0.2], [0.4, 0.7], [0.3, 0.1]])
  found = pooling.pooled(films, "max")
  np.testing.assert_array_equal(found.labels, [[1, 1], [0, 0]])
  np.testing.assert_array_equal(found.scores, [[0.9, 0.7], [0.3, 0.1]])
  assert found.multi_label


def test_lesions_of_a_patient_are_pooled_by_their_column_and_stay_in_the_patients_group():
  known = {"lesion": ["x", "y", "x"], "age": ["50", "50", "51"], "sex": ["f", "f", "f"]}
  images = table(["p"] * 3, [1, 0, 1], of_finding(0.2, 0.3, 0.8), known)
  found = pooling.pooled(images, "mean", by="lesion")
  assert found.ids.tolist() == ["x", "y"] and found.groups.tolist() == ["p", "p"]
  np.testing.assert_allclose(found.scores[:, 1], [0.5, 0.3])
  assert {name: column.tolist() for name, column in found.metadata.items()} == {
    "lesion": ["x", "y"],
    "age": ["", "50"],
    "sex": ["f", "f"],
  }
  assert images.metadata["age"].tolist() == ["50", "50", "51"]


def test_metrics_of_the_pooled_table_are_those_of_patients():
  rng = np.random.default_rng(0)
  patients = rng.integers(0, 40, 300)
  truth = rng.integers(0, 2, 40)
  p = np.clip(0.5 * truth[patients] + rng.uniform(0, 0.6, 300), 0, 1)
  images = table(patients.astype(str), truth[patients], of_finding(*p))
  found = metrics.summary(pooling.pooled(images, "mean"))
  means = [p[patients == who].mean() for who in range(40)]
  assert found["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(truth, means), abs=1e-12)


def test_the_order_of_the_rows_does_not_matter():
  rng = np.random.default_rng(1)
  images = table(rng.integers(0, 5, 40).astype(str), [0] * 40, rng.dirichlet([1, 1, 1], 40))
  shuffled = images.rows(rng.permutation(40))
  for rule in pooling.RULES:
    one, other = (pooling.pooled(each, rule).scores for each in (images, shuffled))
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_different_labels_in_a_group_are_refused_by_name():
  eyes = table(["p", "q", "q"], [0, 0, 1], of_finding(0.1, 0.2, 0.3))
  with pytest.raises(ValueError, match=r"1 of 2 .*labels.*'q' with '1\.png' and '2\.png'"):
    pooling.pooled(eyes, "mean")


def test_a_column_that_cuts_across_groups_or_is_blank_or_missing_is_refused():
  images = table(["p", "q"], [0, 0], of_finding(0.1, 0.2), {"volume": ["v", "v"]})
  with pytest.raises(ValueError, match="different groups, such as volume='v'"):
    pooling.pooled(images, "mean", by="volume")
  blank = dataclasses.replace(images, metadata={"volume": np.array(["v", ""])})
  with pytest.raises(ValueError, match=r"not known of 1 of 2 images, first '1\.png'"):
    pooling.pooled(blank, "mean", by="volume")
  with pytest.raises(KeyError, match=r"no column 'lesion'.*only: volume"):
    pooling.pooled(images, "mean", by="lesion")
  with pytest.raises(KeyError, match=r"no rule 'median'.*mean, max, noisy_or"):
    pooling.pooled(images, "median")
