"""The experiments of Ali et al. 2021, one set each, and their six baselines.

"Improved Medical Image Classification Accuracy on Heterogeneous and Imbalanced Data using Multiple
Streams Network", IJACSA 12(7). Every config of this folder has these variants, which add up, as in
`:paper+vgg16+smoke`:

  (none)     a training that a set of a few hundred images can bear: cross-entropy, AdamW,
             batch-norm momentum 0.9, 64 px, augmentation that suits the images
  :paper     the paper's text (section III): margin loss, Adam 1e-4, momentum 0.99, no augmentation;
             224 px, at most 100 epochs and the set's own parts are our choice, it tells none
  :NETWORK   one of the baselines of table II in QuadSNet's place, with the same loss and split
  :smoke     a few steps

Baselines start from random weights, or, as in the paper, from those of ImageNet by
`--config.init_from=FILE` with one of Keras's files.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common

CLEAN = dict(
  data=dict(image_size=64, channels=3),
  model=dict(name="quadsnet", bn_momentum=0.9),
  objective=dict(name="supervised", loss="softmax_ce", class_weights="balanced"),
  optimizer=dict(name="adamw", lr=1e-3),
  train=dict(batch_size=32),
)
PAPER = dict(
  data=dict(image_size=224),
  augment=dict(name="none"),
  model=dict(bn_momentum=0.99),
  objective=dict(loss="margin"),
  optimizer=dict(name="adam", lr=1e-4, schedule="constant", warmup="0 %", clip=0.0),
  train=dict(length="100 epochs", stop=dict(monitor="log_loss", patience=15)),
)
CLASSES = ("predictions/*", "conv_preds/*", "fc?/*")  # of ImageNet, in Keras's files


def _baseline(name: str, **more) -> dict[str, Any]:
  """A network in QuadSNet's place; its classes are new ones."""
  return common.merged(dict(model=dict(name=name, bn_momentum=0.9), init_allow=CLASSES), more)


BASELINES = dict(
  densenet121=_baseline("densenet121"),
  inception_v3=_baseline("inception_v3", data=dict(image_size=96)),  # of 64 px it leaves nothing
  mobilenet_v1=_baseline("mobilenet_v1"),
  resnet50=_baseline("resnet50"),
  vgg16=_baseline("vgg16", model=dict(hidden=(), pool="gap")),
  xception=_baseline("xception"),
)


def experiment(
  arg: str,
  title: str,
  data: Mapping[str, Any],
  augment: Mapping[str, Any],
  length: str,
  paper: Mapping[str, Any] = PAPER,
) -> ConfigDict:
  """QuadSNet on a set.

  Args:
    arg: the variants. title: of the report.
    data: the set; its folder is that of its name below `common.DATA`.
    augment, length: of the clean training. paper: what `:paper` changes.
  """
  data = dict(root=f"{common.DATA}/{data['name']}") | data
  train = dict(length=length)
  base = common.merged(CLEAN, dict(title=title, data=data, augment=augment, train=train))
  smallest = 80 if "inception_v3" in arg else 32
  return common.vary(arg, base, smallest, **BASELINES, paper=paper)
