"""The experiments of Nguyen et al. 2022 on HAM10000, one backbone each.

"Diagnostic Support of Skin Lesion Classification using CNN and Soft Attention". Every config of
this folder has these variants, which add up, as in `:paper+no_metadata`:

  (none)         the paper's training: image and metadata, the cut of its tables A1 and A2, class
                 weights, Keras's Adam with eps 0.1, plateau rule; but dealt by lesion, 80 % to
                 train, 10 % to val, 10 % to test
  :paper         the same, dealt by image, so that photographs of one lesion are in several parts:
                 90 % and 10 %, after 857 for a test
  :code          what the authors' notebooks ran instead: their cuts and their layer's arithmetic,
                 batches of 10, 57 images without an age left out, 10 % to test
  :augmented     the notebooks' "augmented data": no metadata, melanoma weighs 5, batches of 16,
                 lr 1e-2, 15 % to test. They drew up to 8,000 images a class beforehand; here
                 every image is changed anew each time
  :no_metadata   the image alone
  :smoke         a few steps

All figures of the paper are on splits that cut lesions, and those of the notebooks on the images
that their networks were chosen by; here a tenth of the rest is val. The paper weighed classes by
the counts of all images, here those of the training part count; its images were cropped to a
square, here they are stretched. The notebooks fed images in BGR, and the DenseNet201 of the
published row raw ones, which is not built. Networks start from random weights, or, as in the paper,
from those of ImageNet by `--config.init_from=FILE` with one of Keras's files, of which what lies
above the cut is left over.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import common

TEST = 857 / 10015  # the paper's count, which it does not explain

CLEAN = dict(
  data=dict(name="ham10000", root=f"{common.DATA}/ham10000", split=dict(test=0.1, val=1 / 9)),
  augment=dict(name="none"),
  model=dict(cut="paper", attention="paper", metadata="dense"),
  objective=dict(name="supervised", loss="softmax_ce", class_weights="balanced"),
  optimizer=dict(
    name="keras_adam",
    lr=1e-3,
    eps=0.1,
    schedule="constant",
    warmup="0 %",
    clip=0.0,
    plateau=dict(monitor="log_loss", patience=5, factor=0.2, min_delta=1e-4, min_lr=1e-7),
  ),
  train=dict(batch_size=32, length="250 epochs", stop=dict(monitor="accuracy", patience=25)),
  eval=dict(select="accuracy"),
  init_allow=("*",),
)
PAPER = dict(data=dict(split=dict(mode="image_random", test=TEST, val=0.1)))
CODE = dict(
  data=dict(drop_missing=True, split=dict(mode="image_random", test=0.1, val=0.1)),
  model=dict(cut="code", attention="keras_quirk"),
  train=dict(
    batch_size=10,
    length="500 epochs",
    stop=dict(monitor="log_loss", patience=35, min_delta=1e-3),
  ),
)
AUGMENTED = dict(
  data=dict(drop_missing=True, split=dict(mode="image_random", test=0.15, val=0.1)),
  augment=dict(name="ham_aug"),
  model=dict(
    cut="code",
    attention="keras_quirk",
    metadata="none",
    backbone=dict(preprocess="tf"),
  ),
  objective=dict(class_weights="mel=5"),
  optimizer=dict(lr=1e-2),
  train=dict(batch_size=16),
)
NO_METADATA = dict(model=dict(metadata="none"))


def experiment(
  arg: str,
  backbone: str,
  size: int = 224,
  smallest: int = 32,
  model: Mapping[str, Any] | None = None,
  **more: Mapping[str, Any],
) -> ConfigDict:
  """Soft attention on a backbone.

  Args:
    arg: the variants. backbone: its name. size: of its images, in pixels.
    smallest: of the images of a smoke run. model: what is different in it.
    **more: variants that this backbone has besides, and what is different in those of all.
  """
  own = dict(
    title=f"Soft attention on {backbone}, HAM10000",
    data=dict(image_size=size),
    model=dict(name="soft_attention", backbone=dict(name=backbone)) | (model or {}),
  )
  variants = dict(paper=PAPER, code=CODE, augmented=AUGMENTED, no_metadata=NO_METADATA)
  return common.vary(arg, common.merged(CLEAN, own), smallest, **common.merged(variants, more))
