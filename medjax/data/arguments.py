"""Arguments that several commands of `python -m medjax.data` share."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import textwrap
from typing import Literal, get_args, get_origin, get_type_hints

from medjax import settings

CHANNELS = {"as-is": 0, "1": 1, "3": 3}


def add_shape(parser: argparse.ArgumentParser) -> None:
  """Adds `--size` and `--channels`, one of `CHANNELS`."""
  add = parser.add_argument
  add("--size", type=int, default=224, help="height and width in pixels (default: 224)")
  add(
    "--channels",
    choices=list(CHANNELS),
    default="as-is",
    help="1 (grey), 3 (RGB), or as-is: what has no colour is kept grey (default: as-is)",
  )


def add_workers(parser: argparse.ArgumentParser, purpose: str) -> None:
  """Adds `--workers`; what it gives is at least 1."""
  cores = os.cpu_count() or 1
  add = parser.add_argument
  add("--workers", type=at_least_one, default=cores, help=f"{purpose} (default: one a core)")


def at_least_one(text: str) -> int:
  """A number of processes or files."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f"{number} is too few: give 1 or more")
  return number


def zero_or_more(text: str) -> int:
  """A number of which 0 stands for all."""
  number = int(text)
  if number < 0:
    raise argparse.ArgumentTypeError(f"{number} is too few: give 0 or more")
  return number


def pattern(text: str) -> str:
  """A regular expression."""
  try:
    re.compile(text)
  except re.error as error:
    raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
  return text


def add_reading(parser: argparse.ArgumentParser) -> None:
  """Adds an option for every field of `settings.Reading`."""
  group = parser.add_argument_group("from a file's values to pixels (medjax/settings/reading.py)")
  kinds, told = get_type_hints(settings.Reading), _told(settings.Reading)
  for field in dataclasses.fields(settings.Reading):
    kind, option = kinds[field.name], f"--{field.name.replace('_', '-')}"
    meaning = told.get(field.name, "")
    if kind is bool:
      group.add_argument(option, action="store_true", help=f"{meaning} (default: off)")
      continue
    choices = get_args(kind) if get_origin(kind) is Literal else None
    shown = f"{{{','.join(map(str, choices))}}}" if choices else field.name.upper()
    group.add_argument(
      option,
      type=type(field.default),
      choices=choices,
      default=field.default,
      metavar=shown,
      help=f"{meaning} (default: {field.default})",
    )


def _told(kind: type) -> dict[str, str]:
  """What the docstring of a class says of each attribute: the one place where it is said."""
  attributes = textwrap.dedent((inspect.getdoc(kind) or "").partition("Attributes:\n")[2])
  found = re.findall(r"^(\w+): (.*(?:\n  .*)*)", attributes, re.MULTILINE)
  return {name: " ".join(text.split()).rstrip(".").replace("%", "%%") for name, text in found}


def reading(args: argparse.Namespace) -> settings.Reading:
  """What those options say.

  Raises:
    ValueError: a value that no reader knows.
  """
  names = [field.name for field in dataclasses.fields(settings.Reading)]
  return settings.Reading(**{name: getattr(args, name) for name in names})
