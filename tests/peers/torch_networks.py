"""Networks in PyTorch: backbones are timm's, the others have modules of medjax's names."""

from __future__ import annotations

import collections
import itertools
import types

import problem
import torch
from torch import nn

from medjax import settings

_BACKBONES = {
  "densenet121": "densenet121",
  "resnet50": "resnet50",
  "mobilenet_v2": "mobilenetv2_100",
  "inception_v3": "inception_v3",
  "inception_resnet_v2": "inception_resnet_v2",
  "nasnet_large": "nasnetalarge",
}


def make(task: problem.Task) -> nn.Module:
  """Images in [0, 1] to logits."""
  if isinstance(task.cfg, settings.Backbone):
    return _backbone(task.cfg.name)
  networks = {settings.QuadSNet: _QuadSNet, settings.MedNet: _MedNet}
  network = networks.get(type(task.cfg), _PneumoniaCNN)
  return _with_kernels(network(task))


def _backbone(name: str) -> nn.Module:
  options = {"aux_logits": False} if name == "inception_v3" else {}
  net = _timm().create_model(_BACKBONES[name], num_classes=problem.CLASSES, **options)
  if name == "resnet50":
    _stride_first(net)
  return net


def _timm() -> types.ModuleType:
  """Imported here, for the memory that it takes from the figures of networks without it.

  It imports torchvision, which may have been built for another PyTorch: one with CUDA, where an
  index has the builds without it of PyTorch alone. The operators that it misses then are declared;
  no network runs them.
  """
  try:
    import torchvision  # noqa: F401
  except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
      library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
  import timm

  return timm


def _stride_first(net: nn.Module) -> None:
  """Puts a stage's stride where Keras and medjax have it, in the first 1x1 convolution."""
  for stage in (net.layer2, net.layer3, net.layer4):
    stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride


class _QuadSNet(nn.Module):
  def __init__(self, task: problem.Task):
    super().__init__()
    cfg, self.streams = task.cfg, task.cfg.streams
    self.encoder = nn.ModuleDict(
      {name: _stream(cfg, task.channels, *problem.STREAMS[name]) for name in cfg.streams}
    )
    fused = len(cfg.streams) * cfg.widths[-1]
    if cfg.bn == "fusion":
      self.encoder["bn"] = _batch_norm(cfg, fused)
    self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Dropout(cfg.dropout))
    self.head = _named(
      hidden=nn.Linear(4 * fused, cfg.hidden),
      relu=nn.ReLU(inplace=True),
      classes=nn.Linear(cfg.hidden, problem.CLASSES),
    )

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    x = torch.cat([self.encoder[name](images) for name in self.streams], 1)
    if "bn" in self.encoder:
      x = self.encoder["bn"](x)
    return self.head(self.pool(x).permute(0, 2, 3, 1).flatten(1))  # in medjax's order


def _stream(cfg: settings.QuadSNet, channels: int, size: int, separable: bool) -> nn.Sequential:
  widths = itertools.pairwise((channels, *cfg.widths))
  blocks = (_block(cfg, size, separable, *pair) for pair in widths)
  return _named(**{f"block{number}": block for number, block in enumerate(blocks, start=1)})


def _block(
  cfg: settings.QuadSNet, size: int, separable: bool, inputs: int, features: int
) -> nn.Sequential:
  modules: dict[str, nn.Module] = {}
  for conv in range(cfg.sep_convs_per_block if separable else cfg.convs_per_block):
    make_conv = _separable if separable else _conv
    modules[f"conv{conv + 1}"] = make_conv(features if conv else inputs, features, size)
    modules[f"relu{conv + 1}"] = nn.ReLU(inplace=True)
  if cfg.bn == "block":
    modules["bn"] = _batch_norm(cfg, features)
  return _named(**modules, pool=nn.MaxPool2d(2), dropout=nn.Dropout(cfg.dropout))


def _separable(inputs: int, features: int, size: int) -> nn.Sequential:
  return _named(
    depthwise=_conv(inputs, inputs, size, groups=inputs), pointwise=_conv(inputs, features, 1)
  )


class _MedNet(nn.Module):
  def __init__(self, task: problem.Task):
    super().__init__()
    cfg = self.cfg = task.cfg
    stem, width = problem.STEM_WIDTH, 4 * cfg.width
    first = problem.same_pads(task.side, 3, 2)
    second = problem.same_pads(-(-task.side // 2), 5, 2)
    self.encoder = nn.ModuleDict(
      {
        "stem1": _strided(cfg, task.channels, stem, 3, first),
        "stem2": _strided(cfg, stem, stem, 5, second),
      }
    )
    for block in range(1, cfg.blocks + 1):
      self.encoder[f"b{block}"] = _MedNetBlock(cfg, width if block > 1 else stem)
      for start, conv in problem.arriving(cfg, block):
        if conv:
          self.encoder[conv] = _conv_bn(cfg, width if start else stem, width, 1)
    self.head = _named(
      hidden=nn.Linear(width, cfg.hidden),
      relu=nn.ReLU(inplace=True),
      dropout=nn.Dropout(cfg.dropout),
      classes=nn.Linear(cfg.hidden, problem.CLASSES),
    )

  def forward(self, images: torch.Tensor) -> torch.Tensor:
    outputs = [self.encoder["stem2"](self.encoder["stem1"](images).relu()).relu()]
    for block in range(1, self.cfg.blocks + 1):
      x = self.encoder[f"b{block}"](self._pooled(outputs[-1], block - 1, block))
      for start, conv in problem.arriving(self.cfg, block):
        y = self._pooled(outputs[start], start, block)
        x = x + (self.encoder[conv](y) if conv else y)
      outputs.append(x.relu())
    return self.head(outputs[-1].mean((2, 3)))

  def _pooled(self, x: torch.Tensor, start: int, end: int) -> torch.Tensor:
    for _ in range(problem.pools(self.cfg, start, end)):
      x = nn.functional.max_pool2d(x, 2, ceil_mode=True)
    return x


class _MedNetBlock(nn.ModuleDict):
  """A batch norm a convolution; medjax has one for all of a block."""

  def __init__(self, cfg: settings.MedNet, inputs: int):
    super().__init__({"short": _conv(inputs, 4 * cfg.width, 1)})
    self["short_bn"] = _batch_norm(cfg, 4 * cfg.width)
    for size in problem.BRANCHES:
      self[f"conv{size}"] = _conv(inputs, cfg.width, size)
      self[f"conv{size}_bn"] = _batch_norm(cfg, cfg.width)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    branches = [self._normalised(f"conv{size}", x).relu() for size in problem.BRANCHES]
    return torch.cat(branches, 1) + self._normalised("short", x)

  def _normalised(self, conv: str, x: torch.Tensor) -> torch.Tensor:
    return self[f"{conv}_bn"](self[conv](x))


class _PneumoniaCNN(nn.Module):
  def __init__(self, task: problem.Task):
    super().__init__()
    cfg, side, inputs = task.cfg, task.side, task.channels
    self.encoder = nn.ModuleDict()
    for number, width in enumerate(problem.PNEUMONIA_WIDTHS, start=1):
      self.encoder[f"block{number}"] = _named(
        conv=nn.Conv2d(inputs, width, 3, padding=1),
        relu=nn.ReLU(inplace=True),
        pool=nn.MaxPool2d(2, ceil_mode=True),
        bn=_batch_norm(cfg, width),
      )
      side, inputs = -(-side // 2), width
    self.dropout = nn.Dropout(cfg.dropout)
    self.head = _named(
      hidden=nn.Linear(side * side * inputs, problem.PNEUMONIA_HIDDEN),
      relu=nn.ReLU(inplace=True),
      dropout=nn.Dropout(cfg.dropout),
      classes=nn.Linear(problem.PNEUMONIA_HIDDEN, problem.CLASSES),
    )

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    for block in self.encoder.values():
      x = block(x)
    return self.head(self.dropout(x.permute(0, 2, 3, 1).flatten(1)))  # in medjax's order


def _conv_bn(cfg: settings.MedNet, inputs: int, features: int, size: int) -> nn.Sequential:
  return _named(conv=_conv(inputs, features, size), bn=_batch_norm(cfg, features))


def _strided(
  cfg: settings.MedNet, inputs: int, features: int, size: int, pads: tuple[int, int]
) -> nn.Sequential:
  """Stride 2 with more zeros below and to the right, as medjax and Keras have it."""
  conv = nn.Conv2d(inputs, features, size, stride=2, bias=False)
  return _named(pad=nn.ZeroPad2d(pads * 2), conv=conv, bn=_batch_norm(cfg, features))


def _conv(inputs: int, features: int, size: int, groups: int = 1) -> nn.Conv2d:
  return nn.Conv2d(inputs, features, size, padding=size // 2, groups=groups, bias=False)


def _batch_norm(cfg: settings.Model, channels: int) -> nn.BatchNorm2d:
  return nn.BatchNorm2d(channels, cfg.bn_epsilon, momentum=1 - cfg.bn_momentum)


def _named(**modules: nn.Module) -> nn.Sequential:
  return nn.Sequential(collections.OrderedDict(modules))


@torch.no_grad()
def _with_kernels(net: nn.Module) -> nn.Module:
  for name, value in net.named_parameters():
    path = name.replace(".", "/").replace("weight", "kernel")
    if value.ndim > 1:  # outputs first, in medjax last
      turned = (2, 3, 1, 0) if value.ndim == 4 else (1, 0)
      shape = tuple(value.shape[axis] for axis in turned)
      kernel = torch.from_numpy(problem.kernel(path, shape))
      value.copy_(kernel.permute(*((3, 2, 0, 1) if value.ndim == 4 else (1, 0))))
    elif name.endswith("bias"):
      value.zero_()
  return net
