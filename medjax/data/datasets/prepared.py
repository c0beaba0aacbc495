"""Any set that tensorflow-datasets has prepared as array_record, by its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files

_PARTS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
_INFO = "dataset_info.json"
_HOW = """\
Prepare it with tensorflow-datasets, most sets with TensorFlow installed, and name the data folder
with --config.data.root=FOLDER:
  tfds.builder(NAME, data_dir=FOLDER, file_format="array_record").download_and_prepare()
Sets of the papers that medjax knows are prepared without TensorFlow by medjax.data.builders."""


def catalogue(cfg: settings.Tfds) -> catalogue_lib.Catalogue:
  """Lists the records of `cfg.set` below `cfg.root`, the newest version that is there.

  Images are not decoded by tensorflow-datasets, whose decoder shows palette numbers as grey, but by
  medjax. Features `id`, `group` and `label` are used where there are such; the splits train,
  validation and test are the parts; other splits are passed over and told.

  Raises:
    FileNotFoundError: no such set is prepared.
    ValueError: not as array_record, or without one image and one label a record.
  """
  folder = _newest(files.root(cfg.root, f"a data folder of tensorflow-datasets.\n{_HOW}"), cfg.set)
  # Here, not above: an import of a second that only this set needs.
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(folder)
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise ValueError(f"{folder} is prepared as {builder.info.file_format.value}.\n{_HOW}")
  image = _feature(builder.info.features, "image", lambda f: isinstance(f, tfds.features.Image))
  label = _feature(builder.info.features, "label", _is_label)
  names = tuple(_class_label(builder.info.features[label]).names)
  skip = {image: tfds.decode.SkipDecoding()}
  splits = [split for split in _PARTS if split in builder.info.splits]
  sources = {split: builder.as_data_source(split=split, decoders=skip) for split in splits}
  examples = _examples(sources, folder, image, label, names)
  others = sorted(set(builder.info.splits) - set(splits))
  notes = (f"splits that are no parts are passed over: {', '.join(others)}",) if others else ()
  return dataclasses.replace(catalogue_lib.of(examples, names, published=True), notes=notes)


def _newest(root: pathlib.Path, name: str) -> pathlib.Path:
  """The folder of the newest version of a set, `name` or `name/config`."""
  versions = [path.parent for path in (root / name).glob(f"*.*.*/{_INFO}")] if name else []
  if not versions:
    there = sorted({p.parents[1].relative_to(root).as_posix() for p in root.rglob(_INFO)})
    raise FileNotFoundError(
      f"data.set={name!r} is not prepared below {root}; there is {files.some(there, 8) or 'none'}."
      f"{files.suggestion(name, there)}\n{_HOW}"
    )
  return max(versions, key=lambda path: tuple(map(int, path.name.split("."))))


def _is_label(feature: Any) -> bool:
  return hasattr(_class_label(feature), "names")


def _class_label(feature: Any) -> Any:
  """The ClassLabel itself, also of a sequence of them."""
  return getattr(feature, "feature", feature)


def _feature(features: Mapping[str, Any], usual: str, fits: Callable[[Any], bool]) -> str:
  """The name of the feature that fits: the usual one, or the only one."""
  fitting = sorted(name for name, feature in features.items() if fits(feature))
  if usual in fitting:
    return usual
  if len(fitting) != 1:
    raise ValueError(f"of the features {sorted(features)} {fitting or 'none'} could be the {usual}")
  return fitting[0]


def _examples(
  sources: Mapping[str, Any], folder: pathlib.Path, image: str, label: str, names: tuple[str, ...]
) -> Iterator[catalogue_lib.Example]:
  """Reads every record once for its label; the images of a record are left as they are."""
  for split, source in sources.items():
    for row, record in enumerate(source):
      yield catalogue_lib.Example(
        id=_text(record.get("id")) or f"{split}/{row}",
        file=folder / _INFO,
        label=_named(record[label], names),
        group=_text(record.get("group")),
        part=_PARTS[split],
        load=functools.partial(_bytes, source, row, image),
      )


def _text(value: Any) -> str:
  return value.decode() if isinstance(value, bytes) else ""


def _named(label: Any, names: tuple[str, ...]) -> str | tuple[str, ...] | None:
  """A number, -1 where there is none, or a sequence of numbers."""
  if np.ndim(label):
    return tuple(names[number] for number in label)
  return names[label] if label >= 0 else None


def _bytes(source: Any, row: int, image: str) -> bytes:
  return source[row][image]
