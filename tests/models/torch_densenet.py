"""Writes a small DenseNet's state_dict, an image and its logits, all by PyTorch.

Run by the tests where PyTorch is installed: `python torch_densenet.py FOLDER`. Names and layers are
torchvision's, the sizes are those of `weight_files.SMALL`.
"""

from collections import OrderedDict
import pathlib
import sys

import numpy as np
import torch
from torch import nn

UNITS, GROWTH, CLASSES, SIZE = (2, 1, 1, 1), 32, 10, 64


class Unit(nn.Module):
  def __init__(self, inputs):
    super().__init__()
    self.norm1 = nn.BatchNorm2d(inputs)
    self.conv1 = nn.Conv2d(inputs, 4 * GROWTH, 1, bias=False)
    self.norm2 = nn.BatchNorm2d(4 * GROWTH)
    self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

  def forward(self, x):
    y = self.conv1(torch.relu(self.norm1(x)))
    return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


def network():
  parts = OrderedDict(
    conv0=nn.Conv2d(3, 64, 7, 2, 3, bias=False),
    norm0=nn.BatchNorm2d(64),
    relu0=nn.ReLU(),
    pool0=nn.MaxPool2d(3, 2, 1),
  )
  width = 64
  for block, units in enumerate(UNITS, 1):
    inner = OrderedDict()
    for unit in range(1, units + 1):
      inner[f"denselayer{unit}"] = Unit(width)
      width += GROWTH
    parts[f"denseblock{block}"] = nn.Sequential(inner)
    if block < len(UNITS):
      parts[f"transition{block}"] = nn.Sequential(
        OrderedDict(
          norm=nn.BatchNorm2d(width),
          relu=nn.ReLU(),
          conv=nn.Conv2d(width, width // 2, 1, bias=False),
          pool=nn.AvgPool2d(2, 2),
        )
      )
      width //= 2
  parts["norm5"] = nn.BatchNorm2d(width)
  features = nn.Sequential(parts)
  pooled = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
  whole = OrderedDict(features=features, pooled=pooled, classifier=nn.Linear(width, CLASSES))
  return nn.Sequential(whole)


def main(folder: pathlib.Path) -> None:
  torch.manual_seed(0)
  model = network().eval()
  for name, tensor in model.state_dict().items():
    if name.endswith(("running_mean", "bias")):
      tensor.uniform_(-0.1, 0.1)
    elif name.endswith("running_var") or ("norm" in name and tensor.ndim == 1):
      tensor.uniform_(0.5, 1.5)
    elif tensor.ndim == 4:
      nn.init.kaiming_normal_(tensor)
  torch.save(model.state_dict(), folder / "small.pth")
  torch.save({"epoch": 3, "state_dict": nn.DataParallel(model).state_dict()}, folder / "run.pt")
  torch.save(model, folder / "whole.pt")
  torch.save(model.state_dict(), folder / "old.pth", _use_new_zipfile_serialization=False)
  image = torch.rand(2, 3, 8, 8).repeat_interleave(SIZE // 8, 2).repeat_interleave(SIZE // 8, 3)
  image[0] *= 0.2  # a dark one and a bright one
  with torch.no_grad():
    logits = model(image).numpy()
  np.savez(folder / "truth.npz", image=image.permute(0, 2, 3, 1).numpy(), logits=logits)


if __name__ == "__main__":
  main(pathlib.Path(sys.argv[1]))
