"""How near generated images come to real ones in the features of a classifier, and if too near.

Distances of other papers are made with an Inception network trained on photographs, so numbers here
compare only with numbers by the same classifier. All is computed in float64 on the host.
"""

from __future__ import annotations

import dataclasses

import numpy as np

_ROWS = 512  # of a kernel matrix at a time
QUANTILE = 0.01  # of the held-out distances: what is nearer than that is a copy
MOST_COPIES = 0.05  # share of copies above which the alarm is given
_SURE = 1e-3  # chance that images as new as the held-out ones give it


def frechet(real: np.ndarray, generated: np.ndarray) -> float:
  """Squared Fréchet distance of two normal distributions (FID, Heusel et al. 2017, equation 6).

  |m - m'|^2 + tr(S + S' - 2 (S S')^1/2), with covariances that divide by n - 1.

  Args:
    real: [n, D] features. generated: [m, D] features.

  Returns:
    A number from 0 on; too large by a bias that falls with n and m, so that only distances by
    equal numbers of images compare.

  Raises:
    ValueError: fewer than two rows of either.
  """
  _check(real, generated)
  (m1, s1), (m2, s2) = (_moments(rows) for rows in (real, generated))
  root = _root(s1)
  # S S' has the eigenvalues of the symmetric S^1/2 S' S^1/2.
  cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ s2 @ root), 0)).sum()
  return float(max(0.0, ((m1 - m2) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross))


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  rows = np.asarray(rows, np.float64)
  return rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))


def _root(matrix: np.ndarray) -> np.ndarray:
  """The symmetric square root of a symmetric, positive semidefinite matrix."""
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def kernel(real: np.ndarray, generated: np.ndarray) -> float:
  """Squared maximum mean discrepancy under a cubic kernel (KID, Bińkowski et al. 2018, section 4).

  The kernel is (x y / D + 1)^3 and the estimate unbiased: it may be negative, and is 0 on average
  for two samples of one distribution, whatever their sizes.

  Args:
    real: [n, D] features. generated: [m, D] features.

  Raises:
    ValueError: fewer than two rows of either.
  """
  _check(real, generated)
  real, generated = (np.asarray(rows, np.float64) for rows in (real, generated))
  n, m = len(real), len(generated)
  return float(
    _others(real) / (n * (n - 1))
    + _others(generated) / (m * (m - 1))
    - 2 * _sum(real, generated) / (n * m)
  )


def _sum(one: np.ndarray, other: np.ndarray) -> float:
  """Sum of the kernel over all pairs."""
  blocks = (one[start : start + _ROWS] for start in range(0, len(one), _ROWS))
  return sum(float(((rows @ other.T / one.shape[1] + 1) ** 3).sum()) for rows in blocks)


def _others(rows: np.ndarray) -> float:
  """Sum of the kernel over all pairs of different rows."""
  own = (rows**2).sum(1) / rows.shape[1] + 1
  return _sum(rows, rows) - float((own**3).sum())


def _check(real: np.ndarray, generated: np.ndarray) -> None:
  if min(len(real), len(generated)) < 2:
    raise ValueError(
      f"{len(real)} real and {len(generated)} generated images: a distance of distributions needs "
      "two of each at least, and hundreds to mean something"
    )


def nearest(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
  """[n] Euclidean distance of each row [n, D] from the nearest of the others [m, D]."""
  from scipy.spatial import distance  # as scipy.stats below: few runs need it

  blocks = (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))
  return np.concatenate([distance.cdist(block, others).min(1) for block in blocks])


@dataclasses.dataclass(frozen=True)
class Copying:
  """Whether a generator repeats the images that it has learnt from.

  Attributes:
    copies: share of the generated images that are nearer to a training image than 99 % of the
      held-out images are; about 0.01 for images as new as those.
    generated, held_out: median distance from the nearest training image.
    memorised: the alarm: far more copies than there should be.
  """

  copies: float
  generated: float
  held_out: float
  memorised: bool


def copying(generated: np.ndarray, training: np.ndarray, held_out: np.ndarray) -> Copying:
  """Compares generated images with held-out ones by their distances from the training images.

  In the spirit of Meehan et al. 2020 ("A Non-Parametric Test to Detect Data-Copying in Generative
  Models"): what is new stays as far from the training images as other new images do. Held-out
  images that equal a training image are leaks and have no part in it.

  Args:
    generated, training, held_out: [n, D], [t, D] and [h, D] features, or pixels.

  Raises:
    ValueError: no held-out image that is not a training image, too.
  """
  from scipy import stats

  ours, theirs = nearest(generated, training), nearest(held_out, training)
  theirs = theirs[theirs > _rounding(training)]
  if not len(theirs):
    raise ValueError("no held-out image is new, so nothing tells how near a new one may come")
  count = int((ours < np.quantile(theirs, QUANTILE)).sum())
  chance = stats.binomtest(count, len(ours), QUANTILE, alternative="greater").pvalue
  share = count / len(ours)
  return Copying(
    copies=share,
    generated=float(np.median(ours)),
    held_out=float(np.median(theirs)),
    memorised=bool(share > MOST_COPIES and chance < _SURE),
  )


def _rounding(rows: np.ndarray) -> float:
  """A distance below which rows are equal, but for rounding."""
  return 1e-6 * float(np.sqrt((np.asarray(rows, np.float64) ** 2).sum(1).mean()))
