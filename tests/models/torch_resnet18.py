"""What timm's and torchvision's ResNet-18 say of some images, for machines without them.

With timm installed, `python torch_resnet18.py` writes it to the file beside this one, after making
sure that both networks have the same tensors and say the same. The weights are not stored: they are
uniform numbers of NumPy's PCG64, which both sides draw in the order of the tensors.
"""

import json
import pathlib

import numpy as np

FILE = pathlib.Path(__file__).with_suffix(".json")
CLASSES, IMAGES, SIZE = 10, 4, 96


def tensors(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """Name -> random tensor: kernels by He et al. 2015, all others in [0.5, 1.5]."""
  rng = np.random.default_rng(0)
  return {name: _drawn(rng, shape) for name, shape in shapes.items()}


def _drawn(rng: np.random.Generator, shape: list[int]) -> np.ndarray:
  if len(shape) < 2:
    return 0.5 + rng.random(shape)
  return np.sqrt(24 / np.prod(shape[1:])) * (rng.random(shape) - 0.5)


def images() -> np.ndarray:
  """[n, side, side, 3] in [0, 1], of large squares."""
  squares = np.random.default_rng(1).random((IMAGES, 8, 8, 3))
  return squares.repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)


def _truth() -> dict:
  import timm
  import torch
  import torchvision

  theirs, torchvisions = timm.create_model("resnet18"), torchvision.models.resnet18()
  counts = [sum(p.numel() for p in net.parameters()) for net in (theirs, torchvisions)]
  assert counts[0] == counts[1]
  pair = (
    timm.create_model("resnet18", num_classes=CLASSES),
    torchvision.models.resnet18(num_classes=CLASSES),
  )
  shapes = {
    name: list(tensor.shape)
    for name, tensor in pair[0].state_dict().items()
    if not name.endswith("num_batches_tracked")
  }
  state = {name: torch.from_numpy(value) for name, value in tensors(shapes).items()}
  mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
  prepared = torchvision.transforms.Normalize(mean, std)(
    torch.from_numpy(images()).permute(0, 3, 1, 2)
  )

  def logits(net, train):
    counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    net.double().load_state_dict(state | counters)
    return net.train(train)(prepared).tolist()

  found = [[logits(net, train) for train in (False, True)] for net in pair]
  np.testing.assert_allclose(*found, rtol=1e-9)
  inference, training = found[0]
  versions = {"timm": timm.__version__, "torchvision": torchvision.__version__}
  return {
    "of": versions,
    "parameters": counts[0],
    "shapes": shapes,
    "inference": inference,
    "training": training,
  }


if __name__ == "__main__":
  FILE.write_text(json.dumps(_truth()) + "\n")
