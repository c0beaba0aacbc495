"""The survey's GAN as it stands there: generator against discriminator, no classes, at 32 px.

  python -m medjax.main --config=configs/survey/gan_vanilla.py --workdir=runs/gan_vanilla
  python -m medjax.generate runs/gan_vanilla --per-class 64 --out generated

After Ning, "Medical Image Classification based on Deep Learning", its section on adversarial
networks: min_G max_D E log D(x) + E log(1 - D(G(z))), one turn each. Networks, set and rates are
our choice; the generator minimises -log D instead, unless
--config.stages.gan.objective.saturating=true. PneumoniaMNIST drawn at 32 px. What the survey calls
the classifier of a GAN is `gan_semi`. Not run to its end on the real files.
"""

from ml_collections import ConfigDict

from configs import common

# Of Radford et al. 2016 (DCGAN); no warm-up and no decay, as neither network is ever done.
ADAM = dict(name="adam", lr=2e-4, b1=0.5, schedule="constant", warmup="0 steps", clip=0.0)


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variant `:smoke`."""
  config = dict(
    title="The survey's GAN on PneumoniaMNIST",
    data=dict(name="npz", root=f"{common.DATA}/pneumoniamnist/pneumoniamnist.npz", image_size=32),
    augment="gan_gray",
    model=dict(name="gan", width=16),
    objective="gan_vanilla",
    optimizer=dict(ADAM, ema=0.999),
    train=dict(batch_size=64, length="4000 steps", checkpoint_every="200 steps"),
    eval=dict(every="500 steps"),
    stages=(dict(name="gan"),),
  )
  return common.vary(arg, config, smallest=16)
