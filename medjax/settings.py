"""Every setting a config may hold, as frozen dataclasses, with its default and its meaning.

A field whose type has variants (a data set, a network, a loss, ...) is chosen by its `name`;
`VARIANTS` lists the names and the defaults that come with each. `medjax.config` turns a ConfigDict
into these types. Section numbers are those of the specification of the five papers' systems.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

_setting = dataclasses.dataclass(frozen=True, kw_only=True)
_UNITS = {"step": "steps", "epoch": "epochs", "example": "examples", "%": "percent"}


@dataclasses.dataclass(frozen=True)
class Duration:
  """A length of training or an interval: `"50 epochs"`, `"2000 steps"`, `"3e6 examples"`, `"5 %"`."""

  value: float
  unit: str

  @classmethod
  def parse(cls, text: str) -> Duration:
    """Reads a number and a unit; raises ValueError with the accepted forms."""
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*(step|epoch|example|percent|%)s?\s*", str(text))
    if match is None:
      raise ValueError(f'{text!r} is no duration: write e.g. "50 epochs", "2000 steps" or "5 %"')
    return cls(float(match[1]), _UNITS.get(match[2], "percent"))

  def steps(self, batch_size: int, train_size: int, total: int = 0) -> int:
    """Whole steps, rounded to the nearest; percentages are of `total` steps."""
    scale = {
      "steps": 1.0,
      "epochs": train_size / batch_size,
      "examples": 1 / batch_size,
      "percent": total / 100,
    }
    return round(self.value * scale[self.unit])

  def __str__(self) -> str:
    return f"{self.value:g} {self.unit}"


@_setting
class Split:
  """How images are dealt to train, val and test (spec/common.md section 7).

  Attributes:
    mode: `official` takes the set's own parts and makes the missing ones by group; `grouped` ignores
      the official parts; `image_random` cuts through groups, is tagged leaky, and exists only to
      reproduce published numbers.
    val: share of the training part that becomes val where there is none; 0 makes no val.
    test: share of all images that becomes test where there is none; 0 makes no test.
    seed: which of the possible splits.
  """

  mode: Literal["official", "grouped", "image_random"] = "official"
  val: float = 0.125
  test: float = 0.2
  seed: int = 0


@_setting
class Data:
  """A set of images.

  Attributes:
    root: folder or file that holds it.
    image_size: images are stretched to this many pixels, height and width.
    channels: 1 (grey) or 3 (RGB); every file mode is brought to it.
    feed: `resident` decodes once and keeps uint8 on the devices, `streamed` decodes as it goes;
      `auto` takes resident up to `resident_gb`.
    threads: decoding threads; 0 means one a core.
    cache: folder for decoded images.
    max_unreadable: share of unreadable files above which the run stops.
  """

  name: str
  root: str = ""
  image_size: int = 64
  channels: Literal[1, 3] = 3
  split: Split = Split()
  feed: Literal["auto", "resident", "streamed"] = "auto"
  resident_gb: float = 4.0
  threads: int = 0
  cache: str = "~/.cache/medjax/data"
  max_unreadable: float = 0.01


@_setting
class Phantom(Data):
  """Synthetic radiograph-like images of patients (`data/datasets/phantom.py`).

  Attributes:
    patients: how many patients to draw, each with several images.
    labelled: whether lesion classes are told; without them everything is training data.
    seed: which patients; two seeds share none.
  """

  name: str = "phantom"
  channels: Literal[1, 3] = 1
  patients: int = 200
  labelled: bool = True
  seed: int = 0


@_setting
class ImageFolder(Data):
  """`root/[train|val|test/]class/**/image`; the group is the image unless `group_pattern` says.

  Attributes:
    group_pattern: regular expression on the file's name; its first group (or whole match) is the
      patient, lesion or source that must not be cut across parts.
  """

  name: str = "image_folder"
  group_pattern: str = ""


@_setting
class Table(Data):
  """A CSV with one row an image; paths are relative to the CSV.

  Attributes:
    path, label, split, group: names of its columns; `split` and `group` may be missing.
    classes: class names in label order; by default those of the training part, sorted.
  """

  name: str = "table"
  path: str = "path"
  label: str = "label"
  group: str = "group"
  part: str = "split"
  classes: tuple[str, ...] = ()


@_setting
class Npz(Data):
  """MedMNIST's layout: `{train,val,test}_{images,labels}` in one .npz file."""

  name: str = "npz"
  channels: Literal[1, 3] = 1
  image_size: int = 28


@_setting
class CovidCT(Data):
  """COVID-CT (Zhao et al. 2020): official lists, source figures as groups."""

  name: str = "covid_ct"


@_setting
class ZipFolder(Data):
  """A folder of zip files of images, read in place; the zip's name is the source label."""

  name: str = "zip_folder"
  channels: Literal[1, 3] = 1
  split: Split = Split(val=0.0, test=0.0)


@_setting
class Augment:
  """Random changes of an image, made on the device (spec/common.md section 3, mednet.md section 5).

  Attributes:
    rotation: degrees to each side. shift: share of the size. zoom: factor within 1 +- zoom.
    hflip, vflip: mirrored with probability 0.5. Never on by default: a mirrored chest is wrong.
    crop_area: share of the image a random crop keeps, (low, high); (1, 1) crops nothing.
    crop_ratio: aspect ratio of that crop, drawn log-uniformly.
    brightness: added, within +-. contrast: factor within 1 +-. gamma: exponent, (low, high).
    invert: probability of the negative.
    blur_sigma: pixels, (low, high), with probability `blur`.
    noise_sigma: standard deviation on [0, 1] pixels, with probability `noise`.
  """

  name: str = "none"
  rotation: float = 0.0
  shift: float = 0.0
  zoom: float = 0.0
  hflip: bool = False
  vflip: bool = False
  crop_area: tuple[float, float] = (1.0, 1.0)
  crop_ratio: tuple[float, float] = (1.0, 1.0)
  brightness: float = 0.0
  contrast: float = 0.0
  gamma: tuple[float, float] = (1.0, 1.0)
  invert: float = 0.0
  blur: float = 0.0
  blur_sigma: tuple[float, float] = (0.1, 2.0)
  noise: float = 0.0
  noise_sigma: float = 0.02


@_setting
class Model:
  """A network. Preprocessing is a part of it (spec/common.md section 2): `stats` is by the mean
  and deviation of the training part, kept with the weights."""

  name: str
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "unit"
  bn_momentum: float = 0.9
  bn_epsilon: float = 1e-3
  dropout: float = 0.0


@_setting
class QuadSNet(Model):
  """QuadSNet (spec/quadsnet.md): streams cs3, cs5 (plain) and ss3, ss5 (separable)."""

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


@_setting
class MedNet(Model):
  """MedNet (spec/mednet.md); Gray or Color by the channels of the data.

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


@_setting
class Loss:
  """A per-example loss (spec/common.md section 4)."""

  name: str


@_setting
class SoftmaxCE(Loss):
  """Softmax cross-entropy."""

  name: str = "softmax_ce"
  label_smoothing: float = 0.0


@_setting
class Margin(Loss):
  """QuadSNet's margin loss; `mix` is the share of cross-entropy mixed in."""

  name: str = "margin"
  score: Literal["prob_sq", "prob", "capsule"] = "prob_sq"
  exponent: int = 1
  positive: float = 0.9
  negative: float = 0.1
  down_weight: float = 0.5
  mix: float = 0.0


@_setting
class Objective:
  """What a training step minimises."""

  name: str


@_setting
class Supervised(Objective):
  """Labels, a loss and class weights computed from the training part."""

  name: str = "supervised"
  loss: Loss = SoftmaxCE()
  class_weights: Literal["none", "balanced", "inv_norm"] = "balanced"


@_setting
class SimCLR(Objective):
  """Two views of each image against all others (spec/mednet.md section 5).

  Attributes:
    temperature: of NT-Xent. projector: widths of its hidden and output layers.
  """

  name: str = "simclr"
  temperature: float = 0.1
  projector: tuple[int, int] = (512, 128)


@_setting
class Optimizer:
  """What turns gradients into updates (spec/common.md section 5).

  Attributes:
    lr: peak learning rate. schedule: after warm-up, `constant` or `cosine` to 0.
    warmup: linear, from 0. clip: largest global norm of the gradient; 0 clips nothing.
  """

  name: str
  lr: float = 1e-3
  schedule: Literal["constant", "cosine"] = "cosine"
  warmup: Duration = Duration(5, "percent")
  clip: float = 1.0


@_setting
class Adam(Optimizer):
  """Adam."""

  name: str = "adam"
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8


@_setting
class AdamW(Adam):
  """Adam with decoupled weight decay on kernels only, never on biases or batch-norm."""

  name: str = "adamw"
  weight_decay: float = 1e-4


@_setting
class SGD(Optimizer):
  """Stochastic gradient descent with momentum; weight decay on kernels only."""

  name: str = "sgd"
  lr: float = 0.1
  momentum: float = 0.9
  nesterov: bool = False
  weight_decay: float = 1e-4


@_setting
class Train:
  """The loop.

  Attributes:
    batch_size: of the global batch, whatever the number of devices.
    length: of training. steps_per_dispatch: K steps run in one call; every interval is rounded up
      to a multiple of it.
    log_every, checkpoint_every: intervals.
    patience: evaluations without improvement by `min_delta` before the stage stops early; 0 never.
    precision: of computation; parameters, statistics and losses stay float32.
    bn_group: examples that share batch-norm statistics; 0 means the global batch.
    ops: form of convolutions: `cpu`, `plain`, or `auto`: cpu on CPU, said at the start.
  """

  batch_size: int = 32
  length: Duration = Duration(50, "epochs")
  steps_per_dispatch: int = 4
  log_every: Duration = Duration(1, "epochs")
  checkpoint_every: Duration = Duration(1, "epochs")
  patience: int = 0
  min_delta: float = 0.0
  precision: Literal["float32", "bfloat16"] = "float32"
  bn_group: int = 0
  ops: Literal["auto", "cpu", "plain"] = "auto"


@_setting
class Eval:
  """Evaluation.

  Attributes:
    every: how often the val part is scored. batch_size: of evaluation.
    select: metric of the val part that chooses the best checkpoint, or `loss` (smaller is better).
    recalibrate: training images over which batch-norm statistics are estimated anew before
      evaluation; 0 keeps the running ones.
    bootstrap: resamples behind the intervals.
  """

  every: Duration = Duration(1, "epochs")
  batch_size: int = 64
  select: str = "macro_f1"
  recalibrate: int = 0
  bootstrap: int = 10_000


@_setting
class Stage:
  """One training: data, network, objective, and where it starts from.

  Attributes:
    init_from: an earlier stage's name, a workdir's stage folder, or empty for random weights.
  """

  name: str = "train"
  data: Data = Phantom()
  augment: Augment = Augment()
  model: Model = QuadSNet()
  objective: Objective = Supervised()
  optimizer: Optimizer = AdamW()
  train: Train = Train()
  eval: Eval = Eval()
  init_from: str = ""


@_setting
class Config:
  """An experiment.

  Attributes:
    seed: of initial weights, order, augmentation and dropout; the split has its own.
    stages: run in order. compare: (stage, baseline) scored on one test part, with a paired interval.
  """

  title: str = ""
  seed: int = 0
  stages: tuple[Stage, ...] = (Stage(),)
  compare: tuple[str, ...] = ()


_named = lambda *variants: {v.name: v for v in variants}  # noqa: E731

VARIANTS: dict[type, dict] = {
  Data: _named(Phantom(), ImageFolder(), Table(), Npz(), CovidCT(), ZipFolder()),
  Augment: _named(
    Augment(),
    Augment(name="cxr_safe", rotation=10, shift=0.05, zoom=0.1),
    Augment(name="cxr_aug", rotation=90, shift=0.1, zoom=0.1, hflip=True, vflip=True),
    Augment(name="ham_aug", rotation=180, shift=0.1, zoom=0.1, hflip=True, vflip=True),
    Augment(
      name="simclr_gray",
      rotation=15,
      crop_area=(0.3, 1.0),
      crop_ratio=(3 / 4, 4 / 3),
      brightness=0.4,
      contrast=0.4,
      gamma=(0.7, 1.4),
      invert=0.1,
      blur=0.5,
      noise=0.3,
    ),
  ),
  Model: _named(
    QuadSNet(),
    QuadSNet(name="quadsnet_exact", bn="fusion"),
    QuadSNet(name="quadsnet_gap", pool="gap", hidden=512),
    QuadSNet(name="quadsnet_total", sep_convs_per_block=3, pool="gap", hidden=320),
    QuadSNet(name="quadsnet_convbn", bn="conv"),
    QuadSNet(name="quadsnet_direct", use_bias=True, pool="gap", hidden=0),
    QuadSNet(
      name="quadsnet_one",
      widths=(64, 128, 256, 512),
      convs_per_block=1,
      sep_convs_per_block=1,
      use_bias=True,
      pool="gap",
      hidden=0,
    ),
    MedNet(),
  ),
  Loss: _named(SoftmaxCE(), Margin()),
  Objective: _named(Supervised(), SimCLR()),
  Optimizer: _named(Adam(), AdamW(), SGD()),
}
