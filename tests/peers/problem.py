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

BATCH, CLASSES, SIDE = 16, 2, 64
LEARNING_RATE = 1e-4
EPSILON = 1e-8  # of Adam, whose default differs from library to library
CHECKED_STEPS = 2  # one update; after more of them rounding alone drives the losses apart

# Networks beside those of `settings.VARIANTS`.
_OWN = {"mednet_8": settings.MedNet(width=8)}
# Network -> its trainable parameters with two classes, of images of its size in `SIDES`.
PARAMETERS = {
  "quadsnet_exact": 5_235_944,  # of the paper
  "quadsnet": 5_237_736,  # with batch norm in every block
  "mednet": 10_781_122,
  "densenet121": 6_955_906,
  "resnet50": 23_538_690,
  "mobilenet_v2": 2_226_434,
  "inception_v3": 21_772_450,
  "nasnet_mobile": 4_235_092,
  "inception_resnet_v2": 54_279_266,
  "nasnet_large": 84_728_216,
  "mednet_8": 328_130,  # the quickstart's
  "pneumonia_cnn": 176_562,
}
# The same where a library has others.
OTHER_PARAMETERS = {
  ("torch", "resnet50"): 23_512_130,  # no biases before batch norm
  ("torch", "inception_v3"): 21_789_666,  # a factor in every batch norm
  ("torch", "inception_resnet_v2"): 54_309_538,  # the same
}
# Of 64 pixels the strides of the Inceptions leave nothing.
SIDES = {"inception_v3": 96, "inception_resnet_v2": 96, "mednet_8": 28, "pneumonia_cnn": 28}
GREY = {"mednet_8", "pneumonia_cnn"}  # one channel, else three
# Stream of QuadSNet -> side of its kernels, whether they are separable.
STREAMS = {"cs3": (3, False), "cs5": (5, False), "ss3": (3, True), "ss5": (5, True)}
PNEUMONIA_WIDTHS, PNEUMONIA_HIDDEN = (256, 64, 16), 64  # of its blocks and its dense layer
STEM_WIDTH, BRANCHES = 64, (1, 3, 5, 7)  # of MedNet: channels, sides of a block's kernels


@dataclasses.dataclass(frozen=True)
class Task:
  """What is trained.

  Attributes:
    cfg: settings of the network, which takes pixels as they are. loss: as in the paper, or softmax
      cross-entropy. side: of the images, in pixels. channels: theirs. batch: images in one.
    precision: `float32`; `bfloat16`, in which parameters and statistics stay float32; or `float64`,
      all of it. device: `cpu` or `gpu`.
  """

  cfg: settings.Model
  loss: settings.Loss
  side: int
  channels: int
  batch: int
  precision: str
  device: str

  @property
  def same_kernels(self) -> bool:
    """Whether all libraries begin with the same kernels."""
    return not isinstance(self.cfg, settings.Backbone)

  @property
  def without_dropout(self) -> Task:
    """The same, but for what no two libraries draw alike."""
    return dataclasses.replace(self, cfg=dataclasses.replace(self.cfg, dropout=0.0))

  def data(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Uniform uint8 images [steps * batch, side, side, channels] and int32 labels."""
    rng = np.random.default_rng(0)
    shape = steps * self.batch, self.side, self.side, self.channels
    images = rng.integers(0, 256, shape, np.uint8)
    return images, rng.integers(0, CLASSES, len(images)).astype(np.int32)

  def float_data(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """For who does not want to convert them in every step: floats in [0, 1], one-hot labels."""
    images, labels = self.data(steps)
    dtype = np.float64 if self.precision == "float64" else np.float32
    return images.astype(dtype) / 255, np.eye(CLASSES, dtype=dtype)[labels]


def more_parameters(library: str, network: str) -> int:
  """How many more than medjax a library trains."""
  return OTHER_PARAMETERS.get((library, network), PARAMETERS[network]) - PARAMETERS[network]


def task(
  network: str, side: int = 0, batch: int = BATCH, precision: str = "float32", device: str = "cpu"
) -> Task:
  """The training of a network of `PARAMETERS`; without `side`, of images as large as it needs."""
  cfg = dataclasses.replace((settings.VARIANTS[settings.Model] | _OWN)[network], preprocess="unit")
  loss = settings.Margin() if isinstance(cfg, settings.QuadSNet) else settings.SoftmaxCE()
  channels = 1 if network in GREY else 3
  return Task(cfg, loss, side or SIDES.get(network, SIDE), channels, batch, precision, device)


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


def same_pads(size: int, window: int, stride: int) -> tuple[int, int]:
  """Zeros (before, after) with which medjax and Keras fill up a map to a strided convolution."""
  zeros = max(0, (-(-size // stride) - 1) * stride + window - size)
  return zeros // 2, zeros - zeros // 2


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
    losses: does the same, one batch a call where need be; returns the loss of each.
    peak: most memory held on the device, in MB, where the process's is not what counts.
  """

  parameters: int
  run: Callable[[], float]
  losses: Callable[[], list[float]]
  peak: Callable[[], int] | None = None
