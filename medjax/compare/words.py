"""What a comparison says, as sentences, as a table and as a record."""

from __future__ import annotations

from typing import Any

from medjax import compare, figures, metrics, phrases

HEAD = ("metric", "A minus B", "p", "A is", "A", "B")


def statement(found: compare.Comparison) -> list[str]:
  """The answer first, then what it rests on, what other tests say, and what to beware of."""
  table = found.a.table
  basis = (
    f"{len(table.ids):,} images of {found.groups:,} groups, {table.split} part, the same for both;"
    f" 95% intervals by {found.resamples:,} bootstrap resamples of groups."
  )
  return [_answer(found), basis, *_delong(found), _mcnemar(found), *metrics.cautions(table)]


def _answer(found: compare.Comparison) -> str:
  d = found.differences[found.primary]
  said = phrases.outcome(phrases.verdict(found.primary, d), "A", "B")
  size = f"{figures.label(found.primary)} {phrases.difference(d)}, {phrases.p(d)}"
  return f"{said}: {size}."


def _delong(found: compare.Comparison) -> list[str]:
  """DeLong's test of two classes; of more it stands in the table, class by class."""
  if len(found.delong) > 1:
    return []
  (d,) = found.delong.values()
  if not d.defined:
    return []
  kind = "" if found.groups == len(found.a.table.ids) else ", images of a group taken together"
  return [f"By DeLong's test{kind}: AUC {phrases.difference(d)}, {phrases.p(d)}."]


def _mcnemar(found: compare.Comparison) -> str:
  only = found.discordant
  text = (
    f"Only A is right on {only.only_first:,} images, only B on {only.only_second:,}; McNemar's"
    f" exact test: {phrases.p(only)}."
  )
  if found.groups < len(found.a.table.ids):
    text += " It takes the images of a group as independent, and is too sure of itself here."
  return text


def rows(found: compare.Comparison) -> list[list[str]]:
  """A row a metric, below `HEAD`; of several classes then DeLong's test of each one's AUC."""
  told = []
  for name, d in found.differences.items():
    sides = (phrases.interval(each[name]) for each in found.intervals)
    told.append([figures.label(name), *_cells(name, d), *sides])
  if len(found.delong) > 1:
    told += [[f"AUC of {c}, DeLong", *_cells("auc", d), "", ""] for c, d in found.delong.items()]
  return told


def _cells(name: str, d: metrics.Difference) -> list[str]:
  if d.defined == 0:
    return [phrases.difference(d), "", ""]
  return [
    phrases.difference(d),
    phrases.p_cell(d),
    phrases.verdict(name, d),
  ]


def terminal(found: compare.Comparison) -> str:
  """The table, and the sentences below it."""
  table = [list(HEAD), *rows(found)]
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in table]
  return "\n".join([f"A  {found.a.path}", f"B  {found.b.path}", "", *lines, "", *statement(found)])


def record(found: compare.Comparison) -> dict[str, Any]:
  """The comparison as plain JSON types."""
  first, second = found.intervals
  primary = found.differences[found.primary]
  return {
    "a": str(found.a.path),
    "b": str(found.b.path),
    "part": found.a.table.split,
    "images": len(found.a.table.ids),
    "groups": found.groups,
    "classes": list(found.a.table.classes),
    "metric": found.primary,
    "resamples": found.resamples,
    "seed": found.seed,
    "a_is": phrases.verdict(found.primary, primary),
    "statement": statement(found),
    "metrics": {
      name: {"a": first[name]._asdict(), "b": second[name]._asdict(), "difference": d._asdict()}
      for name, d in found.differences.items()
    },
    "delong": {name: d._asdict() for name, d in found.delong.items()},
    "mcnemar": found.discordant._asdict(),
  }
