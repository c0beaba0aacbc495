"""Settings of networks."""

from __future__ import annotations

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """A network, of which the preprocessing of pixels is a part.

  Attributes:
    preprocess: as the network's Keras original has it, or `stats`: by mean and deviation of the
      training part, kept with the weights.
    bn_momentum: share of the old value that a running statistic keeps at each step.
  """

  name: str
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "unit"
  bn_momentum: float = 0.9
  bn_epsilon: float = 1e-3
  dropout: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadSNet(Model):
  """QuadSNet (Ali et al. 2021): streams cs3, cs5 (plain) and ss3, ss5 (separable)."""

  name: str = "quadsnet"
  widths: tuple[int, ...] = (32, 64, 128, 256)
  convs_per_block: int = 2
  sep_convs_per_block: int = 2
  use_bias: bool = False
  bn: Literal["block", "conv", "fusion", "none"] = "block"
  pool: Literal["2x2", "gap", "avg2"] = "2x2"
  hidden: int = 128
  streams: tuple[str, ...] = ("cs3", "cs5", "ss3", "ss5")
  bn_momentum: float = 0.99
  bn_epsilon: float = 1e-4
  dropout: float = 0.3


Connection = tuple[str, str, str]  # (from, to, "conv" | "identity")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MedNet(Model):
  """MedNet (Alzubaidi et al.); Gray or Color by the channels of the data.

  Attributes:
    width: filters of each of a block's four branches.
    pooled: numbers of the blocks that a 2x2 max-pool precedes.
    connections: the long ones; every block has a short one with a convolution besides.
    hidden: width of the dense layer before the classes; 0 leaves it out.
  """

  name: str = "mednet"
  width: int = 64
  blocks: int = 8
  pooled: tuple[int, ...] = (3, 5, 7)
  connections: tuple[Connection, ...] = (
    ("stem", "b4", "conv"),
    ("b4", "b8", "conv"),
    ("b2", "b5", "identity"),
    ("b5", "b7", "identity"),
  )
  hidden: int = 512
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "stats"
  bn_epsilon: float = 1e-5
  dropout: float = 0.5
