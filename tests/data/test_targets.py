"""Where an image is from as its label, by layouts that tell it."""

import pathlib
import zipfile

import cv2
import numpy as np
import pyarrow as pa
import pytest

from medjax import data, settings
from medjax.data import collection
from medjax.data.datasets import collections, image_folder


def _png(number: int) -> bytes:
  image = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
  return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def zips(tmp_path) -> pathlib.Path:
  for place, name in enumerate(("Hand", "CXR")):
    with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
      for number in range(3):
        archive.writestr(f"{number}.png", _png(10 * place + number))
  return tmp_path


def _cfg(kind, root: pathlib.Path, **more):
  return kind(root=str(root), image_size=8, channels=1, cache=str(root / ".cache"), **more)


def test_zips_are_sources(zips):
  splits = data.make(_cfg(settings.ZipFolder, zips, target="source"))
  assert splits.info.classes == ("CXR", "Hand") and splits.info.target == "source"
  train = splits.parts["train"]
  assert [splits.info.classes[label] for label in train.labels] == [
    name.split(".zip")[0] for name in train.ids
  ]
  assert data.make(_cfg(settings.ZipFolder, zips)).info.target == "label"


def test_one_source_teaches_nothing(zips):
  (zips / "Hand.zip").unlink()
  with pytest.raises(ValueError, match=r"all images are of 'CXR': set data\.target=label"):
    data.make(_cfg(settings.ZipFolder, zips, target="source"))


def test_a_set_without_sources_is_told():
  with pytest.raises(ValueError, match=r"this set does not tell them: set data\.target=label"):
    data.make(settings.Phantom(patients=4, image_size=16, target="source"))


def test_folders_are_sources(tmp_path):
  for name in ("us", "mr"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.png").write_bytes(_png(len(name)))
  rows = image_folder.catalogue(settings.ImageFolder(root=str(tmp_path)))
  assert dict(zip(rows.ids, rows.sources, strict=True)) == {"mr/a.png": "mr", "us/a.png": "us"}


def test_modality_and_body_part_are_sources_and_else_the_set(tmp_path):
  columns = dict(
    modality=["CT", "CT", "", ""], body_part=["CHEST", "", "HEAD", ""], source=[0, 1, 0, 1]
  )
  about = dict(size=8, channels=1, dtype=np.dtype("u1"), synthetic=False)
  about["reading"] = settings.Reading()
  opened = collection.Collection(folder=tmp_path / "pool", table=pa.table(columns), **about)
  found = collections._sources(opened, np.array([3, 2, 1, 0]))
  assert found == ["pool/1", "HEAD", "CT", "CT CHEST"]
