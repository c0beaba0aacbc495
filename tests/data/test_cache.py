"""Images are decoded once and kept; those that cannot be are listed and left out."""

import concurrent.futures
import csv
import dataclasses
import errno
import os
import pathlib
import threading

import numpy as np
from PIL import Image
import pytest
import trees_of_files

from medjax import data, settings
from medjax.data import cache, collection, readers


@pytest.fixture
def cfg(tmp_path):
  return settings.ImageFolder(
    root=str(tmp_path / "set"), cache=str(tmp_path / "cache"), image_size=10
  )


class TestCache:
  def test_a_second_run_decodes_nothing(self, cfg, monkeypatch):
    trees_of_files.classes(pathlib.Path(cfg.root))
    first = data.make(cfg)
    monkeypatch.setattr(readers, "read", lambda *_: pytest.fail("decoded again"))
    second = data.make(cfg)
    for name, part in first.parts.items():
      np.testing.assert_array_equal(part.images, second.parts[name].images)
    assert first.info == second.info
    assert len(os.listdir(cfg.cache)) == 1

  def test_an_entry_is_a_prepared_collection(self, cfg):
    pixels = trees_of_files.classes(pathlib.Path(cfg.root))
    data.make(cfg)
    found = collection.open(pathlib.Path(cfg.cache, *os.listdir(cfg.cache)))
    assert found.table["id"].to_pylist() == sorted(pixels)
    np.testing.assert_array_equal(
      found.read(np.arange(24)), [pixels[name] for name in sorted(pixels)]
    )

  def test_content_size_and_channels_make_an_entry(self, cfg):
    pixels = trees_of_files.classes(pathlib.Path(cfg.root))
    data.make(cfg)
    data.make(dataclasses.replace(cfg, image_size=8))
    data.make(dataclasses.replace(cfg, channels=1))
    assert len(os.listdir(cfg.cache)) == 3
    changed = 255 - pixels["a/000.png"]
    Image.fromarray(changed).save(pathlib.Path(cfg.root) / "a/000.png")
    made = data.make(cfg)
    (found,) = [
      p.images[list(p.ids).index("a/000.png")] for p in made.parts.values() if "a/000.png" in p.ids
    ]
    np.testing.assert_array_equal(found, changed)
    assert len(os.listdir(cfg.cache)) == 4

  def test_the_split_is_no_part_of_it(self, cfg):
    trees_of_files.classes(pathlib.Path(cfg.root))
    data.make(cfg)
    data.make(dataclasses.replace(cfg, split=settings.Split(mode="grouped", seed=1)))
    assert len(os.listdir(cfg.cache)) == 1

  def test_two_runs_at_once(self, cfg):
    trees_of_files.classes(pathlib.Path(cfg.root))
    rows = data.DATASETS[settings.ImageFolder](cfg)
    both = threading.Barrier(2, timeout=30)

    def read(row):
      if row == 5:
        both.wait()  # each run is in the middle of its decoding
      return rows.read(row)

    together = dataclasses.replace(rows, read=read)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      runs = [pool.submit(cache.load, together, cfg) for _ in range(2)]
      one, other = [run.result() for run in runs]
    every = np.arange(24)
    np.testing.assert_array_equal(one.read(every), other.read(every))
    np.testing.assert_array_equal(
      one.read(every), [readers.read(rows.read(i), 10, 3) for i in range(24)]
    )
    assert len(os.listdir(cfg.cache)) == 1

  def test_a_killed_run_leaves_no_entry(self, cfg, monkeypatch):
    trees_of_files.classes(pathlib.Path(cfg.root))
    with monkeypatch.context() as patch:
      patch.setattr(np, "save", _full)  # after the pixels, before the rest
      with pytest.raises(OSError, match=r"No space left.*--config\.data\.cache=FOLDER"):
        data.make(cfg)
    assert os.listdir(cfg.cache) == []
    assert data.make(cfg).info.train_size == 18

  def test_unwritable_cache(self, cfg, tmp_path):
    trees_of_files.classes(pathlib.Path(cfg.root))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot keep decoded images in .*Not a directory"):
      data.make(dataclasses.replace(cfg, cache=str(tmp_path / "file" / "cache")))


def _full(*_):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestUnreadable:
  @pytest.fixture
  def damaged(self, cfg):
    trees_of_files.classes(pathlib.Path(cfg.root), per_class=30)
    root = pathlib.Path(cfg.root)
    (root / "a/zero.png").write_bytes(b"")
    (root / "b/half.png").write_bytes((root / "b/001.png").read_bytes()[:100])
    (root / "b/text.jpg").write_text("no picture\n" * 30)
    return dataclasses.replace(cfg, max_unreadable=0.1)

  @pytest.mark.parametrize("feed", ["resident", "streamed"])
  def test_they_are_listed_and_left_out(self, damaged, tmp_path, feed):
    listing = tmp_path / "quarantine.tsv"
    for _ in range(2):  # decoded, then from the cache
      made = data.make(dataclasses.replace(damaged, feed=feed), listing)
      with listing.open(newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
      assert rows[0] == ["id", "reason"]
      assert [tuple(row) for row in rows[1:]] == list(made.quarantined)
      reasons = dict(made.quarantined)
      assert sorted(reasons) == ["a/zero.png", "b/half.png", "b/text.jpg"]
      assert "0 bytes" in reasons["a/zero.png"]
      assert reasons["b/half.png"].startswith("damaged")
      assert "no PNG" in reasons["b/text.jpg"]
      left = [name for part in made.parts.values() for name in part.ids]
      assert len(left) == 60
      assert not set(left) & set(reasons)
      assert "3 unreadable files are left out" in made.notes

  def test_statistics_leave_them_out(self, damaged):
    made = data.make(damaged)
    np.testing.assert_allclose(
      made.info.mean, made.parts["train"].images.mean((0, 1, 2)) / 255, rtol=1e-12
    )

  def test_too_many_stop_the_run(self, damaged, tmp_path):
    listing = tmp_path / "quarantine.tsv"
    with pytest.raises(ValueError, match=r"3 of 63 images cannot be read") as caught:
      data.make(dataclasses.replace(damaged, max_unreadable=0.04), listing)
    text = str(caught.value)
    assert "a/zero.png: empty file (0 bytes)" in text
    assert str(listing) in text
    assert "--config.data.max_unreadable=0.048" in text  # 3 / 63, rounded up
    assert len(listing.read_text().splitlines()) == 4
    assert data.make(dataclasses.replace(damaged, max_unreadable=0.048)).quarantined

  def test_other_images_stay_in_their_parts(self, damaged):
    before = data.make(damaged)
    for name in ("a/zero.png", "b/half.png", "b/text.jpg"):
      Image.new("L", (5, 5)).save(pathlib.Path(damaged.root) / name, "PNG")
    after = data.make(damaged)
    assert not after.quarantined
    for name, part in before.parts.items():
      assert set(part.ids) <= set(after.parts[name].ids)

  def test_a_mended_set_removes_the_list(self, damaged, tmp_path):
    listing = tmp_path / "quarantine.tsv"
    data.make(damaged, listing)
    for name in ("a/zero.png", "b/half.png", "b/text.jpg"):
      (pathlib.Path(damaged.root) / name).unlink()
    data.make(damaged, listing)
    assert not listing.exists()

  def test_a_disk_that_recovers_is_asked_again(self, cfg):
    """What failed for the disk's sake keeps size and time of change."""
    trees_of_files.classes(pathlib.Path(cfg.root), per_class=4)
    rows = data.DATASETS[settings.ImageFolder](cfg)
    ill = True

    def read(row):
      if ill and row == 2:
        raise OSError(errno.EIO, "Input/output error")
      return rows.read(row)

    flaky = dataclasses.replace(rows, read=read)
    assert list(cache.load(flaky, cfg).unreadable) == [2]
    assert list(cache.load(flaky, cfg).unreadable) == [2]
    ill = False
    healed = cache.load(flaky, cfg)
    assert not healed.unreadable
    np.testing.assert_array_equal(healed.read(np.array([2]))[0], readers.read(rows.read(2), 10, 3))

  def test_a_class_that_is_all_unreadable(self, cfg):
    root = pathlib.Path(cfg.root)
    trees_of_files.classes(root)
    for file in (root / "b").iterdir():
      file.write_bytes(b"")
    with pytest.raises(ValueError, match="class 'b' has no image in train"):
      data.make(dataclasses.replace(cfg, max_unreadable=1.0))
