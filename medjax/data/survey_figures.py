"""Drawings of what a set of images is made of. Each function returns a figure without a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np

_INK, _GREY, _PALE, _BLUE = "#1f2933", "#7b8794", "#e4e7eb", "#1d6fa5"
# Okabe and Ito's colours, told apart by colour-blind readers.
_CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")
_MOST_BARS = 30


def _axes(width: float = 4.6, height: float = 3.4) -> tuple[mpl_figure.Figure, mpl_axes.Axes]:
  figure = mpl_figure.Figure(figsize=(width, height), dpi=160, layout="constrained")
  axes = figure.add_subplot()
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(_GREY)
  axes.tick_params(colors=_INK, labelsize=9, color=_GREY)
  axes.grid(color=_PALE, linewidth=0.8)
  axes.set_axisbelow(True)
  return figure, axes


def _literal(name: str) -> str:
  """A name for matplotlib, which would read what stands between two $ as a formula."""
  return name.replace("$", r"\$")


def sizes(heights: np.ndarray, widths: np.ndarray) -> mpl_figure.Figure:
  """A dot for each size, larger where more images [n] have it."""
  figure, axes = _axes()
  places, counts = np.unique(np.stack([widths, heights]), axis=1, return_counts=True)
  area = 12 + 300 * counts / counts.max()
  axes.scatter(places[0], places[1], s=area, color=_BLUE, alpha=0.45, linewidth=0)
  axes.set(xlabel="width in pixels", ylabel="height in pixels")
  axes.set(xlim=(0, 1.1 * widths.max()), ylim=(0, 1.1 * heights.max()))
  return figure


def shades(shares: Mapping[str, np.ndarray]) -> mpl_figure.Figure:
  """A line for each class: share of pixels [bins] from black to white; the first seven classes."""
  figure, axes = _axes()
  for colour, (name, share) in zip(_CYCLE, shares.items(), strict=False):
    axes.plot(_centres(share), share, label=_literal(name), color=colour, linewidth=1.4)
  axes.set(xlabel="intensity, black to white", ylabel="share of pixels", yscale="log", xlim=(0, 1))
  axes.legend(frameon=False, fontsize=8)
  return figure


def _centres(share: np.ndarray) -> np.ndarray:
  return (np.arange(len(share)) + 0.5) / len(share)


def bars(counts: Mapping[str, int]) -> mpl_figure.Figure:
  """A bar for each name, from the top; the first thirty."""
  shown = list(counts.items())[:_MOST_BARS]
  figure, axes = _axes(height=1.2 + 0.22 * len(shown))
  names, values = zip(*shown, strict=True)
  axes.barh(range(len(shown)), values, color=_BLUE, height=0.7)
  axes.set_yticks(range(len(shown)), [_literal(name) for name in names])
  axes.invert_yaxis()
  axes.grid(visible=False, axis="y")
  axes.set_xlabel("images")
  return figure


def spread(means: Sequence[float], sds: Sequence[float], labels: np.ndarray) -> mpl_figure.Figure:
  """A dot for each image: mean against standard deviation of its intensity, coloured by class."""
  figure, axes = _axes()
  names, counts = np.unique(labels, return_counts=True)
  for colour, name in zip(_CYCLE, names[np.argsort(-counts, kind="stable")], strict=False):
    own = labels == name
    x, y = np.asarray(means)[own], np.asarray(sds)[own]
    axes.scatter(x, y, s=9, color=colour, alpha=0.5, linewidth=0, label=_literal(name) or "images")
  axes.set(xlabel="mean intensity", ylabel="standard deviation", xlim=(0, 1))
  axes.legend(frameon=False, fontsize=8)
  return figure
