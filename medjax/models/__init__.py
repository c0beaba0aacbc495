"""Networks, as pairs of pure functions (`net.Net`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medjax import contract, settings
from medjax.models import (
  attention_vgg,
  darknet,
  densenet,
  gan,
  heads,
  inception,
  inception_resnet,
  mednet,
  metadata,
  mobilenet,
  nasnet,
  net,
  pneumonia_cnn,
  quadsnet,
  resnet,
  soft_attention,
  survey_cnn,
  vgg,
  xception,
)


def _soft_attention(cfg: settings.SoftAttention, info: contract.DataInfo) -> net.Parts:
  """Soft attention on the backbone of its settings, or inside the VGG of its authors."""
  if isinstance(cfg.backbone, settings.VGG):
    return attention_vgg.build(cfg, info)
  return soft_attention.build(cfg, info, MODELS[type(cfg.backbone)](cfg.backbone, info))


# Type of the settings -> builder of the network's parts from those settings and the data's.
MODELS: dict[type[settings.Model], Callable[[Any, contract.DataInfo], net.Parts]] = {
  settings.QuadSNet: quadsnet.build,
  settings.MedNet: mednet.build,
  settings.DenseNet: densenet.build,
  settings.ResNet: resnet.build,
  settings.VGG: vgg.build,
  settings.PneumoniaCNN: pneumonia_cnn.build,
  settings.SurveyCNN: survey_cnn.build,
  settings.Darknet: darknet.build,
  settings.GAN: gan.build,
  settings.InceptionV3: inception.build,
  settings.InceptionResNetV2: inception_resnet.build,
  settings.Xception: xception.build,
  settings.SoftAttention: _soft_attention,
  settings.MetadataMLP: metadata.build,
  settings.MobileNetV1: mobilenet.build,
  settings.MobileNetV2: mobilenet.build,
  settings.MobileNetV3: mobilenet.build,
  settings.NASNet: nasnet.build,
}


def make(
  cfg: settings.Model,
  info: contract.DataInfo,
  execution: net.Execution,
  projector: tuple[int, int] | None = None,
  cosine: bool = False,
  predictor: tuple[int, ...] | None = None,
) -> net.Net:
  """A network for these data.

  Args:
    cfg: which network.
    info: its classes, image shape and pixel statistics.
    execution: how to run it.
    projector: (hidden, out) widths of a projector to put in the classifier's place.
    cosine: makes the classifier's logits cosines.
    predictor: (hidden, out) widths of a predictor after the projector, () for a head that has
      `heads.PROJECTION` but no predictor; None for the projector alone.

  Raises:
    KeyError: for settings of no known network.
    ValueError: for a classifier on data without classes, or settings that the network refuses.
  """
  if type(cfg) not in MODELS:
    known = ", ".join(kind.__name__ for kind in MODELS)
    raise KeyError(f"no network has settings of type {type(cfg).__name__}: known are {known}")
  if projector is None and not info.classes:
    raise ValueError("a classifier needs classes, and these data have no labels: use labelled data")
  parts = MODELS[type(cfg)](cfg, info)
  if projector is None:
    head = metadata.fused(parts.classifier.clone(cosine=cosine), cfg, info)
  elif predictor is None:
    head = heads.Projector(*projector, cfg.bn_epsilon)
  else:
    head = heads.Predicting(projector, predictor, cfg.bn_epsilon)
  return net.wrap(
    parts.encoder,
    head,
    parts.kernel_init,
    execution,
    bn_momentum(cfg),
    parts.stages,
    info.metadata,
  )


def bn_momentum(cfg: settings.Model) -> float:
  """The share of the old value that the network's running statistics keep at each step."""
  return (cfg.backbone if isinstance(cfg, settings.SoftAttention) else cfg).bn_momentum
