"""What a training step is: `Objective`s by their settings."""

from __future__ import annotations

from collections.abc import Callable

from medjax import augment, contract, optim, settings
from medjax.models import net as net_lib
from medjax.objectives import base, contrastive, supervised

OBJECTIVES: dict[type[settings.Objective], Callable] = {
  settings.Supervised: supervised.make,
  settings.SimCLR: contrastive.make,
}


def make(
  cfg: settings.Objective,
  net: net_lib.Net,
  optimizer: optim.Optimizer,
  augmenter: augment.Augmenter,
  info: contract.DataInfo,
) -> base.Objective:
  """Builds the objective that `cfg` asks for.

  Args:
    cfg: one of the objective settings.
    net: the network, with the head that the objective needs.
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
