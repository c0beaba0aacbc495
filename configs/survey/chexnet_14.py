"""CheXNet on the 14 findings of ChestX-ray14, official lists (Rajpurkar et al. 2017, section 2).

  python -m medjax.main --config=configs/survey/chexnet_14.py \
    --config.data.root=FOLDER --workdir=runs/chexnet_14

The network that two of the papers hold theirs against. Each finding is a sigmoid; presence and
absence weigh alike in sum. `:paper` mirrors the films, and deals its own parts by patient, of the
sizes of CheXNet's (98,637, 6,351 and 420 films), whose lists are not published. From the weights of
ImageNet, as in the paper: `--config.init_from=FILE` with Keras's file of DenseNet121. Not run on
the real files.
"""

from ml_collections import ConfigDict

from configs import common

FILMS, VAL, TEST = 112_120, 6_351, 420
PAPER = dict(
  data=dict(split=dict(mode="grouped", val=VAL / (FILMS - TEST), test=TEST / FILMS)),
  augment=dict(name="none", hflip=True),
)


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants `:paper` and `:smoke`."""
  config = dict(
    title="CheXNet on ChestX-ray14",
    data=dict(name="chestxray14", root=f"{common.DATA}/chestxray14", image_size=224, channels=3),
    augment=dict(name="cxr_safe"),
    model=dict(name="chexnet"),
    objective=dict(name="supervised", loss="weighted_bce", class_weights="none"),
    optimizer=dict(
      name="adam",
      lr=1e-3,
      schedule="constant",
      warmup="0 %",
      clip=0.0,
      plateau=dict(monitor="log_loss", patience=1, factor=0.1, min_delta=0.0),
    ),
    train=dict(batch_size=16, length="10 epochs"),
    eval=dict(select="auc"),
    init_allow=("predictions/*",),
  )
  return common.vary(arg, config, paper=PAPER)
