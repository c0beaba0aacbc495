"""Temperatures against those that scores were made with, grid search and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn import metrics as sk

from medjax import contract, metrics
from medjax.metrics import calibration

CLASSES = ("a", "b", "c")


def table(labels, scores, split="val") -> contract.Predictions:
  ids = np.arange(len(labels)).astype(str)
  return contract.Predictions(ids, ids, split, labels, scores, CLASSES)


def single(true: float, n: int, seed=0, split="val") -> contract.Predictions:
  """Labels drawn by softmax(z), and scores by softmax(true z): as if divided by 1 / true."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(0, 2, (n, 3))
  labels = (logits + rng.gumbel(size=(n, 3))).argmax(1)  # drawn by softmax(logits)
  return table(labels, special.softmax(true * logits, axis=1), split)


def several(true: float, n: int, seed=0, split="val") -> contract.Predictions:
  rng = np.random.default_rng(seed)
  logits = rng.normal(-1, 2, (n, 3))
  labels = (rng.random((n, 3)) < special.expit(logits)).astype(np.float32)
  return table(labels, special.expit(true * logits), split)


@pytest.mark.parametrize("make", [single, several])
@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_scores_give_back_the_temperature_that_they_were_made_with(make, true):
  found = calibration.fit(make(true, 100_000))
  assert found.part == "val" and found.value == pytest.approx(true, rel=0.02)


@pytest.mark.parametrize("make", [single, several])
def test_no_temperature_of_a_fine_grid_has_less_log_loss(make):
  part = make(2.5, 200)
  found = calibration.fit(part)

  def loss(value: float) -> float:
    scores = calibration.tempered(part.scores, value, part.multi_label)
    if part.multi_label:
      return np.mean([sk.log_loss(part.labels[:, c], scores[:, c]) for c in range(3)])
    return sk.log_loss(part.labels, scores)

  grid = np.linspace(1, 5, 201)
  losses = [loss(value) for value in grid]
  assert loss(found.value) <= min(losses)
  assert found.value == pytest.approx(grid[np.argmin(losses)], abs=0.02)


def test_tempered_scores_are_softmax_and_sigmoid_of_divided_logits():
  logits = np.random.default_rng(1).normal(0, 5, (50, 3))
  softmax = calibration.tempered(special.softmax(logits, axis=1), 1.7)
  np.testing.assert_allclose(softmax, special.softmax(logits / 1.7, axis=1), rtol=1e-12)
  sigmoid = calibration.tempered(special.expit(logits), 1.7, multi_label=True)
  np.testing.assert_allclose(sigmoid, special.expit(logits / 1.7), rtol=1e-9)


@pytest.mark.parametrize("multi_label", [False, True])
def test_scores_of_0_and_1_stay_finite_on_the_host_and_in_a_program(multi_label):
  scores = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
  found = calibration.tempered(scores, 3.0, multi_label)
  assert np.isfinite(found).all() and (np.diff(found[0][:2]) < 0).all()
  program = jax.jit(lambda s: calibration.tempered(s, 3.0, multi_label, jnp))
  np.testing.assert_allclose(program(scores.astype(np.float32)), found, atol=2e-6)


@pytest.mark.parametrize("make", [single, several])
def test_what_a_temperature_did_can_be_undone_to_compare(make):
  test = make(2.0, 200, split="test")
  warm = calibration.Temperature(2.3, "val")
  np.testing.assert_allclose(warm.undone(warm(test)).scores, test.scores, atol=1e-9)


def test_a_temperature_makes_other_images_of_the_kind_better_calibrated():
  test = single(3.0, 5_000, seed=1, split="test")
  before = metrics.summary(test)
  after = metrics.summary(calibration.fit(single(3.0, 5_000))(test))
  assert all(after[name] < before[name] for name in calibration.SHOWN)
  assert after["ece"] < 0.02 < 0.1 < before["ece"]
  assert after["accuracy"] == before["accuracy"] and after["auc"] == pytest.approx(
    before["auc"], abs=0.02
  )


def test_scores_that_are_all_right_or_tell_nothing_meet_the_bounds():
  labels = np.arange(60) % 3
  right = table(labels, np.where(labels[:, None] == np.arange(3), 0.8, 0.1))
  wrong = table((labels + 1) % 3, right.scores)
  low, high = calibration.fit(right), calibration.fit(wrong)
  assert low.value == 0.05 and "scores of the val part are all right" in low.note
  assert high.value == 20 and "scores of the val part tell next to nothing" in high.note
  assert not calibration.Temperature(1.5, "val").note


def test_a_temperature_is_not_fitted_on_the_test_part():
  with pytest.raises(ValueError, match=r"fitted on the test part.*fit it on the val part"):
    calibration.fit(single(1.0, 30, split="test"))
  with pytest.raises(ValueError, match="fitted on the test part"):
    calibration.Temperature(1.5, "test")


def test_a_temperature_is_not_judged_on_the_part_that_it_was_fitted_on():
  val = single(2.0, 100)
  found = calibration.fit(val)
  with pytest.raises(ValueError, match="fitted on the part 'val'"):
    found.undone(found(val))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_a_number_above_0(value):
  with pytest.raises(ValueError, match="above 0"):
    calibration.Temperature(value, "val")
