"""A function with its weights inside, made simpler before it is exported.

It is read as JAX's intermediate representation (jaxpr) and run anew, step by step: what is known
already is computed on the spot, and what follows a convolution may go into its kernel.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
from jax import export
from jax.extend import core
import numpy as np

_CHANNELS = ("mul", "add", "sub")  # what a convolution can take up, channel by channel
# Step -> its parameter that holds the steps it stands for; derivatives are of no use here.
_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "custom_jvp_call": "call_jaxpr"}


@dataclasses.dataclass
class _Convolution:
  """A convolution that has not run yet, and what is added to its result."""

  step: core.JaxprEqn
  images: Any
  kernel: np.ndarray
  offset: np.ndarray

  def run(self) -> jax.Array:
    result = _bound(self.step, [self.images, self.kernel])[0]
    return result + self.offset if self.offset.any() else result

  def after(self, name: str, values: np.ndarray) -> _Convolution:
    """The convolution whose result is this one's, multiplied by or added to `values` [F]."""
    if name == "mul":
      changed = dict(kernel=self.kernel * values, offset=self.offset * values)
    else:
      changed = dict(offset=self.offset + (values if name == "add" else -values))
    return dataclasses.replace(self, **changed)


class _Run:
  """One passage through the steps of a function.

  Attributes:
    fold: whether convolutions take up what follows them.
    folded: how many factors they took up.
  """

  def __init__(self, closed: core.ClosedJaxpr, values: Sequence[Any], fold: bool):
    jaxpr = closed.jaxpr
    self.fold, self.folded, self._jaxpr = fold, 0, jaxpr
    names = [*jaxpr.constvars, *jaxpr.invars]
    self._found: dict[Any, Any] = dict(zip(names, [*closed.consts, *values], strict=True))
    read = [each for step in jaxpr.eqns for each in step.invars] + list(jaxpr.outvars)
    self._uses = collections.Counter(each for each in read if not isinstance(each, core.Literal))

  def results(self) -> list[Any]:
    """Runs every step; what the function returns."""
    for step in self._jaxpr.eqns:
      self._found.update(zip(step.outvars, self._taken(step), strict=True))
    return [self._value(each) for each in self._jaxpr.outvars]

  def _taken(self, step: core.JaxprEqn) -> Sequence[Any]:
    if step.primitive.name in _CALLS:
      return self._called(step)
    if self.fold and (grown := self._grown(step)) is not None:
      once = self._uses[step.outvars[0]] == 1
      return [grown if once else grown.run()]
    values = [self._value(each) for each in step.invars]
    if all(map(_known, values)) and not _open(step):
      return _computed(step, values)
    if self.fold and self._foldable(step, values):
      kernel = np.asarray(values[1])
      return [_Convolution(step, values[0], kernel, np.zeros(kernel.shape[-1], kernel.dtype))]
    return _bound(step, values)

  def _called(self, step: core.JaxprEqn) -> list[Any]:
    inner = step.params[_CALLS[step.primitive.name]]
    through = _Run(inner, [self._value(each) for each in step.invars], self.fold)
    results = through.results()
    self.folded += through.folded
    return results

  def _foldable(self, step: core.JaxprEqn, values: Sequence[Any]) -> bool:
    """Whether it is a convolution by a known kernel whose result is read once."""
    if step.primitive.name != "conv_general_dilated" or not _known(values[1]):
      return False
    numbers, last = step.params["dimension_numbers"], np.ndim(values[1]) - 1
    return self._uses[step.outvars[0]] == 1 and numbers.rhs_spec[0] == numbers.out_spec[1] == last

  def _grown(self, step: core.JaxprEqn) -> _Convolution | None:
    """The convolution with this step taken up; None where the step is of another kind."""
    if step.primitive.name not in _CHANNELS:
      return None
    first, second = (self._raw(each) for each in step.invars)
    if not isinstance(first, _Convolution) and step.primitive.name != "sub":
      first, second = second, first
    if not isinstance(first, _Convolution) or isinstance(second, _Convolution):
      return None
    values = _of_channels(second, first.kernel.shape[-1])
    if values is None:
      return None
    self.folded += step.primitive.name == "mul"
    return first.after(step.primitive.name, values)

  def _raw(self, each: Any) -> Any:
    return each.val if isinstance(each, core.Literal) else self._found[each]

  def _value(self, each: Any) -> Any:
    found = self._raw(each)
    return found.run() if isinstance(found, _Convolution) else found


def _of_channels(value: Any, channels: int) -> np.ndarray | None:
  """[channels] of a known [1, ..., channels]; None of anything else."""
  if not _known(value) or np.shape(value)[-1:] != (channels,) or np.size(value) != channels:
    return None
  return np.asarray(value).reshape(channels)


def _known(value: Any) -> bool:
  return not isinstance(value, jax.core.Tracer)


def _open(step: core.JaxprEqn) -> bool:
  """Whether the size of a batch is one of its results' sizes."""
  sizes = (size for each in step.outvars for size in getattr(each.aval, "shape", ()))
  return any(export.is_symbolic_dim(size) for size in sizes)


def _computed(step: core.JaxprEqn, values: Sequence[Any]) -> Sequence[Any]:
  """The step's results as numbers; where it can only be translated, as steps of the program."""
  try:
    with jax.ensure_compile_time_eval():
      return _bound(step, values)
  except NotImplementedError:
    return _bound(step, values)


def _bound(step: core.JaxprEqn, values: Sequence[Any]) -> list[Any]:
  found = step.primitive.bind(*values, **step.params)
  return list(found) if step.primitive.multiple_results else [found]


class Settled:
  """A function without steps whose results are known beforehand.

  Attributes:
    folded: once it was traced or called: how many factors went into kernels.
  """

  def __init__(self, function: Callable[..., Any], fold: bool = False):
    """Takes a function of arrays that returns one array.

    Args:
      function: results differ from its own by rounding.
      fold: factors and offsets of channels that follow a convolution, as those of a batch norm in
        evaluation, go into its kernel and one offset.
    """
    self._function, self._fold, self.folded = function, fold, 0

  def __call__(self, *values: Any) -> Any:
    """What the function returns."""
    through = _Run(jax.make_jaxpr(self._function)(*values), values, self._fold)
    (result,) = through.results()
    self.folded = through.folded
    return result
