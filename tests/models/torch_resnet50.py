"""What timm's and torchvision's ResNet-50 say of some images, for machines without them.

With both installed, `python torch_resnet50.py` writes it to the file beside this one, after making
sure that both networks have the same tensors and say the same.
"""

import json
import pathlib

import numpy as np
import torch_resnet18 as drawn

FILE = pathlib.Path(__file__).with_suffix(".json")


def tensors(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """As for ResNet-18, but biases and moving means around zero, lest the images be forgotten."""
  return {
    name: (value - 1) / 5 if name.endswith(("bias", "running_mean")) else value
    for name, value in drawn.tensors(shapes).items()
  }


def images() -> np.ndarray:
  """As for ResNet-18, the first ones darker."""
  return drawn.images() * np.linspace(0.1, 1, drawn.IMAGES)[:, None, None, None]


def _truth() -> dict:
  import timm
  import torch
  import torchvision

  makers = timm.create_model, torchvision.models.get_model
  pair = [make("resnet50", num_classes=drawn.CLASSES).double().eval() for make in makers]
  counters = {k: v for k, v in pair[0].state_dict().items() if k.endswith("num_batches_tracked")}
  shapes = {k: list(v.shape) for k, v in pair[0].state_dict().items() if k not in counters}
  state = {k: torch.from_numpy(v) for k, v in tensors(shapes).items()}
  mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
  pixels = torchvision.transforms.Normalize(mean, std)(
    torch.from_numpy(images()).permute(0, 3, 1, 2)
  )
  for net in pair:
    net.load_state_dict(state | counters)
  ours, theirs = (net(pixels).tolist() for net in pair)
  np.testing.assert_allclose(ours, theirs, rtol=1e-9)
  versions = {"timm": timm.__version__, "torchvision": torchvision.__version__}
  return {"of": versions, "shapes": shapes, "logits": ours}


if __name__ == "__main__":
  FILE.write_text(json.dumps(_truth()) + "\n")
