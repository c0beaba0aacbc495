"""Training in PyTorch: eager, and compiled."""

from __future__ import annotations

from collections.abc import Callable
import statistics

import problem
import torch
from torch import nn
import torch_networks

from medjax import settings

_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def versions() -> dict[str, str]:
  where = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
  return {"torch": f"{torch.__version__}, {where or f'{torch.get_num_threads()} threads'}"}


def make(task: problem.Task, variant: str, steps: int) -> problem.Trainer:
  """Trains in a variant: a memory format, then perhaps `compiled` or `1 thread`."""
  layout, how = _FORMATS[variant.split(", ")[0]], variant.split(", ")[1:]
  if "1 thread" in how:
    torch.set_num_threads(1)
  device = {"cpu": "cpu", "gpu": "cuda"}[task.device]
  wide = torch.float64 if task.precision == "float64" else torch.float32
  net = torch_networks.make(task).to(device, wide, memory_format=layout).train()
  parameters = sum(p.numel() for p in net.parameters())
  adam = torch.optim.Adam(net.parameters(), problem.LEARNING_RATE, eps=problem.EPSILON, fused=True)
  forward = torch.compile(net) if "compiled" in how else net
  batches, loss_of = _batches(task, steps, layout, device), _loss(task.loss)
  mixed = task.precision == "bfloat16"

  def step(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    adam.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16, enabled=mixed):
      logits = forward(images)
    loss = loss_of(logits.to(wide), targets)
    loss.backward()
    adam.step()
    return loss.detach()

  def losses() -> list[float]:
    return torch.stack([step(*batch) for batch in batches]).tolist()

  peak = (lambda: torch.cuda.max_memory_allocated() // 2**20) if device == "cuda" else None
  return problem.Trainer(parameters, lambda: statistics.fmean(losses()), losses, peak)


def _batches(
  task: problem.Task, steps: int, layout: torch.memory_format, device: str
) -> list[tuple[torch.Tensor, torch.Tensor]]:
  images, targets = (torch.from_numpy(array).to(device) for array in task.float_data(steps))
  images = images.permute(0, 3, 1, 2).contiguous(memory_format=layout)
  return list(zip(images.split(task.batch), targets.split(task.batch), strict=True))


def _loss(cfg: settings.Loss) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
  if not isinstance(cfg, settings.Margin):
    return nn.functional.cross_entropy

  def margin(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    scores = logits.softmax(1) ** 2
    present = targets * (cfg.positive - scores).relu()
    absent = (1 - targets) * (scores - cfg.negative).relu()
    return (present + cfg.down_weight * absent).sum(1).mean()

  return margin
