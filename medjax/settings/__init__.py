"""Every setting a config may hold, as frozen dataclasses, with its default and its meaning.

A field whose type has variants (a data set, a network, a loss, ...) is chosen by its `name`;
`VARIANTS` lists the names and the defaults that come with each. `medjax.config` turns a ConfigDict
into these types.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from medjax.settings.durations import Duration as Duration
from medjax.settings.evaluation import AtLeast as AtLeast
from medjax.settings.evaluation import Cost as Cost
from medjax.settings.evaluation import Eval as Eval
from medjax.settings.evaluation import Threshold as Threshold
from medjax.settings.evaluation import named as named
from medjax.settings.feeding import Feeding as Feeding
from medjax.settings.gan import GAN as GAN
from medjax.settings.gan import Adversarial as Adversarial
from medjax.settings.gan import GANCond as GANCond
from medjax.settings.gan import GANSemi as GANSemi
from medjax.settings.gan import GANVanilla as GANVanilla
from medjax.settings.images import Augment as Augment
from medjax.settings.images import Collection as Collection
from medjax.settings.images import Data as Data
from medjax.settings.images import ImageFolder as ImageFolder
from medjax.settings.images import Npz as Npz
from medjax.settings.images import Phantom as Phantom
from medjax.settings.images import Split as Split
from medjax.settings.images import Table as Table
from medjax.settings.images import ZipFolder as ZipFolder
from medjax.settings.learning import LARS as LARS
from medjax.settings.learning import LDAM as LDAM
from medjax.settings.learning import SGD as SGD
from medjax.settings.learning import Adam as Adam
from medjax.settings.learning import AdamW as AdamW
from medjax.settings.learning import Focal as Focal
from medjax.settings.learning import KerasAdam as KerasAdam
from medjax.settings.learning import Loss as Loss
from medjax.settings.learning import Margin as Margin
from medjax.settings.learning import Optimizer as Optimizer
from medjax.settings.learning import Patience as Patience
from medjax.settings.learning import Plateau as Plateau
from medjax.settings.learning import SigmoidBCE as SigmoidBCE
from medjax.settings.learning import SigmoidFocal as SigmoidFocal
from medjax.settings.learning import SoftmaxCE as SoftmaxCE
from medjax.settings.learning import Train as Train
from medjax.settings.networks import VGG as VGG
from medjax.settings.networks import Backbone as Backbone
from medjax.settings.networks import Connection as Connection
from medjax.settings.networks import Darknet as Darknet
from medjax.settings.networks import DenseNet as DenseNet
from medjax.settings.networks import InceptionResNetV2 as InceptionResNetV2
from medjax.settings.networks import InceptionV3 as InceptionV3
from medjax.settings.networks import MedNet as MedNet
from medjax.settings.networks import MetadataMLP as MetadataMLP
from medjax.settings.networks import MobileNetV1 as MobileNetV1
from medjax.settings.networks import MobileNetV2 as MobileNetV2
from medjax.settings.networks import MobileNetV3 as MobileNetV3
from medjax.settings.networks import Model as Model
from medjax.settings.networks import NASNet as NASNet
from medjax.settings.networks import PneumoniaCNN as PneumoniaCNN
from medjax.settings.networks import QuadSNet as QuadSNet
from medjax.settings.networks import ResNet as ResNet
from medjax.settings.networks import SoftAttention as SoftAttention
from medjax.settings.networks import SurveyCNN as SurveyCNN
from medjax.settings.networks import Xception as Xception
from medjax.settings.objectives import BY_COUNTS as BY_COUNTS
from medjax.settings.objectives import BYOL as BYOL
from medjax.settings.objectives import WEIGHTS as WEIGHTS
from medjax.settings.objectives import Classical as Classical
from medjax.settings.objectives import MICLe as MICLe
from medjax.settings.objectives import Objective as Objective
from medjax.settings.objectives import Rotation as Rotation
from medjax.settings.objectives import SimCLR as SimCLR
from medjax.settings.objectives import SourceLabel as SourceLabel
from medjax.settings.objectives import Supervised as Supervised
from medjax.settings.reading import Reading as Reading
from medjax.settings.sets import HAM10000 as HAM10000
from medjax.settings.sets import MNIST as MNIST
from medjax.settings.sets import BreakHis as BreakHis
from medjax.settings.sets import ChestXray14 as ChestXray14
from medjax.settings.sets import ChestXrayKermany as ChestXrayKermany
from medjax.settings.sets import CovidCT as CovidCT
from medjax.settings.sets import EyePACS as EyePACS
from medjax.settings.sets import IsicMalignantBenign as IsicMalignantBenign
from medjax.settings.sets import MalariaCells as MalariaCells
from medjax.settings.sets import MedMNIST as MedMNIST
from medjax.settings.sets import OctKermany as OctKermany
from medjax.settings.sets import Tfds as Tfds
from medjax.settings.study import Study as Study


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One training: data, network, objective, and where it starts from.

  Attributes:
    seed: in place of the run's; None takes the run's.
    cell: what the study's columns hold for this stage; empty for a stage that is no row of it.
    audit_against: stages whose val and test parts the train part must not show: near-duplicates of
      their images are left out, with their groups, and counted.
    init_from: an earlier stage's name, a workdir's stage folder, a weight file of Keras, PyTorch or
      medjax, or empty for random weights.
    init_allow: patterns, as in a shell, of the weight file's tensors that may be left over, such as
      `predictions/*`.
  """

  name: str = "train"
  seed: int | None = None
  cell: tuple[str, ...] = ()
  audit_against: tuple[str, ...] = ()
  data: Data = Phantom()
  augment: Augment = Augment()
  model: Model = QuadSNet()
  objective: Objective = Supervised()
  optimizer: Optimizer = AdamW()
  train: Train = Train()
  eval: Eval = Eval()
  init_from: str = ""
  init_allow: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """An experiment.

  Attributes:
    question: that the run is to answer. intended_use: what the network is for, and for whom. Both
      are sentences for the report alone.
    seed: of initial weights, order, augmentation and dropout; the split has its own.
    stages: run in order.
    compare: (stage, baseline), scored on one test part with a paired interval.
    study: of many stages, a table.
  """

  title: str = ""
  question: str = ""
  intended_use: str = ""
  seed: int = 0
  stages: tuple[Stage, ...] = (Stage(),)
  compare: tuple[str, ...] = ()
  study: Study = Study()


_TORCHVISION: dict[str, Any] = dict(
  use_bias=False, preprocess="torch", bn_momentum=0.9, bn_epsilon=1e-5
)
# Views of one image: grey ones keep their side, as a mirrored chest is wrong.
_GRAY_VIEWS: dict[str, Any] = dict(
  rotation=15,
  crop_ratio=(3 / 4, 4 / 3),
  brightness=0.4,
  contrast=0.4,
  gamma=(0.7, 1.4),
  invert=0.1,
  blur=0.5,
  noise=0.3,
)
_COLOR_VIEWS: dict[str, Any] = dict(
  hflip=True,
  vflip=True,
  crop_area=(0.2, 1.0),
  crop_ratio=(3 / 4, 4 / 3),
  brightness=0.4,
  contrast=0.4,
  saturation=0.2,
  hue=0.1,
  jitter=0.8,
  grayscale=0.1,
  blur=0.5,
)
# For classes that a view of another kind would hide: which way up, and where from.
_PRETEXT: dict[str, Any] = dict(
  rotation=10, crop_area=(0.6, 1.0), crop_ratio=(3 / 4, 4 / 3), brightness=0.2, contrast=0.2
)
_named = lambda *variants: {v.name: v for v in variants}  # noqa: E731

VARIANTS: dict[type, dict] = {
  Data: _named(
    Phantom(),
    ImageFolder(),
    Collection(),
    Table(),
    Npz(),
    ZipFolder(),
    CovidCT(),
    ChestXrayKermany(),
    OctKermany(),
    HAM10000(),
    IsicMalignantBenign(),
    EyePACS(),
    MalariaCells(),
    BreakHis(),
    ChestXray14(),
    MNIST(),
    MedMNIST(),
    Tfds(),
  ),
  Augment: _named(
    Augment(),
    Augment(name="cxr_safe", rotation=10, shift=0.05, zoom=0.1),
    Augment(name="cxr_aug", rotation=90, shift=0.1, zoom=0.1, hflip=True, vflip=True),
    Augment(name="ham_aug", rotation=180, shift=0.1, zoom=0.1, hflip=True, vflip=True),
    Augment(name="simclr_gray", crop_area=(0.3, 1.0), **_GRAY_VIEWS),
    Augment(name="simclr_xray", crop_area=(0.6, 1.0), **_GRAY_VIEWS),
    Augment(name="simclr_color", rotation=180, **_COLOR_VIEWS),
    Augment(name="simclr_photo", rotation=15, **_COLOR_VIEWS),
    Augment(name="simclr_stain", rotation=180, stain=0.05, **_COLOR_VIEWS),
    Augment(name="gan_gray", shift=0.125, brightness=0.5, contrast=0.5, cutout=0.5),
    Augment(
      name="gan_color", shift=0.125, brightness=0.5, contrast=0.5, saturation=1.0, cutout=0.5
    ),
    Augment(name="pretext_gray", **_PRETEXT),
    Augment(name="pretext_color", hflip=True, saturation=0.2, **_PRETEXT),
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
    *(MedNet(name=f"mednet_{width}", width=width) for width in (16, 32, 48, 96, 128)),
    DenseNet(),
    DenseNet(name="densenet169", units=(6, 12, 32, 32)),
    DenseNet(name="densenet201", units=(6, 12, 48, 32)),
    DenseNet(name="chexnet"),
    InceptionV3(),
    InceptionResNetV2(),
    Xception(),
    MobileNetV1(),
    MobileNetV2(),
    MobileNetV3(),
    MobileNetV3(name="mobilenet_v3_small", small=True),
    NASNet(),
    NASNet(name="nasnet_large", filters=4032, repeats=6, stem_filters=96, skip_reduction=True),
    VGG(),
    VGG(name="vgg19", convs=(2, 2, 4, 4, 4)),
    ResNet(),
    ResNet(name="resnet152", units=(3, 8, 36, 3)),
    ResNet(name="resnet18", units=(2, 2, 2, 2), bottleneck=False, **_TORCHVISION),
    ResNet(name="resnet34", bottleneck=False, **_TORCHVISION),
    ResNet(name="resnet50_v15", stride_in="3x3", **_TORCHVISION),
    ResNet(name="resnet152_v15", units=(3, 8, 36, 3), stride_in="3x3", **_TORCHVISION),
    PneumoniaCNN(),
    PneumoniaCNN(name="pneumonia_sep_first", separable=(1,)),
    PneumoniaCNN(name="pneumonia_sep_mid", separable=(2,)),
    PneumoniaCNN(name="pneumonia_sep_last", separable=(3,)),
    PneumoniaCNN(name="pneumonia_sep_all", separable=(1, 2, 3)),
    SurveyCNN(),
    SurveyCNN(name="survey_cnn_se", squeeze=16),
    Darknet(),
    Darknet(name="darknet53_fpn", pyramid=True),
    GAN(),
    MetadataMLP(),
    SoftAttention(),
    SoftAttention(name="vgg16_soft_attention", backbone=VGG(preprocess="tf")),
  ),
  Loss: _named(
    SoftmaxCE(),
    Margin(),
    SigmoidBCE(),
    SigmoidBCE(name="weighted_bce", balanced=True),
    Focal(),
    SigmoidFocal(),
    LDAM(),
  ),
  Objective: _named(
    Supervised(),
    Classical(),
    SimCLR(),
    MICLe(),
    BYOL(),
    Rotation(),
    SourceLabel(),
    GANVanilla(),
    GANSemi(),
    GANCond(),
  ),
  Optimizer: _named(Adam(), KerasAdam(), AdamW(), SGD(), LARS()),
  Threshold: _named(
    Threshold(),
    AtLeast(),
    AtLeast(name="specificity"),
    AtLeast(name="ppv", at_least=0.9),
    Cost(),
  ),
}
