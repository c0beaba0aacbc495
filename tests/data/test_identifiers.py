"""No output of a preparation tells what the headers of DICOM files say of a person."""

import logging
import pathlib
import subprocess
import sys
import warnings

from array_record.python import array_record_module
import pyarrow.parquet
import pydicom
from pydicom import uid
import pytest

_FOR_THE_OWNER = {"sources.tsv", "quarantine.tsv"}  # paths, by design; mode 0600
_SHORTEST = 4


def _datasets(paths):
  for path in paths:
    try:
      yield pydicom.dcmread(path, force=True)
    except Exception:  # broken on purpose; what cannot be read here says nothing either
      continue


def _values(element) -> list[str]:
  values = element.value if element.VM > 1 else [element.value]
  return [str(value).strip(" \0") for value in values]


def _says(element) -> set[str]:
  """What an element says of a person: names, patient's numbers, dates and instances."""
  if element.VR == "PN":
    parts = {part for value in _values(element) for part in value.replace("=", "^").split("^")}
    return parts | set(_values(element))
  if element.VR == "UI":  # those with a name of their own are classes, the same in every hospital
    return {value for value in _values(element) if uid.UID(value).name == value}
  if element.VR in ("DA", "DT") or element.keyword in ("PatientID", "AccessionNumber", "StudyID"):
    return set(_values(element))
  return set()


def _identifiers(paths) -> set[str]:
  found = set()
  for dataset in _datasets(paths):
    for part in (dataset, dataset.get("file_meta") or ()):
      elements = part.iterall() if part is dataset else part
      for element in elements:
        try:
          found |= _says(element)
        except Exception:  # a value that pydicom cannot convert
          continue
  texts = {text.strip() for text in found}
  return {t for t in texts if len(t) >= _SHORTEST and any(map(str.isalnum, t))}  # "----" is none


def _texts(folder: pathlib.Path) -> dict[str, bytes]:
  """Name -> everything that a file of the folder holds, unpacked."""
  texts = {}
  for path in (path for path in folder.rglob("*") if path.is_file()):
    name = path.relative_to(folder).as_posix()
    texts[name] = path.read_bytes()
    if path.suffix == ".array_record":
      reader = array_record_module.ArrayRecordReader(str(path))
      texts[name + " records"] = b"\n".join(reader.read_all()) if reader.num_records() else b""
    elif path.suffix == ".parquet":
      table = pyarrow.parquet.read_table(path)
      for column in table.column_names:
        values = "\n".join(map(str, table[column].to_pylist()))
        texts[f"{name} {column}"] = values.encode()
      texts[f"{name} metadata"] = str(table.schema.metadata).encode()
  return texts


def _leaks(identifiers, texts) -> list[tuple[str, str]]:
  return [
    (name, identifier)
    for name, data in texts.items()
    for identifier in identifiers
    if identifier.encode() in data or identifier.encode("latin-1", "ignore") in data
  ]


@pytest.fixture(scope="module")
def prepared(shared_data, tmp_path_factory):
  """(identifiers, everything that the preparation put out) of all DICOM files at hand."""
  logging.getLogger("pydicom").disabled = True
  folder = shared_data / "dicom"
  out = tmp_path_factory.mktemp("identifiers") / "out"
  command = [sys.executable, "-m", "medjax.data", "prepare", folder, "--out", out]
  done = subprocess.run(
    [*command, "--size", "64", "--frames", "all", "--workers", "1"], capture_output=True, check=True
  )
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    identifiers = _identifiers(path for path in folder.rglob("*") if path.is_file())
  texts = {n: t for n, t in _texts(out).items() if n not in _FOR_THE_OWNER}
  return identifiers, texts | {"stdout": done.stdout, "stderr": done.stderr}, out


def test_no_identifier_is_in_any_output(prepared):
  identifiers, texts, _ = prepared
  assert len(identifiers) > 300 and "77654033" in identifiers
  assert any(name.endswith("records") and data for name, data in texts.items())
  assert _leaks(identifiers, texts) == []


def test_patients_are_told_apart_all_the_same(prepared):
  table = pyarrow.parquet.read_table(prepared[2] / "manifest.parquet")
  assert len(set(table["patient"].to_pylist())) > 10
  assert len(set(table["series"].to_pylist())) > 10


def test_files_for_the_owner_are_for_the_owner(prepared):
  for name in _FOR_THE_OWNER | {"salt"}:
    assert (prepared[2] / name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("place", ["manifest.parquet", "collection.json", "shards/x.array_record"])
def test_a_planted_name_is_found(tmp_path, place):
  path = tmp_path / place
  path.parent.mkdir(exist_ok=True)
  if path.suffix == ".parquet":
    table = pyarrow.table({"column": ["Doe^Jane" + "x" * 100] * 1000})
    pyarrow.parquet.write_table(table, path, compression="gzip")
  elif path.suffix == ".json":
    path.write_text('{"x": "by Doe^Jane"}')
  else:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,zstd:9")
    writer.write(b"pixels Doe^Jane" * 100)
    writer.close()
  assert _leaks({"Doe^Jane", "1234"}, _texts(tmp_path))
