"""Networks that see what is known of a patient: beside the image, or alone.

The branches are those of Nguyen et al. 2022 ("Diagnostic Support of Skin Lesion Classification
using CNN and Soft Attention"). `Fused` puts one beside any network's embedding, so that image,
metadata and both can be compared on one backbone.
"""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp

from medjax import contract, settings
from medjax.models import blocks, heads, initial, net


class Wide(nn.Module):
  """The authors' branch for metadata: one dense layer, ReLU (Nguyen et al. 2022)."""

  width: int = 4096

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, M] to [b, width]."""
    return jax.nn.relu(blocks.Dense(self.width, name="dense")(x, mode))


class TwoLayer(nn.Module):
  """Two dense layers with batch norm, ReLU and dropout (Gessert et al. 2020).

  In training a property of a patient is at times unknown, which is 0 in its columns: each column
  falls away by itself, and of a property no more than one is not 0.
  """

  bn_epsilon: float
  width: int = 256
  dropout: float = 0.4
  unknown: float = 0.1

  @nn.compact
  def __call__(self, x: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, M] to [b, width]."""
    known = blocks.Dropout(self.unknown, name="unknown")(jnp.ones_like(x), mode) > 0
    x = jnp.where(known, x, 0)
    for number in (1, 2):
      # The bias of a dense layer would be cancelled by the batch norm after it.
      x = blocks.Dense(self.width, use_bias=False, name=f"dense{number}")(x, mode)
      x = jax.nn.relu(blocks.BatchNorm(self.bn_epsilon, name=f"bn{number}")(x, mode))
      x = blocks.Dropout(self.dropout, name=f"dropout{number}")(x, mode)
    return x


class Fused(nn.Module):
  """A classifier that sees, beside the embedding, what a branch makes of the metadata.

  Attributes:
    classifier: of the network. Its parameters keep their names. metadata: the branch.
  """

  classifier: nn.Module
  metadata: nn.Module

  def setup(self):
    """Lays the classifier's parameters where they are without metadata."""
    nn.share_scope(self, self.classifier)

  def __call__(self, embedding: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, D] and the mode's metadata [b, M] to logits [b, K]."""
    beside = self.metadata(_given(mode), mode)
    return self.classifier(jnp.concatenate([embedding, beside], axis=-1), mode)


class Encoder(nn.Module):
  """The metadata alone; of the images, only their number matters."""

  branch: nn.Module

  def __call__(self, images: jax.Array, mode: net.Mode) -> jax.Array:
    """[b, H, W, C] and the mode's metadata [b, M] to [b, D]."""
    return self.branch(_given(mode), mode)


def _given(mode: net.Mode) -> jax.Array:
  if mode.metadata is None:
    raise ValueError(f"this network's batches need {contract.METADATA!r}: [b, M] floats")
  return mode.metadata


def fused(classifier: nn.Module, cfg: settings.Model, info: contract.DataInfo) -> nn.Module:
  """The classifier of a network as `model.metadata` says.

  Raises:
    ValueError: for metadata that the data do not have, and a classifier of parts of the embedding.
  """
  if cfg.metadata == "none":
    return classifier
  _check(info, f"model.metadata={cfg.metadata!r}", "set model.metadata=none")
  if not isinstance(classifier, heads.Classifier):
    raise ValueError(
      f"model.metadata={cfg.metadata!r}: {cfg.name} classifies parts of its embedding, and metadata"
      " belong to none of them: set model.metadata=none, or take another network"
    )
  branch = Wide() if cfg.metadata == "dense" else TwoLayer(cfg.bn_epsilon)
  return Fused(classifier, branch)


def sees(cfg: settings.Model) -> bool:
  """Whether a network takes metadata: beside its images, or in their place."""
  return cfg.metadata != "none" or isinstance(cfg, settings.MetadataMLP)


def _check(info: contract.DataInfo, who: str, cure: str) -> None:
  if not info.metadata:
    raise ValueError(f"{who} needs data with metadata, and these have none: {cure}")


def build(cfg: settings.MetadataMLP, info: contract.DataInfo) -> net.Parts:
  """Encoder and classifier of a network without images.

  Raises:
    ValueError: for data without metadata, and for metadata beside the metadata.
  """
  _check(info, cfg.name, "choose a network of images")
  if cfg.metadata != "none":
    raise ValueError(f"model.metadata={cfg.metadata!r}: {cfg.name} sees nothing else: set none")
  head = heads.Classifier(len(info.classes), (), 0.0)
  branch = TwoLayer(cfg.bn_epsilon, cfg.width, cfg.dropout)
  return net.Parts(Encoder(branch), head, initial.GLOROT_UNIFORM, ("branch",))
