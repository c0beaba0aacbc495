"""Which tensor of a weight file becomes which of ours, and what is wrong where they do not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import fnmatch
import json
import re
import shlex
from typing import NamedTuple

import numpy as np

from medjax import settings, trees
from medjax.models.pretrained import files, names

Shape = tuple[int, ...]

INPUT = "encoder/input/"  # its constants are one number a channel of the images

_CHANNELS = (1, 3)  # of the images that weight files are made for
_SHOWN = 3  # problems of a file
# Parts of a network that are its task's, not the weight file's.
_OF_THE_TASK = ("head/", INPUT, "encoder/attention/")


class Move(NamedTuple):
  """Where a tensor of ours comes from.

  Attributes:
    shape: of ours.
    name: of the tensor in the file, or the one that should be there; empty if no file has it.
    there: the file's shape, None where it is not there. value: it in our shape, if it fits.
    how: the list of `trees.Account` that it belongs to.
  """

  shape: Shape
  name: str
  there: Shape | None = None
  value: np.ndarray | None = None
  how: str = "new"

  @property
  def misfits(self) -> bool:
    """Whether the file has it in a shape that cannot become ours."""
    return self.there not in (None, self.shape) and self.value is None


@dataclasses.dataclass(frozen=True)
class Fit:
  """A weight file against a network.

  Attributes:
    moves: of every tensor of the network, by path. left_over: names of the file's other tensors.
  """

  moves: Mapping[str, Move]
  left_over: tuple[str, ...]

  def values(self) -> dict[str, np.ndarray]:
    """The network's tensors that the file has, by path."""
    return {at: move.value for at, move in self.moves.items() if move.value is not None}

  def account(self) -> trees.Account:
    """Where every tensor went."""
    by_how = {
      how: tuple(at for at, move in self.moves.items() if move.how == how)
      for how in ("loaded", "adapted", "new")
    }
    return trees.Account(**by_how, left_over=self.left_over)

  def problem(self, allow: Sequence[str]) -> str:
    """What does not fit, in words, with what to type where it may be left over; empty for nothing.

    Args:
      allow: patterns of the file's tensors that may be left over.
    """
    allowed = {name for one in allow for name in fnmatch.filter(self.left_over, one)}
    strays = [name for name in self.left_over if name not in allowed]
    lacking = [at for at in self._lacking() if self.moves[at].name not in allowed]
    found = [*self._words(strays, lacking)]
    shown = "; ".join(found[:_SHOWN])
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return shown + more + (_advice(strays) if strays and not lacking else "")

  def _lacking(self) -> Iterator[str]:
    """Paths of tensors that the file should have and has not, or not in their shape."""
    for at, move in self.moves.items():
      if move.how == "new" and not self._may_be_new(at):
        yield at

  def _may_be_new(self, at: str) -> bool:
    """Whether a tensor is of the task, and so is the rest of its layer: half a layer is damage."""
    layer = _task_layer(at)
    beside = (move for other, move in self.moves.items() if _task_layer(other) == layer)
    return bool(layer) and all(move.how == "new" for move in beside)

  def _words(self, strays: Sequence[str], lacking: Sequence[str]) -> Iterator[str]:
    """Each problem: tensors of another shape first, then missing ones, then those left over."""
    misfits = {move.name: move for move in self.moves.values() if move.misfits}
    for name in filter(misfits.get, strays):
      yield f"tensor {name} is {misfits[name].there} there and {misfits[name].shape} here"
    for at in lacking:
      if not self.moves[at].misfits:
        yield f"no tensor {self.moves[at].name} for {at}"
    for name in strays:
      if name not in misfits:
        yield f"tensor {name} is left over"


def _advice(strays: Sequence[str]) -> str:
  """What to type to leave tensors over, by their layers, or all of them where those are many."""
  patterns = list(dict.fromkeys(re.sub(r"(?<=[/.])[^/.]+$", "*", name) for name in strays))
  if len(patterns) > _SHOWN:
    patterns = ["*"]
  typed = patterns[0] if len(patterns) == 1 else json.dumps(patterns)
  return f". To leave over what has no place here, add --config.init_allow={shlex.quote(typed)}"


def fit(found: files.Tensors, cfg: settings.Model, shapes: Mapping[str, Shape]) -> Fit:
  """Finds the place of every tensor.

  Args:
    found: what the file holds. cfg: the network. shapes: of its tensors, by path.

  Raises:
    ValueError: no names of this network are known in such files.
  """
  named = names.of(found.kind, cfg, shapes)
  channels = next((shape[0] for at, shape in shapes.items() if INPUT in at), 0)
  moves = _whole({at: _move(found, named(at), shape, channels) for at, shape in shapes.items()})
  used = {move.name for move in moves.values() if move.value is not None}
  return Fit(moves, tuple(name for name in found.arrays if name not in used))


def _whole(moves: dict[str, Move]) -> dict[str, Move]:
  """The moves, where a layer of the task that misfits in one of its tensors is new in all."""
  layers = {_task_layer(at) for at, move in moves.items() if move.misfits} - {""}
  return {
    at: move._replace(value=None, how="new") if _task_layer(at) in layers else move
    for at, move in moves.items()
  }


def _task_layer(at: str) -> str:
  """The layer of a tensor, by its path; empty for one that is no part of the task."""
  layer = names.alone(at.partition("/")[2].rpartition("/")[0])
  return layer if f"{layer}/".startswith(_OF_THE_TASK) else ""


def _move(found: files.Tensors, candidates: tuple[str, ...], shape: Shape, channels: int) -> Move:
  name = next((name for name in candidates if name in found.arrays), None)
  if name is None:
    return Move(shape, next(iter(candidates), ""))
  value = found.arrays[name]
  if found.kind == "torch":
    value = _channels_last(value)
  if INPUT in name and value.shape != shape:
    return Move(shape, name, value.shape, np.broadcast_to(value.mean(), shape), "adapted")
  return Move(shape, name, value.shape, *_fitted(value, shape, channels))


def _channels_last(value: np.ndarray) -> np.ndarray:
  """[F, C, kh, kw] as [kh, kw, C, F], [out, in] as [in, out]."""
  return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _fitted(value: np.ndarray, shape: Shape, channels: int) -> tuple[np.ndarray | None, str]:
  """A file's tensor in our shape, and how it became so; `channels` are those of the images."""
  if value.shape == shape or _same_numbers(value.shape, shape):
    return value.reshape(shape), "loaded"
  of_an_image = value.ndim == 4 and value.shape[2] in _CHANNELS
  if of_an_image and (*value.shape[:2], channels, value.shape[3]) == shape:
    return np.broadcast_to(value.sum(axis=2, keepdims=True) / channels, shape), "adapted"
  return None, "new"


def _same_numbers(there: Shape, here: Shape) -> bool:
  """A dense layer kept as a 1x1 convolution; or a depthwise kernel, Keras's [kh, kw, C, 1]."""
  depthwise = len(here) == 4 and here[2] == 1 and there == (*here[:2], here[3], 1)
  return depthwise or there == (1, 1, *here)
