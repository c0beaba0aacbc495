"""McNemar's exact test: by hand, and on tables whose rows lie in another order."""

import math

import numpy as np
import pytest

from medjax import contract
from medjax.metrics import mcnemar


def _table(right: np.ndarray, several: bool = False) -> contract.Predictions:
  """A table that has these images right and the others wrong."""
  n = len(right)
  labels = np.arange(n) % 2
  given = np.where(right, labels, 1 - labels)
  ids = np.array([f"image{i}" for i in range(n)])
  held = np.eye(2, dtype=np.float32)[labels] if several else labels
  return contract.Predictions(ids, ids, "test", held, np.eye(2)[given], ("no", "yes"))


@pytest.mark.parametrize("several", [False, True])
def test_p_is_twice_the_smaller_tail_of_a_fair_coin(several):
  # 12 images only the first has right, 4 only the second; 30 both, 7 neither.
  first = np.repeat([True, False, True, False], [12, 4, 30, 7])
  second = np.repeat([False, True, True, False], [12, 4, 30, 7])
  found = mcnemar.exact(_table(first, several), _table(second, several))
  expected = 2 * sum(math.comb(16, k) for k in range(5)) / 2**16
  assert found[:2] == (12, 4)
  assert found.p == pytest.approx(expected) == pytest.approx(0.0768, abs=5e-5)
  back = mcnemar.exact(_table(second, several), _table(first, several))
  assert back[:2] == (4, 12) and back.p == found.p


def test_rows_may_lie_in_any_order():
  first, second = np.arange(40) % 3 > 0, np.arange(40) % 4 > 0
  turned = _table(second).rows(np.random.default_rng(0).permutation(40))
  assert mcnemar.exact(_table(first), turned) == mcnemar.exact(_table(first), _table(second))


def test_tables_that_are_right_alike_do_not_differ():
  same = _table(np.arange(9) % 2 == 0)
  assert mcnemar.exact(same, same) == (0, 0, 1.0)
