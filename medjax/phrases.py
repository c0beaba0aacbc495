"""How values, intervals and differences are written, and what may be said of them."""

from __future__ import annotations

from medjax import metrics
from medjax.metrics import mcnemar


def interval(found: metrics.Interval) -> str:
  """`0.812 (0.771 to 0.850)`; says where resamples have no such metric."""
  if found.defined == 0:
    return "does not exist here"
  text = f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
  return text if found.defined == 1 else f"{text} in {found.defined:.1%} of resamples"


def difference(found: metrics.Difference) -> str:
  """`+0.041 (-0.003 to +0.082)`."""
  if found.defined == 0:
    return "does not exist here"
  return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def p(found: metrics.Difference | mcnemar.Discordant) -> str:
  """`p = 0.012` or `p < 0.001`."""
  return f"p {cell}" if (cell := p_cell(found)).startswith("<") else f"p = {cell}"


def p_cell(found: metrics.Difference | mcnemar.Discordant) -> str:
  """The p-value for a table's column `p`: `0.012` or `< 0.001`."""
  return "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"


def verdict(name: str, found: metrics.Difference) -> str:
  """`better`, `worse`, or `no difference shown` where the interval holds 0.

  Args:
    name: of the metric, of which some are better when lower. found: its paired difference.
  """
  if found.low <= 0 <= found.high:
    return "no difference shown"
  return "better" if (found.value > 0) != (name in metrics.LOWER_IS_BETTER) else "worse"


def plus_minus(value: float, width: float | None) -> str:
  """`0.854 ± 0.028`; the value alone where no width is known."""
  return f"{value:.3f}" if width is None else f"{value:.3f} \N{PLUS-MINUS SIGN} {width:.3f}"


def outcome(said: str, ours: str, theirs: str) -> str:
  """`finetune is better than scratch`, by the names of the two and a `verdict`."""
  if said == "no difference shown":
    return f"No difference shown between {ours} and {theirs}"
  return f"{ours} is {said} than {theirs}"
