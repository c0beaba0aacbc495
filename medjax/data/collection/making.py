"""Makes a collection: lists, makes shards, finishes; goes on where it was killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import json
import shutil

from medjax.data import isolation, progress
from medjax.data.collection import finishing, listing, records, shards
from medjax.data.collection import plan as plan_lib

Made = Callable[[plan_lib.Plan, list[int]], Iterator[shards.Counts]]


def make(plan: plan_lib.Plan, made: Made) -> dict[str, int]:
  """Makes the collection, or what is missing of it.

  Args:
    plan: what to make.
    made: makes the shards of these numbers and yields what each counted, in any order.

  Returns:
    The counts of `finishing.finish`.

  Raises:
    ValueError: the folder holds another collection, or one begun with other settings.
    OSError: it cannot be written.
  """
  if (plan.folder / plan_lib.DESCRIPTION).exists():
    return _finished(plan)
  total, seal = _begun(plan)
  todo = [n for n in range(listing.shards(total)) if not plan.rows(n).exists()]
  done = total - sum(_files(total, number) for number in todo)
  finished = made(plan, todo)
  for _ in progress.told(finished, total, "files", done, lambda counts: counts.found):
    pass
  return finishing.finish(plan, total, seal)


def by_processes(workers: int) -> Made:
  """Shards made by processes of this machine."""

  def made(plan: plan_lib.Plan, numbers: list[int]) -> Iterator[shards.Counts]:
    jobs = ((plan, number) for number in numbers)
    seconds = plan_lib.SHARD_FILES * plan.seconds  # `shards.write` itself times each file
    for result in isolation.decoded(jobs, shards.write, workers, seconds, plan.gigabytes, chunk=1):
      # A worker that ended has told no file's name, so the shard's files are tried one by one.
      yield result.value or shards.write_apart(plan, result.job[1])

  return made


def _finished(plan: plan_lib.Plan) -> dict[str, int]:
  """The counts of a collection that is there already, if it is the one that was asked for."""
  description = json.loads((plan.folder / plan_lib.DESCRIPTION).read_text())
  if description.get("seal") != listing.seal(plan):
    raise ValueError(
      f"{plan.folder} holds a collection of other files, or made with other settings or another"
      " salt: give another --out, or delete it"
    )
  shutil.rmtree(plan.unfinished, ignore_errors=True)
  return description["counts"]


def _begun(plan: plan_lib.Plan) -> tuple[int, str]:
  """Lists the sources, unless an earlier run did; (number of files, seal)."""
  begun = plan.unfinished / "begun.json"
  check = plan.sealed()
  check.update(json.dumps([str(source) for source in plan.sources]).encode())
  if begun.exists():
    state = json.loads(begun.read_text())
    if state["check"] != check.hexdigest():
      raise ValueError(
        f"{plan.folder} was begun with other sources, settings or another salt: give the same, or"
        " another --out, or delete it"
      )
    return state["total"], state["seal"]
  shutil.rmtree(plan.unfinished, ignore_errors=True)
  plan.unfinished.mkdir(mode=0o700)  # it holds paths
  (plan.folder / "shards").mkdir(exist_ok=True)
  total, seal = listing.write(plan)
  if not total:
    raise ValueError(f"no file in {', '.join(map(str, plan.sources))}")
  with records.replacing(begun) as partial:
    partial.write_text(json.dumps({"check": check.hexdigest(), "total": total, "seal": seal}))
  return total, seal


def _files(total: int, shard: int) -> int:
  """How many of all files are in a shard."""
  return min(plan_lib.SHARD_FILES, total - shard * plan_lib.SHARD_FILES)
