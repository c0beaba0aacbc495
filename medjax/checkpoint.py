"""Checkpoints of a stage: the last one and the best one, written in the background.

`folder/last/STEP` and `folder/best/STEP` each hold `state` (nested dicts of arrays, readable
without this code's classes), `meta` (JSON: what the loop must know to go on) and `sums` (a checksum
of each array and of `meta`). A checkpoint appears under its name only once it is whole, so a killed
run leaves the one before. Which restore wins is written in `Checkpoints.resume`: the last one that
is whole, always; `best` is for scoring alone.
"""

from __future__ import annotations

from collections.abc import Callable
import errno
import functools
import json
import logging
import os
import pathlib
import shutil
from typing import Any
import zlib

from flax import serialization
import jax
import numpy as np
import orbax.checkpoint as ocp

from medjax import cluster, contract, trees
from medjax.objectives import base

LAST, BEST = "last", "best"
_DAMAGED = "damaged"  # beside them: what could not be read, set aside
_FEWEST = 2  # last ones that stay: disks do damage files, and then the one before is gone on from
_MARGIN = 1 << 20  # bytes of a checkpoint beside its arrays, and some for the log
_KNOWN = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)
_SHOWN, _BRIEFLY = 300, 100  # characters of an error in writing, and in reading

# What Orbax's threads log of a failed write is raised by `save` or `wait`, and told once.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Damaged(ValueError):
  """A checkpoint that cannot be read, or is not what was written.

  Attributes:
    what: which one, and in what way.
  """

  def __init__(self, where: pathlib.Path, reason: str):
    self.what = f"{where} is damaged: {reason}"
    super().__init__(
      f"{self.what}. Bring it back from a copy, or move it away: one that is left is then taken"
    )


class Checkpoints:
  """Saves and restores the training state of one stage."""

  def __init__(self, folder: pathlib.Path, snapshots: int = 1):
    """Opens the stage's checkpoints; the folder is made if it is missing.

    Args:
      folder: of them. snapshots: how many of the last ones stay, and two in any case.
    """
    self.folder = folder
    kept = {LAST: max(snapshots, _FEWEST), BEST: 1}
    kinds = kept if cluster.lead() else {}
    self._managers = {kind: _manager(folder / kind, kept[kind]) for kind in kinds}

  def save(self, kind: str, step: int, state: base.TrainState, meta: dict[str, Any]) -> None:
    """Writes in the background a copy of `state` as it is now; of several processes, the lead does.

    Args:
      kind: `LAST` or `BEST`; an earlier one of the kind goes once this one is whole.
      step: global step; saved already, nothing happens, since equal steps hold equal states.
      state: lies on the devices; copied to the host first, because the next step reuses its memory.
      meta: JSON types.

    Raises:
      OSError: an earlier write failed, for example on a full disk.
    """
    if not cluster.lead():
      return
    manager = self._managers[kind]
    if step in manager.all_steps():
      return
    copied = jax.tree.map(np.array, jax.device_get(serialization.to_state_dict(state)))
    _check_room(copied, self.folder)
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(copied),
      meta=ocp.args.JsonSave(meta),
      sums=ocp.args.JsonSave(_sums(copied, meta)),
    )
    _told(lambda: manager.save(step, args=items), self.folder)

  def wait(self) -> None:
    """Returns when everything saved is on disk. Raises OSError where it could not be written."""
    for manager in self._managers.values():
      _told(manager.wait_until_finished, self.folder)

  def close(self) -> None:
    """Ends the writers. Raises OSError where the last write failed."""
    for manager in self._managers.values():
      _told(manager.close, self.folder)

  def resume(
    self, shapes: base.TrainState, say: Callable[[str], None] = print
  ) -> tuple[base.TrainState, dict[str, Any]] | None:
    """The last checkpoint that is whole, or None where there is none yet.

    Args:
      shapes: its structure. say: is told of those after it, which are set aside.

    Raises:
      Damaged: there are some, and none is whole: the newest is told.
      ValueError: it holds another model's tensors.
    """
    if (found := _everywhere(lambda: self._newest(shapes, say))) is None:
      return None
    return serialization.from_state_dict(shapes, found[0]), found[1]

  def _newest(self, shapes: base.TrainState, say: Callable[[str], None]) -> Saved | None:
    damaged: dict[int, Damaged] = {}
    for step in sorted(self._managers[LAST].all_steps(), reverse=True):
      try:
        found = self._read(LAST, step, shapes)
      except Damaged as error:
        damaged[step] = error
        continue
      for later, told in damaged.items():
        say(f"{told.what}; it is set aside as {self._set_aside(later)}")
      return found
    if damaged:
      raise damaged[max(damaged)]
    return None

  def _set_aside(self, step: int) -> pathlib.Path:
    """Moves a last checkpoint out of the way of the one that will be written at the same step."""
    target = self.folder / _DAMAGED / str(step)
    target.parent.mkdir(exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    (self.folder / LAST / str(step)).rename(target)
    self._managers[LAST].reload()
    return target

  def restore(self, kind: str, state: base.TrainState) -> tuple[base.TrainState, dict[str, Any]]:
    """Reads a checkpoint into the structure of `state`.

    Raises:
      FileNotFoundError: there is none of that kind.
      Damaged: it is not what was written.
      ValueError: it holds another model's tensors.
    """
    step = self.latest(kind)
    if step is None:
      raise FileNotFoundError(f"no {kind} checkpoint in {self.folder}; train the stage first")
    found = _everywhere(lambda: self._read(kind, step, state))
    assert found is not None
    return serialization.from_state_dict(state, found[0]), found[1]

  def _read(self, kind: str, step: int, state: base.TrainState) -> Saved:
    """A checkpoint of this stage, if it holds what `state` does."""
    where = self.folder / kind / str(step)

    def read() -> Saved:
      found = self._managers[kind].restore(step, args=_RESTORE)
      return found.state, found.meta

    saved, meta = _whole(where, read)
    _check_same(serialization.to_state_dict(state), saved, where)
    return saved, meta

  def latest(self, kind: str) -> int | None:
    """Step of the newest checkpoint of a kind, None where there is none."""
    steps = cluster.told(lambda: json.dumps(self._managers[kind].latest_step()).encode())
    return json.loads(steps)


def _everywhere(read: Callable[[], Read | None]) -> Read | None:
  """What the lead reads, in every process: arrays, and what JSON can hold."""
  if cluster.processes() == 1:
    return read()

  def packed() -> bytes:
    if (found := read()) is None:
      return b""
    arrays, told = found
    return serialization.msgpack_serialize({"arrays": arrays, "told": json.dumps(told)})

  if not (data := cluster.told(packed)):
    return None
  heard = serialization.msgpack_restore(data)
  return heard["arrays"], json.loads(heard["told"])


_RESTORE = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
_JSON = "metadata"  # the file that Orbax makes of a JSON item
Read = tuple[dict[str, Any], Any]  # arrays, and what JSON can hold
Saved = tuple[dict[str, Any], dict[str, Any]]  # state and meta


def _sums(state: contract.Tree, meta: dict[str, Any]) -> dict[str, int]:
  """Checksums of the bytes of each array on the host, by its path, and of `meta`."""
  leaves = trees.flatten({"state": state}).items()
  found = {path: zlib.crc32(np.ascontiguousarray(leaf).tobytes()) for path, leaf in leaves}
  return found | {"meta": zlib.crc32(json.dumps(meta, sort_keys=True).encode())}


def _whole(where: pathlib.Path, read: Callable[[], Saved]) -> Saved:
  """What `read` gives of a checkpoint, if it is what was written.

  Raises:
    Damaged: it is not, or cannot be read.
  """
  try:
    saved, own = read(), where / "sums" / _JSON
    written = json.loads(own.read_text()) if own.is_file() else {}  # older ones have no sums
  except Exception as error:  # of all that a library may say of a file that is cut or garbled
    raise Damaged(where, str(error)[:_BRIEFLY] or type(error).__name__) from error
  found = _sums(*saved) if written else {}
  if differ := [path for path in found | written if found.get(path) != written.get(path)]:
    raise Damaged(where, f"{differ[0]} is not what was written")
  return saved


def _manager(folder: pathlib.Path, most: int) -> ocp.CheckpointManager:
  folder.mkdir(parents=True, exist_ok=True)
  options = ocp.CheckpointManagerOptions(
    max_to_keep=most,
    enable_async_checkpointing=True,
    create=False,
    multiprocessing_options=_alone(),
  )
  return ocp.CheckpointManager(folder.resolve(), options=options)


def _alone() -> ocp.options.MultiprocessingOptions:
  """Orbax is to wait for no other process: state is whole in each, and the lead alone writes."""
  here = {} if cluster.processes() == 1 else {"active_processes": {0}}
  return ocp.options.MultiprocessingOptions(**here, barrier_sync_key_prefix="lead")


def _check_room(tree: contract.Tree, folder: pathlib.Path) -> None:
  """Raises OSError before a write that the disk has no room for."""
  needed = sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) + _MARGIN
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise _failure(folder, f"No space left on device: {needed:,} bytes needed, {free:,} free")


def _told(write: Callable[[], Any], folder: pathlib.Path) -> None:
  """Runs a write; whatever the storage library raises becomes one clear OSError."""
  try:
    write()
  except Exception as error:  # Orbax wraps what the system said in errors of several kinds.
    raise _failure(folder, _reason(str(error))) from error


def _reason(text: str) -> str:
  """What the system said, if the storage library tells it among long paths; else the beginning."""
  return next((known for known in map(os.strerror, _KNOWN) if known in text), text[:_SHOWN])


def _failure(folder: pathlib.Path, reason: str) -> OSError:
  return OSError(
    f"could not write a checkpoint under {folder}: {reason}. Mend that and start the same command "
    "again; the checkpoint before this one is whole"
  )


def _check_same(wanted: contract.Tree, saved: contract.Tree, where: pathlib.Path) -> None:
  ours = {path: np.shape(leaf) for path, leaf in trees.flatten(wanted).items()}
  theirs = {path: np.shape(leaf) for path, leaf in trees.flatten(saved).items()}
  differ = [path for path in ours | theirs if ours.get(path) != theirs.get(path)]
  differ.sort(key=lambda path: not path.startswith("params/"))
  if differ:
    path = differ[0]
    raise ValueError(
      f"{where} is a checkpoint of another model: {len(differ)} tensors differ, for example {path} "
      f"is {theirs.get(path, 'missing')} there and {ours.get(path, 'missing')} here"
    )


def weights(stage_folder: pathlib.Path) -> tuple[dict[str, Any], str]:
  """Parameters and statistics of a trained stage, as a start for another.

  Args:
    stage_folder: a stage's folder in a workdir, or one of its checkpoints.

  Returns:
    `{"params": ..., "stats": ...}` of the best checkpoint (the last where none was chosen), their
    moving average where one was kept, and the place they came from.

  Raises:
    FileNotFoundError: no checkpoint there.
    Damaged: the preferred one is not what was written.
  """
  for found in _candidates(stage_folder):
    saved, _ = _whole(found, functools.partial(_read_alone, found))
    evaluated = (saved.get("extra") or {}).get(base.AVERAGE, saved)
    return {key: evaluated[key] for key in ("params", "stats")}, str(found)
  raise FileNotFoundError(
    f"init_from: no checkpoint under {stage_folder}; name an earlier stage or a folder that "
    "holds checkpoints/best or checkpoints/last, such as runs/quickstart/pretrain"
  )


def heard_weights(stage_folder: pathlib.Path) -> tuple[dict[str, Any], str]:
  """`weights` in every process, read by the lead."""
  found = _everywhere(lambda: weights(stage_folder))
  assert found is not None
  return found


def _read_alone(where: pathlib.Path) -> Saved:
  """A checkpoint by its folder."""
  with ocp.StandardCheckpointer(multiprocessing_options=_alone()) as reader:
    state = reader.restore((where / "state").resolve())
  meta = where / "meta" / _JSON
  return state, json.loads(meta.read_text()) if meta.is_file() else {}


def _candidates(folder: pathlib.Path) -> list[pathlib.Path]:
  """Folders that hold a checkpoint, the preferred one first."""
  if (folder / "state").is_dir():
    return [folder]
  return [
    step
    for kind in (BEST, LAST)
    for inside in (folder / "checkpoints" / kind, folder / kind)
    for step in reversed(_steps(inside))
    if (step / "state").is_dir()
  ]


def _steps(folder: pathlib.Path) -> list[pathlib.Path]:
  """Folders that are named by a step, the earliest first; those being written are not."""
  found = [path for path in folder.glob("[0-9]*") if path.name.isdigit()]
  return sorted(found, key=lambda path: int(path.name))
