"""Backbones that are cut short, with soft attention on the last map and metadata beside it.

After Nguyen et al. 2022 ("Diagnostic Support of Skin Lesion Classification using CNN and Soft
Attention"), their published code, and the layer's source, Datta et al. 2021 (arXiv 2105.03358).
Paper and code disagree on the layer and on where the backbones are cut; both readings are here.
"""

from __future__ import annotations

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp

from medjax import contract, ops, settings
from medjax.models import blocks, heads, initial, net

GAMMA = 0.01  # initial (Datta et al. 2021)
KEPT = 3  # channels that the original layer looks at

# Backbone -> `model.cut` -> the end point. `code` is what the authors' notebooks ran, counted from
# the end of Keras's layers; `paper` is the nearest to the paper's text and tables A1 and A2 that
# exists in the networks. Of MobileNet-V3 Large the notebooks have two.
CUTS = {
  "densenet201": {"code": "conv5_block29_1_relu", "paper": "conv5_block29_concat"},
  "inception_resnet_v2": {"code": "block8_9_branch1x1_bn", "paper": "conv_7b_ac"},
  "resnet50": {"code": "conv5_block3_out", "paper": "conv4_block6_out"},
  "resnet152": {"code": "conv5_block1_out", "paper": "conv4_block36_out"},
  "nasnet_large": {
    "code": "separable_conv_1_relu_normal_left5_18",
    "paper": "normal_concat_16",
  },
  "nasnet_mobile": {
    "code": "separable_conv_1_relu_normal_left5_12",
    "paper": "normal_concat_11",
  },
  "mobilenet_v2": {"code": "block_14_depthwise", "paper": "block_14_add"},
  "mobilenet_v3_large": {
    "code": "expanded_conv_14_depthwise_hard_swish",
    "code34": "expanded_conv_14_expand_hard_swish",
    "paper": "conv_1_hard_swish",
  },
  "mobilenet_v3_small": {
    "code": "expanded_conv_10_depthwise_hard_swish",
    "paper": "conv_1_hard_swish",
  },
}


class SoftAttention(nn.Module):
  """Weighs the positions of a map by K learnt attention maps (Datta et al. 2021).

  Each map is a softmax over all positions of ReLU(scores); their sum, the end point `attention`
  [b, h, w, 1], adds up to K.

  Attributes:
    maps: K.
    kind: of the scores and the factor. `paper`: a 3x3 convolution over all channels, and a learnt
      factor. `paper_no_gamma`: without that factor. `keras_quirk`: what the published layer
      computes, whose 3-D kernel lies with its long side on the rows, and sees three channels.
  """

  maps: int
  kind: str

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, h, w, C] to the same."""
    scores = jax.nn.relu(self._scores(x, mode))
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    # Positions lie along one axis: the softmax that ONNX gets is over one.
    each = scores.reshape(scores.shape[0], -1, self.maps)
    weights = jax.nn.softmax(each, axis=1).sum(-1).reshape(*scores.shape[:-1], 1)
    weights = mode.endpoint(self, "attention", weights)
    if self.kind == "paper":
      weights = weights * self.param("gamma", nn.initializers.constant(GAMMA), ())
    return x * weights.astype(x.dtype)

  def _scores(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, h, w, K] before the ReLU."""
    channels = x.shape[-1]
    if self.kind != "keras_quirk":
      return blocks.Conv(self.maps, 3, use_bias=True, name="scores")(x, mode)
    # The published kernel is [C, 3, 3, 1, K] on [b, h, w, C, 1], SAME, with a stride of C along
    # channels: as many rows as channels, and one step, at the three middle ones in TensorFlow.
    above, first = (channels - 1) // 2, (channels - KEPT) // 2
    padding = ((above, channels - 1 - above), (1, 1))
    size = (channels, 3)
    scores = blocks.Conv(self.maps, size, padding=padding, use_bias=True, name="scores")
    return scores(x[..., first : first + KEPT], mode)


class TwoPaths(nn.Module):
  """Pools a map and the same map under attention, side by side (Nguyen et al. 2022, figure 7).

  Attributes:
    relu_before: the figure's ReLU on the map, which the authors' code does not have.
  """

  cfg: settings.SoftAttention
  relu_before: bool

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, h, w, C] to [b, h / 2, w / 2, 2 C], halves rounded up; without attention to C."""
    cfg = self.cfg
    x = jax.nn.relu(x) if self.relu_before else x
    paths = [x]
    if cfg.attention != "none":
      paths += [SoftAttention(cfg.maps, cfg.attention, name="soft")(x, mode)]
    pooled = [ops.max_pool(path, padding="SAME") for path in paths]
    x = jax.nn.relu(jnp.concatenate(pooled, axis=-1))
    return blocks.Dropout(cfg.dropout, name="dropout")(x, mode)


class Encoder(nn.Module):
  """A cut backbone, the two paths, and the map as a vector."""

  cfg: settings.SoftAttention
  backbone: blocks.Cut

  @nn.compact
  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] floats in [0, 1] to [b, D]."""
    x = self.backbone(images, mode)
    return as_vector(self.cfg, TwoPaths(self.cfg, relu_before(self.cfg), name="attention")(x, mode))


def relu_before(cfg: settings.SoftAttention) -> bool:
  """Whether the cut map passes a ReLU: in the paper's figure, not in the code."""
  return cfg.cut not in ("code", "code34")


def as_vector(cfg: settings.SoftAttention, x: jax.Array) -> jax.Array:
  """[b, h, w, C] as `model.pool` says: [b, h w C] or [b, C]."""
  return ops.global_avg_pool(x) if cfg.pool == "gap" else x.reshape(x.shape[0], -1)


def build(cfg: settings.SoftAttention, info: contract.DataInfo, backbone: net.Parts) -> net.Parts:
  """Encoder and classifier.

  Args:
    cfg: the network. info: its data. backbone: what `cfg.backbone` builds.

  Raises:
    ValueError: for a cut that the backbone does not have, and settings that are the backbone's.
  """
  encoder = Encoder(cfg, blocks.Cut(backbone.encoder, endpoint(cfg)))
  stages = (*(f"backbone/encoder/{stage}" for stage in backbone.stages), "attention")
  return parts(cfg, info, encoder, backbone.kernel_init, stages)


def endpoint(cfg: settings.SoftAttention) -> str:
  """The name of the end point at which the backbone is cut.

  Raises:
    ValueError: for a reading of the authors' cuts on a backbone that they have not cut like that.
  """
  cuts = CUTS.get(cfg.backbone.name, {})
  if cfg.cut in {reading for readings in CUTS.values() for reading in readings} - set(cuts):
    known = ", ".join(repr(reading) for reading in cuts) or "none"
    raise ValueError(
      f"model.cut={cfg.cut!r} is not defined for {cfg.backbone.name}, which has {known}: give the "
      "name of one of its end points"
    )
  return cuts.get(cfg.cut, cfg.cut)


def parts(
  cfg: settings.SoftAttention,
  info: contract.DataInfo,
  encoder: nn.Module,
  kernel_init: initial.KernelInit,
  stages: tuple[str, ...],
) -> net.Parts:
  """An encoder with `TwoPaths` under the name `attention`, and the classifier that suits it.

  Raises:
    ValueError: for settings that are the backbone's.
  """
  _check(cfg)
  elsewhere = (
    ("encoder/attention", initial.HE_UNIFORM),
    ("head", initial.GLOROT_UNIFORM),
    *kernel_init.elsewhere,
  )
  kernel_init = dataclasses.replace(kernel_init, elsewhere=elsewhere)
  return net.Parts(encoder, heads.Classifier(len(info.classes), (), 0.0), kernel_init, stages)


def _check(cfg: settings.SoftAttention) -> None:
  if cfg.backbone.metadata != "none":
    raise ValueError("model.backbone.metadata is that of the whole: set model.metadata")
  for name in ("preprocess", "bn_momentum"):
    if getattr(cfg, name) != getattr(settings.SoftAttention, name):
      raise ValueError(f"model.{name} is the backbone's: set model.backbone.{name}")
