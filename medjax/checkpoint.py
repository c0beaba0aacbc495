"""Checkpoints of a stage: the last one and the best one, written in the background.

`folder/last/STEP` and `folder/best/STEP` each hold `state` (nested dicts of arrays, readable
without this code's classes) and `meta` (JSON: what the loop must know to go on). A checkpoint
appears under its name only once it is whole, so a killed run leaves the one before. Which restore
wins is written in `Checkpoints.resume`: the last one, always; `best` is for scoring alone.
"""

from __future__ import annotations

from collections.abc import Callable
import logging
import pathlib
import shutil
from typing import Any

from flax import serialization
import jax
import numpy as np
import orbax.checkpoint as ocp

from medjax import contract, trees
from medjax.objectives import base

LAST, BEST = "last", "best"
_MARGIN = 1 << 20  # bytes of a checkpoint beside its arrays, and some for the log
_SHOWN = 300  # characters of a storage error

# What Orbax's threads log of a failed write is raised by `save` or `wait`, and told once.
logging.getLogger("absl").setLevel(logging.CRITICAL)


class Checkpoints:
  """Saves and restores the training state of one stage."""

  def __init__(self, folder: pathlib.Path, snapshots: int = 1):
    """Opens the stage's checkpoints; the folder is made if it is missing.

    Args:
      folder: of them. snapshots: how many of the last ones stay.
    """
    self.folder = folder
    kept = {LAST: snapshots, BEST: 1}
    self._managers = {kind: _manager(folder / kind, kept[kind]) for kind in kept}

  def save(self, kind: str, step: int, state: base.TrainState, meta: dict[str, Any]) -> None:
    """Writes in the background a copy of `state` as it is now.

    Args:
      kind: `LAST` or `BEST`; an earlier one of the kind goes once this one is whole.
      step: global step; saved already, nothing happens, since equal steps hold equal states.
      state: lies on the devices; copied to the host first, because the next step reuses its memory.
      meta: JSON types.

    Raises:
      OSError: an earlier write failed, for example on a full disk.
    """
    manager = self._managers[kind]
    if step in manager.all_steps():
      return
    copied = jax.tree.map(np.array, jax.device_get(serialization.to_state_dict(state)))
    _check_room(copied, self.folder)
    items = ocp.args.Composite(state=ocp.args.StandardSave(copied), meta=ocp.args.JsonSave(meta))
    _told(lambda: manager.save(step, args=items), self.folder)

  def wait(self) -> None:
    """Returns when everything saved is on disk. Raises OSError where it could not be written."""
    for manager in self._managers.values():
      _told(manager.wait_until_finished, self.folder)

  def close(self) -> None:
    """Ends the writers."""
    for manager in self._managers.values():
      manager.close()

  def resume(self, shapes: base.TrainState) -> tuple[base.TrainState, dict[str, Any]] | None:
    """The last checkpoint in the structure of `shapes`, or None where there is none yet."""
    return None if self.latest(LAST) is None else self.restore(LAST, shapes)

  def restore(self, kind: str, state: base.TrainState) -> tuple[base.TrainState, dict[str, Any]]:
    """Reads a checkpoint into the structure of `state`.

    Raises:
      FileNotFoundError: there is none of that kind.
      ValueError: it holds another model's tensors.
    """
    step = self._managers[kind].latest_step()
    if step is None:
      raise FileNotFoundError(f"no {kind} checkpoint in {self.folder}; train the stage first")
    saved = self._managers[kind].restore(step, args=_RESTORE)
    wanted = serialization.to_state_dict(state)
    _check_same(wanted, saved.state, self.folder / kind / str(step))
    return serialization.from_state_dict(state, saved.state), saved.meta

  def latest(self, kind: str) -> int | None:
    """Step of the newest checkpoint of a kind, None where there is none."""
    return self._managers[kind].latest_step()


_RESTORE = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())


def _manager(folder: pathlib.Path, most: int) -> ocp.CheckpointManager:
  folder.mkdir(parents=True, exist_ok=True)
  options = ocp.CheckpointManagerOptions(max_to_keep=most, enable_async_checkpointing=True)
  return ocp.CheckpointManager(folder.resolve(), options=options)


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
    raise _failure(folder, str(error)[:_SHOWN]) from error


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
  """
  for found in _candidates(stage_folder):
    saved = ocp.StandardCheckpointer().restore((found / "state").resolve())
    evaluated = (saved.get("extra") or {}).get(base.AVERAGE, saved)
    return {key: evaluated[key] for key in ("params", "stats")}, str(found)
  raise FileNotFoundError(
    f"init_from: no checkpoint under {stage_folder}; name an earlier stage or a folder that "
    "holds checkpoints/best or checkpoints/last, such as runs/quickstart/pretrain"
  )


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
