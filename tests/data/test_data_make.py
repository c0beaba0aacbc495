"""Parts made of a set: what is in which, what is refused, and what stands in the notes."""

import csv
import dataclasses
import os
import pathlib
import zipfile

import jax
import numpy as np
from PIL import Image
import pytest
import trees_of_files

from medjax import contract, data, settings
from medjax.data import feed, readers


@pytest.fixture
def cfg(tmp_path):
  return settings.ImageFolder(
    root=str(tmp_path / "set"), cache=str(tmp_path / "cache"), image_size=10
  )


def test_every_image_is_in_one_part_with_its_pixels(cfg):
  pixels = trees_of_files.classes(pathlib.Path(cfg.root))
  made = data.make(cfg)
  assert sorted(name for part in made.parts.values() for name in part.ids) == sorted(pixels)
  for name, part in made.parts.items():
    assert part.name == name
    assert part.labels.dtype == np.int32
    assert part.images.dtype == np.uint8
    for row, image in enumerate(part.ids):
      np.testing.assert_array_equal(part.images[row], pixels[image])
      np.testing.assert_array_equal(part.fetch(row), pixels[image])
      assert made.info.classes[part.labels[row]] == image.split("/")[0]
  assert (made.feed, made.leaky, made.quarantined) == ("resident", False, ())


@pytest.mark.parametrize("feed", ["resident", "streamed"])
@pytest.mark.parametrize("channels", [1, 3])
def test_info_describes_the_training_part(cfg, feed, channels):
  trees_of_files.classes(pathlib.Path(cfg.root), size=17)
  made = data.make(dataclasses.replace(cfg, feed=feed, channels=channels))
  train = made.parts["train"]
  pixels = np.stack([train.fetch(row) for row in range(len(train))]) / 255
  np.testing.assert_allclose(made.info.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(made.info.std, pixels.std((0, 1, 2)), rtol=1e-12)
  assert made.info.class_counts == tuple(np.bincount(train.labels).tolist())
  assert made.info.train_size == len(train)
  assert made.info.image_shape == (10, 10, channels)
  assert made.info.classes == ("a", "b")
  assert not made.info.synthetic


def test_flat_images_have_no_deviation(cfg):
  for name in "ab":
    (pathlib.Path(cfg.root) / name).mkdir(parents=True)
    for i in range(4):
      Image.new("L", (10, 10), 77).save(pathlib.Path(cfg.root) / name / f"{i}.png")
  assert data.make(cfg).info.std == (0.0, 0.0, 0.0)


def test_feed_is_chosen_by_size(cfg):
  trees_of_files.classes(pathlib.Path(cfg.root))
  gigabytes = 24 * 10 * 10 * 3 / 1e9
  within = data.make(dataclasses.replace(cfg, resident_gb=gigabytes))
  assert within.feed == "resident"
  assert any(note.startswith("feed: resident, since 24 images") for note in within.notes)
  beyond = data.make(dataclasses.replace(cfg, resident_gb=gigabytes * 0.99))
  assert beyond.feed == "streamed"
  assert any(note.startswith("feed: streamed, since") for note in beyond.notes)
  assert all(part.images is None for part in beyond.parts.values())
  assert len(os.listdir(cfg.cache)) == 1  # both read one collection


def test_mistakes_in_the_split_cost_no_decoding(cfg, monkeypatch):
  trees_of_files.classes(pathlib.Path(cfg.root), per_class=2)
  monkeypatch.setattr(readers, "read", lambda *_: pytest.fail("decoded"))
  with pytest.raises(ValueError, match="class 'a' has no image in"):
    data.make(cfg)


def test_a_group_in_two_parts_stops_the_run(cfg):
  root = pathlib.Path(cfg.root)
  for part in ("train", "test"):
    trees_of_files.classes(root / part)
  with pytest.raises(
    ValueError, match=r"12 groups stand in more than one part.*000 \(train, test\)"
  ):
    data.make(dataclasses.replace(cfg, group_pattern=r"\d+", split=settings.Split(val=0.0)))


def test_more_frames_than_one_a_file_are_refused(cfg):
  more = dataclasses.replace(cfg, reading=settings.Reading(frames="every:2:8"))
  with pytest.raises(ValueError, match="prepare FOLDER --out OUT --frames every:2:8"):
    data.make(more)


def test_16_bit_files_are_scaled(cfg):
  root = pathlib.Path(cfg.root)
  trees_of_files.classes(root)
  ramp = np.linspace(0, 65535, 100).astype(np.uint16).reshape(10, 10)
  Image.fromarray(ramp).save(root / "a/deep.png")
  made = data.make(cfg)
  assert not made.quarantined
  (found,) = [
    p.images[list(p.ids).index("a/deep.png")] for p in made.parts.values() if "a/deep.png" in p.ids
  ]
  np.testing.assert_array_equal(found[..., 0], np.rint(ramp / 257.0))


def test_zips_are_all_training(tmp_path, cfg):
  pixels = trees_of_files.classes(tmp_path / "unpacked", channels=1)
  (tmp_path / "zips").mkdir()
  for source in "ab":
    with zipfile.ZipFile(tmp_path / "zips" / f"{source}.zip", "w") as archive:
      for name in sorted(pixels):
        if name.startswith(source):
          archive.write(tmp_path / "unpacked" / name, name)
  made = data.make(settings.ZipFolder(root=str(tmp_path / "zips"), cache=cfg.cache, image_size=10))
  assert list(made.parts) == ["train"]
  assert made.info.classes == ("a", "b")
  train = made.parts["train"]
  np.testing.assert_array_equal(train.images[..., 0], np.stack([pixels[n] for n in sorted(pixels)]))


def test_covid_ct_official_split_runs_and_tells_its_leaks(shared_data, cfg):
  covid = settings.CovidCT(root=str(shared_data / "covid_ct"), cache=cfg.cache, image_size=32)
  made = data.make(covid)
  assert [len(made.parts[part]) for part in contract.PARTS] == [425, 118, 203]
  assert made.info.class_counts == (234, 191)
  assert made.leaky
  (note,) = [note for note in made.notes if "LEAKY" in note]
  assert "covid/2020.03.12.20034686-p17 (train, test)" in note
  assert made.quarantined == ()
  for part in made.parts.values():
    for row in range(0, len(part), 40):
      np.testing.assert_array_equal(part.fetch(row), part.images[row])


def test_covid_ct_grouped_split_cuts_nothing(shared_data, cfg):
  made = data.make(
    settings.CovidCT(
      root=str(shared_data / "covid_ct"),
      cache=cfg.cache,
      image_size=16,
      split=settings.Split(mode="grouped"),
    )
  )
  assert not made.leaky
  groups = {name: set(part.groups) for name, part in made.parts.items()}
  assert not groups["train"] & groups["test"]
  assert not groups["train"] & groups["val"]
  assert not groups["val"] & groups["test"]
  assert sum(len(part) for part in made.parts.values()) == 746


def test_colour_mode_does_not_give_the_class_away(shared_data):
  """RGBA stands in one class only; what a network sees must not tell it from RGB."""
  files = sorted((shared_data / "covid_ct/CT_COVID").iterdir())
  file = next(f for f in files if f.read_bytes()[24:26] == b"\x08\x06")  # 8 bits, RGBA
  with Image.open(file) as image:
    plain = np.asarray(image.convert("RGB"))
  np.testing.assert_array_equal(readers.read(file.read_bytes(), 64, 3), readers.fit(plain, 64, 3))


def test_phantom_is_told_to_be_synthetic(cfg):
  made = data.make(settings.Phantom(patients=30, cache=cfg.cache))
  assert made.info.synthetic
  assert "phantom (synthetic)" in made.table


class TestMultiLabel:
  @pytest.fixture
  def many(self, tmp_path):
    """120 images of 40 patients, of whom every other has any of three findings."""
    rng = np.random.default_rng(0)
    lines = ["path,label,group"]
    for i in range(120):
      ill = i // 3 % 2
      findings = [
        name for name, share in (("a", 0.5), ("b", 0.3), ("c", 0.3)) if ill and rng.random() < share
      ]
      lines.append(f"{i}.png,{'|'.join(findings)},p{i // 3}")
      Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return settings.Table(
      root=str(tmp_path / "table.csv"),
      cache=str(tmp_path / "cache"),
      image_size=6,
      channels=1,
      separator="|",
    )

  def test_labels_are_marks_and_statistics_those_of_train(self, many):
    made = data.make(many)
    with pathlib.Path(many.root).open() as stream:
      want = {row["path"]: set(row["label"].split("|")) - {""} for row in csv.DictReader(stream)}
    assert made.info.multi_label and made.info.classes == ("a", "b", "c")
    for part in made.parts.values():
      assert part.labels.dtype == np.float32
      for name, marks in zip(part.ids, part.labels, strict=True):
        assert {made.info.classes[k] for k in np.flatnonzero(marks)} == want[name]
    counts = made.parts["train"].labels.sum(0).astype(int)
    assert made.info.class_counts == tuple(counts.tolist())

  def test_every_part_has_its_share_of_each_label_and_of_none(self, many):
    made = data.make(many)
    groups = [set(part.groups) for part in made.parts.values()]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 40
    every = np.concatenate([part.labels for part in made.parts.values()])
    test = made.parts["test"].labels
    shares = [
      (marks(test).mean(0) / marks(every).mean(0)).tolist()
      for marks in (lambda a: a > 0, lambda a: ~a.any(1, keepdims=True))
    ]
    assert min(map(min, shares)) > 0.5 and max(map(max, shares)) < 1.6

  def test_a_blank_cell_is_an_error_where_every_image_has_one_label(self, many):
    with pytest.raises(ValueError, match="column 'label' is blank"):
      data.make(dataclasses.replace(many, separator=""))

  @pytest.mark.parametrize("kind", ["resident", "streamed"])
  def test_they_reach_the_batch(self, many, mesh1, kind):
    part = data.make(many).parts["train"]
    batches = feed.training(part, 8, 0, mesh1, kind)
    ticket = batches.next(2)
    for step in range(2):
      batch = batches.take(batches.resident, jax.tree.map(lambda a, s=step: a[s], ticket))
      assert batch[contract.LABEL].shape == (8, 3) and batch[contract.LABEL].dtype == np.float32
      rows = np.asarray(batch[contract.INDEX])
      np.testing.assert_array_equal(batch[contract.LABEL], part.labels[rows])
    batches.close()


class TestSixteenBits:
  @pytest.fixture
  def deep(self, cfg):
    """Class folders of 16-bit ramps, each with another offset."""
    for i in range(24):
      file = pathlib.Path(cfg.root) / "ab"[i % 2] / f"{i:02}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(_ramp(i)).save(file)
    return dataclasses.replace(
      cfg, image_size=100, channels=1, reading=settings.Reading(depth=16, window="full")
    )

  @pytest.mark.parametrize("kind", ["resident", "streamed"])
  def test_they_reach_the_batch(self, deep, mesh1, kind):
    made = data.make(dataclasses.replace(deep, feed=kind))
    part = made.parts["train"]
    batches = feed.training(part, 4, 0, mesh1, kind)
    batch = batches.take(batches.resident, jax.tree.map(lambda a: a[0], batches.next(1)))
    images = np.asarray(batch[contract.IMAGE])
    assert images.dtype == np.uint16
    for image, row in zip(images, np.asarray(batch[contract.INDEX]), strict=True):
      np.testing.assert_array_equal(image[..., 0], _ramp(int(part.ids[row][2:4])))
      assert len(np.unique(image)) > 4000
    batches.close()

  def test_statistics_are_exact(self, deep):
    made = data.make(deep)
    pixels = made.parts["train"].images / 65535
    np.testing.assert_allclose(made.info.mean, pixels.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(made.info.std, pixels.std((0, 1, 2)), rtol=1e-9)

  def test_they_count_twice_and_have_an_entry_of_their_own(self, deep):
    gigabytes = 24 * 100 * 100 / 1e9
    assert data.make(dataclasses.replace(deep, resident_gb=gigabytes)).feed == "streamed"
    assert data.make(dataclasses.replace(deep, resident_gb=2 * gigabytes)).feed == "resident"
    entries = len(os.listdir(deep.cache))
    data.make(dataclasses.replace(deep, reading=settings.Reading()))
    assert len(os.listdir(deep.cache)) == entries + 1


def _ramp(i):
  return (np.arange(10_000) * 6 + 100 * i).astype(np.uint16).reshape(100, 100)


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_an_epoch_of_a_set_visits_every_id_once(shared_data, cfg, mesh1, kind):
  covid = settings.CovidCT(root=str(shared_data / "covid_ct"), cache=cfg.cache, image_size=8)
  made = data.make(dataclasses.replace(covid, feed=kind))
  seen = []
  for part in made.parts.values():
    batches = feed.training(part, 1, 0, mesh1, kind)
    rows = np.asarray(batches.next(len(part))[contract.INDEX]).ravel()
    seen += part.ids[rows].tolist()
    batches.close()
  assert len(seen) == 746
  assert set(seen) == set(data.DATASETS[settings.CovidCT](covid).ids)
