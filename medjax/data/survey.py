"""`python -m medjax.data stats PATH... --out DIR`: what a set of images is made of.

`stats.html` counts kinds, bit depths, modalities, sizes, classes and groups, and draws sizes and
intensities; `images.csv` has a row an image. Intensities are those of the images as they are shown,
at their own size, from 0 (black) to 1 (white).
"""

from __future__ import annotations

import argparse
import collections
from collections.abc import Iterable, Sequence
import csv
import pathlib
from typing import Any

import numpy as np

from medjax import page as page_lib
from medjax.data import arguments as arguments_lib
from medjax.data import glances as glances_lib
from medjax.data import survey_figures

_COLUMNS = (
  "name",
  "class",
  "group",
  "format",
  "modality",
  "body_part",
  "colour",
  "bits",
  "height",
  "width",
  "mean",
  "sd",
  "p01",
  "p50",
  "p99",
)
_COUNTED = {  # heading -> column
  "Format": "format",
  "Bits a sample": "bits",
  "Colour": "colour",
  "Modality": "modality",
  "Body part": "body_part",
}
_LISTED = 40  # rows of a table on the page; images.csv has all


def arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  add = parser.add_argument
  add("paths", nargs="+", metavar="PATH", type=pathlib.Path, help="folder, archive, image, ...")
  add("--out", required=True, metavar="DIR", type=pathlib.Path, help="folder of page and table")
  add(
    "--most",
    type=arguments_lib.zero_or_more,
    default=10_000,
    help="files, evenly spaced; 0 takes all (default: 10000)",
  )
  add(
    "--group-pattern",
    type=arguments_lib.pattern,
    default="",
    metavar="REGEX",
    help="on the file's name; its first group (or whole match) is the patient, lesion or source"
    " (default: the patient of a DICOM header)",
  )
  arguments_lib.add_workers(parser, "processes that decode")
  arguments_lib.add_reading(parser)


def run(args: argparse.Namespace) -> int:
  """Writes `stats.html`, its figures and `images.csv`.

  Raises:
    FileNotFoundError, ValueError, OSError: with what to type instead.
  """
  view = glances_lib.View(1, 0, arguments_lib.reading(args))
  seen, total = glances_lib.of_paths(args.paths, view, args.most, args.workers, args.group_pattern)
  rows, counts, refused = _gathered(seen)
  args.out.mkdir(0o700, parents=True, exist_ok=True)
  _write(rows, args.out / "images.csv")
  page = page_lib.Page("What the set is made of", args.out / "stats.html")
  part = f"{args.most:,} of {total:,}, evenly spaced" if 0 < args.most < total else f"all {total:,}"
  page.text(
    f"{', '.join(map(str, args.paths))}: {part} files looked at, {len(rows):,} images found,"
    f" {len(refused):,} files cannot be read. A row an image stands in images.csv."
  )
  if rows:
    _fill(page, rows, counts)
  if refused:
    page.section("Files that cannot be read", "refused")
    reasons = collections.Counter(reason for _, reason in refused)
    page.table(("reason", "files"), _most(reasons))
  print(f"{len(rows):,} images, {len(refused):,} files cannot be read\n{page.write()}")
  return 0


Row = dict[str, Any]


def _gathered(
  seen: Iterable[glances_lib.Glance | glances_lib.Refused],
) -> tuple[list[Row], np.ndarray, list[glances_lib.Refused]]:
  """A row an image, their histograms [n, BINS] as shares, and what could not be read."""
  rows, counts, refused = [], [], []
  for one in seen:
    if isinstance(one, glances_lib.Refused):
      refused.append(one)
    else:
      rows.append(_row(one))
      counts.append(one.counts / one.counts.sum())
  return rows, np.reshape(counts, (-1, glances_lib.BINS)), refused


def _row(glance: glances_lib.Glance) -> Row:
  about = glance.about
  known = {name: getattr(about, name) for name in _COLUMNS[3:10]}
  return {
    "name": glance.name,
    "class": glance.label,
    "group": glance.group,
    **known,
    **_intensity(glance.counts),
  }


def _intensity(counts: np.ndarray) -> dict[str, float]:
  """Mean, standard deviation and percentiles, from 0 to 1, to the width of a bin."""
  centres = (np.arange(len(counts)) + 0.5) / len(counts)
  share = counts / counts.sum()
  mean = float(share @ centres)
  spread = float(np.sqrt(share @ (centres - mean) ** 2))
  places = np.searchsorted(np.cumsum(share), (0.01, 0.5, 0.99)).clip(max=len(counts) - 1)
  low, middle, high = (float(centres[place]) for place in places)
  return {"mean": mean, "sd": spread, "p01": low, "p50": middle, "p99": high}


def _write(rows: Sequence[Row], path: pathlib.Path) -> None:
  with path.open("w", newline="", encoding="utf-8") as stream:
    writer = csv.DictWriter(stream, _COLUMNS)
    writer.writeheader()
    writer.writerows(
      {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows
    )


def _fill(page: page_lib.Page, rows: Sequence[Row], counts: np.ndarray) -> None:
  page.section("Kinds", "kinds")
  for heading, column in _COUNTED.items():
    page.heading(heading)
    tally = collections.Counter(_told(row[column]) for row in rows)
    page.table((heading.lower(), "images"), _most(tally))
  page.section("Sizes", "sizes")
  heights, widths = (np.array([row[side] for row in rows]) for side in ("height", "width"))
  sizes = collections.Counter(f"{row['height']} x {row['width']}" for row in rows)
  page.table(("height x width", "images"), _most(sizes))
  page.section("Classes and groups", "classes")
  classes = _by_class(rows)
  page.table(("class", "images", "groups", "mean", "sd"), _of_classes(classes))
  groups = collections.Counter(row["group"] for row in rows if row["group"])
  page.text(_groups(groups, len(rows)))
  page.section("Figures", "figures")
  labels = np.array([row["class"] for row in rows])
  shares = {name or "all images": counts[labels == name].mean(0) for name in classes}
  drawn = {
    "sizes": ("Height and width of the images", survey_figures.sizes(heights, widths)),
    "intensities": ("Share of pixels by intensity", survey_figures.shades(shares)),
    "classes": (
      "Images of each class",
      survey_figures.bars({name or "no class": len(own) for name, own in classes.items()}),
    ),
    "means": (
      "Mean and standard deviation of each image",
      survey_figures.spread([row["mean"] for row in rows], [row["sd"] for row in rows], labels),
    ),
  }
  page.figures([(name, text, page_lib.png(figure)) for name, (text, figure) in drawn.items()])


def _by_class(rows: Sequence[Row]) -> dict[str, list[Row]]:
  """Class -> its rows, the largest first."""
  classes: dict[str, list[Row]] = collections.defaultdict(list)
  for row in rows:
    classes[row["class"]].append(row)
  return dict(sorted(classes.items(), key=lambda item: (-len(item[1]), item[0])))


def _of_classes(classes: dict[str, list[Row]]) -> list[tuple[str, ...]]:
  table: list[tuple[str, ...]] = []
  for name, own in list(classes.items())[:_LISTED]:
    groups = len({row["group"] for row in own if row["group"]})
    means, spreads = (float(np.mean([row[key] for row in own])) for key in ("mean", "sd"))
    told = f"{groups:,}" if groups else "unknown"
    table.append((name or "none", f"{len(own):,}", told, f"{means:.3f}", f"{spreads:.3f}"))
  return table


def _groups(groups: collections.Counter[str], images: int) -> str:
  """A sentence on groups."""
  if not groups:
    return "No groups are known: without --group-pattern, splits may cut through patients."
  largest = max(groups.values())
  return (
    f"{len(groups):,} groups hold {groups.total():,} of {images:,} images, the largest {largest:,}."
  )


def _told(value: object) -> str:
  if isinstance(value, bool):
    return "yes" if value else "no"
  return str(value) if value != "" else "not told"


def _most(tally: collections.Counter[str]) -> list[tuple[str, str]]:
  """The most frequent values and their counts; the rest in one row."""
  table = [(name, f"{count:,}") for name, count in tally.most_common(_LISTED)]
  rest = tally.total() - sum(count for _, count in tally.most_common(_LISTED))
  return [*table, ("others", f"{rest:,}")] if rest else table
