"""Distances of distributions in closed form and by loops; copies are told from new images."""

import numpy as np
import pytest

from medjax import fidelity

RNG = np.random.default_rng(0)


def scaled(rows, mean, factors):
  """Rows with exactly this mean and the covariance diag(factors^2)."""
  rows = rows - rows.mean(0)
  rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
  return rows * factors + mean


def test_the_frechet_distance_of_normal_samples_in_closed_form():
  """With diagonal covariances: |m - m'|^2 + sum (s - s')^2."""
  one = scaled(RNG.normal(size=(300, 3)), [0, 0, 0], [1, 2, 3])
  other = scaled(RNG.normal(size=(200, 3)), [1, 0, 2], [2, 2, 1])
  assert fidelity.frechet(one, other) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=1e-9)
  assert fidelity.frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_is_that_of_scipys_matrix_root():
  from scipy import linalg

  mix = RNG.normal(size=(6, 6))
  one, other = RNG.normal(size=(50, 6)), RNG.normal(size=(40, 6)) @ mix + 0.5
  s1, s2 = np.cov(one.T), np.cov(other.T)
  expected = ((one.mean(0) - other.mean(0)) ** 2).sum()
  expected += np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
  assert fidelity.frechet(one, other) == pytest.approx(expected, rel=1e-8)


def test_fewer_images_than_features_have_a_distance():
  one, other = RNG.normal(size=(5, 20)), RNG.normal(size=(4, 20))
  assert np.isfinite(fidelity.frechet(one, other))


def test_the_kernel_distance_is_that_of_a_loop(monkeypatch):
  monkeypatch.setattr(fidelity, "_ROWS", 4)  # blocks that do not divide the rows
  x, y = RNG.normal(size=(9, 5)), RNG.normal(size=(6, 5)) + 1

  def k(a, b):
    return (a @ b / 5 + 1) ** 3

  own = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
  theirs = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
  between = np.mean([k(a, b) for a in x for b in y])
  assert fidelity.kernel(x, y) == pytest.approx(own + theirs - 2 * between, rel=1e-10)


def test_the_kernel_distance_has_no_bias():
  """Its mean over many pairs of samples of one distribution is 0, within 4 standard errors."""
  found = [fidelity.kernel(RNG.normal(size=(20, 3)), RNG.normal(size=(10, 3))) for _ in range(400)]
  assert abs(np.mean(found)) < 4 * np.std(found) / 20
  assert min(found) < 0


def test_one_image_has_no_distribution():
  for distance in (fidelity.frechet, fidelity.kernel):
    with pytest.raises(ValueError, match="1 real and 3 generated images"):
      distance(np.ones((1, 2)), np.ones((3, 2)))


def test_nearest_distances_are_those_of_a_loop():
  rows, others = RNG.normal(size=(7, 4)), RNG.normal(size=(5, 4))
  expected = [min(np.linalg.norm(row - other) for other in others) for row in rows]
  np.testing.assert_allclose(fidelity.nearest(rows, others), expected)


@pytest.fixture(scope="module")
def world():
  """Training, held-out and new images of one distribution."""
  return np.split(np.random.default_rng(1).normal(size=(900, 12)), [400, 600])


def test_a_generator_that_copies_training_images_gives_the_alarm(world):
  training, held_out, _ = world
  copies = training[:300] + 1e-3 * RNG.normal(size=(300, 12))
  found = fidelity.copying(copies, training, held_out)
  assert found.memorised and found.copies == 1
  assert found.generated < 0.01 < found.held_out


def test_one_copy_in_ten_gives_the_alarm_too(world):
  training, held_out, new = world
  mixed = np.concatenate([training[:30], new[:270]])
  found = fidelity.copying(mixed, training, held_out)
  assert found.memorised and found.copies == pytest.approx(0.1, abs=0.03)


def test_new_images_give_no_alarm(world):
  training, held_out, new = world
  found = fidelity.copying(new, training, held_out)
  assert not found.memorised and found.copies < 0.04
  assert found.generated == pytest.approx(found.held_out, rel=0.1)


def test_a_few_near_images_are_no_proof(world):
  training, held_out, new = world
  assert not fidelity.copying(np.concatenate([training[:1], new[:9]]), training, held_out).memorised


def test_held_out_images_that_leaked_do_not_hide_copies(world):
  """Each tenth held-out image is a training image: the others still say how far new ones are."""
  training, held_out, new = world
  leaky = np.concatenate([training[:22], held_out])
  assert fidelity.copying(training[:100], training, leaky).memorised
  assert not fidelity.copying(new, training, leaky).memorised
  with pytest.raises(ValueError, match="no held-out image is new"):
    fidelity.copying(new, training, training[:50])
