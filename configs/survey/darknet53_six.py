"""Darknet-53 with prediction at three scales on six findings in chest films, 1,000 films each.

  python -m medjax.main --config=configs/survey/darknet53_six.py \
    --config.data.root=FOLDER --workdir=runs/darknet53_six

After "Medical Image Classification based on Deep Learning" (Ning), its section on YOLOv3: a sigmoid
a class, images of several sizes, 6,000 films in six classes, 70 % to train. It tells neither which
six nor sizes, optimizer or split: the six are those findings of ChestX-ray14 that are most often a
film's only one, dealt by patient, a tenth of the training part is val, and the training is
Darknet's (SGD, 0.1 for 256 images), with a cosine in place of its polynomial. Films are read at 416
px and scored there; `--config.data.image_size=256` scores smaller ones. `:single` has the body
alone, with one prediction. Not run on the real files.
"""

from ml_collections import ConfigDict

from configs import common

BATCH = 64
SIZES = tuple(range(192, 417, 32))
CHEST = dict(name="chestxray14", root=f"{common.DATA}/chestxray14", task="six")


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants `:single` and `:smoke`."""
  config = dict(
    title="Darknet-53 on six findings",
    data=dict(image_size=416, channels=3, split=dict(mode="grouped", val=0.1, test=0.3), **CHEST),
    augment=dict(name="cxr_safe"),
    model=dict(name="darknet53_fpn"),
    objective=dict(name="supervised", loss="sigmoid_bce", class_weights="none", auxiliary=0.3),
    optimizer=dict(name="sgd", lr=0.1 * BATCH / 256, momentum=0.9, weight_decay=5e-4),
    train=dict(batch_size=BATCH, length="60 epochs", sizes=SIZES, sizes_every="10 steps"),
    eval=dict(select="accuracy"),
  )
  return common.vary(arg, config, single=dict(model=dict(name="darknet53")))
