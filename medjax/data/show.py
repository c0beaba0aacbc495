"""`python -m medjax.data show PATH... --out DIR`: images as a network sees them, on one sheet.

`sheet.png` holds the pictures in rows; `show.html` tells for each what the file held and what was
done to it, and for each file that cannot be read the reason. Both show patients' images and the
names of files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import pathlib

import numpy as np
from PIL import Image, ImageDraw

from medjax import page as page_lib
from medjax.data import arguments as arguments_lib
from medjax.data import glances as glances_lib

_WIDTH = 1600  # of the sheet, in pixels, about
_GAP = 6
_CAPTION = 14  # pixels below a picture for its number


def arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the command's arguments."""
  add = parser.add_argument
  add("paths", nargs="+", metavar="PATH", type=pathlib.Path, help="folder, archive, image, ...")
  add("--out", required=True, metavar="DIR", type=pathlib.Path, help="folder of sheet and page")
  arguments_lib.add_shape(parser)
  add(
    "--most",
    type=arguments_lib.zero_or_more,
    default=120,
    help="files, evenly spaced; 0 shows all (default: 120)",
  )
  arguments_lib.add_workers(parser, "processes that decode")
  arguments_lib.add_reading(parser)


def view(args: argparse.Namespace) -> glances_lib.View:
  """How images are to be seen, by the command's arguments."""
  if args.size < 1:
    raise ValueError(f"--size={args.size}: give a number of pixels, such as 224")
  return glances_lib.View(
    args.size, arguments_lib.CHANNELS[args.channels], arguments_lib.reading(args)
  )


def run(args: argparse.Namespace) -> int:
  """Writes `sheet.png` and `show.html`.

  Raises:
    FileNotFoundError, ValueError, OSError: with what to type instead.
  """
  seen, total = glances_lib.of_paths(args.paths, view(args), args.most, args.workers)
  shown: list[glances_lib.Glance] = []
  refused: list[glances_lib.Refused] = []
  for one in seen:
    if isinstance(one, glances_lib.Refused):
      refused.append(one)
    else:
      shown.append(one)
  args.out.mkdir(0o700, parents=True, exist_ok=True)
  if shown:
    sheet([glance.pixels for glance in shown]).save(args.out / "sheet.png")
  page = _page(shown, refused, total, args)
  print(f"{len(shown):,} images shown, {len(refused):,} files cannot be read\n{page.write()}")
  return 0


def sheet(pictures: Sequence[np.ndarray]) -> Image.Image:
  """Pictures [size, size, C] uint8 in rows on one image, numbered from 1."""
  size = pictures[0].shape[0]
  columns = max(1, min(len(pictures), _WIDTH // (size + _GAP)))
  rows = -(-len(pictures) // columns)
  across, down = size + _GAP, size + _GAP + _CAPTION
  canvas = Image.new("RGB", (columns * across + _GAP, rows * down + _GAP), "white")
  draw = ImageDraw.Draw(canvas)
  for i, pixels in enumerate(pictures):
    left, top = i % columns * across + _GAP, i // columns * down + _GAP
    picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    canvas.paste(picture, (left, top))
    draw.text((left, top + size), str(i + 1), fill="black")
  return canvas


def _page(
  shown: Sequence[glances_lib.Glance],
  refused: Sequence[glances_lib.Refused],
  total: int,
  args: argparse.Namespace,
) -> page_lib.Page:
  page = page_lib.Page("What the network sees", args.out / "show.html")
  part = f"{args.most:,} of {total:,}, evenly spaced" if 0 < args.most < total else f"all {total:,}"
  page.text(
    f"{len(shown):,} images of {', '.join(map(str, args.paths))} (files: {part}), each brought to"
    f" {args.size} x {args.size} pixels. The numbers are those of sheet.png. Pictures of patients:"
    " handle this page as you handle the files.",
    "soft",
  )
  page.pictures(
    (glance.pixels, f"{glance.name}", _lines(i, glance, args)) for i, glance in enumerate(shown, 1)
  )
  if refused:
    page.section("Files that cannot be read", "refused")
    page.table(("file", "reason"), refused)
  return page


def _lines(number: int, glance: glances_lib.Glance, args: argparse.Namespace) -> list[str]:
  """What stands below a picture."""
  about = glance.about
  kinds = [about.format, about.modality, about.body_part, f"{about.bits} bit"]
  kind = "RGB" if glance.pixels.shape[2] == 3 else "grey"
  fitted = f"{args.resize} to {args.size} x {args.size}, {kind}, {args.depth} bit"
  return [
    f"{number}: {', '.join(filter(None, kinds))}",
    f"{about.height} x {about.width}{', colour' if about.colour else ''}",
    *about.steps,
    *([] if about.format == "prepared" else [fitted]),
  ]
