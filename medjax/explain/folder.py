"""The folder that `python -m medjax.explain` leaves: overlays, raw maps, a table and a sheet."""

from __future__ import annotations

import collections
from collections.abc import Sequence
import csv
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

from medjax import command, explain
from medjax import page as page_lib
from medjax.data import readers

TABLE, SHEET = "explained.csv", "index.html"
SHOWN = 200  # pictures on the sheet: the others are in their folders
_COLUMNS = ("path", "predicted", "class", "score", "overlay", "map", "error")


class Explained(NamedTuple):
  """An image and its map.

  Attributes:
    path: of the image. pixels: [H, W, C] as the network sees it.
    predicted: the class with the highest score.
    class_: the class that the map is about. score: of that class. map_: [H, W] float32.
  """

  path: str
  pixels: np.ndarray
  predicted: str
  class_: str
  score: float
  map_: np.ndarray


class Folder:
  """Takes images one by one; the table is whole after each, the sheet comes at the end."""

  def __init__(self, out: pathlib.Path, title: str, note: str):
    """Begins a folder.

    Args:
      out: of everything. title: of the sheet. note: what made the maps.

    Raises:
      FileExistsError: it holds something already.
    """
    command.check_empty(out)
    out.mkdir(0o700, parents=True, exist_ok=True)
    for name in ("overlays", "maps"):
      (out / name).mkdir(exist_ok=True)
    self._out = out
    self._taken: collections.Counter[str] = collections.Counter()
    self._pictures: list[tuple[np.ndarray, str, Sequence[str]]] = []
    self._lost: list[tuple[str, str]] = []
    self.count = 0
    self._page = page_lib.Page(title, out / SHEET)
    self._page.text(
      f"{note} Each image as the network sees it, and its map over it: from red to yellow what"
      " speaks for the class, in blue what speaks against it, each map by its own scale. Pictures"
      " of patients: handle this page as you handle the files.",
      "soft",
    )
    self._write(_COLUMNS)

  @property
  def failed(self) -> int:
    """Files without a map."""
    return len(self._lost)

  def add(self, one: Explained) -> None:
    """Writes the overlay and the map of an image under the image's name."""
    picture, name = explain.overlay(one.pixels, one.map_), self._name(one.path)
    overlay, raw = f"overlays/{name}.png", f"maps/{name}.npy"
    Image.fromarray(picture).save(self._out / overlay)
    np.save(self._out / raw, one.map_)
    self._write((one.path, one.predicted, one.class_, repr(one.score), overlay, raw, ""))
    self.count += 1
    if len(self._pictures) < SHOWN:
      predicted = "predicted" if one.class_ == one.predicted else f"predicted {one.predicted}"
      lines = [f"{one.class_}: score {one.score:.3f}", predicted]
      self._pictures.append((_beside(one.pixels, picture), one.path, lines))

  def refuse(self, path: str, error: str) -> None:
    """Tells why a file has no map."""
    self._lost.append((path, error))
    self._write((path, "", "", "", "", "", error))

  def sanity(
    self, rows: Sequence[tuple[str, str]], strip: Sequence[tuple[np.ndarray, str]], verdict: str
  ) -> None:
    """Adds what became of the maps with weights that are drawn anew.

    Args:
      rows: down to which stage, and the rank correlation. strip: the overlays of one image then.
      verdict: in words.
    """
    self._page.section("With weights drawn anew, from the head down", "sanity")
    self._page.text(verdict)
    self._page.table(("down to", "rank correlation"), rows)
    self._page.pictures([(picture, stage, []) for picture, stage in strip])
    self._page.section("Images", "images")

  def close(self) -> pathlib.Path:
    """Writes the sheet; its path."""
    if len(self._pictures) < self.count:
      self._page.text(f"The first {SHOWN:,} of {self.count:,} images; {TABLE} lists all.", "soft")
    self._page.pictures(self._pictures, "wide")
    if self._lost:
      self._page.section("Files without a map", "lost")
      self._page.table(("file", "reason"), self._lost)
    return self._page.write()

  def _name(self, path: str) -> str:
    """The file's name without its ending, with a number where an earlier file had it."""
    stem = name = pathlib.PurePath(path).stem
    while self._taken[name]:
      self._taken[stem] += 1
      name = f"{stem}-{self._taken[stem]}"
    self._taken[name] += 1
    return name

  def _write(self, row: Sequence[str]) -> None:
    with (self._out / TABLE).open("a", newline="", encoding="utf-8", errors="surrogateescape") as f:
      csv.writer(f).writerow(row)


def _beside(pixels: np.ndarray, picture: np.ndarray) -> np.ndarray:
  """[H, 2 W, 3]: the image, and its overlay on the right."""
  plain = np.broadcast_to(readers.to_8_bit(pixels), picture.shape)
  return np.concatenate([plain, picture], axis=1)
