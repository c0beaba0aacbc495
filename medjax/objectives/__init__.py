"""What a training step is: `Objective`s by their settings."""

from __future__ import annotations

from collections.abc import Callable

from medjax import augment, contract, models, optim, settings
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


def classifies(cfg: settings.Objective) -> bool:
  """Whether an objective learns a network that gives scores of the data's classes."""
  return isinstance(cfg, settings.Supervised | settings.GANSemi)


def told(cfg: settings.Objective, info: contract.DataInfo) -> contract.DataInfo:
  """What the network is to know of the data: some objectives have classes of their own."""
  return pretext.turns_as_classes(info) if isinstance(cfg, settings.Rotation) else info


def network(
  cfg: settings.Objective,
  model: settings.Model,
  info: contract.DataInfo,
  execution: net_lib.Execution,
) -> net_lib.Net | gan.Pair:
  """The network that an objective trains, with the end that it needs, or the pair of a GAN."""
  info = told(cfg, info)
  if isinstance(cfg, settings.Adversarial):
    return gan.make(model, info, execution, adversarial.end(cfg))
  projector, predictor = (getattr(cfg, name, None) for name in ("projector", "predictor"))
  cosine = isinstance(getattr(cfg, "loss", None), settings.LDAM)
  return models.make(model, info, execution, projector, cosine, predictor)


def of_stage(
  stage: settings.Stage, info: contract.DataInfo, execution: net_lib.Execution
) -> tuple[net_lib.Net | gan.Pair, base.Objective]:
  """The network of a stage and its objective, for a network that only looks."""
  net = network(stage.objective, stage.model, info, execution)
  optimizer = optim.make(stage.optimizer, 1, 0, net.stages)
  return net, make(stage.objective, net, optimizer, augment.make(stage.augment), info)


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
