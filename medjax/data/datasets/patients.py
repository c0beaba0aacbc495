"""Patients of DICOM files, where nobody has said whose they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
import pathlib

from medjax.data import progress
from medjax.data.readers import contents

_START = 256  # bytes that tell a DICOM file


def grouped(
  groups: Sequence[str], ids: Sequence[str], paths: Sequence[pathlib.Path]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Groups in which the DICOM files of a patient stand together.

  Only images that are groups of their own are looked at. A patient is told by a number, in order
  of appearance: groups are written beside predictions, where no identifier may stand.

  Args:
    groups, ids: of every image; equal where no group is known.
    paths: of the files.

  Returns:
    Groups, and notes on them.
  """
  alone = [row for row, group in enumerate(groups) if group == ids[row]]
  told = progress.told(_patients([paths[row] for row in alone]), len(alone), "headers read")
  patients = dict(zip(alone, told, strict=True))
  numbers = {name: i for i, name in enumerate(dict.fromkeys(filter(None, patients.values())))}
  if not numbers:
    return tuple(groups), ()
  found = {row: f"patient {numbers[name]}" for row, name in patients.items() if name}
  note = f"{len(found):,} DICOM files are of {len(numbers):,} patients, by their headers"
  return tuple(found.get(row, group) for row, group in enumerate(groups)), (note,)


def _patients(paths: Iterable[pathlib.Path]) -> Iterator[str]:
  """What each header says of the patient; empty where it says nothing, or is none."""
  for path in paths:
    with path.open("rb") as file:
      start = file.read(_START)
    yield _patient(path) if contents.is_dicom(start) else ""


def _patient(path: pathlib.Path) -> str:
  import pydicom  # photographs do not need it

  try:
    header = pydicom.dcmread(path, force=True, specific_tags=["PatientID"])
    return str(header.get("PatientID") or "")
  except Exception:  # whatever is wrong with the file, the decoder will say; it has no group then
    return ""
