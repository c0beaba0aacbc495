"""Shards made by Apache Beam: on this machine, or on a cluster whose workers see the same folders.

Needs the extra `beam`, which has an environment of its own: Beam holds other libraries back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import importlib
from typing import Any

from medjax.data.collection import making, shards
from medjax.data.collection import plan as plan_lib

_BUNDLE = 8  # shards that one worker makes in a row, with decoders started once


def by_runner(runner: str, options: Sequence[str]) -> making.Made:
  """Shards made by a runner.

  Args:
    runner: DirectRunner, DataflowRunner, SparkRunner, FlinkRunner or another that Beam knows.
    options: pipeline options as NAME=VALUE, such as direct_num_workers=4.

  Raises:
    ModuleNotFoundError: Beam is not installed.
    ValueError: an option without a value.
  """
  library = _library()
  wrong = [option for option in options if "=" not in option]
  if wrong:
    raise ValueError(f"--runner-option {wrong[0]}: write NAME=VALUE, such as direct_num_workers=4")

  def made(plan: plan_lib.Plan, numbers: list[int]) -> Iterator[shards.Counts]:
    bundles = [(plan, numbers[i : i + _BUNDLE]) for i in range(0, len(numbers), _BUNDLE)]
    flags = [f"--runner={runner}", *(f"--{option}" for option in options)]
    with library.Pipeline(argv=flags) as pipeline:
      _ = pipeline | library.Create(bundles) | library.Reshuffle() | library.FlatMap(make_bundle)
    yield from (shards.counted(plan, number) for number in numbers)

  return made


def make_bundle(bundle: tuple[plan_lib.Plan, list[int]]) -> list[int]:
  """Makes some shards in processes with limits, as it is done without Beam."""
  plan, numbers = bundle
  for _ in making.by_processes(workers=1)(plan, numbers):
    pass
  return numbers


def _library() -> Any:
  try:
    return importlib.import_module("apache_beam")
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "--runner needs Apache Beam: make an environment of its own with pip install 'medjax[beam]',"
      " or leave --runner out"
    ) from error
