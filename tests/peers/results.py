"""What was measured: lines to read by a script, CSV to keep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import csv
import dataclasses
import operator
import pathlib
import statistics

import rounds

OURS = "medjax"
STEP = "seconds a step"
_SIGNS = {">=": operator.ge, "<=": operator.le}


@dataclasses.dataclass(frozen=True)
class Measured:
  """A side of a comparison, or a figure that stands for itself.

  Attributes:
    row: of `options.ROWS`, its name. model: network or other thing that was measured.
    what: of it, with the unit. library: whose. variant: in which setting.
    values: one a round. peak: most memory held, in MB; 0 where it was not looked at.
    versions: of what ran. wanted: such as `>= 1.2`: of a peer, how many times as fast as it medjax
      is to be; of a figure, the figure; "" where nothing is.
  """

  row: str
  model: str
  what: str
  library: str
  variant: str
  values: tuple[float, ...]
  peak: int = 0
  versions: str = ""
  wanted: str = ""

  @property
  def median(self) -> float:
    return statistics.median(self.values)

  @property
  def name(self) -> str:
    return f"{self.library} ({self.variant})" if self.variant else self.library

  def met(self, value: float) -> str:
    """`yes` or `no` where something is wanted."""
    if not self.wanted:
      return ""
    sign, limit = self.wanted.split()
    return "yes" if _SIGNS[sign](value, float(limit)) else "no"


@dataclasses.dataclass(frozen=True)
class Comparison:
  """The best side of medjax with the best of a peer."""

  ours: Measured
  theirs: Measured

  @property
  def ratio(self) -> float:
    """How many times as fast medjax is."""
    return self.theirs.median / self.ours.median

  @property
  def ratios(self) -> tuple[float, ...]:
    """The same, round by round."""
    pairs = zip(self.ours.values, self.theirs.values, strict=True)
    return tuple(theirs / ours for ours, theirs in pairs)

  def __str__(self) -> str:
    return (
      f"model={self.theirs.model} peer={self.theirs.library} medjax={self.ours.median:.4g} "
      f"peer_seconds={self.theirs.median:.4g} ratio={self.ratio:.3g}"
    )


def of_sides(
  row: str, model: str, sides: Sequence[rounds.Side], wanted: dict[str, str], what: str = STEP
) -> list[Measured]:
  """All sides that were timed in turn; `wanted` of each peer."""
  return [
    Measured(
      row,
      model,
      what,
      side.library,
      side.variant,
      tuple(side.seconds),
      side.peak,
      ", ".join(map(" ".join, side.about.get("versions", {}).items())),
      wanted.get(side.library, ""),
    )
    for side in sides
  ]


def figure(row: str, model: str, what: str, value: float, wanted: str = "") -> Measured:
  """A figure of medjax that is compared with nothing."""
  return Measured(row, model, what, OURS, "", (float(value),), wanted=wanted)


def compared(found: Sequence[Measured]) -> list[Comparison]:
  """Every model's best side of medjax with the best side of each peer, in their order."""
  best: dict[tuple[str, ...], Measured] = {}
  for one in found:
    if one.what.startswith("seconds"):
      place = one.row, one.model, one.what, one.library
      if place not in best or one.median < best[place].median:
        best[place] = one
  return [
    Comparison(best[*place, OURS], theirs)
    for (*place, library), theirs in best.items()
    if library != OURS and (*place, OURS) in best
  ]


def figures(found: Sequence[Measured]) -> list[Measured]:
  """What stands for itself: all that is no side of a comparison."""
  sides = {(pair.ours.row, pair.ours.model, pair.ours.what) for pair in compared(found)}
  return [one for one in found if (one.row, one.model, one.what) not in sides]


def lines(found: Sequence[Measured]) -> Iterator[str]:
  """`model=... peer=... medjax=S peer_seconds=S ratio=R` of comparisons; figures alike."""
  yield from map(str, compared(found))
  for one in figures(found):
    aim = f' wanted="{one.wanted}" met={one.met(one.median)}' if one.wanted else ""
    yield f'model={one.model} of="{one.name}" what="{one.what}" value={one.median:.4g}{aim}'


def table(found: Sequence[Measured]) -> list[dict[str, str]]:
  """A row a side, with its ratio to the best side of medjax where that was timed beside it."""
  fastest = {}
  for pair in compared(found):
    fastest[pair.ours.row, pair.ours.model, pair.ours.what] = pair.ours
  return [_cells(one, fastest.get((one.row, one.model, one.what))) for one in found]


def _cells(one: Measured, ours: Measured | None) -> dict[str, str]:
  cells = dict(row=one.row, model=one.model, what=one.what)
  cells |= dict(library=one.library, variant=one.variant)
  cells |= _spread("", one.values)
  pair = Comparison(ours, one) if ours and one.library != OURS else None
  cells |= _spread("ratio_", pair.ratios if pair else ())
  if pair:
    cells["ratio_median"] = f"{pair.ratio:.6g}"  # of the medians
  cells |= dict(wanted=one.wanted, met=one.met(pair.ratio if pair else one.median))
  return cells | dict(peak_mb=str(one.peak or ""), versions=one.versions)


def _spread(prefix: str, values: Sequence[float]) -> dict[str, str]:
  of = dict(median=statistics.median, minimum=min, maximum=max)
  return {f"{prefix}{name}": f"{fn(values):.6g}" if values else "" for name, fn in of.items()}


def write(path: pathlib.Path, found: Sequence[Measured], about: dict[str, str]) -> None:
  """Writes the table as CSV; every line ends with `about`: date, machine, command, commit."""
  path.parent.mkdir(parents=True, exist_ok=True)
  rows = [cells | about for cells in table(found)]
  partial = path.with_suffix(".partial")
  with partial.open("w", newline="") as file:
    writer = csv.DictWriter(file, rows[0] if rows else about)
    writer.writeheader()
    writer.writerows(rows)
  partial.replace(path)


def markdown(found: Sequence[Measured]) -> str:
  """Tables to read, with the range of the rounds in brackets: comparisons, then figures."""
  return "\n\n".join(filter(None, [_of_pairs(compared(found)), _of_figures(figures(found))]))


def _of_pairs(pairs: Sequence[Comparison]) -> str:
  head = ("model", "medjax, s", "peer", "its best variant", "s", "medjax is times as fast")
  head += ("wanted", "peak MB", "the peer's")
  rows = []
  for pair in pairs:
    ours, theirs = pair.ours, pair.theirs
    times = f"{pair.ratio:.2f} ({min(pair.ratios):.2f} to {max(pair.ratios):.2f})"
    said = theirs.model, _said(ours), theirs.library, theirs.variant, _said(theirs), times
    rows.append((*said, theirs.wanted, str(ours.peak or ""), str(theirs.peak or "")))
  return _table(head, rows)


def _of_figures(found: Sequence[Measured]) -> str:
  head = ("row", "model", "what", "of", "value", "wanted", "met")
  rows = [
    (one.row, one.model, one.what, one.name, _said(one), one.wanted, one.met(one.median))
    for one in found
  ]
  return _table(head, rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Markdown; nothing where there are no rows."""
  lines = [head, ["---"] * len(head), *rows] if rows else []
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _said(one: Measured) -> str:
  if len(one.values) == 1:
    return f"{one.median:.4g}"
  return f"{one.median:.4g} ({min(one.values):.4g} to {max(one.values):.4g})"
