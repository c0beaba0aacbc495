"""Whether maps depend on what was learnt: they must change when weights are drawn anew.

After Adebayo et al. 2018 ("Sanity Checks for Saliency Maps").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from medjax import contract, trees
from medjax.models import net as net_lib


def anew(
  net: net_lib.Net, params: contract.Tree, stats: contract.Tree, key: jax.Array, images: jax.Array
) -> Iterator[tuple[str, contract.Tree, contract.Tree]]:
  """Weights drawn anew from the head down, a stage more each time (Adebayo et al. 2018, sec. 3).

  Args:
    net: whose `stages` are followed, last to first. params, stats: trained.
    key: of the new weights. images: of which only the shape [b, H, W, C] matters.

  Yields:
    The stage that was drawn anew last, and the params and stats then.
  """
  new_params, new_stats = net.init(key, images)
  for place in reversed(range(len(net.stages))):
    drawn = net.stages[place:]
    if any(trees.lies_in(path, drawn[0]) for path in trees.flatten(params)):  # else it was cut off
      yield drawn[0], _mixed(params, new_params, drawn), _mixed(stats, new_stats, drawn)


def _mixed(old: contract.Tree, new: contract.Tree, stages: Sequence[str]) -> contract.Tree:
  """`old` with the leaves of `new` in some stages."""
  drawn, _ = trees.split(new, lambda path: any(trees.lies_in(path, stage) for stage in stages))
  return trees.updated(old, drawn)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
  """[n] Spearman's correlation of each map [n, H, W] with its counterpart; 0 beside a flat one."""
  from scipy import stats

  ranks = [stats.rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (one, other)]
  first, second = (rank - rank.mean(1, keepdims=True) for rank in ranks)
  spread = np.sqrt((first**2).sum(1) * (second**2).sum(1))
  return np.divide((first * second).sum(1), spread, np.zeros(len(one)), where=spread > 0)
