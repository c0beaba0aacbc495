"""From a config file and command-line overrides to `settings.Config`, with errors that help.

A config file defines `get_config(arg) -> ConfigDict`. Its keys are those of `settings.Stage`, which
make one stage, or the same keys as defaults and `stages`, a tuple of dicts that each name a stage
and say what differs. Later wins:

  defaults of the type < top-level keys < the stage's keys < top-level overrides < stage overrides

An override at top level thus reaches every stage that has the setting; only `init_from`, which
chains the stages, leaves alone those that set it themselves. Choosing another variant
(`--config.objective.name=simclr`) keeps the settings that both variants have and drops the rest.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import difflib
import importlib.util
import math
import pathlib
import sys
import types
from typing import Any, Literal, get_args, get_origin, get_type_hints

from medjax import settings, trees

_OF_ONE = {"name", "seed", "cell"}  # keys of a single stage; `seed` at top level is the run's
_SHARED = ("image_size", "channels", "cache", "reading")  # of a stage's data with further sets
_STAGE_KEYS = {field.name for field in dataclasses.fields(settings.Stage)} - _OF_ONE


class _Text(str):
  """A value as typed on the command line, read once the type of its key is known."""


def load(spec: str) -> dict[str, Any]:
  """Runs `get_config` of a config file.

  Args:
    spec: `path/to/config.py` or `path/to/config.py:arg`.

  Returns:
    The config as a nested dict.

  Raises:
    FileNotFoundError: no such file.
    ValueError: the file has no `get_config`, or it does not know `arg`.
  """
  path, _, arg = spec.partition(":")
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(f"no config file {path}; configs/ holds those that come with medjax")
  module = _import(pathlib.Path(path).resolve())
  if not hasattr(module, "get_config"):
    raise ValueError(f"{path} defines no get_config(arg), so it is no config")
  return module.get_config(arg).to_dict()


def _import(path: pathlib.Path) -> types.ModuleType:
  """Imports a file; the folder above its `configs` becomes importable, for `configs.common`."""
  root = next((str(p.parent) for p in path.parents if p.name == "configs"), str(path.parent))
  if root not in sys.path:
    sys.path.insert(0, root)
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def parse(tree: Mapping[str, Any], overrides: Sequence[str] = ()) -> settings.Config:
  """Makes typed settings of a config's tree.

  Args:
    tree: nested dicts, of a config file or of `to_dict`.
    overrides: `"optimizer.lr=3e-4"`, `"stages.finetune.train.length=10 epochs"`.

  Raises:
    ValueError: an unknown key, a value of another type, a contradiction; says what was meant.
  """
  top_level, of_stage = _split_overrides(overrides)
  tree = dict(tree)
  stages = [dict(stage) for stage in tree.pop("stages", ({"name": "train"},))]
  _check_names(stages, of_stage)
  shared = {key: tree.pop(key) for key in _STAGE_KEYS & set(tree)}
  top_stage = {key: top_level.pop(key) for key in _STAGE_KEYS & set(top_level)}
  bases = [_layered({}, shared, stage) for stage in stages]
  reach = _reach(top_stage, stages, bases)
  built = tuple(
    _build_stage(_layered(base, over, of_stage.get(stage["name"], {})))
    for stage, base, over in zip(stages, bases, reach, strict=True)
  )
  config = dataclasses.replace(_build(settings.Config(), tree | top_level, ""), stages=built)
  _check(config)
  return config


def _build_stage(values: Mapping[str, Any]) -> settings.Stage:
  """A stage; the further sets of `eval` have the pixels of its data, unless they say otherwise."""
  data, scoring = _build(settings.Stage().data, values.get("data", {}), "data."), {}
  pixels = {key: to_dict(getattr(data, key)) for key in _SHARED}
  for key, value in values.get("eval", {}).items():
    of_sets = key in ("monitors", "tests")
    each = [pixels | _as_dict(item, data) for item in _items(value)] if of_sets else value
    scoring[key] = each
  return _build(settings.Stage(), {**values, "eval": scoring}, "")


def _layered(base: dict[str, Any], *layers: Mapping[str, Any]) -> dict[str, Any]:
  """A stage's values under layers of others; later ones win."""
  for layer in layers:
    base = _merge(settings.Stage(), base, layer)
  return base


def _reach(top: dict[str, Any], stages: list[dict], bases: list[dict]) -> list[dict[str, Any]]:
  """What each stage takes of the top-level overrides.

  A setting that some stages' variants do not have, such as `objective.loss` in a stage of SimCLR,
  reaches the others; one that no stage has reaches all, to be told as an error.
  """
  fitting = [_fitting(settings.Stage(), base, top) for base in bases]
  known = {path for each in fitting for path in trees.flatten(each)}
  if set(trees.flatten(top)) - known:
    fitting = [top] * len(stages)
  return [
    {key: value for key, value in each.items() if key != "init_from" or key not in stage}
    for each, stage in zip(fitting, stages, strict=True)
  ]


def _fitting(prototype: Any, base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
  """The part of `over` that settings like `prototype`, with the values of `base`, have."""
  over = _as_dict(over, prototype)
  name = str(over.get("name", base.get("name")))
  prototype = _variants(prototype).get(name, prototype)
  return {
    key: _fitting(getattr(prototype, key), base.get(key, {}), value)
    if isinstance(value, Mapping) and dataclasses.is_dataclass(getattr(prototype, key))
    else value
    for key, value in over.items()
    if hasattr(prototype, key)
  }


def to_dict(value: Any) -> Any:
  """The settings as plain JSON types; `parse` reads them back."""
  if isinstance(value, settings.Duration):
    return str(value)
  if dataclasses.is_dataclass(value):
    return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
  if isinstance(value, tuple):
    return [to_dict(item) for item in value]
  return value


def _split_overrides(overrides: Sequence[str]) -> tuple[dict, dict]:
  """Nests dotted overrides: those of the top level, and those of each stage by name."""
  tree: dict[str, Any] = {}
  for override in overrides:
    path, equals, text = override.partition("=")
    if not equals:
      raise ValueError(f"--config.{override} has no value: write --config.{override}=VALUE")
    *parents, leaf = path.split(".")
    node = tree
    for parent in parents:
      if isinstance(node.get(parent), _Text):  # objective.loss=margin, then objective.loss.mix=0.5
        node[parent] = {"name": node[parent]}
      node = node.setdefault(parent, {})
    if isinstance(node.get(leaf), dict):
      node, leaf = node[leaf], "name"
    node[leaf] = _Text(text)
  stages = tree.pop("stages", {})
  return tree, stages


def _check_names(stages: list[dict], overridden: Mapping[str, Any]) -> None:
  names = [stage.get("name") for stage in stages]
  if None in names or len(set(names)) < len(names):
    raise ValueError(f"config: stages need distinct names, these have {names}")
  for name in overridden:
    if name not in names:
      raise ValueError(f"config: there is no stage {name!r}{_meant(name, names)}")


def _merge(prototype: Any, base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
  """`over` on `base`, as settings like `prototype`."""
  base, over = dict(base), _as_dict(over, prototype)
  name = over.get("name")
  variants = _variants(prototype)
  if variants and name in variants and name != base.get("name", prototype.name):
    base = {key: value for key, value in base.items() if hasattr(variants[name], key)}
  prototype = variants.get(str(name or base.get("name")), prototype)
  for key, value in over.items():
    child = getattr(prototype, key, None)
    if dataclasses.is_dataclass(child) and not isinstance(child, settings.Duration):
      value = _merge(child, base.get(key, {}), value)
    base[key] = value
  return base


def _as_dict(value: Any, prototype: Any) -> dict[str, Any]:
  """A group of settings; `data="phantom"` is short for `data={"name": "phantom"}`.

  A name such as `medmnist:pathmnist` says the variant and which `set` of those that it can be.
  """
  if isinstance(value, str) and _variants(prototype):
    value = {"name": str(value)}
  if isinstance(value, Mapping):
    name, colon, chosen = str(value.get("name", "")).partition(":")
    return {**value, "name": name, "set": _Text(chosen)} if colon else dict(value)
  raise ValueError(f"config: {value!r} stands where settings belong: {_keys(prototype)}")


def _variants(prototype: Any) -> dict[str, Any]:
  bases = type(prototype).__mro__
  return next((settings.VARIANTS[base] for base in bases if base in settings.VARIANTS), {})


def _build(prototype: Any, values: Mapping[str, Any], where: str) -> Any:
  """A copy of the prototype, or of the variant that `values` names, with `values` in it."""
  variants = _variants(prototype)
  name = values.get("name", getattr(prototype, "name", None))
  if variants and name not in variants:
    raise ValueError(f"config: {where}name = {str(name)!r} is unknown{_meant(name, variants)}")
  prototype = variants.get(name, prototype)
  hints = get_type_hints(type(prototype))
  for key in values:
    if key not in hints:
      raise ValueError(f"config: unknown key {where}{key}{_key_meant(key, where, prototype)}")
  fields = {
    key: _convert(hints[key], getattr(prototype, key), value, where + key)
    for key, value in values.items()
  }
  return dataclasses.replace(prototype, **fields)


def _convert(hint: Any, default: Any, value: Any, where: str) -> Any:
  """`value` as the type that the key's annotation asks for."""
  if isinstance(default, settings.Duration):
    try:
      return settings.Duration.parse(value)
    except ValueError as error:
      raise ValueError(f"config: {where} = {error}") from None
  if dataclasses.is_dataclass(default):
    return _build(default, value, where + ".")
  if get_origin(hint) is tuple and (kind := get_args(hint)[0]) in settings.VARIANTS:
    first = next(iter(settings.VARIANTS[kind].values()))
    each = [_as_dict(item, first) for item in _items(value)]
    return tuple(_build(first, item, f"{where}[{i}].") for i, item in enumerate(each))
  try:
    return _coerce(hint, _literal(value) if isinstance(value, _Text) and hint is not str else value)
  except (TypeError, ValueError):
    raise ValueError(f"config: {where} = {value!r} is not {_describe(hint)}") from None


def _literal(text: str) -> Any:
  """A number, boolean, tuple or bare word as typed."""
  words = {"true": True, "false": False}
  if text.lower() in words:
    return words[text.lower()]
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return str(text)


def _items(value: Any) -> Sequence[Any]:
  """The items of a list; one that stands alone is a list of one."""
  value = _literal(value) if isinstance(value, _Text) else value
  return value if isinstance(value, (list, tuple)) else (value,)


def _coerce(hint: Any, value: Any) -> Any:
  """`value` as `hint`, without losing anything: 3.0 is no bool, 2.5 no int, "3" no number."""
  if get_origin(hint) is Literal:
    if value in get_args(hint):
      return value
    raise ValueError
  if get_origin(hint) is tuple:
    return _coerce_tuple(get_args(hint), value)
  if get_origin(hint) is types.UnionType:  # of one type and None
    return None if value is None else _coerce(get_args(hint)[0], value)
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if hint is float and number:
    return float(value)
  if hint is int and number and value == int(value):
    return int(value)
  if hint in (bool, str) and isinstance(value, hint):
    return hint(value)
  raise TypeError


def _coerce_tuple(hints: tuple, value: Any) -> tuple:
  items = tuple(_items(value))
  if len(hints) == 2 and hints[1] is Ellipsis:
    return tuple(_coerce(hints[0], item) for item in items)
  if len(items) != len(hints):
    raise ValueError
  return tuple(_coerce(hint, item) for hint, item in zip(hints, items, strict=True))


def _describe(hint: Any) -> str:
  if get_origin(hint) is Literal:
    return "one of " + ", ".join(repr(option) for option in get_args(hint))
  names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
  return names.get(hint) or str(hint).replace("typing.", "")


def _meant(word: Any, options: Any) -> str:
  """The rest of an error's sentence: what was probably meant, and what there is."""
  close = difflib.get_close_matches(str(word), list(options), n=1)
  hint = f"; did you mean {close[0]!r}?" if close else "."
  return f"{hint} Known: {', '.join(sorted(options))}"


def _keys(prototype: Any) -> str:
  return ", ".join(field.name for field in dataclasses.fields(prototype))


def _key_meant(key: str, where: str, prototype: Any) -> str:
  """Looks for the key beside its siblings first, then anywhere in a stage."""
  siblings = [field.name for field in dataclasses.fields(prototype)]
  if isinstance(prototype, settings.Config):
    siblings += sorted(_STAGE_KEYS)
  if difflib.get_close_matches(key, siblings, n=1) or where:
    return _meant(key, siblings)
  paths = {path.rpartition(".")[2]: path for path in _paths(settings.Stage(), "")}
  close = difflib.get_close_matches(key, paths, n=1)
  return f"; did you mean {paths[close[0]]!r}?" if close else _meant(key, siblings)


def _paths(prototype: Any, where: str) -> Iterator[str]:
  for field in dataclasses.fields(prototype):
    value = getattr(prototype, field.name)
    yield where + field.name
    if dataclasses.is_dataclass(value) and not isinstance(value, settings.Duration):
      yield from _paths(value, f"{where}{field.name}.")


# Key of a stage -> smallest and largest value.
_RANGES = {
  "train.batch_size": (1, math.inf),
  "train.steps_per_dispatch": (1, math.inf),
  "train.memory_gb": (0, math.inf),
  "train.stop.patience": (0, math.inf),
  "train.stop.min_delta": (0, math.inf),
  "optimizer.accumulate": (1, math.inf),
  "optimizer.ema": (0, 0.999999),
  "optimizer.layer_decay": (0, 1),
  "optimizer.plateau.patience": (0, math.inf),
  "optimizer.plateau.min_delta": (0, math.inf),
  "optimizer.plateau.factor": (0, 0.999999),
  "objective.defer_weights": (0, 1),
  "objective.auxiliary": (0, math.inf),
  "objective.d_steps": (1, math.inf),
  "objective.lr_ratio": (0, math.inf),
  "objective.unsupervised": (0, math.inf),
  "objective.mixup": (0, math.inf),
  "objective.cutmix": (0, math.inf),
}


def _check_ranges(stage: settings.Stage) -> None:
  for key, (low, high) in _RANGES.items():
    value: Any = stage
    for name in key.split("."):
      value = getattr(value, name, low)  # a variant without the setting has no wrong value
    if not low <= value <= high:
      limits = f"at least {low}" if high == math.inf else f"between {low} and {high}"
      raise ValueError(f"config: {key} = {value} of stage {stage.name!r} must be {limits}")


def _check_imbalance(stage: settings.Stage) -> None:
  """Raises ValueError where rare classes are both drawn more often and weighted for being rare."""
  weights, sampling = getattr(stage.objective, "class_weights", ""), stage.data.feeding.sampling
  if sampling != "shuffled" and weights in settings.BY_COUNTS:
    raise ValueError(
      f"config: data.feeding.sampling = {sampling!r} of stage {stage.name!r} draws rare classes"
      f" more often, and objective.class_weights = {weights!r} counts on their being rare: set"
      " objective.class_weights to none, or data.feeding.sampling to shuffled"
    )


def _check_rotation(stage: settings.Stage) -> None:
  """Raises ValueError where an image may be turned so far that nobody can tell its quarter turn."""
  hidden = stage.augment.vflip or stage.augment.rotation >= 45
  if hidden and isinstance(stage.objective, settings.Rotation):
    raise ValueError(
      f"config: augment.rotation = {stage.augment.rotation:g} and augment.vflip = "
      f"{stage.augment.vflip} of stage {stage.name!r} hide the turn that objective.name=rotation "
      "learns: set a rotation below 45 and no vflip, or augment to pretext_gray or pretext_color"
    )


def _check_study(config: settings.Config) -> None:
  """Raises ValueError unless the cells of the stages make a table of the study's columns."""
  study, names = config.study, {stage.name for stage in config.stages}
  cells = {stage.name: stage.cell for stage in config.stages if stage.cell}
  for name, cell in cells.items():
    if len(cell) != len(study.columns):
      raise ValueError(
        f"config: cell = {cell} of stage {name!r} must hold a text for each of study.columns = "
        f"{study.columns}"
      )
  if len(set(cells.values())) < len(cells):
    raise ValueError(f"config: two stages of the study have the same cell: {cells}")
  if study.baseline and study.baseline not in {cell[0] for cell in cells.values()}:
    raise ValueError(f"config: study.baseline = {study.baseline!r} is the arm of no stage's cell")
  for stage in config.stages:
    if isinstance(stage.objective, settings.Classical) and stage.init_from:
      raise ValueError(
        f"config: objective=classical learns from nothing else, so stage {stage.name!r} cannot "
        f"start from {stage.init_from!r}: set its init_from to ''"
      )
    if strange := [name for name in stage.audit_against if name not in names - {stage.name}]:
      raise ValueError(
        f"config: audit_against of stage {stage.name!r} names {strange[0]!r}, which is no other "
        f"stage{_meant(strange[0], names - {stage.name})}"
      )


def _check(config: settings.Config) -> None:
  """What no single key can say."""
  names = [stage.name for stage in config.stages]
  if config.compare and (len(config.compare) != 2 or not set(config.compare) <= set(names)):
    raise ValueError(f"config: compare = {config.compare} must name two of the stages {names}")
  _check_study(config)
  for stage in config.stages:
    _check_ranges(stage)
    _check_imbalance(stage)
    _check_rotation(stage)
    if stage.init_from in names[names.index(stage.name) :]:
      raise ValueError(
        f"config: stage {stage.name!r} cannot start from {stage.init_from!r}: "
        "only from an earlier stage or a checkpoint's folder"
      )
