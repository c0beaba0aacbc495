"""What every library is given, the same networks, images, loss and optimiser; what it returns.

A network is described by medjax's own settings, which import no library; what they leave open is
below. Backbones are those that come with a library. The others are written in `keras_networks` and
`torch_networks`, whose layers have medjax's names: they begin with the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
import zlib

import numpy as np

from medjax import settings

BATCH, CLASSES = 16, 2
LEARNING_RATE = 1e-4
EPSILON = 1e-8  # of Adam, whose default differs from library to library
CHECKED_STEPS = 2  # one update; after more of them rounding alone drives the losses apart

# Network -> its trainable parameters with two classes.
PARAMETERS = {
  "quadsnet_exact": 5_235_944,  # of the paper
  "quadsnet": 5_237_736,  # with batch norm in every block
  "mednet": 10_781_122,
  "densenet121": 6_955_906,
  "resnet50": 23_538_690,
  "mobilenet_v2": 2_226_434,
  "inception_v3": 21_772_450,
  "nasnet_mobile": 4_235_092,
}
# The same where a library has others.
OTHER_PARAMETERS = {
  ("torch", "resnet50"): 23_512_130,  # no biases before batch norm
  ("torch", "inception_v3"): 21_789_666,  # a factor in every batch norm
}
LEAST_SIDES = {"inception_v3": 96}  # of 64 pixels its strides leave nothing
# Stream of QuadSNet -> side of its kernels, whether they are separable.
STREAMS = {"cs3": (3, False), "cs5": (5, False), "ss3": (3, True), "ss5": (5, True)}
STEM_WIDTH, BRANCHES = 64, (1, 3, 5, 7)  # of MedNet: channels, sides of a block's kernels


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained.

  Attributes:
    cfg: settings of the network, which takes pixels as they are. loss: as in the paper, or softmax
      cross-entropy. side: of the images, in pixels.
  """

  cfg: settings.Model
  loss: settings.Loss
  side: int

  @property
  def same_kernels(self) -> bool:
    """Whether all libraries begin with the same kernels."""
    return not isinstance(self.cfg, settings.Backbone)

  @property
  def without_dropout(self) -> Task:
    """The same, but for what no two libraries draw alike."""
    return dataclasses.replace(self, cfg=dataclasses.replace(self.cfg, dropout=0.0))

  def data(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform uint8 images [steps * BATCH, side, side, 3] and int32 labels."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (steps * BATCH, self.side, self.side, 3), np.uint8)
    return images, rng.integers(0, CLASSES, len(images)).astype(np.int32)

  def float_data(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """For who does not want to convert them in every step: float32 in [0, 1], one-hot labels."""
    images, labels = self.data(steps)
    return images.astype(np.float32) / 255, np.eye(CLASSES, dtype=np.float32)[labels]


def parameters(library: str, network: str) -> int:
  """How many a library trains."""
  return OTHER_PARAMETERS.get((library, network), PARAMETERS[network])


def task(network: str) -> Task:
  """The training of a network of `PARAMETERS`."""
  cfg = dataclasses.replace(settings.VARIANTS[settings.Model][network], preprocess="unit")
  loss = settings.Margin() if isinstance(cfg, settings.QuadSNet) else settings.SoftmaxCE()
  return Task(cfg, loss, LEAST_SIDES.get(network, 64))


def arriving(cfg: settings.MedNet, block: int) -> list[tuple[int, str]]:
  """MedNet's long connections to a block: where each starts, and the name of its convolution.

  They start at a block's output, 0 is the stem's; the name is empty where there is no convolution.
  """
  return [
    (0 if source == "stem" else int(source[1:]), f"{source}_{target}" if kind == "conv" else "")
    for source, target, kind in cfg.connections
    if target == f"b{block}"
  ]


def pools(cfg: settings.MedNet, start: int, end: int) -> int:
  """How often MedNet halves its map between the outputs of two blocks."""
  return sum(start < block <= end for block in cfg.pooled)


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
