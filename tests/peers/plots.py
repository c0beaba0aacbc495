"""Pictures of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import pathlib

from matplotlib import figure, ticker
import results

_COLOURS = {"keras": "tab:red", "torch": "tab:orange", "torch_compiled": "tab:brown"}


def ratios(path: pathlib.Path, pairs: Sequence[results.Comparison]) -> pathlib.Path:
  """Draws how many times as fast medjax is as each peer, with the rounds' range and the target."""
  drawn = figure.Figure(figsize=(8, 1.2 + 0.28 * len(pairs)), layout="constrained")
  axes = drawn.subplots()
  for place, pair in enumerate(pairs):
    colour = _COLOURS.get(pair.theirs.library, "tab:blue")
    axes.barh(place, pair.ratio, color=colour, alpha=0.8)
    axes.plot([min(pair.ratios), max(pair.ratios)], [place] * 2, color="black", linewidth=1)
    if pair.theirs.wanted:
      axes.plot(float(pair.theirs.wanted.split()[1]), place, "k|", markersize=12)
  axes.set_yticks(
    range(len(pairs)), [f"{pair.theirs.model} : {pair.theirs.library}" for pair in pairs]
  )
  axes.invert_yaxis()
  axes.axvline(1, color="grey", linewidth=0.8)
  axes.set_xscale("log")
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  axes.xaxis.set_major_formatter("{x:g}")
  axes.xaxis.set_minor_formatter(ticker.NullFormatter())
  axes.set_xlabel(
    "times as fast as the peer: median, range of the rounds, and a tick at the target"
  )
  drawn.savefig(path, dpi=120)
  return path


def curves(path: pathlib.Path, title: str, losses: Mapping[str, Sequence[float]]) -> pathlib.Path:
  """Draws the losses of several libraries over each other, and their differences from the first."""
  path.parent.mkdir(parents=True, exist_ok=True)
  drawn = figure.Figure(figsize=(7, 5), layout="constrained")
  above, below = drawn.subplots(2, sharex=True)
  first = next(iter(losses.values()))
  for place, (name, values) in enumerate(losses.items()):
    above.plot(values, label=name, linewidth=5 - 1.5 * place, alpha=0.7)
    apart = [abs(a - b) for a, b in zip(values, first, strict=True)]
    below.plot(apart, label=name, linewidth=5 - 1.5 * place, alpha=0.7)
  above.set(title=title, ylabel="loss")
  above.legend()
  below.set(yscale="symlog", ylabel=f"difference from {next(iter(losses))}", xlabel="step")
  below.set_yscale("symlog", linthresh=1e-16)
  drawn.savefig(path, dpi=120)
  return path
