"""Which image comes when: one function of seed and position, whichever feed serves it.

An order is made of streams. A stream is an endless sequence of rows in runs laid end to end; a run
is an epoch, or a window of it, and is drawn from (seed, its number) alone. So the rows of any step
are found without those before it, and a batch may straddle two epochs: nothing is dropped.

Of several virtual shards each has rows, slots of the batch and a stream of its own. Their number is
a setting and not that of the devices: a device that owns some shards needs their rows only, while
the batches are the same on any number of devices.

Grain draws: a run is one element of an endless Grain data set. (Grain's own `shuffle` takes
microseconds a row, most where rows are few; a run as one element takes them once.)
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import grain
import numpy as np

from medjax import settings

Rows = Callable[[range], np.ndarray]  # k steps -> the part's rows in their batches [k, B], or -1
Draw = Callable[[np.random.Generator], Any]


@dataclasses.dataclass(frozen=True)
class Stream:
  """An endless sequence of integers, in runs laid end to end.

  Attributes:
    starts: [R + 1] where the runs of an epoch start in it; the last entry is the epoch's length.
    run: number of a run, over all epochs -> its integers.
  """

  starts: np.ndarray
  run: Callable[[int], np.ndarray]

  def __call__(self, start: int, stop: int) -> np.ndarray:
    """The integers from position `start` to before `stop`."""
    first, last = self.run_at(np.array([start, stop - 1])).tolist()
    if first == last:
      at = int(self.start(np.array(first)))
      return self.run(first)[start - at : stop - at]
    runs = range(first, last + 1)
    begun = self.start(np.arange(first, last + 1)).tolist()
    return np.concatenate(
      [self.run(run)[max(0, start - at) : stop - at] for run, at in zip(runs, begun, strict=True)]
    )

  def run_at(self, positions: np.ndarray) -> np.ndarray:
    """The runs that positions lie in."""
    epochs, rest = np.divmod(positions, self.starts[-1])
    return epochs * (len(self.starts) - 1) + np.searchsorted(self.starts, rest, "right") - 1

  def start(self, runs: np.ndarray) -> np.ndarray:
    """The positions where runs start."""
    epochs, rest = np.divmod(runs, len(self.starts) - 1)
    return epochs * self.starts[-1] + self.starts[rest]


@dataclasses.dataclass(frozen=True)
class Order:
  """The rows of every step's batch.

  Attributes:
    batch_size: B. accumulate: micro-batches of a batch, each a run of its slots.
    members: V arrays, the rows of each virtual shard. streams: V, each over its shard's `members`.
    local: the runs of all streams are windows that start and end at the same steps.
  """

  batch_size: int
  accumulate: int
  members: tuple[np.ndarray, ...]
  streams: tuple[Stream, ...]
  local: bool = False

  @property
  def each(self) -> int:
    """Slots of a batch that belong to one shard."""
    return self.batch_size // len(self.members)

  def places(self, steps: range) -> np.ndarray:
    """[k, V, B/V] where in its shard's `members` each row of the steps' batches stands."""
    return self._by_step(steps, self._drawn(steps))

  def rows(self, steps: range) -> np.ndarray:
    """[k, B] the part's rows in the batches of k steps, by slot."""
    drawn = self._drawn(steps)
    if len(drawn) == 1:  # a shard of all rows, in every slot
      return drawn[0].reshape(len(steps), -1)
    rows = [members[places] for members, places in zip(self.members, drawn, strict=True)]
    return self.by_slot(self._by_step(steps, rows))

  def by_slot(self, values: np.ndarray) -> np.ndarray:
    """[..., V, B/V] by shard as [..., B] by slot.

    In every micro-batch, each shard has a run of slots.
    """
    *lead, shards, _ = values.shape
    dealt = values.reshape(*lead, shards, self.accumulate, -1)
    return dealt.swapaxes(-3, -2).reshape(*lead, -1)

  def _drawn(self, steps: range) -> list[np.ndarray]:
    """What the streams give for some steps, end to end."""
    start, stop = steps.start * self.each, steps.stop * self.each
    return [stream(start, stop) for stream in self.streams]

  @staticmethod
  def _by_step(steps: range, drawn: list[np.ndarray]) -> np.ndarray:
    return np.stack([values.reshape(len(steps), -1) for values in drawn], axis=1)


def make(
  size: int,
  batch_size: int,
  seed: int,
  cfg: settings.Feeding,
  accumulate: int = 1,
  labels: np.ndarray | None = None,
  sets: np.ndarray | None = None,
  groups: np.ndarray | None = None,
) -> Order:
  """The order that settings ask for.

  Args:
    size: n, rows of the part.
    batch_size: B, of the global batch.
    seed: at least 0.
    cfg: which order.
    accumulate: micro-batches of a batch.
    labels: [n] int, for sampling by class. sets: [n] int, which set a row comes from, for weights.
    groups: [n] patient, lesion or source: given, slots 2i and 2i + 1 hold rows of one group.

  Raises:
    ValueError: settings that do not go together, or not with the part.
  """
  _check(size, batch_size, cfg.shards, accumulate)
  if groups is not None:
    _check_pairs(batch_size, cfg)
    return Order(batch_size, accumulate, (np.arange(size),), (paired(groups, seed),))
  strata = _strata(size, cfg, labels, sets)
  members = _dealt(size, cfg.shards, seed, max(1, cfg.block), strata)
  seeds = [_derived(seed, shard) for shard in range(cfg.shards)] if cfg.shards > 1 else [seed]
  if strata is not None:
    shares = _shares(strata, cfg, sets)
    _check_dealt(strata, members)
    streams = [stratified(strata[m], shares, s) for m, s in zip(members, seeds, strict=True)]
  elif cfg.block:
    window, longest = max(1, cfg.block * cfg.window // cfg.shards), max(map(len, members))
    streams = [
      local(len(m), longest, cfg.block, window, s) for m, s in zip(members, seeds, strict=True)
    ]
  else:
    streams = [shuffled(len(m), s) for m, s in zip(members, seeds, strict=True)]
  return Order(batch_size, accumulate, tuple(members), tuple(streams), local=cfg.block > 0)


def shuffled(size: int, seed: int) -> Stream:
  """Epochs, each a permutation of all rows."""
  return Stream(np.array([0, size]), _draws(seed, lambda rng: rng.permutation(size)))


def paired(groups: np.ndarray, seed: int) -> Stream:
  """Epochs of pairs in random order: the rows at positions 2i and 2i + 1 are of one group.

  An epoch has every row once. The row that is left over where their number is odd stands beside
  another one of its group, which comes a second time, or beside itself where there is no other.

  Args:
    groups: [n] of each row. seed: of the draws.
  """
  group, counts = np.unique(groups, return_inverse=True, return_counts=True)[1:]
  pairs = -(-counts // 2)
  of = np.repeat(np.arange(len(counts)), pairs)  # the group of each pair
  nth = np.arange(len(of)) - np.repeat(pairs.cumsum() - pairs, pairs)  # pair of its group
  start = (counts.cumsum() - counts)[of]
  places = np.stack([start + 2 * nth, start + (2 * nth + 1) % counts[of]], axis=1)

  def draw(rng: np.random.Generator) -> np.ndarray:
    rows = rng.permutation(len(group))
    rows = rows[np.argsort(group[rows], kind="stable")]  # shuffled within each group
    return rows[rng.permutation(places)].ravel()

  return Stream(np.array([0, places.size]), _draws(seed, draw))


def alone(groups: np.ndarray) -> int:
  """How many rows have their group to themselves, and no other row to be paired with."""
  return int((np.unique(groups, return_counts=True)[1] == 1).sum())


def stratified(strata: np.ndarray, shares: np.ndarray, seed: int) -> Stream:
  """Draws each stratum by its share, and its rows in shuffled epochs of their own.

  An epoch has about as many draws as there are rows; the draws of a stratum in it are a whole
  number, at least one, and the same in every epoch.

  Args:
    strata: [n] int, each row's stratum; every one of 0 ... S-1 occurs.
    shares: [S] of the draws; their sum is 1.
    seed: of the draws.
  """
  counts = np.maximum(1, np.round(shares * len(strata)).astype(int))
  members = [np.flatnonzero(strata == number) for number in range(len(counts))]
  inner = [shuffled(len(m), _derived(seed, number)) for number, m in enumerate(members)]
  turns = _draws(seed, lambda rng: rng.permutation(np.repeat(np.arange(len(counts)), counts)))

  @functools.lru_cache(maxsize=4)
  def epoch(number: int) -> np.ndarray:
    turn = turns(number)
    rows = np.empty(len(turn), int)
    for stratum, count in enumerate(counts):
      drawn = inner[stratum](number * int(count), (number + 1) * int(count))
      rows[turn == stratum] = members[stratum][drawn]
    return rows

  return Stream(np.array([0, counts.sum()]), epoch)


def local(size: int, length: int, block: int, window: int, seed: int) -> Stream:
  """Epochs of shuffled blocks, whose rows are shuffled within windows of them.

  A window's rows are a few runs of neighbours, so that they can be read in blocks.

  Args:
    size: rows. length: of an epoch, at least `size`; its first rows come again where it is more.
    block: rows of a block; the last one may have fewer.
    window: rows of a window, at most; all windows of an epoch are of one length, within one row.
    seed: of the draws.
  """
  windows = -(-length // window)
  starts = np.arange(windows + 1) * length // windows
  longest = int(np.diff(starts).max())
  blocks = _draws(_derived(seed, 0), lambda rng: rng.permutation(-(-size // block)))
  ranks = _draws(_derived(seed, 1), lambda rng: rng.random(longest))

  @functools.lru_cache(maxsize=4)
  def run(number: int) -> np.ndarray:
    epoch, which = divmod(number, windows)
    rows = _laid(blocks(epoch), block, size, int(starts[which]), int(starts[which + 1]))
    return rows[np.argsort(ranks(number)[: len(rows)])]

  return Stream(starts, run)


def _laid(blocks: np.ndarray, block: int, size: int, start: int, stop: int) -> np.ndarray:
  """The rows from `start` to before `stop` of blocks laid end to end, again and again."""
  ends = np.cumsum(np.minimum(block, size - blocks * block))
  position = np.arange(start, stop) % size
  which = np.searchsorted(ends, position, "right")
  before = np.where(which, ends[which - 1], 0)
  return blocks[which] * block + position - before


def _draws(seed: int, draw: Draw) -> Callable[[int], Any]:
  """Number -> what `draw` makes of a generator that is of (seed, number) alone."""
  endless = grain.MapDataset.range(1).seed(seed).repeat(None)
  drawn = endless.random_map(lambda _, rng: draw(rng))
  return functools.lru_cache(maxsize=4)(drawn.__getitem__)  # a batch needs one or two of them


def _derived(seed: int, number: int) -> int:
  """A seed for one of several streams."""
  return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _dealt(
  size: int, shards: int, seed: int, block: int, strata: np.ndarray | None
) -> list[np.ndarray]:
  """The rows of each shard: all rows once, shards of one size within one row, in whole blocks."""
  if shards == 1:
    return [np.arange(size)]
  blocks = np.random.default_rng(_derived(seed, shards)).permutation(-(-size // block))
  rows = _laid(blocks, block, size, 0, size)
  if strata is not None:
    rows = rows[np.argsort(strata[rows], kind="stable")]
    return [rows[shard::shards] for shard in range(shards)]
  return np.array_split(rows, shards)


def _strata(
  size: int, cfg: settings.Feeding, labels: np.ndarray | None, sets: np.ndarray | None
) -> np.ndarray | None:
  """[n] int, the set and class of each row, as far as they are drawn by shares; else None."""
  by_class, by_set = cfg.sampling != "shuffled", bool(cfg.weights)
  if not by_class and not by_set:
    return None
  if cfg.block:
    raise ValueError(
      "data.feeding.block reads neighbours together, which a sampling by class or weights cannot:"
      " set data.feeding.block=0"
    )
  if by_class and (labels is None or labels.ndim != 1 or (labels < 0).any()):
    raise ValueError(
      f"data.feeding.sampling={cfg.sampling!r} needs one class an image: set it to 'shuffled'"
    )
  of_set = sets if by_set and sets is not None else np.zeros(size, int)
  of_class = labels if by_class and labels is not None else np.zeros(size, int)
  return np.unique(of_set * (of_class.max() + 1) + of_class, return_inverse=True)[1]


def _shares(strata: np.ndarray, cfg: settings.Feeding, sets: np.ndarray | None) -> np.ndarray:
  """[S] share of the draws of each stratum."""
  counts = np.bincount(strata)
  within = {"shuffled": counts, "class_balanced": np.ones(len(counts)), "square_root": counts**0.5}
  shares = within[cfg.sampling].astype(float)
  if not cfg.weights:
    return shares / shares.sum()
  of = np.zeros(len(counts), int)  # the set of each stratum
  of[strata] = 0 if sets is None else sets
  if len(cfg.weights) != of.max() + 1 or min(cfg.weights) <= 0:
    raise ValueError(
      f"data.feeding.weights={cfg.weights} must be {of.max() + 1} numbers above 0, one a set"
    )
  weights = np.asarray(cfg.weights) / sum(cfg.weights)
  return shares / np.bincount(of, shares)[of] * weights[of]


def _check(size: int, batch_size: int, shards: int, accumulate: int) -> None:
  if batch_size % accumulate:
    raise ValueError(
      f"optimizer.accumulate={accumulate} does not divide train.batch_size={batch_size}"
    )
  micro = batch_size // accumulate
  if micro % shards:
    raise ValueError(
      f"data.feeding.shards={shards} does not divide the {micro} images of a (micro-)batch"
    )
  if shards > size:
    raise ValueError(f"data.feeding.shards={shards} are more than the part's {size} images")


def _check_pairs(batch_size: int, cfg: settings.Feeding) -> None:
  """Refuses what does not go with images that come in pairs."""
  if batch_size % 2:
    raise ValueError(
      f"train.batch_size={batch_size} is odd, and images come in pairs: make it even"
    )
  plain = settings.Feeding()
  for name in ("sampling", "weights", "shards", "block"):
    if getattr(cfg, name) != getattr(plain, name):
      raise ValueError(
        f"data.feeding.{name}={getattr(cfg, name)!r} does not go with images that come in pairs, "
        f"drawn from all groups alike: set it to {getattr(plain, name)!r}"
      )


def _check_dealt(strata: np.ndarray, members: list[np.ndarray]) -> None:
  rarest = np.bincount(strata).min()
  if rarest < len(members):
    raise ValueError(
      f"a class of {rarest} images cannot be sampled from each of data.feeding.shards="
      f"{len(members)}: set that to {rarest} or fewer"
    )
