"""A pool for pretraining against the sets that are scored: what shows them is left out."""

import pathlib

import cv2
import numpy as np
import pytest
import trees_of_files as trees

from medjax import data, settings

CLASSES = ("ill", "well")


def target(tmp_path: pathlib.Path) -> settings.ImageFolder:
  """Of each class eight pictures to train on, and four to test on."""
  for part, seeds in (("train", range(8)), ("test", range(20, 24)), ("val", range(30, 34))):
    for label, name in enumerate(CLASSES):
      for seed in seeds:
        pixels = trees.picture(100 * label + seed)
        trees.write(tmp_path / f"target/{part}/{name}/{seed}.png", trees.encoded(pixels))
  return of(tmp_path, "target")


def of(tmp_path: pathlib.Path, name: str, **more) -> settings.ImageFolder:
  cache = f"{tmp_path}/cache"
  return settings.ImageFolder(
    root=f"{tmp_path}/{name}", image_size=64, channels=1, cache=cache, **more
  )


@pytest.fixture
def pool(tmp_path) -> settings.ImageFolder:
  """Twenty pictures of its own, and eight that show what the target holds; groups of two."""
  put = lambda name, pixels, *how, **options: trees.write(  # noqa: E731
    tmp_path / "pool/any" / name, trees.encoded(pixels, *how, **options)
  )
  for i in range(20):
    put(f"own{i:02d}_p{i // 2}.png", trees.picture(500 + i))
  tested = trees.picture(21)
  put("equal_p90.png", tested)
  put("friend_p90.png", trees.picture(600))  # of the patient of the one before
  put("jpeg_p91.jpg", tested, "JPEG", quality=50)
  put("larger_p92.png", cv2.resize(tested, (140, 140), interpolation=cv2.INTER_CUBIC))
  put("negative_p93.png", 255 - tested)
  put("val_p94.png", trees.picture(132))
  put("train_p95.png", trees.picture(3))  # which may be seen without its label
  put("turned_p96.png", np.rot90(tested).copy())
  trees.write(tmp_path / "pool/other/own_p97.png", trees.encoded(trees.picture(601)))
  whole = settings.Split(val=0, test=0)
  return of(tmp_path, "pool", group_pattern=r"_(p\d+)", split=whole)


GONE = {"equal_p90", "friend_p90", "jpeg_p91", "larger_p92", "negative_p93", "val_p94"}


def names(splits) -> set[str]:
  return {pathlib.Path(name).stem for name in splits.parts["train"].ids}


def test_what_shows_a_scored_image_is_left_out_with_its_group(pool, tmp_path):
  scored = target(tmp_path)
  before, after = data.make(pool), data.make(pool, apart=[scored])
  assert names(before) - names(after) == GONE and names(after) < names(before)
  assert after.info.train_size == len(names(before)) - len(GONE)
  (said,) = [note for note in after.notes if note.startswith("audit:")]
  assert "6 of 29 images are left out, 5 of them for showing 2 of the 16" in said
  assert not [note for note in before.notes if note.startswith("audit:")]


def test_an_audit_is_made_once_and_anew_for_another_target(pool, tmp_path):
  scored = target(tmp_path)
  first = data.make(pool, apart=[scored])
  (kept,) = (tmp_path / "cache").glob("audit-*.npz")
  found = {name: values.copy() for name, values in np.load(kept).items()}
  np.savez(kept, near=found["near"][:1], theirs=found["theirs"])
  assert len(names(data.make(pool, apart=[scored]))) > len(names(first))  # it was read
  trees.write(tmp_path / "target/test/ill/more.png", trees.encoded(trees.picture(500)))
  anew = names(data.make(pool, apart=[scored]))
  assert names(first) - anew == {"own00_p0", "own01_p0"}
  assert len(list((tmp_path / "cache").glob("audit-*.npz"))) == 2


def test_a_set_is_no_pool_for_its_own_test_part(tmp_path):
  """The parts of one set do not show each other, and only the training part is looked at."""
  scored = target(tmp_path)
  found = data.make(scored, apart=[scored])
  assert found.info.train_size == 16 and len(found.parts["test"]) == 8
  assert any("audit: 0 of 16 images are left out" in note for note in found.notes)
