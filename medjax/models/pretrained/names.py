"""What a tensor of ours is called in the weight files of others: one map a family."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import re
from typing import Any

from medjax import settings
from medjax.models import (
  darknet,
  densenet,
  inception,
  inception_resnet,
  mobilenet,
  nasnet,
  resnet,
  vgg,
  xception,
)
from medjax.models.pretrained import files

# Settings -> (path of a module, settings) -> Keras's layer.
_KERAS: dict[type[settings.Model], Callable[[str, Any], str]] = {
  settings.Darknet: darknet.keras_layer,
  settings.DenseNet: densenet.keras_layer,
  settings.InceptionV3: inception.keras_layer,
  settings.InceptionResNetV2: inception_resnet.keras_layer,
  settings.MobileNetV1: mobilenet.keras_layer,
  settings.MobileNetV2: mobilenet.keras_layer,
  settings.MobileNetV3: mobilenet.keras_layer,
  settings.NASNet: nasnet.keras_layer,
  settings.ResNet: resnet.keras_layer,
  settings.VGG: vgg.keras_layer,
  settings.Xception: xception.keras_layer,
}
_CLASSES = "head/classes"
# Older names of the last layer: of DenseNets, of ResNets, of MobileNets.
_CLASSIFIERS = ("fc1000", "probs", "Logits")

# Our leaf -> a Keras layer's weight; the first that the file has. Depthwise kernels have a name of
# their own in Keras 2 and in separable convolutions.
_KERAS_LEAVES = {
  "kernel": ("kernel", "depthwise_kernel"),
  "bias": ("bias", "beta"),
  "scale": ("gamma",),
  "mean": ("moving_mean",),
  "var": ("moving_variance",),
}
_TORCH_LEAVES = {
  "kernel": "weight",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}

# Kind of file -> a preset of its bottlenecks.
_BOTTLENECKS = {"keras": "resnet50", "torch": "resnet50_v15"}

Names = Callable[[str], tuple[str, ...]]


def network(cfg: settings.Model) -> settings.Model:
  """The settings of the published network that a network is made of."""
  return cfg.backbone if isinstance(cfg, settings.SoftAttention) else cfg


def of(kind: files.Kind, cfg: settings.Model, paths: Iterable[str]) -> Names:
  """The names that a tensor of ours may have in a file.

  Args:
    kind: whose file. cfg: the network. paths: its tensors', such as
      `params/encoder/conv1/conv/kernel`.

  Returns:
    path -> names, the likelier first; none for what no file of that kind has.

  Raises:
    ValueError: no names of this network are known in files of that kind.
  """
  if kind == "medjax":
    return _ours
  maps: Mapping[type[settings.Model], Any] = _KERAS if kind == "keras" else _TORCH
  if type(network(cfg)) not in maps:
    known = ", ".join(model.__name__ for model in maps)
    raise ValueError(f"no names of {cfg.name} are known in files of {kind}, only of {known}")
  _check_stride(kind, cfg)
  leaves = _keras_leaves if kind == "keras" else _torch_leaves(network(cfg))
  classifies = any(_CLASSES in path for path in paths)

  def names(path: str) -> tuple[str, ...]:
    module, _, leaf = alone(path).partition("/")[2].rpartition("/")
    if module == "encoder/input" or (module.startswith("head/") and not classifies):
      return ()
    layers = _layers(module, network(cfg))
    return tuple(name for layer in layers for name in leaves(module, layer, leaf))

  return names


def _check_stride(kind: files.Kind, cfg: settings.Model) -> None:
  """Raises ValueError where bottlenecks of the other kind have tensors of the same shapes."""
  cfg = network(cfg)
  if not isinstance(cfg, settings.ResNet) or not cfg.bottleneck:
    return
  theirs = "1x1" if kind == "keras" else "3x3"
  if cfg.stride_in != theirs:
    raise ValueError(
      f"{cfg.name} has the stride of a bottleneck in its {cfg.stride_in} convolution, files of "
      f"{kind} in the {theirs}, so their tensors fit and mean another network: choose it by "
      f"--config.model={_BOTTLENECKS[kind]} or another of its kind"
    )


def alone(path: str) -> str:
  """The path that a tensor has outside the network that its own became a part of."""
  return path.replace("encoder/backbone/encoder/", "encoder/")


def _ours(path: str) -> tuple[str, ...]:
  return (path,) if alone(path) == path else (path, alone(path))


def _layers(module: str, cfg: settings.Model) -> tuple[str, ...]:
  """Keras's layers that a module may be; none where Keras has no such."""
  if module.startswith("encoder/attention"):
    return ()
  try:
    layer = _KERAS[type(cfg)](module, cfg)
  except KeyError:
    return ()
  if isinstance(cfg, settings.MobileNetV3):
    return layer, _of_keras_2(layer)
  return (layer, *_CLASSIFIERS) if module == _CLASSES else (layer,)


def _of_keras_2(layer: str) -> str:
  """What a layer of MobileNet-V3 was called there, as in the weights that Keras publishes."""
  layer = re.sub("_bn$", "_BatchNorm", layer)
  return re.sub("^(conv|logits)|(?<=excite_)conv", lambda part: part[0].capitalize(), layer)


def _keras_leaves(module: str, layer: str, leaf: str) -> tuple[str, ...]:
  own = f"{module.rpartition('/')[2]}_{leaf}"  # depthwise_kernel, pointwise_kernel
  leaves = _KERAS_LEAVES.get(leaf, (leaf,))
  if own == "pointwise_kernel":
    leaves = (own, "kernel")
  if own == "depthwise_kernel":
    leaves = (own, *leaves)
  return tuple(f"{layer}/{name}" for name in leaves)


def _torch_leaves(cfg: settings.Model) -> Callable[[str, str, str], tuple[str, ...]]:
  to_torch = _TORCH[type(cfg)](cfg)

  def leaves(module: str, layer: str, leaf: str) -> tuple[str, ...]:
    del module
    renamed = to_torch(layer)
    return (f"{renamed}.{_TORCH_LEAVES.get(leaf, leaf)}",) if renamed else ()

  return leaves


def _densenet(cfg: settings.DenseNet) -> Callable[[str], str]:
  del cfg
  outside = {
    "conv1_conv": "features.conv0",
    "conv1_bn": "features.norm0",
    "bn": "features.norm5",
    "predictions": "classifier",
  }
  parts = {"0_bn": "norm1", "1_conv": "conv1", "1_bn": "norm2", "2_conv": "conv2"}

  def renamed(layer: str) -> str:
    if unit := re.fullmatch(r"conv(\d+)_block(\d+)_(\w+)", layer):
      block, number, part = unit.groups()
      return f"features.denseblock{int(block) - 1}.denselayer{number}.{parts[part]}"
    if between := re.fullmatch(r"pool(\d+)_(bn|conv)", layer):
      part = {"bn": "norm", "conv": "conv"}[between[2]]
      return f"features.transition{int(between[1]) - 1}.{part}"
    return outside.get(layer, "")

  return renamed


def _resnet(cfg: settings.ResNet) -> Callable[[str], str]:
  del cfg
  outside = {"conv1_conv": "conv1", "conv1_bn": "bn1", "predictions": "fc"}

  def renamed(layer: str) -> str:
    unit = re.fullmatch(r"conv(\d+)_block(\d+)_(\d)_(conv|bn)", layer)
    if not unit:
      return outside.get(layer, "")
    stage, block, number, part = unit.groups()
    where = f"layer{int(stage) - 1}.{int(block) - 1}"
    if number == "0":
      return f"{where}.downsample.{int(part == 'bn')}"
    return f"{where}.{part}{number}"

  return renamed


# Settings -> settings -> Keras's layer -> the module's name in torchvision and timm, "" for none.
_TORCH: dict[type[settings.Model], Callable[[Any], Callable[[str], str]]] = {
  settings.DenseNet: _densenet,
  settings.ResNet: _resnet,
}
