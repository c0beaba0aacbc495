"""What every library is given, the same network, kernels, images and optimiser; what it returns.

The network is described by medjax's own settings, which import no library. What they leave open is
below. How many parameters they make is known from the paper.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
import zlib

import numpy as np

from medjax import settings

BATCH, SIDE, CLASSES = 16, 64, 2
LEARNING_RATE = 1e-4
EPSILON = 1e-8  # of Adam, whose default differs from library to library
LOSS = settings.Margin()  # as in the paper
CHECKED_STEPS = 2  # one update; after more of them rounding alone drives the losses apart

# Network -> its trainable parameters: those of the paper, and with batch norm in every block.
PARAMETERS = {"quadsnet_exact": 5_235_944, "quadsnet": 5_237_736}
# Stream -> side of its kernels, whether they are separable.
STREAMS = {"cs3": (3, False), "cs5": (5, False), "ss3": (3, True), "ss5": (5, True)}


def network(name: str, dropout: bool) -> settings.QuadSNet:
  """Settings of a network, with the paper's dropout or with none."""
  cfg = settings.VARIANTS[settings.Model][name]
  return cfg if dropout else dataclasses.replace(cfg, dropout=0.0)


def data(steps: int) -> tuple[np.ndarray, np.ndarray]:
  """Uniform uint8 images [steps * BATCH, SIDE, SIDE, 3] and int32 labels."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (steps * BATCH, SIDE, SIDE, 3), np.uint8)
  return images, rng.integers(0, CLASSES, len(images)).astype(np.int32)


def float_data(steps: int) -> tuple[np.ndarray, np.ndarray]:
  """The same in [0, 1] as float32, for who does not want to convert them in every step."""
  images, labels = data(steps)
  return images.astype(np.float32) / 255, labels


def kernel(path: str, shape: tuple[int, ...]) -> np.ndarray:
  """A kernel by its name in medjax, Glorot-uniform, float32 [kh, kw, C, F] or [D, F]."""
  *window, inputs, outputs = shape
  limit = math.sqrt(6 / math.prod(window) / (inputs + outputs))
  rng = np.random.default_rng(zlib.crc32(path.encode()))
  return rng.uniform(-limit, limit, shape).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Trainer:
  """A network in training.

  Attributes:
    parameters: how many are trained.
    run: trains on all batches once, in their order; returns the mean of their losses.
  """

  parameters: int
  run: Callable[[], float]
