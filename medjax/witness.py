"""Which images every step was given, as `images.jsonl`, for whoever must be sure of it.

What is written down is the tickets that ran, not what an order would say. Like `metrics.jsonl` it
holds one JSON object a line, and a run that was cut off and resumed leaves the bytes of an unbroken
one: every step once.
"""

from __future__ import annotations

from collections.abc import Callable
import pathlib
from typing import Any

import jax
import numpy as np

from medjax import contract
from medjax import mesh as mesh_lib
from medjax import writer as writer_lib

FILE = "images.jsonl"
_OF_A_TICKET = contract.INDEX, contract.SLOT, contract.MASK  # [K, B'] each


class Witness:
  """Keeps what calls of K steps were given, on the devices, until it is written."""

  def __init__(self, folder: pathlib.Path, stage: str, ids: np.ndarray, step: int):
    """Goes on after the lines of the steps up to `step`; later ones are dropped.

    Args:
      folder: of the stage. stage: its name, in every line. ids: [n] str, of the part's images.
      step: steps done.
    """
    self._rows = writer_lib.lines(folder / FILE, stage, step)
    self._ids, self._step = ids, step
    self._given: list[list[jax.Array]] = []  # a call each

  def watching(self, run: Callable) -> Callable:
    """The training step, with its tickets kept as they go by."""

    def watched(state: Any, resident: Any, ticket: Any, lrs: jax.Array, key: jax.Array) -> Any:
      self._given.append([ticket[name] for name in _OF_A_TICKET])
      return run(state, resident, ticket, lrs, key)

    return watched

  def write(self) -> None:
    """Writes the steps since the last time: `step`, counted from 1, and `ids` by slot."""
    for call in mesh_lib.fetch(self._given):
      for index, slot, mask in zip(*call, strict=True):
        self._step += 1
        by_slot = index[np.argsort(slot)][: np.count_nonzero(mask)]  # slots that only fill are last
        self._rows.append(self._step, {"ids": self._ids[by_slot].tolist()})
    self._given.clear()

  def close(self) -> None:
    """Closes the file; what was not written belongs to steps that no checkpoint has."""
    self._rows.close()
