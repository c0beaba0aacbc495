"""What several configs share: where the data lie, and what `:smoke` means."""

import os

from ml_collections import ConfigDict

# Folder of the public sets; a single set is named by --config.data.root=FOLDER.
DATA = os.environ.get("MEDJAX_DATA", "../shared/data")

# A smoke run is the same experiment, with the same network, on small images and for a few steps.
SMOKE_TRAIN = dict(length="4 steps", steps_per_dispatch=2, log_every="2 steps", batch_size=16)
SMOKE_EVAL = dict(bootstrap=200)


def choose(arg: str, **variants: ConfigDict) -> ConfigDict:
  """The variant that the text after the colon names; raises ValueError listing them."""
  if arg not in variants:
    known = ", ".join(f":{name}" for name in variants if name) or "none"
    raise ValueError(f"this config has no variant {arg!r}; it has {known}")
  return variants[arg]


def smoke(config: ConfigDict, image_size: int = 32, **data) -> ConfigDict:
  """A copy of a config that only shows that everything runs: a few steps on small images.

  Args:
    config: one-stage or staged; its network stays as it is.
    image_size: pixels.
    **data: further settings of `data` that every stage takes.
  """
  config = ConfigDict(config.to_dict())
  small = dict(image_size=image_size, **data)
  config.update(data=small, train=SMOKE_TRAIN, eval=SMOKE_EVAL)
  if "stages" in config:
    config.stages = tuple(_smaller(stage, small) for stage in config.stages)
  return config


def _smaller(stage: dict, small: dict) -> dict:
  train = stage.get("train", {}) | SMOKE_TRAIN
  return stage | dict(data=stage.get("data", {}) | small, train=train)
