"""The list of all source files, kept on disk a shard at a time, so that memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator
import hmac
import itertools
import json
import pathlib
from typing import NamedTuple

from medjax.data import sources
from medjax.data.collection import plan as plan_lib

GENERATED = "generated.json"  # stands beside images that a program made up


class Listed(NamedTuple):
  """A file to be read: the number of its source, and the entry there."""

  source: int
  entry: sources.Entry


def walk(plan: plan_lib.Plan) -> Iterator[Listed]:
  """Every file of every source, in order; not the collection itself where it lies in a source.

  Raises:
    ValueError: among them are generated images, which a collection would tell as real ones.
  """
  own = plan.folder.resolve()
  for number, source in enumerate(plan.sources):
    inside = source.is_dir() and own.is_relative_to(source.resolve())
    prefix = own.relative_to(source.resolve()).as_posix() + "/" if inside else None
    for entry in sources.walk(source):
      if pathlib.PurePosixPath(entry.path).name == GENERATED:
        raise ValueError(
          f"{source} holds generated images ({entry.path}), which are no source of real ones: move"
          " that folder away, and name it by data.generated where a training part is to have them"
        )
      if prefix is None or not entry.path.startswith(prefix):
        yield Listed(number, entry)


def write(plan: plan_lib.Plan) -> tuple[int, str]:
  """Lists all sources to disk, a file a shard.

  Returns:
    The number of files, and a seal of settings, salt and list.
  """
  seal = plan.sealed()
  lines = map(_line, walk(plan))
  total = 0
  for shard in itertools.count():
    chunk = list(itertools.islice(lines, plan_lib.SHARD_FILES))
    if not chunk:
      return total, seal.hexdigest()
    total += len(chunk)
    text = "".join(chunk)
    seal.update(text.encode())
    plan.listing(shard).write_text(text)
  raise AssertionError  # never: the count has no end


def seal(plan: plan_lib.Plan) -> str:
  """The seal that `write` would give, from the sources as they are now."""
  digest: hmac.HMAC = plan.sealed()
  for listed in walk(plan):
    digest.update(_line(listed).encode())
  return digest.hexdigest()


def read(plan: plan_lib.Plan, shard: int) -> list[Listed]:
  """The files of a shard."""
  with plan.listing(shard).open() as file:
    return [_listed(line) for line in file]


def shards(total: int) -> int:
  """How many shards that many files make."""
  return -(-total // plan_lib.SHARD_FILES)


def _line(listed: Listed) -> str:
  source, entry = listed
  return json.dumps([source, entry.steps, entry.bytes, entry.refused, entry.places]) + "\n"


def _listed(line: str) -> Listed:
  source, steps, size, refused, places = json.loads(line)
  return Listed(source, sources.Entry(tuple(steps), size, refused, tuple(places)))
