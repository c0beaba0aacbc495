"""An HTML page in one file: no script, nothing fetched, readable on a phone.

It is built as a tree of elements, so that every name and id in it is escaped by construction.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
import io
import pathlib
from xml.etree import ElementTree

from matplotlib import figure as mpl_figure
import numpy as np
from PIL import Image

from medjax import figures

_STYLE = """
:root { --ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --accent: #1d6fa5; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: #fff;
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .5rem 0 .25rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .5rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
h1, h2, figcaption, td, th, li, p { overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--accent); }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; }
ul { margin: .3rem 0; padding-left: 1.2rem; max-width: 46rem; }
.question { font-size: 1.05rem; font-style: italic; }
.soft, figcaption { color: var(--soft); font-size: .88rem; }
.banner { padding: .7rem 1rem; margin: 1rem 0; border-left: 5px solid #d9822b; background: #fff6e9;
  font-weight: 600; max-width: none; }
.headline { padding: 1rem 1.2rem; margin: 1.2rem 0; border: 1px solid var(--line);
  border-left: 5px solid #7b8794; border-radius: 4px; }
.headline.better { border-left-color: #1d6fa5; }
.headline.worse { border-left-color: #d9822b; }
.headline p { max-width: none; }
.headline p:first-child { font-size: 1.3rem; font-weight: 600; line-height: 1.35; margin-top: 0; }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
td, th { padding: .32rem .9rem .32rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); overflow-wrap: normal; }
.prose td, .prose th { white-space: normal; vertical-align: top; min-width: 8rem; }
.prose td { overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
tbody th { font-weight: 500; }
th:first-child { position: sticky; left: 0; background: #fff; }
tr.marked td, tr.marked th { background: #eef5fa; font-weight: 600; }
pre { font: .82rem/1.45 ui-monospace, Menlo, Consolas, monospace; margin: 0; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
details .scroll, .code { padding: .7rem .9rem; background: #f7f8fa; border-radius: 4px; }
.figures { display: grid; gap: 1.4rem 2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; }
.figures figure { max-width: 30rem; }
.figures.small { grid-template-columns: repeat(auto-fill, minmax(min(17rem, 100%), 1fr)); }
.figures.small figure { max-width: 22rem; }
.one figure { max-width: 38rem; }
.pictures { display: grid; gap: .9rem;
  grid-template-columns: repeat(auto-fill, minmax(7.4rem, 1fr)); }
.pictures img { image-rendering: pixelated; border-bottom: 4px solid var(--accent); }
.pictures.wrong img { border-bottom-color: #d9822b; }
.pictures.wide { grid-template-columns: repeat(auto-fill, minmax(min(14rem, 100%), 1fr)); }
.pictures figcaption { line-height: 1.35; padding-top: .25rem; font-size: .8rem; }
.pictures .id { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; display: block; }
@media (max-width: 30rem) {
  table { font-size: .8rem; }
  td, th { padding-right: .6rem; }
  tbody th { white-space: normal; min-width: 6rem; }
  .pictures.wide { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
"""

Element = ElementTree.Element


def add(parent: Element, tag: str, text: str = "", **attributes: str) -> Element:
  """Appends an element; a trailing underscore keeps `class_` out of Python's way."""
  named = {key.rstrip("_"): value for key, value in attributes.items()}
  child = ElementTree.SubElement(parent, tag, named)
  child.text = text
  return child


def _source(png: bytes) -> str:
  return "data:image/png;base64," + base64.b64encode(png).decode()


def _encoded(picture: np.ndarray) -> bytes:
  """A picture [H, W, C] uint8, of 1 or 3 channels, as PNG."""
  buffer = io.BytesIO()
  Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(buffer, "PNG")
  return buffer.getvalue()


def png(drawing: mpl_figure.Figure) -> bytes:
  """A drawing as PNG, the same bytes whenever it is the same drawing.

  It has 256 colours of its own, which lines and letters need less than a third of the bytes in.
  """
  buffer, coloured = io.BytesIO(), Image.fromarray(figures.rendered(drawing))
  coloured.quantize(256, Image.Quantize.MEDIANCUT).save(buffer, "PNG", optimize=True)
  return buffer.getvalue()


class Page:
  """A page that grows from top to bottom. Figures are embedded, and saved beside it as well."""

  def __init__(self, title: str, path: pathlib.Path):
    self._path = path
    self._figures = path.parent / "figures"
    self._html = Element("html", lang="en")
    head = add(self._html, "head")
    add(head, "meta", charset="utf-8")
    add(head, "meta", name="viewport", content="width=device-width, initial-scale=1")
    add(head, "title", title)
    add(head, "style", _STYLE)
    self.body = add(self._html, "body")
    add(self.body, "h1", title)

  def text(self, text: str, class_: str = "") -> None:
    """Adds a paragraph."""
    add(self.body, "p", text, class_=class_)

  def section(self, title: str, anchor: str) -> None:
    """Adds a heading that can be linked to."""
    add(self.body, "h2", title, id=anchor)

  def heading(self, title: str) -> None:
    """Adds a heading inside a section."""
    add(self.body, "h3", title)

  def links(self, anchors: dict[str, str]) -> None:
    """Adds links to sections: anchor -> text."""
    nav = add(self.body, "nav")
    for anchor, text in anchors.items():
      add(nav, "a", text, href=f"#{anchor}")

  def headline(self, lines: Sequence[str], class_: str) -> None:
    """Adds a framed statement, its first line large."""
    box = add(self.body, "div", class_=f"headline {class_}")
    for line in lines:
      add(box, "p", line)

  def list(self, lines: Sequence[str]) -> None:
    """Adds a list; none of no lines."""
    if lines:
      items = add(self.body, "ul")
      for line in lines:
        add(items, "li", line)

  def code(self, text: str, summary: str = "") -> None:
    """Adds text as it stands, folded away under `summary` where there is one."""
    parent = self.body
    if summary:
      parent = add(parent, "details")
      add(parent, "summary", summary)
    add(add(parent, "div", class_="scroll code"), "pre", text)

  def table(
    self,
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    marked: str = "",
    class_: str = "",
  ) -> None:
    """Adds a table; the row whose first cell is `marked` stands out. `prose` wraps its lines."""
    table = add(add(self.body, "div", class_="scroll"), "table", class_=class_)
    top = add(add(table, "thead"), "tr")
    for cell in head:
      add(top, "th", cell)
    body = add(table, "tbody")
    for first, *others in rows:
      row = add(body, "tr", class_="marked" if first == marked else "")
      add(row, "th", first)
      for cell in others:
        add(row, "td", cell)

  def figures(
    self, drawn: Sequence[tuple[str, str, bytes]], class_: str = "figures", alt: str = ""
  ) -> None:
    """Adds figures side by side: each a file name without ending, a caption and a PNG.

    `alt` says what they show to those who cannot see them; by default that is the caption.
    """
    if not drawn:
      return
    self._figures.mkdir(exist_ok=True)
    grid = add(self.body, "div", class_=class_)
    for name, caption, content in drawn:
      (self._figures / f"{name}.png").write_bytes(content)
      figure = add(grid, "figure")
      add(figure, "img", src=_source(content), alt=alt or caption)
      add(figure, "figcaption", caption)

  def pictures(
    self, shown: Iterable[tuple[np.ndarray, str, Sequence[str]]], class_: str = ""
  ) -> None:
    """Adds small images: each pixels [H, W, C] uint8, an id and the lines below it."""
    grid = add(self.body, "div", class_=f"pictures {class_}")
    for pixels, identity, lines in shown:
      figure = add(grid, "figure")
      add(figure, "img", src=_source(_encoded(pixels)), alt=identity)
      caption = add(figure, "figcaption")
      add(caption, "span", identity.rpartition("/")[2], class_="id", title=identity)
      for line in lines:
        add(caption, "div", line)

  def write(self) -> pathlib.Path:
    """Writes the page; a reader sees the old one or the new one, never a half."""
    html = "<!doctype html>\n" + ElementTree.tostring(self._html, "unicode", method="html")
    partial = self._path.with_suffix(".partial")
    partial.write_text(html, encoding="utf-8", errors="replace")
    partial.replace(self._path)
    return self._path
