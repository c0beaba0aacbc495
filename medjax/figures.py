"""Drawings of training and of scored tables. Each function returns a figure that owns no window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import re
from typing import Any, Literal

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib.backends import backend_agg
import numpy as np

from medjax import contract, metrics
from medjax.metrics import rates

INK, GREY, PALE = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE = "#1d6fa5", "#d9822b"
# Okabe and Ito's colours, told apart by colour-blind readers; then they repeat, dashed.
CYCLE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444")
LABELS = {
  "ap": "average precision",
  "brier": "Brier score",
  "ece": "calibration error",
  "group_recognition": "accuracy, mean of groups",
  "kappa": "Cohen's kappa",
  "macro_kappa": "macro Cohen's kappa",
  "macro_mcc": "macro Matthews correlation",
  "mcc": "Matthews correlation",
  "ovr_balanced": "balanced, one-vs-rest",
  "weighted_ap": "weighted average precision",
}
_CAPITALS = re.compile(r"\b(auc|ppv|npv|f[\d.]+)$")
MONITORS = ("knn/", "probe/")  # accuracies on the sets of `eval.monitors`
UNBOUNDED = frozenset({"log_loss"})  # metrics that do not lie between -1 and 1
CURVES = {"loss": "training", "val/loss": "validation"}


def label(metric: str) -> str:
  """A metric's name as people write it."""
  spaced = metric.replace("_", " ")
  return LABELS.get(metric) or _CAPITALS.sub(lambda found: found[0].upper(), spaced)


def rendered(figure: mpl_figure.Figure) -> np.ndarray:
  """The pixels of a figure, [H, W, 3] uint8."""
  canvas = backend_agg.FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]


def _axes(width: float = 4.6, height: float = 4.0) -> tuple[mpl_figure.Figure, mpl_axes.Axes]:
  figure = mpl_figure.Figure(figsize=(width, height), dpi=160, layout="constrained")
  return figure, _clean(figure.add_subplot())


def _clean(axes: mpl_axes.Axes) -> mpl_axes.Axes:
  """Takes away what carries no data."""
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(GREY)
  axes.tick_params(colors=INK, labelsize=9, color=GREY)
  axes.grid(color=PALE, linewidth=0.8)
  axes.set_axisbelow(True)
  return axes


def _style(index: int) -> dict[str, Any]:
  return {"color": CYCLE[index % len(CYCLE)], "linestyle": "-" if index < len(CYCLE) else "--"}


def _literal(name: str) -> str:
  """A class name for matplotlib, which would read what stands between two $ as a formula."""
  return name.replace("$", r"\$")


def _legend(axes: mpl_axes.Axes, place: Literal["lower left", "lower right"]) -> None:
  """Names the curves, or says that there are none."""
  if axes.get_legend_handles_labels()[0]:
    axes.legend(frameon=False, fontsize=8, loc=place)
  else:
    axes.text(0.5, 0.5, "does not exist:\none class only", ha="center", va="center", color=GREY)


def _unit_square(axes: mpl_axes.Axes, x: str, y: str) -> None:
  axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
  """Steps and values of the rows that hold a finite number under `key`."""
  rows = [row for row in history if row.get(key) is not None]
  return [row["step"] for row in rows], [row[key] for row in rows]


def training_curves(
  history: Sequence[Mapping[str, Any]], select: Sequence[str]
) -> dict[str, mpl_figure.Figure]:
  """Loss, validation metrics and learning rate over steps, each where the rows hold it.

  Args:
    history: rows of `metrics.jsonl`; keys `loss`, `val/loss`, `val/<metric>`, `lr` and those of
      monitors are drawn.
    select: validation metrics to draw.
  """
  keys = {key for row in history for key in row}
  metric_keys = [f"val/{name}" for name in dict.fromkeys(select)]
  panels = {
    "loss": ["loss", "val/loss"],
    "validation": metric_keys,
    "monitors": sorted(key for key in keys if key.startswith(MONITORS)),
    "learning rate": ["lr"],
  }
  held = {title: [k for k in names if k in keys] for title, names in panels.items()}
  return {title: _curves(history, title, names) for title, names in held.items() if names}


def _curves(
  history: Sequence[Mapping[str, Any]], title: str, names: Sequence[str]
) -> mpl_figure.Figure:
  figure, axes = _axes(3.6, 2.8)
  for i, name in enumerate(names):
    steps, values = _series(history, name)
    marker = "o" if len(steps) < 40 else ""
    text = CURVES.get(name) or label(name.removeprefix("val/"))
    axes.plot(steps, values, label=text, linewidth=1.6, marker=marker, markersize=3, **_style(i))
  axes.set_title(title, fontsize=10, color=INK, loc="left")
  axes.set_xlabel("step", fontsize=9)
  if names[0] != "lr":
    axes.legend(frameon=False, fontsize=8)
  return figure


def confusion_matrix(table: contract.Predictions) -> mpl_figure.Figure:
  """Images by truth (rows) and prediction, and their share of each row.

  Where an image may have several classes: of each class (rows), what was made of the images that
  have it and of those that have not.
  """
  if table.multi_label:
    return _decided(table)
  k = len(table.classes)
  matrix = rates.confusion(table.labels, table.predicted, k)
  side = 2.4 + 0.55 * k
  figure, axes = _axes(side, side - 0.4)
  share = rates.ratio(matrix, matrix.sum(1, keepdims=True)).value
  axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
  axes.grid(False)
  axes.spines[:].set_visible(False)
  names = [_literal(name) for name in table.classes]
  axes.set_xticks(range(k), names, rotation=0 if k < 4 else 45, ha="center" if k < 4 else "right")
  axes.set_yticks(range(k), names)
  axes.set(xlabel="predicted", ylabel="truth")
  size = 11 if k < 5 else 8
  for row, column in np.ndindex(k, k):
    text = f"{matrix[row, column]:,}\n{share[row, column]:.0%}"
    colour = "white" if share[row, column] > 0.55 else INK
    axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
  return figure


def _decided(table: contract.Predictions) -> mpl_figure.Figure:
  """Each class by what was decided; sensitivity and specificity are the first and the last."""
  matrix = rates.decisions(table.members, table.assigned, np.ones(len(table.ids)))
  share = rates.ratio(matrix, matrix.sum(-1, keepdims=True)).value
  (tn, fp), (fn, tp) = np.moveaxis(matrix, 0, -1)
  (tns, fps), (fns, tps) = np.moveaxis(share, 0, -1)
  drawn, shares = np.stack([tp, fn, fp, tn], 1), np.stack([tps, fns, fps, tns], 1)
  figure, axes = _axes(5.6, 1.4 + 0.4 * len(table.classes))
  axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
  axes.grid(False)
  axes.spines[:].set_visible(False)
  axes.set_xticks(range(4), ["there, found", "there, missed", "not there, told", "not there"])
  axes.set_yticks(range(len(table.classes)), [_literal(name) for name in table.classes])
  for row, column in np.ndindex(drawn.shape):
    text = f"{drawn[row, column]:,.0f}  {shares[row, column]:.0%}"
    colour = "white" if shares[row, column] > 0.55 else INK
    axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
  return figure


def _one_vs_rest(
  table: contract.Predictions,
) -> list[tuple[str, rates.Ranking, tuple[rates.Rate, rates.Rate]]]:
  """A ranking, its AUC and its AP for class 1 of two that exclude each other, or for each class."""
  alone = len(table.classes) == 2 and not table.multi_label
  chosen = [1] if alone else list(range(len(table.classes)))
  columns = ((table.classes[c], table.members[:, c], table.scores[:, c]) for c in chosen)
  return [(name, rates.ranking(*each), rates.areas(rates.order(*each))) for name, *each in columns]


def roc(table: contract.Predictions) -> mpl_figure.Figure:
  """ROC curves, of class 1 where there are two."""
  figure, axes = _axes()
  axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
  for i, (name, ranking, (area, _)) in enumerate(_one_vs_rest(table)):
    if area.defined:
      text = f"AUC {area.value:.3f}  {_literal(name)}"
      axes.plot(*rates.roc_curve(ranking), label=text, linewidth=1.8, **_style(i))
  _unit_square(axes, "1 - specificity", "sensitivity")
  _legend(axes, "lower right")
  return figure


def precision_recall(table: contract.Predictions) -> mpl_figure.Figure:
  """Precision-recall steps, of class 1 where there are two, whose prevalence is dotted."""
  figure, axes = _axes()
  for i, (name, ranking, (_, ap)) in enumerate(_one_vs_rest(table)):
    if ap.defined:
      text, style = f"AP {ap.value:.3f}  {_literal(name)}", _style(i)
      recall, precision = rates.pr_curve(ranking)
      recall, precision = np.insert(recall, 0, 0), np.insert(precision, 0, precision[0])
      axes.step(recall, precision, where="pre", label=text, linewidth=1.8, **style)
      if len(table.classes) == 2 and not table.multi_label:
        axes.axhline(precision[-1], color=GREY, linewidth=1, linestyle=":")
  _unit_square(axes, "sensitivity (recall)", "PPV (precision)")
  _legend(axes, "lower left")
  return figure


def calibration(table: contract.Predictions) -> mpl_figure.Figure:
  """Confidence against accuracy in 15 bins, and below how many images are in each."""
  found = metrics.reliability(table)
  figure = mpl_figure.Figure(figsize=(4.6, 4.0), dpi=160, layout="constrained")
  upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
  held = found.images > 0
  middle = (np.arange(metrics.BINS) + 0.5) / metrics.BINS
  _clean(upper).plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
  upper.plot(found.confidence[held], found.accuracy[held], color=BLUE, marker="o", linewidth=1.5)
  x, right, counted = "confidence (highest score)", "share that is right", "images"
  if table.multi_label:
    x, right, counted = "score of a class", "share that has it", "decisions"
  upper.set(xlim=(0, 1.01), ylim=(-0.02, 1.02), ylabel=right)
  _clean(lower).bar(middle, found.images, width=0.9 / metrics.BINS, color=BLUE, alpha=0.5)
  lower.set(xlabel=x, ylabel=counted)
  return figure


def embedding(
  points: np.ndarray, labels: np.ndarray, classes: Sequence[str], title: str
) -> mpl_figure.Figure:
  """Embeddings in the plane, coloured by class.

  Args:
    points: [n, 2] of `probes.plane`. labels: [n] int, index into `classes`. title: drawn above.
  """
  figure, axes = _axes(5.2, 4.4)
  for index, name in enumerate(classes):
    mine = points[labels == index]
    colour, marker = CYCLE[index % len(CYCLE)], "os^D"[index // len(CYCLE) % 4]
    text = f"{_literal(name)} ({len(mine):,})"
    axes.scatter(
      mine[:, 0], mine[:, 1], s=9, color=colour, marker=marker, alpha=0.7, linewidth=0, label=text
    )
  axes.set_title(_literal(title), fontsize=10, color=INK, loc="left")
  axes.set(xticks=[], yticks=[])  # neither axis has a meaning of its own
  axes.legend(frameon=False, fontsize=8, markerscale=2, loc="upper left", bbox_to_anchor=(1, 1))
  return figure


def differences(found: Mapping[str, metrics.Difference]) -> mpl_figure.Figure:
  """A paired difference and its interval for each metric, to the right of 0 where it is better.

  Those of `UNBOUNDED` metrics are left out: beside them all others would be points.
  """
  found = {name: d for name, d in found.items() if name not in UNBOUNDED}
  figure, axes = _axes(5.4, 0.7 + 0.27 * len(found))
  axes.axvline(0, color=INK, linewidth=1)
  for row, (name, d) in enumerate(found.items()):
    sign = -1 if name in metrics.LOWER_IS_BETTER else 1
    shown = d.low > 0 or d.high < 0
    colour = BLUE if shown and sign * d.value > 0 else ORANGE if shown else GREY
    axes.plot([sign * d.low, sign * d.high], [row, row], color=colour, linewidth=2)
    axes.plot(sign * d.value, row, "o", color=colour, markersize=5)
  axes.set_yticks(range(len(found)), [label(name) for name in found])
  axes.invert_yaxis()
  axes.grid(axis="y", visible=False)
  axes.set_xlabel("worse  \N{LEFTWARDS ARROW}  difference  \N{RIGHTWARDS ARROW}  better")
  return figure


Cell = tuple[Sequence[float], metrics.Interval | None]  # values of repeats, interval of their mean


def arms_by_level(
  arms: Mapping[str, Mapping[str, Cell]], metric: str, level: str
) -> mpl_figure.Figure:
  """A metric of several arms over levels: mean and interval, and a dot for each repeat.

  Args:
    arms: arm -> level -> its cell; levels are drawn in order, at equal distances.
    metric: what the values are. level: what the levels are.
  """
  names = list(dict.fromkeys(name for cells in arms.values() for name in cells))
  figure, axes = _axes(2.2 + 1.5 * len(names), 4.0)
  step = 0.5 / max(len(arms), 1)
  for i, (arm, cells) in enumerate(arms.items()):
    x = np.array([names.index(name) for name in cells]) + step * (i - (len(arms) - 1) / 2)
    means = [float(np.mean(values)) for values, _ in cells.values()]
    style = _style(i)
    axes.plot(x, means, marker="o", markersize=6, linewidth=1.3, label=_literal(arm), **style)
    for at, (values, found) in zip(x, cells.values(), strict=True):
      beside = [at + 0.16 * step] * len(values)
      axes.plot(beside, values, "o", color=style["color"], markersize=3, alpha=0.5)
      if found is not None:
        axes.plot([at, at], [found.low, found.high], color=style["color"], linewidth=1.8)
  axes.set_xticks(range(len(names)), [_literal(name) for name in names])
  axes.set(xlabel=_literal(level), ylabel=label(metric), xlim=(-0.6, len(names) - 0.4))
  axes.grid(axis="x", visible=False)
  axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
  return figure


def arms_listed(arms: Mapping[str, Cell], metric: str, baseline: str) -> mpl_figure.Figure:
  """A metric of several arms, one below the other; a dotted line is at the baseline."""
  figure, axes = _axes(6.0, 0.9 + 0.3 * len(arms))
  for row, (arm, (values, found)) in enumerate(arms.items()):
    colour = GREY if arm == baseline else BLUE
    mean = float(np.mean(values))
    axes.plot(values, [row] * len(values), "o", color=colour, markersize=3, alpha=0.35)
    axes.plot(mean, row, "o", color=colour, markersize=6)
    if found is not None:
      axes.plot([found.low, found.high], [row, row], color=colour, linewidth=2)
    if arm == baseline:
      axes.axvline(mean, color=INK, linewidth=1, linestyle=":")
  axes.set_yticks(range(len(arms)), [_literal(arm) for arm in arms])
  axes.invert_yaxis()
  axes.grid(axis="y", visible=False)
  axes.set_xlabel(label(metric))
  return figure
