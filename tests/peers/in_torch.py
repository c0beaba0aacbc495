"""QuadSNet's training in PyTorch, eager. Modules are named so that their paths are medjax's."""

from __future__ import annotations

import collections
import itertools

import problem
import torch
from torch import nn

from medjax import settings

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def versions() -> dict[str, str]:
  return {"torch": f"{torch.__version__}, {torch.get_num_threads()} threads"}


def make(cfg: settings.QuadSNet, variant: str, steps: int) -> problem.Trainer:
  layout = _FORMATS[variant]
  net = _with_kernels(_Net(cfg)).to(memory_format=layout).train()
  adam = torch.optim.Adam(net.parameters(), problem.LEARNING_RATE, eps=problem.EPSILON, fused=True)
  images, labels = map(torch.from_numpy, problem.float_data(steps))
  images = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
  targets = nn.functional.one_hot(labels.long(), problem.CLASSES).float()
  batches = list(zip(images.split(problem.BATCH), targets.split(problem.BATCH), strict=True))

  def step(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    adam.zero_grad(set_to_none=True)
    loss = _margin(net(images), targets)
    loss.backward()
    adam.step()
    return loss.detach()

  def run() -> float:
    return float(torch.stack([step(*batch) for batch in batches]).mean())

  return problem.Trainer(sum(p.numel() for p in net.parameters()), run)


class _Net(nn.Module):
  def __init__(self, cfg: settings.QuadSNet):
    super().__init__()
    self.streams = cfg.streams
    self.encoder = nn.ModuleDict(
      {name: _stream(cfg, *problem.STREAMS[name]) for name in cfg.streams}
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


def _stream(cfg: settings.QuadSNet, size: int, separable: bool) -> nn.Sequential:
  widths = itertools.pairwise((3, *cfg.widths))
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


def _conv(inputs: int, features: int, size: int, groups: int = 1) -> nn.Conv2d:
  return nn.Conv2d(inputs, features, size, padding=size // 2, groups=groups, bias=False)


def _batch_norm(cfg: settings.QuadSNet, channels: int) -> nn.BatchNorm2d:
  return nn.BatchNorm2d(channels, cfg.bn_epsilon, momentum=1 - cfg.bn_momentum)


def _named(**modules: nn.Module) -> nn.Sequential:
  return nn.Sequential(collections.OrderedDict(modules))


def _margin(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
  loss, scores = problem.LOSS, logits.softmax(1) ** 2
  present = targets * (loss.positive - scores).relu()
  absent = (1 - targets) * (scores - loss.negative).relu()
  return (present + loss.down_weight * absent).sum(1).mean()


@torch.no_grad()
def _with_kernels(net: _Net) -> _Net:
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
