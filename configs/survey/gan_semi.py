"""A GAN's discriminator as the classifier, from few labels and many images without, at 32 px.

  python -m medjax.main --config=configs/survey/gan_semi.py --workdir=runs/gan_semi

What the survey means where its discriminator tells the image's category: K classes and "generated"
(Salimans et al. 2016), on PneumoniaMNIST drawn at 32 px with the labels of 10 % of the images; half
of each batch has labels. Beside it the same body learns from these labels alone, and both are
scored on the official test part with a paired interval. `:one` and `:five` have 1 and 5 % of the
labels, `:all` has all. Not run to its end on the real files.
"""

from ml_collections import ConfigDict

from configs import common

ADAM = dict(name="adam", lr=2e-4, b1=0.5, schedule="constant", warmup="0 steps", clip=0.0)


def _labelled(fraction: float) -> dict:
  return dict(data=dict(split=dict(fraction=fraction)))


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants `:one`, `:five`, `:all` and `:smoke`."""
  semi = dict(
    name="semi",
    data=dict(split=dict(rest="unlabelled"), feeding=dict(weights=(1.0, 1.0))),
    augment="gan_gray",
    objective="gan_semi",
  )
  every_label = dict(name="semi", augment="gan_gray", objective="gan_semi")
  alone = dict(name="supervised", augment="cxr_safe", objective="supervised")
  config = dict(
    title="A GAN's discriminator as a classifier of PneumoniaMNIST",
    data=dict(
      name="npz",
      root=f"{common.DATA}/pneumoniamnist/pneumoniamnist.npz",
      image_size=32,
      split=dict(fraction=0.1),
    ),
    model=dict(name="gan", width=16),
    optimizer=dict(ADAM, ema=0.999),
    train=dict(batch_size=64, length="4000 steps", checkpoint_every="200 steps"),
    eval=dict(every="500 steps"),
    stages=(semi, alone),
    compare=("semi", "supervised"),
  )
  return common.vary(
    arg,
    config,
    smallest=16,
    one=_labelled(0.01),
    five=_labelled(0.05),
    all=_labelled(1.0) | dict(stages=(every_label, alone)),
  )
