"""The flow of images from found to tested, drawn as trials draw that of their patients."""

from __future__ import annotations

import textwrap

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure

from medjax import figures
from medjax.report import contents

_WIDTH, _STEP = 5.0, 0.86  # inches: of the drawing, from one row to the next
_MAIN, _ASIDE = 0.27, 0.76  # where the boxes of a row stand, as shares of the width
_COLUMNS = 27  # characters in a line of a box aside
_SCORED = "scored: "


def draw(flow: contents.Flow) -> mpl_figure.Figure:
  """Boxes from top to bottom, and beside them what was taken away."""
  rows = len(flow.main) + bool(flow.parts) + bool(flow.scored)
  figure = mpl_figure.Figure(figsize=(_WIDTH, _STEP * rows), dpi=160)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set(xlim=(0, 1), ylim=(rows - 0.5, -0.5))
  axes.axis("off")
  for row, count in enumerate(flow.main):
    if row:
      _arrow(axes, (_MAIN, row - 1), (_MAIN, row), lines=2)
    _box(axes, _MAIN, row, count.what, size(count))
  for row, count in enumerate(flow.gone):
    axes.plot([_MAIN, _ASIDE], [row + 0.5] * 2, color=figures.GREY, linewidth=0.9, zorder=1)
    _box(axes, _ASIDE, row + 0.5, textwrap.fill(count.what, _COLUMNS), size(count), aside=True)
  _dealt(axes, flow, len(flow.main))
  return figure


def _dealt(axes: mpl_axes.Axes, flow: contents.Flow, row: int) -> None:
  """The parts beside each other, and below each what was scored of it."""
  shares = [(i + 0.5) / len(flow.parts) for i in range(len(flow.parts))]
  places = shares if len(shares) > 1 else [_MAIN] * len(shares)
  at = {part.what: x for part, x in zip(flow.parts, places, strict=True)}
  if flow.main and flow.parts:
    axes.plot([_MAIN] * 2, [row - 1, row - 0.5], color=figures.GREY, linewidth=0.9, zorder=1)
    ends = [_MAIN, *places]
    axes.plot([min(ends), max(ends)], [row - 0.5] * 2, color=figures.GREY, linewidth=0.9, zorder=1)
  for part in flow.parts:
    _arrow(axes, (at[part.what], row - 0.5), (at[part.what], row), lines=3)
    _box(axes, at[part.what], row, part.what, size(part).replace(", ", "\n"))
  for count in flow.scored:
    x = at[count.what.removeprefix(_SCORED)]
    _arrow(axes, (x, row), (x, row + 1), lines=3)
    _box(axes, x, row + 1, count.what, size(count).replace(", ", "\n"))


def _box(
  axes: mpl_axes.Axes, x: float, y: float, what: str, much: str, aside: bool = False
) -> None:
  face, edge = ("#f7f8fa", figures.GREY) if aside else ("white", figures.INK)
  axes.text(
    x,
    y,
    f"{what}\n{much}",
    ha="center",
    va="center",
    fontsize=8 if aside else 9,
    color=figures.INK,
    linespacing=1.3,
    bbox={"boxstyle": "round,pad=0.4", "facecolor": face, "edgecolor": edge, "linewidth": 0.8},
    zorder=2,
  )


def _arrow(
  axes: mpl_axes.Axes, start: tuple[float, float], end: tuple[float, float], lines: int
) -> None:
  """An arrow to the upper edge of a box of so many lines."""
  style = {
    "arrowstyle": "-|>",
    "color": figures.GREY,
    "linewidth": 0.9,
    "shrinkB": 3.5 + 6.2 * lines,
  }
  axes.annotate("", xytext=start, xy=end, arrowprops=style, zorder=1)


def size(count: contents.Count) -> str:
  """Images and groups in words; the one that is 0 is left out, and none is said of both."""
  numbers = {"image": count.images, "group": count.groups}
  return ", ".join(f"{n:,} {what}{'s' * (n > 1)}" for what, n in numbers.items() if n) or "none"


def told(flow: contents.Flow) -> str:
  """The drawing in a sentence, for those who cannot see it."""
  counts = [*flow.main, *flow.parts, *flow.scored]
  return "; ".join(f"{count.what} {size(count)}" for count in counts) + "."
