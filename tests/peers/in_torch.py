"""Training in PyTorch, eager."""

from __future__ import annotations

from collections.abc import Callable

import problem
import torch
from torch import nn
import torch_networks

from medjax import settings

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def versions() -> dict[str, str]:
  return {"torch": f"{torch.__version__}, {torch.get_num_threads()} threads"}


def make(task: problem.Task, variant: str, steps: int) -> problem.Trainer:
  layout = _FORMATS[variant]
  net = torch_networks.make(task.cfg).to(memory_format=layout).train()
  adam = torch.optim.Adam(net.parameters(), problem.LEARNING_RATE, eps=problem.EPSILON, fused=True)
  images, targets = map(torch.from_numpy, task.float_data(steps))
  images = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
  batches = list(zip(images.split(problem.BATCH), targets.split(problem.BATCH), strict=True))
  loss_of = _loss(task.loss)

  def step(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    adam.zero_grad(set_to_none=True)
    loss = loss_of(net(images), targets)
    loss.backward()
    adam.step()
    return loss.detach()

  def run() -> float:
    return float(torch.stack([step(*batch) for batch in batches]).mean())

  return problem.Trainer(sum(p.numel() for p in net.parameters()), run)


def _loss(cfg: settings.Loss) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
  if not isinstance(cfg, settings.Margin):
    return nn.functional.cross_entropy

  def margin(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    scores = logits.softmax(1) ** 2
    present = targets * (cfg.positive - scores).relu()
    absent = (1 - targets) * (scores - cfg.negative).relu()
    return (present + cfg.down_weight * absent).sum(1).mean()

  return margin
