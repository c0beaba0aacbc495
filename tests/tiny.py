"""A config that trains in seconds: a very small QuadSNet on synthetic images.

`:simclr` pretrains on them instead; `:stages` does one after the other; `:rules` has every rule
whose state must outlive a kill: moving average, plateau, early stopping, accumulated gradients.
"""

from ml_collections import ConfigDict

TRAIN = dict(
  batch_size=16,
  length="24 steps",
  steps_per_dispatch=2,
  log_every="4 steps",
  checkpoint_every="2 steps",
)


def get_config(arg: str = "") -> ConfigDict:
  """The experiment."""
  config = dict(
    data=dict(name="phantom", image_size=16, patients=40),
    model=dict(name="quadsnet", widths=(4, 8), hidden=8, bn_momentum=0.9),
    augment="cxr_safe",
    objective="supervised",
    train=TRAIN,
    eval=dict(bootstrap=100, every="8 steps", maps=""),
  )
  pretrain = dict(
    name="pretrain",
    data=dict(labelled=False, seed=1),
    objective="simclr",
    augment="simclr_gray",
  )
  if arg == "rules":
    config["optimizer"] = dict(
      name="keras_adam",
      schedule="constant",
      accumulate=2,
      ema=0.9,
      freeze=("encoder/cs3",),
      plateau=dict(monitor="log_loss", patience=1, min_delta=0.05, factor=0.5),
    )
    config["train"] = TRAIN | dict(stop=dict(monitor="accuracy", patience=6))
    config["objective"] = dict(name="supervised", loss="ldam", defer_weights=0.5)
  if arg == "simclr":
    config["stages"] = (pretrain,)
  if arg == "stages":
    watched = pretrain | dict(eval=dict(monitors=("phantom",)))
    config["stages"] = (watched, dict(name="finetune", init_from="pretrain"), dict(name="scratch"))
    config["compare"] = ("finetune", "scratch")
  return ConfigDict(config)
