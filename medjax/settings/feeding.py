"""Settings of the order in which a feed draws images."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feeding:
  """The order of the training images; together with the seed it says which image comes when.

  Attributes:
    sampling: `shuffled` draws every image once an epoch; `class_balanced` draws every class as
      often as any other, `square_root` by the square root of its images. Every image of a class is
      drawn once before one of them is drawn again.
    weights: how often each of several sets is drawn, in their order; empty for as often as its
      share of the images.
    shards: virtual shards, each with images and slots of the batch of its own; split and chunked
      feeds need a multiple of the devices here. Divides the (micro-)batch.
    block: images that are read in a run, for sets that are dear to read one by one; 0 shuffles
      whole epochs.
    window: blocks that are shuffled together; a chunked feed holds two windows on the devices.
    memory_gb: a streamed feed without blocks keeps what it has read in the host's memory, in every
      process, where the part takes no more than this.
  """

  sampling: Literal["shuffled", "class_balanced", "square_root"] = "shuffled"
  weights: tuple[float, ...] = ()
  shards: int = 1
  block: int = 0
  window: int = 64
  memory_gb: float = 8.0
