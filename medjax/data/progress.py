"""Lines that say how far a long work is, how fast, and how long it will take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
import time
from typing import TypeVar

_QUIET_SECONDS = 3.0  # between two lines, and before the first

Item = TypeVar("Item")


def told(
  items: Iterable[Item],
  total: int,
  noun: str,
  before: int = 0,
  size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Item]:
  """Passes on what comes, and prints a line every few seconds.

  Args:
    items: pieces of the work. total: of what they are pieces of. noun: what is counted.
    before: done by earlier runs.
    size: how much a piece is.
  """
  start = last = time.monotonic()
  done = before
  for item in items:
    yield item
    done += size(item)
    now = time.monotonic()
    if now - last > _QUIET_SECONDS or (done >= total and last > start):
      rate, last = (done - before) / (now - start), now
      left = (total - done) / rate if rate else float("inf")
      print(f"{done:,} of {total:,} {noun}, {rate:,.0f}/s, {left:,.0f} s left", flush=True)
