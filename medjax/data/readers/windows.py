"""From measured values to 16 bits of grey: which of them becomes black, which white."""

from __future__ import annotations

import numpy as np

WHITE = 65535
# Hounsfield units that become black and white. Level and width as Radiopaedia's "Windowing (CT)"
# lists them: lung -600/1500, soft tissue of the abdomen 50/400, bone 400/1800, brain 40/80.
HOUNSFIELD = {
  "lung": (-1350.0, 150.0),
  "soft_tissue": (-150.0, 250.0),
  "bone": (-500.0, 1300.0),
  "brain": (0.0, 80.0),
}
_PERCENTILES = (1.0, 99.0)
_SAMPLE = 2**22  # of a volume's voxels, evenly spaced, tell its percentiles


def linear(values: np.ndarray, low: float, high: float) -> np.ndarray:
  """uint16 of any shape: `low` and below are 0, `high` and above 65,535; not a number is 0.

  Where `low` equals `high` there is nothing to tell apart, and all is 0.
  """
  if not high > low:
    return np.zeros(values.shape, np.uint16)
  scaled = (values.astype(np.float64) - low) * (WHITE / (high - low))
  return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, WHITE)).astype(np.uint16)


def extent(values: np.ndarray, percentile: bool) -> tuple[float, float]:
  """Lowest and highest finite value, or the 1st and 99th percentile where these differ."""
  flat = values.reshape(-1)
  finite = flat[np.isfinite(flat)] if flat.dtype.kind == "f" else flat
  if not finite.size:
    return 0.0, 0.0
  if percentile:
    sample = finite[:: -(-finite.size // _SAMPLE)]
    low, high = np.percentile(sample, _PERCENTILES)
    if high > low:
      return float(low), float(high)
  return float(finite.min()), float(finite.max())


def named(window: str) -> str:
  """A step in words: the window of this name."""
  low, high = HOUNSFIELD[window]
  return f"{window.replace('_', ' ')} window, {low:g} to {high:g} HU"


def spanned(percentile: bool) -> str:
  """A step in words: the range of the values themselves."""
  return "1st to 99th percentile" if percentile else "full range"
