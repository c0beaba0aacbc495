"""Settings of how a file's values become the pixels that a network sees."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal, get_args

Window = Literal["file", "full", "percentile", "lung", "soft_tissue", "bone", "brain"]

_EVERY = re.compile(r"every:[1-9]\d*:[1-9]\d*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
  """From a file's values to pixels, on the host.

  Attributes:
    window: which values become black and white, where a file holds more than 8 bits of anything but
      photographs. `lung`, `soft_tissue`, `bone` and `brain` are Hounsfield ranges for CT, and for
      volumes, which do not tell their modality; other modalities then follow `file`. `file` takes
      the header's VOI LUT or window, without one the 1st to 99th percentile of MR, PET and volumes,
      and else the full range; `percentile` and `full` take these whatever the header says.
    frames: of a multi-frame file or a volume: `middle`, `all`, or `every:N:M`, every N-th from the
      first, at most M.
    axis: along which volumes are cut into slices.
    resize: `stretch` ignores the aspect ratio; `smart` keeps it and pads with black.
    depth: bits a pixel that reach the device; with 16, images of 8 bits are scaled up.
    median: side in pixels of a median filter, 3 or 5; 0 filters nothing.
    gaussian: standard deviation in pixels of a Gaussian filter; 0 filters nothing.
    clahe: clip limit of a contrast limited adaptive histogram equalisation on 8 x 8 tiles, with 8
      bits; 0 leaves the contrast as it is.
    crop_border: cuts off black or white margins of one shade.
    crop_markers: paints over small bright marks near the edges of grey images, such as burnt-in
      side letters.
  """

  window: Window = "file"
  frames: str = "middle"
  axis: Literal["axial", "coronal", "sagittal"] = "axial"
  resize: Literal["stretch", "smart"] = "stretch"
  depth: Literal[8, 16] = 8
  median: int = 0
  gaussian: float = 0.0
  clahe: float = 0.0
  crop_border: bool = False
  crop_markers: bool = False

  def __post_init__(self):
    if self.window not in get_args(Window):
      raise ValueError(f"reading.window={self.window!r}: choose from {', '.join(get_args(Window))}")
    if self.frames not in ("middle", "all") and not _EVERY.fullmatch(self.frames):
      raise ValueError(
        f"reading.frames={self.frames!r}: write middle, all, or every:N:M for every N-th frame, at"
        " most M of them, such as every:4:16"
      )
    if self.median not in (0, 3, 5):
      raise ValueError(f"reading.median={self.median}: choose 3 or 5, or 0 to filter nothing")
    if self.clahe and self.depth == 16:
      raise ValueError("reading.clahe works on 8 bits a pixel: set reading.depth=8, or clahe=0")
    for name in ("gaussian", "clahe"):
      if getattr(self, name) < 0:
        raise ValueError(f"reading.{name}={getattr(self, name)}: choose 0 or more")
