"""The report of a run: what it found, with intervals, as a page, as JSON, and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
import importlib.metadata
import os
import pathlib
import platform

import jax

from medjax import metrics
from medjax.report import contents, examples, record, sheet, words

StageReport = contents.StageReport
Comparison = contents.Comparison
Report = contents.Report
Table = contents.Table
Drawing = contents.Drawing
Count = contents.Count
Flow = contents.Flow
Gallery = contents.Gallery
SYNTHETIC, LEAKY = words.SYNTHETIC, words.LEAKY
pick, terminal_table = examples.pick, words.terminal_table
_PACKAGES = ("medjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def environment() -> dict[str, str]:
  """Versions of Python and of the packages that results depend on, the machine and its devices."""
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "from source, not installed"
  devices = jax.devices()
  found["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
  found["devices"] = f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})"
  peak = max((d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices())
  if peak:
    found["peak memory"] = f"{peak / 1e9:.3g} GB of a device"
  return found


def names(classes: int, primary: str, multi_label: bool = False) -> tuple[str, ...]:
  """The metrics that a report shows, the primary one first.

  It leaves out what others say as well: averages by the images of each class, but for that of F1,
  and of two classes all averages of two rates that are both shown. Quadratic kappa, which takes the
  classes for steps of an order, is shown where it is the primary one alone.
  """
  known = metrics.names(classes, multi_label)
  weighted, macro = ([n for n in known if n.startswith(f"{by}_")] for by in ("weighted", "macro"))
  aside = {"misclassification", "quadratic_kappa", *weighted, *(n for n in known if n[-2:] == "f5")}
  if classes == 2 and not multi_label:
    aside |= {"ovr_balanced", *macro} - {"macro_f1"}
  else:
    aside -= {"weighted_f1"}
  return tuple(dict.fromkeys((primary, *(n for n in known if n not in aside))))


def compare(
  stage: contents.StageReport,
  baseline: contents.StageReport,
  wanted: Sequence[str],
  resamples: int,
  seed: int,
) -> contents.Comparison:
  """The paired comparison of two scored stages; raises ValueError unless of the same images."""
  if stage.predictions is None or baseline.predictions is None:
    raise ValueError(
      f"{stage.name!r} and {baseline.name!r} cannot be compared: both need predictions"
    )
  found = metrics.paired(stage.predictions, baseline.predictions, wanted, resamples, seed)
  return contents.Comparison(stage.name, baseline.name, found)


def write(path: pathlib.Path, report: contents.Report) -> pathlib.Path:
  """Writes the page to `path`, its numbers as JSON and `figures/` beside it; returns the page."""
  record.write(path.with_suffix(".json"), report)
  return sheet.write(path, report)
