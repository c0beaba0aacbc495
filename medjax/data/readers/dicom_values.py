"""From stored DICOM values to pixels as a viewer shows them (DICOM PS3.3 annex C.11)."""

from __future__ import annotations

from collections.abc import Iterator
import copy

import numpy as np
import pydicom
from pydicom import pixels as pydicom_pixels

from medjax.data.readers import frame, windows

_RESCALING = ("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept")
_WINDOW = ("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction")
_GROUPS = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
_BY_PERCENTILE = ("MR", "PT")

_Shown = tuple[np.ndarray, tuple[str, ...]]


def shown(stored: np.ndarray, header: pydicom.Dataset, index: int, window: str) -> _Shown:
  """Turns one frame's stored values into pixels.

  Args:
    stored: [H, W] or [H, W, 3], as pydicom decodes it.
    header: the file's.
    index: which frame it is; enhanced files tell scale and window for each.
    window: as `settings.Reading.window`.

  Returns:
    [H, W, 1 or 3] uint8 or uint16, and the steps taken.
  """
  photometric = header.PhotometricInterpretation
  if photometric == "PALETTE COLOR":
    colours = pydicom_pixels.apply_color_lut(stored, header)
    return _colours(colours, 8 * colours.itemsize, "palette applied")
  if stored.ndim == 3:
    turned = "" if photometric == "RGB" else f"{photometric} turned to RGB"
    return _colours(stored, int(header.BitsStored), turned)
  return _grey(stored, header, _of_frame(header, index), window)


def _colours(values: np.ndarray, bits: int, step: str) -> _Shown:
  """Colour is taken as it is, at the depth it has."""
  if values.dtype.kind != "u":
    raise frame.Unreadable(f"colour of kind {values.dtype} has no known range")
  return _scaled(values, bits), (step,) if step else ()


def _scaled(values: np.ndarray, bits: int) -> np.ndarray:
  """Unsigned values of so many bits -> uint8 up to 8 bits, else uint16, the whole range kept."""
  if bits == 8:
    return values.astype(np.uint8)
  scaled = windows.linear(values, 0, 2.0**bits - 1)
  return (scaled // 257).astype(np.uint8) if bits < 8 else scaled


def _of_frame(header: pydicom.Dataset, index: int) -> pydicom.Dataset:
  """What says how the stored values of one frame are to be shown, wherever it stands."""
  view = pydicom.Dataset()
  view.file_meta = header.file_meta
  view.set_original_encoding(*header.original_encoding)
  for source in _sources(header, index):
    for keyword in (*_RESCALING, *_WINDOW):
      if keyword in source and source[keyword].value not in (None, ""):
        view[keyword] = source[keyword]
  return view


def _sources(header: pydicom.Dataset, index: int) -> Iterator[pydicom.Dataset]:
  """Where scale and window may stand; later ones are more particular."""
  yield header
  shared = header.get("SharedFunctionalGroupsSequence") or []
  own = (header.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
  for groups in (*shared[:1], *own):
    yield from (groups[name].value[0] for name in _GROUPS if groups.get(name))


def _grey(
  stored: np.ndarray, header: pydicom.Dataset, view: pydicom.Dataset, window: str
) -> _Shown:
  values, steps = _rescaled(stored, view)
  grey, step = _windowed(values, stored, header, view, window)
  steps = (*steps, step)
  if header.PhotometricInterpretation == "MONOCHROME1":
    grey, steps = np.iinfo(grey.dtype).max - grey, (*steps, "MONOCHROME1 inverted")
  return grey[..., None], steps


def _rescaled(stored: np.ndarray, view: pydicom.Dataset) -> tuple[np.ndarray, tuple[str, ...]]:
  """Stored values -> what they measure."""
  if view.get("ModalityLUTSequence"):
    return pydicom_pixels.apply_modality_lut(stored, view), ("modality LUT",)
  if view.get("RescaleSlope") and "RescaleIntercept" in view:
    return pydicom_pixels.apply_modality_lut(stored, view), ("rescaled",)
  return stored, ()


def _windowed(
  values: np.ndarray,
  stored: np.ndarray,
  header: pydicom.Dataset,
  view: pydicom.Dataset,
  window: str,
) -> tuple[np.ndarray, str]:
  """Measured values -> grey, and the step in words."""
  modality = header.get("Modality")
  if window in windows.HOUNSFIELD and modality == "CT":
    return windows.linear(values, *windows.HOUNSFIELD[window]), windows.named(window)
  if window not in ("full", "percentile"):
    if view.get("VOILUTSequence"):
      return _looked_up(values, view.VOILUTSequence[0], view), "VOI LUT of the header"
    if _has_window(view):
      return _by_header(values, view), "window of the header"
  if window != "percentile" and values is stored and _is_ready(header):
    return _scaled(stored, int(header.BitsStored)), "as stored"
  percentile = window == "percentile" or (window != "full" and modality in _BY_PERCENTILE)
  low, high = windows.extent(values[_is_measured(stored, header)], percentile)
  return windows.linear(values, low, high), windows.spanned(percentile)


def _is_ready(header: pydicom.Dataset) -> bool:
  """Whether grey values were stored to be looked at: ultrasound, screenshots, masks."""
  return int(header.get("BitsStored") or 0) in range(1, 9) and not header.PixelRepresentation


def _is_measured(stored: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
  """[H, W] bool: which values are not the padding around what was measured (C.7.5.1.1.2)."""
  padding = header.get("PixelPaddingValue")
  if padding is None:
    return np.ones(stored.shape, bool)
  low, high = sorted((padding, header.get("PixelPaddingRangeLimit", padding)))
  return (stored < low) | (stored > high)


def _has_window(view: pydicom.Dataset) -> bool:
  """Whether the first window is one: some devices write zeros."""
  if "WindowCenter" not in view or "WindowWidth" not in view:
    return False
  element = view["WindowWidth"]
  width = float(element.value[0] if element.VM > 1 else element.value)
  return width >= 1 or (width > 0 and view.get("VOILUTFunction", "LINEAR") != "LINEAR")


def _by_header(values: np.ndarray, view: pydicom.Dataset) -> np.ndarray:
  """Applies pydicom's windowing by the first window, its output set to 16 bits."""
  target = pydicom.Dataset()
  target.PhotometricInterpretation = "MONOCHROME2"
  target.BitsStored, target.PixelRepresentation = 16, 0
  for keyword in _WINDOW[1:]:
    if keyword in view:
      target[keyword] = view[keyword]
  return np.rint(pydicom_pixels.apply_windowing(values, target)).astype(np.uint16)


def _looked_up(values: np.ndarray, item: pydicom.Dataset, view: pydicom.Dataset) -> np.ndarray:
  """Applies pydicom's VOI LUT, its output stretched to 16 bits.

  The table's depth is told as 16 bits, since pydicom counts entries in as many bits as they have;
  the values are clipped first, since it does not widen them.
  """
  entries, first, bits = item.LUTDescriptor
  table = copy.deepcopy(item)
  table.LUTDescriptor = [entries, first, 16]
  view.VOILUTSequence = [table]
  places = np.clip(np.rint(values), first, first + (entries or 2**16) - 1).astype(np.int64)
  return windows.linear(pydicom_pixels.apply_voi(places, view), 0, 2**bits - 1)
