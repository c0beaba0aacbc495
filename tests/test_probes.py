"""Nearest neighbours and the linear probe against scikit-learn, on embeddings of many shapes."""

import jax
import numpy as np
import pytest
from sklearn import linear_model, neighbors, pipeline, preprocessing

from medjax import probes


def drawn(seed: int, n: int, m: int, dimensions: int, classes: int):
  """Train and test rows around a centre a class; columns of very different scale, one constant."""
  rng = np.random.default_rng(seed)
  centres = 0.5 * rng.normal(size=(classes, dimensions))
  scale = np.exp(rng.normal(size=dimensions))
  labels = rng.integers(0, classes, n + m).astype(np.int32)
  rows = (centres[labels] + rng.normal(size=(n + m, dimensions))) * scale + 0.3
  rows[:, 0] = 0.25
  rows = rows.astype(np.float32)
  return rows[:n], labels[:n], rows[n:], labels[n:]


SHAPES = [(300, 40, 16, 3), (700, 300, 64, 7), (30, 9, 128, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_neighbours_equal_those_of_scikit_learn(shape):
  train, labels, test, _ = drawn(0, *shape)
  theirs = neighbors.KNeighborsClassifier(20, metric="cosine").fit(train, labels).predict(test)
  ours = probes.nearest(train, labels, test, shape[-1])
  np.testing.assert_array_equal(ours, theirs)
  assert len(set(ours)) > 1


def test_of_few_rows_all_are_neighbours_and_a_tie_goes_to_the_first_class():
  train = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
  labels = np.array([2, 2, 1, 1], np.int32)
  assert probes.nearest(train, labels, train, 3).tolist() == [1] * 4
  assert probes.nearest(train, labels, train, 3, k=2).tolist() == [2, 2, 1, 1]


def test_neighbours_are_those_of_direction_and_not_of_length():
  train = np.array([[100, 0], [0, 0.01]], np.float32)
  test = np.array([[0.01, 0.001], [5, 50]], np.float32)
  assert probes.nearest(train, np.array([0, 1], np.int32), test, 2, k=1).tolist() == [0, 1]


def test_regression_equals_that_of_scikit_learn():
  """In single precision: probabilities to 5e-3, and the class wherever two are not as near."""
  train, labels, test, _ = drawn(1, *SHAPES[1])
  theirs = _regression(train, labels, test)
  ours = probes.linear(train, labels, test, SHAPES[1][-1])
  np.testing.assert_allclose(ours, theirs, atol=5e-3)
  first, second = np.sort(theirs, axis=1)[:, -1], np.sort(theirs, axis=1)[:, -2]
  clear = first - second > 1e-2
  np.testing.assert_array_equal(ours.argmax(1)[clear], theirs.argmax(1)[clear])
  assert clear.mean() > 0.9 and ours.dtype == np.float32


def test_the_penalty_is_that_of_scikit_learn(x64):
  """Of two classes scikit-learn penalises the difference: w / 2 and -w / 2 cost half as much."""
  train, labels, test, _ = drawn(2, 200, 50, 12, 2)
  train, test = train.astype(np.float64), test.astype(np.float64)
  for c in (1e-3, 1.0):
    ours = probes.linear(train, labels, test, 2, c=c)
    np.testing.assert_allclose(ours, _regression(train, labels, test, 2 * c), atol=1e-4)


def _regression(train, labels, test, c=1.0) -> np.ndarray:
  logistic = linear_model.LogisticRegression(C=c, max_iter=10_000, tol=1e-8)
  model = pipeline.make_pipeline(preprocessing.StandardScaler(), logistic)
  return model.fit(train.astype(np.float64), labels).predict_proba(test.astype(np.float64))


def test_probes_work_where_no_copy_is_made_unasked_and_compile_once_a_shape():
  train, labels, test, truth = drawn(0, *SHAPES[1])
  with jax.transfer_guard("disallow"):
    before = [
      (probes.nearest(train, labels, test, 7), probes.linear(train, labels, test, 7))
      for _ in range(2)
    ]
  sizes = probes._vote._cache_size(), probes._regression._cache_size()
  probes.nearest(train + 1, labels, test, 7), probes.linear(train + 1, labels, test, 7)
  assert sizes == (probes._vote._cache_size(), probes._regression._cache_size())
  jax.tree.map(np.testing.assert_array_equal, *before)
  assert min((before[0][0] == truth).mean(), (before[0][1].argmax(1) == truth).mean()) > 0.5


def test_the_plane_is_that_of_the_principal_components_by_hand():
  rows, *_ = drawn(3, 200, 1, 10, 3)
  points = probes.plane(rows, "pca")
  centred = rows.astype(np.float64) - rows.astype(np.float64).mean(0)
  axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
  np.testing.assert_allclose(np.abs(points), np.abs(centred @ axes.T), atol=1e-6)


@pytest.mark.slow
def test_the_map_of_tsne_is_the_same_twice_and_keeps_classes_together():
  rows, labels, _, _ = drawn(4, 90, 1, 20, 3)
  rows = rows + 9 * np.eye(20, dtype=np.float32)[labels]
  once, again = probes.plane(rows, "tsne"), probes.plane(rows, "tsne")
  np.testing.assert_array_equal(once, again)
  near = neighbors.KNeighborsClassifier(2).fit(once, labels).score(once, labels)
  assert near > 0.95 and once.shape == (90, 2)
  assert np.isfinite(probes.plane(rows[:5], "tsne")).all()
