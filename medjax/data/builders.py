"""Sets of the papers as tensorflow-datasets builders; TensorFlow is not needed.

  from medjax import settings
  from medjax.data import builders

  builders.prepare(settings.HAM10000(root="FOLDER"), "DATA_FOLDER")

Records keep the bytes of the image files. Read them with `tensorflow_datasets.data_source`, or here
with `data.name=tfds:ham10000`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import dataclasses
import io
import itertools
import math
import operator
import pathlib
import types
from typing import Any

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

from medjax import data, settings
from medjax.data import catalogue as catalogue_lib
from medjax.data import metadata
from medjax.data.datasets import paper

_SPLITS = {"": "train", "train": "train", "val": "validation", "test": "test"}


def prepare(cfg: settings.Data, data_dir: str | pathlib.Path) -> tfds.core.DatasetBuilder:
  """Writes a set of the papers as array_record below a data folder, unless it is there.

  Raises:
    KeyError: no set of the papers.
    FileNotFoundError: the set is not at `cfg.root`; tells how to get it.
  """
  made = builder(cfg, data_dir)
  if not made.data_path.exists():
    next(iter(data.PAPERS[type(cfg)].examples(cfg)))  # tells what is missing better than tfds does
  config = tfds.download.DownloadConfig(manual_dir=cfg.root)
  made.download_and_prepare(download_config=config)
  return made


def builder(cfg: settings.Data, data_dir: str | pathlib.Path) -> tfds.core.DatasetBuilder:
  """The builder of a set: its name, or that of `cfg.set`; other choices make a builder config."""
  if type(cfg) not in data.PAPERS:
    variants = settings.VARIANTS[settings.Data].values()
    known = ", ".join(variant.name for variant in variants if type(variant) in data.PAPERS)
    raise KeyError(f"{cfg.name} is no set of the papers; these are: {known}")
  found = data.PAPERS[type(cfg)]
  body = {
    "name": cfg.set if isinstance(cfg, settings.MedMNIST) else cfg.name,
    "cfg": cfg,
    "paper": found,
    "VERSION": tfds.core.Version("1.0.0"),
    "MANUAL_DOWNLOAD_INSTRUCTIONS": found.download,
  }
  kind = types.new_class(
    type(cfg).__name__,
    (_Builder,),
    {"skip_registration": True},
    operator.methodcaller("update", body),
  )
  choices = _choices(cfg)
  config = tfds.core.BuilderConfig(name=choices) if choices else None
  return kind(data_dir=data_dir, file_format="array_record", config=config)


def _choices(cfg: settings.Data) -> str:
  """What is chosen of a set otherwise than by default, such as `fold_2`."""
  shared = {field.name for field in dataclasses.fields(settings.Data)} | {"set"}
  own = [field for field in dataclasses.fields(cfg) if field.name not in shared]
  changed = [field for field in own if getattr(cfg, field.name) != field.default]
  return "-".join(f"{field.name}_{getattr(cfg, field.name)}".lower() for field in changed)


class _Builder(  # type: ignore[call-arg]  # the keyword is read by a metaclass
  tfds.core.GeneratorBasedBuilder, skip_registration=True
):
  """What the builders of all sets share; `builder` makes one of each."""

  cfg: settings.Data
  paper: paper.Paper

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.paper.traps,
      citation=self.paper.citation,
      license=self.paper.licence,
      features=tfds.features.FeaturesDict(_features(self.paper, self.cfg)),
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
    cfg = dataclasses.replace(self.cfg, root=str(dl_manager.manual_dir))
    split = lambda example: _SPLITS[example.part]  # noqa: E731
    ordered = sorted(self.paper.examples(cfg), key=split)
    grouped = {name: list(own) for name, own in itertools.groupby(ordered, key=split)}
    return {name: self._generate_examples(own) for name, own in grouped.items()}

  def _generate_examples(
    self, examples: Iterable[catalogue_lib.Example]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for example in examples:
      record = {
        "id": example.id,
        "group": example.group or example.id,
        "image": _encoded(example.read()),
        "label": example.label,
      }
      yield example.id, record | _known(example.metadata, self.paper.fields)


def _features(of: paper.Paper, cfg: settings.Data) -> dict[str, Any]:
  label = tfds.features.ClassLabel(names=list(of.classes(cfg)))
  own = {field.name: _feature(field) for field in of.fields}
  return own | {
    "id": tfds.features.Text(),
    "group": tfds.features.Text(),
    "image": tfds.features.Image(),
    "label": tfds.features.Sequence(label) if of.multi_label(cfg) else label,
  }


def _feature(field: metadata.Field) -> Any:
  number = isinstance(field, metadata.Number)
  return tfds.features.Scalar(np.float32) if number else tfds.features.Text()


def _known(record: metadata.Record, fields: Iterable[metadata.Field]) -> dict[str, Any]:
  """NaN and empty text where it is not known."""
  unknown = {f.name: math.nan if isinstance(f, metadata.Number) else "" for f in fields}
  known = {name: value for name, value in record.items() if value not in (None, "")}
  return unknown | {name: known[name] for name in unknown.keys() & known}


def _encoded(source: bytes | np.ndarray) -> bytes:
  """Bytes as they are in the file; pixels out of a larger file as PNG, which loses nothing."""
  if isinstance(source, bytes):
    return source
  stream = io.BytesIO()
  Image.fromarray(source).save(stream, "PNG")
  return stream.getvalue()
