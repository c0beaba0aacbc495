"""Nested dicts of arrays by path: flatten, count, and move weights from one net to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import fnmatch
from typing import Any

import numpy as np

from medjax import contract


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
  """`{"a": {"b": x}}` as `{"a/b": x}`."""
  return dict(_walk(tree, ""))


def _walk(tree: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _walk(value, f"{where}{key}/")
    else:
      yield where + key, value


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `flatten`."""
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, leaf = path.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree


def lies_in(path: str, pattern: str) -> bool:
  """Whether a path is what the pattern names, as in a shell, or lies in it."""
  return fnmatch.fnmatch(path, pattern) or fnmatch.fnmatch(path, f"{pattern}/*")


def split(
  tree: contract.Tree, wanted: Callable[[str], bool]
) -> tuple[contract.Tree, contract.Tree]:
  """The leaves whose path is `wanted`, and the others, each as a tree."""
  flat = flatten(tree)
  parts = (
    {path: leaf for path, leaf in flat.items() if wanted(path) is on} for on in (True, False)
  )
  first, second = map(unflatten, parts)
  return first, second


def merge(one: contract.Tree, other: contract.Tree) -> contract.Tree:
  """The leaves of two trees that have none in common, in one."""
  return unflatten({**flatten(one), **flatten(other)})


def updated(tree: contract.Tree, newer: contract.Tree) -> contract.Tree:
  """A tree with the leaves of `newer` in the place of its own of the same paths."""
  return unflatten({**flatten(tree), **flatten(newer)})


def count(tree: contract.Tree) -> int:
  """Numbers in all arrays of a tree."""
  return sum(int(np.prod(np.shape(leaf))) for leaf in flatten(tree).values())


@dataclasses.dataclass(frozen=True)
class Account:
  """Where every tensor went when weights moved to another net: paths, each in one list.

  Attributes:
    loaded: taken as they were. adapted: taken with their input channels changed.
    new: of the new net, not in the source. left_over: of the source, not in the new net.
  """

  loaded: tuple[str, ...]
  adapted: tuple[str, ...]
  new: tuple[str, ...]
  left_over: tuple[str, ...]

  def __str__(self) -> str:
    lines = [f"{len(self.loaded)} tensors loaded"]
    for name in ("adapted", "new", "left_over"):
      paths = getattr(self, name)
      lines.append(f"{len(paths)} {name.replace('_', ' ')}: " + ", ".join(paths or ("-",)))
    return "\n".join(lines)


def transfer(target: contract.Tree, source: contract.Tree) -> tuple[contract.Tree, Account]:
  """Fills a net's tensors from another net's, by path.

  Args:
    target: freshly initialised tensors, which stay where the source has none that fits.
    source: tensors of a checkpoint.

  Returns:
    The filled tree, in the target's types, and the account of every tensor.
  """
  ours, theirs = flatten(target), flatten(source)
  merged = dict(ours)
  lists: dict[str, list[str]] = {"loaded": [], "adapted": [], "new": []}
  for path, value in ours.items():
    fitted, how = _fit(theirs.get(path), np.shape(value))
    lists[how].append(path)
    if fitted is not None:
      merged[path] = np.asarray(fitted, value.dtype)
  used = set(lists["loaded"]) | set(lists["adapted"])
  lists["left_over"] = [path for path in theirs if path not in used]
  return unflatten(merged), Account(**{name: tuple(paths) for name, paths in lists.items()})


def _fit(value: Any, shape: tuple[int, ...]) -> tuple[Any, str]:
  """A source tensor in the wanted shape, if it has it or differs in image channels alone."""
  if value is None:
    return None, "new"
  if np.shape(value) == shape:
    return value, "loaded"
  value, channels = np.asarray(value), max(0, len(shape) - 2)  # of [kh, kw, C, F] or [C]
  others = np.delete(shape, channels), np.delete(value.shape, channels)
  if len(shape) not in (1, 4) or value.ndim != len(shape) or not np.array_equal(*others):
    return None, "new"
  if {shape[channels], value.shape[channels]} != {1, 3}:
    return None, "new"
  if len(shape) == 1:
    return np.broadcast_to(value.mean(), shape), "adapted"
  # A grey image equals its three repeated channels, so their kernels add up.
  return np.broadcast_to(value.sum(axis=2, keepdims=True) / shape[2], shape), "adapted"
