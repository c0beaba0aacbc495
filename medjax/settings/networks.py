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
    metadata: what is known of the patient, beside the image: none, one wide dense layer, or two
      with batch norm (Nguyen et al. 2022). `metadata_mlp` is a network of the metadata alone.
  """

  name: str
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "unit"
  metadata: Literal["none", "dense", "two_layer"] = "none"
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backbone(Model):
  """A published network for natural images.

  Attributes:
    stem: as published, or for images of about 32 pixels: one 3x3 convolution, no stride, no pool.
  """

  stem: Literal["imagenet", "small"] = "imagenet"
  bn_momentum: float = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseNet(Backbone):
  """DenseNet (Huang et al. 2017), as in Keras.

  Attributes:
    units: dense layers of each block. growth: channels that each adds.
    shared: batch statistics of a map are computed once, not once a consumer; the same to rounding.
  """

  name: str = "densenet121"
  units: tuple[int, ...] = (6, 12, 24, 16)
  growth: int = 32
  shared: bool = False
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "torch"
  bn_epsilon: float = 1.001e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNet(Backbone):
  """ResNet v1 (He et al. 2016): bottlenecks as in Keras, basic blocks as in torchvision.

  Attributes:
    units: residual blocks of each stage. bottleneck: 1x1, 3x3, 1x1, else 3x3, 3x3.
    stride_in: the convolution of a bottleneck that has its stride: Keras's is the first `1x1`,
      torchvision's and timm's the `3x3`.
    use_bias: biases before batch norm, as Keras has them.
  """

  name: str = "resnet50"
  units: tuple[int, ...] = (3, 4, 6, 3)
  bottleneck: bool = True
  stride_in: Literal["1x1", "3x3"] = "1x1"
  use_bias: bool = True
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "caffe"
  bn_epsilon: float = 1.001e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class InceptionV3(Backbone):
  """Inception-V3 (Szegedy et al. 2016), as in Keras."""

  name: str = "inception_v3"
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "tf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InceptionResNetV2(Backbone):
  """Inception-ResNet-V2 (Szegedy et al. 2017), as in Keras."""

  name: str = "inception_resnet_v2"
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "tf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Xception(Backbone):
  """Xception (Chollet 2017), as in Keras."""

  name: str = "xception"
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "tf"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VGG(Backbone):
  """VGG (Simonyan & Zisserman 2015), as in Keras.

  Attributes:
    convs: of each block. hidden: widths of the dense layers before the classes.
    pool: of the last map: `flatten` as published, or `gap`, global average.
  """

  name: str = "vgg16"
  convs: tuple[int, ...] = (2, 2, 3, 3, 3)
  hidden: tuple[int, ...] = (4096, 4096)
  pool: Literal["flatten", "gap"] = "flatten"
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "caffe"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileNetV1(Backbone):
  """MobileNet (Howard et al. 2017), as in Keras; `width` multiplies the channels."""

  name: str = "mobilenet_v1"
  width: float = 1.0
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "tf"
  dropout: float = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileNetV2(Backbone):
  """MobileNet-V2 (Sandler et al. 2018), as in Keras; `width` multiplies the channels."""

  name: str = "mobilenet_v2"
  width: float = 1.0
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "tf"
  bn_momentum: float = 0.999


@dataclasses.dataclass(frozen=True, kw_only=True)
class MobileNetV3(Backbone):
  """MobileNet-V3 (Howard et al. 2019), as in Keras; `small` is the smaller of the two."""

  name: str = "mobilenet_v3_large"
  small: bool = False
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "tf"
  bn_momentum: float = 0.999
  dropout: float = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class NASNet(Backbone):
  """NASNet-A (Zoph et al. 2018), as in Keras.

  Attributes:
    filters: channels of the last map. repeats: normal cells of a stack. stem_filters: of the first
      convolution. skip_reduction: whether the cell before a reduction is skipped to after it.
  """

  name: str = "nasnet_mobile"
  filters: int = 1056
  repeats: int = 4
  stem_filters: int = 32
  skip_reduction: bool = False
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "tf"
  bn_momentum: float = 0.9997


@dataclasses.dataclass(frozen=True, kw_only=True)
class PneumoniaCNN(Model):
  """The pneumonia network of Go & Bissaliyeva and its separable twins.

  Attributes:
    separable: numbers, from 1 to 3, of the convolutions that are depthwise separable.
    bn_axis: what shares batch-norm statistics: a channel, or by the original's slip a row.
    pool: of the last map: `flatten` as published, or `gap`, global average.
  """

  name: str = "pneumonia_cnn"
  separable: tuple[int, ...] = ()
  bn_axis: Literal["channel", "row"] = "channel"
  pool: Literal["flatten", "gap"] = "flatten"
  bn_momentum: float = 0.99
  dropout: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurveyCNN(Model):
  """The plain network of Ning's survey, in sizes of our own.

  Attributes:
    widths: of the blocks. hidden: of the dense layer. squeeze: ratio of a squeeze-and-excitation at
      the end of each block (Hu et al. 2018); 0 leaves it out.
  """

  name: str = "survey_cnn"
  widths: tuple[int, ...] = (32, 64, 128, 256)
  hidden: int = 256
  leaky: bool = True
  squeeze: int = 0
  dropout: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Darknet(Model):
  """Darknet-53 (Redmon & Farhadi 2018).

  Attributes:
    pyramid: predicts at three scales and averages the logits.
  """

  name: str = "darknet53"
  pyramid: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetadataMLP(Model):
  """What is known of the patient, without the image: two dense layers (Gessert et al. 2020).

  Attributes:
    width: of both.
  """

  name: str = "metadata_mlp"
  width: int = 256
  dropout: float = 0.4


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftAttention(Model):
  """A backbone cut short, soft attention on its map, and metadata beside it (Nguyen et al. 2022).

  Attributes:
    backbone: the network that is cut. cut: where: as the authors' `code`, as the `paper` says, or
      at a named end point.
    attention: `paper` with a learnt factor, `paper_no_gamma`, the original layer's arithmetic, or
      `none`, to compare with: the map alone is pooled.
    maps: attention maps.
    pool: of the map: `flatten`, or `gap`.
  """

  name: str = "soft_attention"
  backbone: Backbone = DenseNet(name="densenet201", units=(6, 12, 48, 32))
  cut: str = "paper"
  attention: Literal["paper", "paper_no_gamma", "keras_quirk", "none"] = "paper"
  maps: int = 16
  pool: Literal["flatten", "gap"] = "flatten"
  dropout: float = 0.5
