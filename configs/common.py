"""What several configs share: where the data lie, how variants are made, what `:smoke` means."""

from collections.abc import Mapping
import os
from typing import Any

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


def vary(
  arg: str, base: Mapping[str, Any], smallest: int = 32, **changes: Mapping[str, Any]
) -> ConfigDict:
  """An experiment with the changes that the text after the colon names, such as `paper+smoke`.

  Args:
    arg: names of changes with `+` between them, in any order; empty for none.
    base: the experiment.
    smallest: pixels of `smoke`.
    **changes: settings that a variant merges into the experiment, in the order in which the
      variants stand here; `smoke` comes last.

  Raises:
    ValueError: no such change; lists those there are.
  """
  words = set(filter(None, arg.split("+")))
  for word in words - {"smoke", *changes}:
    choose(word, **dict.fromkeys((*changes, "smoke")))  # tells what there is
  config = dict(base)
  for name, change in changes.items():
    if name in words:
      config = merged(config, change)
  config = ConfigDict(config)
  return smoke(config, smallest) if "smoke" in words else config


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
  """`over` on `base`: groups of settings are merged, but one of another name takes the place."""
  found = dict(base)
  for key, value in over.items():
    group = found.get(key)
    if isinstance(group, Mapping) and isinstance(value, Mapping):
      renamed = {"name"} <= set(group) & set(value) and group["name"] != value["name"]
      value = value if renamed else merged(group, value)
    found[key] = value
  return found


def smoke(config: ConfigDict, image_size: int = 32, **data) -> ConfigDict:
  """A copy of a config that only shows that everything runs: a few steps on small images.

  Args:
    config: one-stage or staged; its network stays as it is.
    image_size: pixels.
    **data: further settings of `data` that every stage takes.
  """
  config = ConfigDict(config.to_dict())
  small = dict(image_size=image_size, **data)
  config.update(data=small, train=_shorter(config.get("train", {}), image_size), eval=SMOKE_EVAL)
  if "stages" in config:
    config.stages = tuple(_smaller(stage, small) for stage in config.stages)
  return config


def _smaller(stage: dict, small: dict) -> dict:
  train = stage.get("train", {})
  train = train | _shorter(train, small["image_size"])
  return stage | dict(data=stage.get("data", {}) | small, train=train)


def _shorter(train: Mapping[str, Any], image_size: int) -> dict[str, Any]:
  """A few steps; of a training at several sizes, the smallest two times."""
  if not train.get("sizes"):
    return SMOKE_TRAIN
  return SMOKE_TRAIN | dict(sizes=(image_size, 2 * image_size), sizes_every="2 steps")


def folds(count: int, stage: dict) -> list[dict]:
  """A stage for each of `count` grouped folds, on which it is tested, so that every image is once.

  Args:
    count: how many. stage: has a `name` and a `cell`, to both of which the fold's number is added.
  """
  made = []
  for fold in range(count):
    split = dict(mode="grouped", folds=count, fold=fold, folded="test")
    changes = dict(name=f"{stage['name']}_fold{fold}", cell=(*stage["cell"], str(fold)))
    made.append(merged(stage, changes | dict(data=dict(split=split))))
  return made
