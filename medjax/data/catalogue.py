"""What a data set says of itself before anything is decoded, and what a split makes of it."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import hashlib
import pathlib
from typing import Any, Literal

import numpy as np

from medjax import contract, settings
from medjax.data import census as census_lib
from medjax.data import metadata as metadata_lib

Read = Callable[[int], bytes | np.ndarray]
Kind = Literal["resident", "streamed", "split", "chunked"]  # of feed
Fetch = Callable[[int], np.ndarray]
FetchMany = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Example:
  """One image of a set, not opened yet.

  Attributes:
    id: path relative to the data root, or part and index as text; unique.
    file: where its bytes lie; when it changes, so may the image.
    label: a class; several of them, or none, as a tuple in a multi-label set; None if unlabelled.
    group: patient, lesion or source, which no split may cut; "" where the image is its own.
    part: the official part, one of `contract.PARTS`, or "" where the set has none.
    metadata: what is known of the patient; see `metadata.Record`.
    load: reads an image that is only a piece of `file`; by default the file is the image.
  """

  id: str
  file: pathlib.Path
  label: str | tuple[str, ...] | None
  group: str = ""
  part: str = ""
  metadata: metadata_lib.Record = dataclasses.field(default_factory=dict)
  load: Callable[[], bytes | np.ndarray] | None = None

  def read(self) -> bytes | np.ndarray:
    """The encoded bytes of an image file, or pixels as `Catalogue.read` gives them."""
    return self.load() if self.load else self.file.read_bytes()


@dataclasses.dataclass(frozen=True)
class Catalogue:
  """A data set before anything is decoded: one row an image.

  Attributes:
    ids: path relative to the data root, or index as text; unique.
    groups: patient, lesion or source of each image: what no split may cut.
    labels: [n] int32 index into `classes`; `contract.UNLABELLED` in every row of an unlabelled set.
      Of a multi-label set [n, K] float32, 1 where the image has the class, else 0.
    parts: [n] str, the official part (one of `contract.PARTS`) or "" where the set has none.
    classes: class names in label order; empty for an unlabelled set.
    read: row -> the encoded bytes of the file, or an array that is already pixels (uint8 or uint16,
      [H, W] or [H, W, C]). Called from several threads at once.
    content: a text that changes whenever what `read` gives would change; the cache of decoded
      images is found by it. `fingerprint` makes one from files.
    published: the official parts are those of a publication; where they cut a group, that is told,
      while the same in a user's own table stops the run.
    synthetic: the images were drawn by a program.
    notes: sentences for the user, such as which files were passed over.
    metadata: what is known of each image's patient; empty where nothing is.
    fields: which of it reaches a network, and how; empty for none.
    sets: [n] int32, which of several sets an image comes from, or None where there is but one.
    sources: a word on where each image is from, such as its zip; empty where the set tells none.
    decoded: rows [m] -> pixels [m, *shape] of `dtype`, where the set is a prepared collection;
      any number of threads at once. digests: [n] text, the same for the same pixels, of such a set.
    reading: how the files that such a set was made of became pixels; of several the first's.
  """

  ids: tuple[str, ...]
  groups: tuple[str, ...]
  labels: np.ndarray
  parts: np.ndarray
  classes: tuple[str, ...]
  read: Read
  content: str
  published: bool = False
  synthetic: bool = False
  notes: tuple[str, ...] = ()
  metadata: tuple[metadata_lib.Record, ...] = ()
  fields: tuple[metadata_lib.Field, ...] = ()
  sets: np.ndarray | None = None
  sources: tuple[str, ...] = ()
  decoded: FetchMany | None = None
  shape: tuple[int, int, int] | None = None
  dtype: np.dtype | None = None
  digests: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, object))
  reading: settings.Reading | None = None

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def multi_label(self) -> bool:
    """Whether an image may have several classes, or none."""
    return self.labels.ndim == 2

  @property
  def members(self) -> np.ndarray:
    """[n, K] bool, which image is of which class; one in a row unless multi-label."""
    return contract.members(self.labels, len(self.classes))

  @property
  def strata(self) -> np.ndarray:
    """[n, S] bool, what a split keeps the shares of: classes and, in multi-label sets, no class."""
    if self.multi_label:
      return np.column_stack([self.members, ~self.members.any(axis=1)])
    return self.members


@dataclasses.dataclass(frozen=True)
class Part:
  """One part of a split, readable. Row i of every field is the same image.

  Attributes:
    name: one of `contract.PARTS`.
    ids, groups: [n] str. labels: [n] int32, or [n, K] float32 of a multi-label set.
    fetch: row -> uint8 or uint16 [H, W, C]; thread-safe.
    images: [n, H, W, C] in memory, for feeds that hold images; else None. Equal to `fetch`.
    metadata: [n, M] float32, encoded by what the training part holds, or None.
    fetch_many: rows [m] -> [m, H, W, C], equal to `fetch` of each, where reading them together is
      cheaper; thread-safe; else None.
    sets: [n] int32, which of several sets an image comes from, or None where there is but one.
    facts: name -> [n] text, what is known of an image's patient, as it was read; see `facts`.
  """

  name: str
  ids: np.ndarray
  groups: np.ndarray
  labels: np.ndarray
  fetch: Fetch
  images: np.ndarray | None
  metadata: np.ndarray | None = None
  fetch_many: FetchMany | None = None
  sets: np.ndarray | None = None
  facts: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Splits:
  """A data set dealt to its parts, checked and ready to be fed.

  Attributes:
    parts: name -> Part; parts without images are left out.
    info: what models and objectives may know.
    leaky: some group stands in more than one part, so scores are too good.
    feed: "resident" or "streamed": the choice made.
    table: images and groups of each class in each part, as monospace text.
    quarantined: (id, reason) of each file that could not be read and is in no part.
    notes: sentences for the user: the choice of feed and why, leaks, files passed over.
    census: what became of the set's images; None of a set that was not dealt by `data.make`.
  """

  parts: dict[str, Part]
  info: contract.DataInfo
  leaky: bool
  feed: Kind
  table: str
  quarantined: tuple[tuple[str, str], ...] = ()
  census: census_lib.Census | None = None
  notes: tuple[str, ...] = ()


def of(
  examples: Iterable[Example],
  classes: Sequence[str],
  fields: Sequence[metadata_lib.Field] = (),
  published: bool = False,
) -> Catalogue:
  """Makes columns of examples, in their order.

  Args:
    examples: at least one; labels are all of one kind.
    classes: class names in label order; every label is one of them.
    fields, published: see `Catalogue`.

  Raises:
    ValueError: no example, or two with one id.
    KeyError: a label that is no class.
  """
  rows = tuple(examples)
  ids = tuple(example.id for example in rows)
  if not rows:
    raise ValueError("the set holds no image")
  twice = [name for name, count in collections.Counter(ids).items() if count > 1]
  if twice:
    raise ValueError(f"{len(twice)} ids stand for more than one image, such as {twice[0]}")
  return Catalogue(
    ids=ids,
    groups=tuple(example.group or example.id for example in rows),
    labels=_labels([example.label for example in rows], classes),
    parts=np.array([example.part for example in rows]),
    classes=tuple(classes),
    read=lambda row: rows[row].read(),
    content=fingerprint(dict.fromkeys(example.file for example in rows), ids),
    published=published,
    metadata=tuple(example.metadata for example in rows),
    fields=tuple(fields),
  )


def _labels(labels: Sequence[str | tuple[str, ...] | None], classes: Sequence[str]) -> np.ndarray:
  """[n] int32, or [n, K] float32 where labels are tuples."""
  place: dict[Any, int] = {name: label for label, name in enumerate(classes)}
  if not isinstance(labels[0], tuple):
    place[None] = contract.UNLABELLED
    return np.array([place[name] for name in labels], np.int32)
  marks = np.zeros((len(labels), len(classes)), np.float32)
  pairs = [(row, place[name]) for row, names in enumerate(labels) for name in names or ()]
  marks[tuple(np.array(pairs, int).reshape(-1, 2).T)] = 1
  return marks


def facts(rows: Catalogue, own: np.ndarray) -> dict[str, np.ndarray]:
  """What is known of the patients of some rows [m], name -> [m] text, blank where it is not.

  The source of an image is among it, except in sets where it is but another word for the label.
  """
  names = dict.fromkeys(name for record in rows.metadata for name in record)
  found = {name: np.array([_text(rows.metadata[i].get(name)) for i in own]) for name in names}
  if _tell_more(rows.sources, rows.labels):
    found["source"] = np.array(rows.sources)[own]
  return found


def _tell_more(sources: Sequence[str], labels: np.ndarray) -> bool:
  """Whether there are several sources, and some hold several labels."""
  pairs = set(zip(sources, (label.tobytes() for label in labels), strict=True)) if sources else ()
  return 1 < len(set(sources)) < len(pairs)


def _text(value: str | float | None) -> str:
  return "" if value is None else str(value)


def by_source(rows: Catalogue) -> Catalogue:
  """The set with the sources of its images in the place of its labels.

  Raises:
    ValueError: the set tells no sources, or but one.
  """
  names, labels = np.unique(np.array(rows.sources, str), return_inverse=True)
  classes = tuple(names.tolist())
  if len(classes) < 2:
    told = f"all images are of {classes[0]!r}" if classes else "this set does not tell them"
    raise ValueError(
      f"data.target=source needs images of two sources or more, and {told}: set data.target=label"
    )
  return dataclasses.replace(rows, classes=classes, labels=labels.astype(np.int32))


def fingerprint(paths: Iterable[pathlib.Path], ids: Iterable[str] = ()) -> str:
  """A digest of the files' places, sizes and times of change, in order; nothing is opened.

  `ids` stand for the pieces, in order, where a file holds more than one image.
  """
  digest = hashlib.sha256()
  for path in paths:
    stat = path.stat() if path.exists() else None
    state = (stat.st_size, stat.st_mtime_ns) if stat else ()
    digest.update(f"{path.absolute()} {state}\n".encode())
  for name in ids:
    digest.update(f"{name}\n".encode())
  return digest.hexdigest()
