import cv2
import numpy as np
import pytest

from medjax.data import duplicates
from medjax.data.duplicates import coarse

THRESHOLD = duplicates.CORRELATION


def _pictures(count: int, seed: int) -> np.ndarray:
  """uint8 [2 * count, 64, 64]: pictures, and each once more with more or less noise."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(3, 40, count)
  plain = [cv2.resize(rng.uniform(0, 255, (n, n)), (64, 64)) for n in sizes]
  noisy = [p + rng.normal(0, rng.uniform(0, 15), p.shape) for p in plain]
  return np.clip(np.rint([*plain, *noisy]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("negative", [False, True])
def test_no_pair_is_lost_and_most_others_are(negative):
  thumbs = _pictures(1000, seed=0)
  thumbs[1000:] = 255 - thumbs[1000:] if negative else thumbs[1000:]
  left, right = np.divmod(np.arange(2000 * 2000), 2000)
  exact = np.corrcoef(thumbs.reshape(2000, -1).astype(float))
  wanted = (-exact if negative else exact).ravel() > THRESHOLD
  points = coarse.Points(2000, lambda rows: thumbs[rows])
  may = points.may_correlate(left, right, THRESHOLD, negative)
  assert not (wanted & ~may).any()
  assert wanted.sum() > 500
  assert (may & ~wanted).mean() < 0.001


def test_pairs_at_the_edge_are_kept():
  rng = np.random.default_rng(1)
  base = cv2.resize(rng.uniform(0, 255, (8, 8)), (64, 64), interpolation=cv2.INTER_NEAREST)
  # Noise that is itself made of blocks: nothing is lost by the projection, so the bound is tight.
  noise = cv2.resize(rng.normal(0, 1, (8, 8)), (64, 64), interpolation=cv2.INTER_NEAREST)
  mixed = [base * 0.7 + 30 + noise * size for size in np.linspace(5, 15, 400)]
  thumbs = np.rint([base * 0.7 + 30, *mixed]).clip(0, 255).astype(np.uint8)
  exact = np.corrcoef(thumbs.reshape(401, -1).astype(float))[0]
  points = coarse.Points(401, lambda rows: thumbs[rows])
  may = points.may_correlate(np.zeros(401, int), np.arange(401), THRESHOLD, False)
  assert may[exact > THRESHOLD].all()
  assert 20 < (exact > THRESHOLD).sum() < 380
  assert not may[exact < THRESHOLD - 0.001].any()


def test_a_flat_picture_is_no_trouble():
  thumbs = np.zeros((2, 64, 64), np.uint8)
  thumbs[1, :32] = 255
  points = coarse.Points(2, lambda rows: thumbs[rows])
  assert not points.may_correlate(np.array([0]), np.array([1]), THRESHOLD, False)[0]
