"""Prepared collections as a set to train on; the pixels are those of OpenCV, at their own size."""

import dataclasses
import pathlib
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest

from medjax import contract, data, settings
from medjax import mesh as mesh_lib
from medjax.data import feed as feed_lib

COUNTS = (7, 4)


def picture(collection: int, image: int) -> np.ndarray:
  return np.random.default_rng((collection, image)).integers(0, 256, (16, 16), np.uint8)


def prepared(folder: pathlib.Path, number: int, size: int = 16) -> pathlib.Path:
  """A collection of so many images, the last of them a copy of the first."""
  source, out = folder / f"source{number}", folder / f"out{number}-{size}"
  source.mkdir(exist_ok=True)
  for image in range(COUNTS[number]):
    cv2.imwrite(str(source / f"{image}.png"), picture(number, image % (COUNTS[number] - 1)))
  command = ["prepare", str(source), f"--out={out}", f"--size={size}", "--keep-paths"]
  subprocess.run([sys.executable, "-m", "medjax.data", *command], check=True)
  return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  return tmp_path_factory.mktemp("collections")


@pytest.fixture(scope="module")
def roots(folder) -> list[str]:
  return [str(prepared(folder, number)) for number in range(2)]


@pytest.fixture
def cfg(roots, tmp_path) -> settings.Collection:
  feeding = settings.Feeding(weights=(1.0, 1.0))
  return settings.Collection(
    root=roots[0], more=(roots[1],), image_size=16, cache=str(tmp_path), feeding=feeding
  )


def batches(cfg: settings.Collection, part, kind: str, steps: int) -> dict[str, np.ndarray]:
  mesh = mesh_lib.make(jax.devices()[:1])
  feed = feed_lib.training(part, 4, 0, mesh, kind, cfg=cfg.feeding)
  ticket = feed.next(steps)
  take = jax.jit(jax.vmap(feed.take, (None, 0)))
  got = jax.device_get(take(feed.resident, ticket))
  feed.close()
  return got


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_two_are_mixed_by_weights(cfg, kind):
  made = data.make(dataclasses.replace(cfg, feed=kind))
  part = made.parts["train"]
  assert len(part) == 9
  assert made.notes[:2] == (
    "1 images of out0-16 are copies of others and left out",
    "1 images of out1-16 are copies of others and left out",
  )
  got = batches(cfg, part, kind, 12)
  assert np.bincount(part.sets[got[contract.INDEX].ravel()]).tolist() == [24, 24]
  assert (got[contract.LABEL] == contract.UNLABELLED).all()
  known = {picture(n, image).tobytes() for n, count in enumerate(COUNTS) for image in range(count)}
  seen = {image.tobytes() for image in got[contract.IMAGE].reshape(-1, 16, 16)}
  assert len(seen) == 9
  assert seen <= known


def test_no_second_copy_is_kept_of_what_is_decoded(cfg, tmp_path):
  made = data.make(cfg)
  assert not list(tmp_path.rglob("*.array_record"))
  images = np.stack([picture(n, image) for n in range(2) for image in range(COUNTS[n] - 1)]) / 255
  np.testing.assert_allclose(made.info.mean[0], images.mean(), rtol=1e-12)
  np.testing.assert_allclose(made.info.std[0], images.std(), rtol=1e-12)


def test_another_size_or_colour_is_made_once(cfg, tmp_path):
  made = data.make(dataclasses.replace(cfg, image_size=8, channels=3, feed="streamed"))
  assert made.parts["train"].fetch(0).shape == (8, 8, 3)
  assert len(list(tmp_path.rglob("*.array_record"))) == 1


def test_copies_may_stay(cfg):
  kept = data.make(dataclasses.replace(cfg, duplicates="keep"))
  assert len(kept.parts["train"]) == 11


def test_a_column_of_the_manifest_is_the_label(cfg):
  made = data.make(dataclasses.replace(cfg, label="path", split=settings.Split(val=0, test=0)))
  assert made.info.classes == ("0.png", "1.png", "2.png", "3.png", "4.png", "5.png")
  assert made.info.class_counts == (2, 2, 2, 1, 1, 1)
  with pytest.raises(KeyError, match=r"no column data\.label='paht'.* Did you mean 'path'"):
    data.make(dataclasses.replace(cfg, label="paht"))
  with pytest.raises(ValueError, match=r"data\.label=modality: 9 of 9 images have none"):
    data.make(dataclasses.replace(cfg, label="modality"))


def test_columns_that_are_kept_reach_the_parts_and_no_network(cfg):
  made = data.make(dataclasses.replace(cfg, kept=("path", "modality")))
  facts = made.parts["train"].facts
  assert list(facts) == ["path", "modality"] and set(facts["modality"]) == {""}
  assert sorted(set(facts["path"])) == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"]
  assert made.info.metadata == 0
  with pytest.raises(KeyError, match=r"no column data\.kept='sight'"):
    data.make(dataclasses.replace(cfg, kept=("sight",)))


def test_different_sizes_are_not_mixed(cfg, folder):
  other = str(prepared(folder, 1, size=8))
  with pytest.raises(ValueError, match=r"cannot be mixed: .*16 px, 8 bit, .*8 px, 8 bit"):
    data.make(dataclasses.replace(cfg, more=(other,)))


def test_a_folder_that_is_no_collection_says_how_to_make_one(cfg, folder):
  with pytest.raises(FileNotFoundError, match=r"python -m medjax\.data prepare"):
    data.make(dataclasses.replace(cfg, root=str(folder)))


def test_where_nothing_else_is_known_sets_are_sources(cfg):
  splits = data.make(dataclasses.replace(cfg, target="source"))
  assert splits.info.classes == ("out0-16/0", "out1-16/0")
  part = splits.parts["train"]
  np.testing.assert_array_equal(part.labels, part.sets)
