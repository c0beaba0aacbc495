"""The table of a collection: a row an image, in Parquet, the same bytes for the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import pathlib

import numpy as np
import pyarrow as pa
from pyarrow import parquet

_ROWS = 2**16  # of a row group
_FORM = {"compression": "zstd", "use_dictionary": False}  # hardly a value stands twice

SCHEMA = pa.schema(
  {
    "id": pa.string(),
    "source": pa.int32(),
    "key": pa.string(),
    "path": pa.string(),
    "sha256": pa.string(),
    "frame": pa.int32(),
    "phash": pa.int64(),
    "pixels_sha256": pa.string(),
    "modality": pa.string(),
    "body_part": pa.string(),
    "colour": pa.bool_(),
    "height": pa.int32(),
    "width": pa.int32(),
    "bits": pa.int32(),
    "patient": pa.string(),
    "study": pa.string(),
    "series": pa.string(),
    "label": pa.string(),
    "group": pa.string(),
    "part": pa.string(),
    "shard": pa.int32(),
    "row": pa.int32(),
  }
)
FILE = "manifest.parquet"
MARKS = ["exact_of", "near_of"]  # of the finished manifest, besides


def write(file: pathlib.Path, rows: list[dict[str, object]], hashes: np.ndarray) -> None:
  """Writes the rows of a shard and their perceptual hashes, int64 [n]."""
  table = pa.Table.from_pylist(rows, SCHEMA)
  place = SCHEMA.get_field_index("phash")
  table = table.set_column(place, SCHEMA.field(place), pa.array(hashes))
  parquet.write_table(table, file, **_FORM)


def write_columns(file: pathlib.Path, columns: Mapping[str, Sequence | np.ndarray], n: int) -> None:
  """Writes a finished manifest of n rows; columns that are not given are blank or zero."""
  table = {}
  for field in _finished():
    blank = "" if field.type == pa.string() else 0
    values = columns.get(field.name, [blank] * n)
    table[field.name] = pa.array(values, field.type)
  parquet.write_table(pa.table(table), file, row_group_size=_ROWS, **_FORM)


def _finished() -> pa.Schema:
  """Of the manifest of a whole collection."""
  return pa.schema([*SCHEMA, *(pa.field(name, pa.string()) for name in MARKS)])


def join(file: pathlib.Path, shards: Iterable[pathlib.Path], marks: pa.Table) -> None:
  """Writes the tables of all shards as one, with the columns `MARKS` of `marks` beside them."""
  schema = pa.unify_schemas([SCHEMA, marks.schema])
  with parquet.ParquetWriter(file, schema, **_FORM) as writer:
    start = 0
    for table in _batched(shards):
      for name in MARKS:
        table = table.append_column(name, marks[name].slice(start, len(table)))
      writer.write_table(table, row_group_size=_ROWS)
      start += len(table)


def _batched(shards: Iterable[pathlib.Path]) -> Iterator[pa.Table]:
  """The shards' tables, joined to row groups of one length."""
  waiting = SCHEMA.empty_table()
  for shard in shards:
    waiting = pa.concat_tables([waiting, parquet.read_table(shard)])
    while len(waiting) >= _ROWS:
      yield waiting.slice(0, _ROWS).combine_chunks()
      waiting = waiting.slice(_ROWS)
  if len(waiting):
    yield waiting.combine_chunks()


def columns(shards: Iterable[pathlib.Path], names: list[str]) -> pa.Table:
  """Some columns of all shards."""
  tables = [parquet.read_table(shard, columns=names) for shard in shards]
  return pa.concat_tables([SCHEMA.empty_table().select(names), *tables])


def read(file: pathlib.Path) -> pa.Table:
  """The finished manifest."""
  return parquet.read_table(file)
