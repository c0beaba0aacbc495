"""Settings of generative adversarial networks: the pair of networks, and the games they play."""

from __future__ import annotations

import dataclasses
from typing import Literal

from medjax.settings.networks import Model
from medjax.settings.objectives import Objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class GAN(Model):
  """A residual generator and discriminator, for images of 8, 16, 32, 64 or 128 pixels.

  Trained by a classifier's objective it is the discriminator's body alone.

  Attributes:
    width: channels of the largest maps; towards 4 x 4 they double up to 16 times as many.
    latent: numbers that an image is generated from.
  """

  name: str = "gan"
  width: int = 64
  latent: int = 128
  preprocess: Literal["unit", "tf", "torch", "caffe", "stats"] = "tf"
  bn_epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversarial(Objective):
  """A generator against a discriminator; `optimizer.lr` is the generator's.

  Attributes:
    lr_ratio: learning rate of the discriminator over that of the generator.
    d_steps: updates of the discriminator for each of the generator, on the same images with other
      latents and another augmentation.
    judge: an earlier stage that classifies such images, or a folder of one in a workdir; every
      `eval.every` the kernel distance between its features of generated and of real images is
      logged. Empty for none.
  """

  lr_ratio: float = 1.0
  d_steps: int = 1
  judge: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANVanilla(Adversarial):
  """The game of Goodfellow et al. 2014.

  Attributes:
    saturating: the generator minimises log(1 - D), as the game has it; else -log D.
  """

  name: str = "gan_vanilla"
  saturating: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANSemi(Adversarial):
  """A discriminator that is the classifier, with "generated" as one class more (Salimans 2016).

  Images without a label (`data.split.rest`) teach it too.

  Attributes:
    generator: matches the mean features of real images, or lets its own pass for real.
    unsupervised: weight of telling real from generated beside telling classes apart.
  """

  name: str = "gan_semi"
  generator: Literal["feature_matching", "nonsaturating"] = "feature_matching"
  unsupervised: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class GANCond(Adversarial):
  """Images of a class that is asked for: hinge loss and a projection discriminator (Miyato 2018).

  Generated images have the classes of the real ones beside them in the batch, so
  `data.feeding.sampling=class_balanced` draws all classes alike.
  """

  name: str = "gan_cond"
  lr_ratio: float = 4.0
