"""JPEG files to train from: real ones where they are at hand, else drawn."""

from __future__ import annotations

import os
import pathlib

import numpy as np

SIDE, DRAWN = 224, 512


def files(folder: pathlib.Path) -> tuple[list[pathlib.Path], str]:
  """Files, and a word on them: those under `MEDJAX_DATA`, or phantoms written to `folder`."""
  real = os.environ.get("MEDJAX_DATA", "")
  found = sorted(pathlib.Path(real).glob("chest_xray_kermany/**/*.jp*g"))[:DRAWN] if real else []
  if found:
    return found, "real X-rays"
  return _drawn(folder), "drawn files"


def _drawn(folder: pathlib.Path) -> list[pathlib.Path]:
  """Smooth noise, which takes about as many bytes a pixel as an X-ray."""
  import cv2

  rng = np.random.default_rng(0)
  paths = [folder / f"{number}.jpg" for number in range(DRAWN)]
  for path in paths:
    coarse = rng.integers(0, 256, (28, 28), np.uint8)
    cv2.imwrite(str(path), cv2.resize(coarse, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
  return paths
