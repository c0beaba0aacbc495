"""The files that a comparison leaves: a page for people and a record for programs."""

from __future__ import annotations

import json
import pathlib

from medjax import compare, figures, page, phrases
from medjax.compare import words

PAGE, RECORD = "comparison.html", "comparison.json"


def write(found: compare.Comparison, folder: pathlib.Path) -> pathlib.Path:
  """Writes the page, its figure beside it, and the record; the path of the page."""
  folder.mkdir(0o700, parents=True, exist_ok=True)
  partial = folder / f"{RECORD}.partial"
  partial.write_text(json.dumps(words.record(found), indent=2) + "\n", encoding="utf-8")
  partial.replace(folder / RECORD)
  return _page(found, folder / PAGE)


def _page(found: compare.Comparison, path: pathlib.Path) -> pathlib.Path:
  sheet = page.Page("Two classifiers compared", path)
  said = phrases.verdict(found.primary, found.differences[found.primary])
  sheet.headline(words.statement(found), said if said in ("better", "worse") else "")
  sheet.table(["", "predictions"], [["A", str(found.a.path)], ["B", str(found.b.path)]])
  drawn = {name: d for name, d in found.differences.items() if d.defined}
  drawing = page.png(figures.differences(drawn))
  caption = "A minus B, paired on the same images, 95% intervals. Blue: A is better."
  sheet.figures([("differences", caption, drawing)], "one")
  sheet.table(words.HEAD, words.rows(found), figures.label(found.primary))
  sheet.text(
    "The marked metric decides; nothing is corrected for looking at the others.", class_="soft"
  )
  return sheet.write()
