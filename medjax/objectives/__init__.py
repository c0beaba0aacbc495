"""What a training step is: `Objective`s by their settings."""

from __future__ import annotations

from collections.abc import Callable

from medjax import augment, contract, optim, settings
from medjax.models import gan
from medjax.models import net as net_lib
from medjax.objectives import adversarial, base, byol, contrastive, pretext, supervised

OBJECTIVES: dict[type[settings.Objective], Callable] = {
  settings.Supervised: supervised.make,
  settings.SimCLR: contrastive.simclr,
  settings.MICLe: contrastive.micle,
  settings.BYOL: byol.make,
  settings.Rotation: pretext.rotation,
  settings.SourceLabel: pretext.source_label,
  settings.GANVanilla: adversarial.make,
  settings.GANSemi: adversarial.make,
  settings.GANCond: adversarial.make,
}


def told(cfg: settings.Objective, info: contract.DataInfo) -> contract.DataInfo:
  """What the network is to know of the data: some objectives have classes of their own."""
  return pretext.turns_as_classes(info) if isinstance(cfg, settings.Rotation) else info


def make(
  cfg: settings.Objective,
  net: net_lib.Net | gan.Pair,
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> base.Objective:
  """Builds the objective that `cfg` asks for.

  Args:
    cfg: one of the objective settings.
    net: the network, with the head that the objective needs, or the pair of a GAN.
    optimizer: how parameters move.
    augmenter: of the training images.
    info: what there is to know about the data.

  Raises:
    KeyError: for settings that `OBJECTIVES` does not list.
  """
  if type(cfg) not in OBJECTIVES:
    names = ", ".join(known.__name__ for known in OBJECTIVES)
    raise KeyError(f"no objective for {type(cfg).__name__}: choose one of {names}")
  return OBJECTIVES[type(cfg)](cfg, net, optimizer, augmenter, info)
