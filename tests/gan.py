"""A config of a very small conditional GAN and its judge, on 16 px of synthetic images."""

from ml_collections import ConfigDict

TRAIN = dict(
  batch_size=8,
  length="6 steps",
  steps_per_dispatch=2,
  log_every="2 steps",
  checkpoint_every="2 steps",
)


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; `:alone` leaves the judge out, `:semi` has the K + 1 classifier."""
  judge = dict(
    name="judge",
    model=dict(name="quadsnet", widths=(4, 8), hidden=8, bn_momentum=0.9),
    objective="supervised",
    train=TRAIN,
  )
  gan = dict(
    name="gan",
    model=dict(name="gan", width=2, latent=8),
    objective=dict(name="gan_cond", judge="judge"),
    optimizer=dict(name="adam", b1=0.0, b2=0.9, schedule="constant", ema=0.9),
    augment="gan_gray",
    train=TRAIN,
  )
  stages = (judge, gan)
  if arg == "alone":
    stages = (gan | dict(objective="gan_cond"),)
  if arg == "semi":
    halves = dict(split=dict(fraction=0.5, rest="unlabelled"), feeding=dict(weights=(1.0, 1.0)))
    stages = (gan | dict(objective="gan_semi", data=halves),)
  return ConfigDict(
    dict(
      data=dict(name="phantom", image_size=16, patients=40),
      eval=dict(bootstrap=100, every="2 steps"),
      stages=stages,
    )
  )
