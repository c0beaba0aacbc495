"""tensorflow-datasets builders of the sets of the papers, without TensorFlow."""

import collections
from concurrent import futures
import dataclasses
import importlib.util
import itertools
import pathlib

import numpy as np
from PIL import Image
import pytest

from medjax import data, settings
from medjax.data import builders, catalogue, readers
from medjax.data.datasets import paper

tfds = pytest.importorskip("tensorflow_datasets")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

REAL = {
  settings.HAM10000: "ham10000",
  settings.CovidCT: "covid_ct",
  settings.ChestXrayKermany: "chest_xray_kermany",
  settings.MNIST: "mnist",
  settings.MedMNIST: "pneumoniamnist",
}


def test_tensorflow_is_not_there():
  """Where it is, the tests below show nothing about doing without."""
  assert importlib.util.find_spec("tensorflow") is None


def _shortened(found: paper.Paper, step: int) -> paper.Paper:
  """The same set with every `step`-th image."""
  return dataclasses.replace(
    found, examples=lambda cfg: itertools.islice(found.examples(cfg), 0, None, step)
  )


def _check(cfg, tmp_path, monkeypatch, step):
  """Prepares a set, reads it back by its name, and compares it with the set's own catalogue."""
  monkeypatch.setitem(data.PAPERS, type(cfg), _shortened(data.PAPERS[type(cfg)], step))
  made = builders.prepare(cfg, tmp_path)
  assert made.info.file_format == tfds.core.FileFormat.ARRAY_RECORD
  want = data.PAPERS[type(cfg)].catalogue(cfg)
  got = data.DATASETS[settings.Tfds](settings.Tfds(root=str(tmp_path), set=made.name))
  assert got.classes == want.classes
  place = {name: row for row, name in enumerate(want.ids)}
  order = [place[name] for name in got.ids]
  assert sorted(order) == list(range(len(want)))
  np.testing.assert_array_equal(got.labels, want.labels[order])
  np.testing.assert_array_equal(got.groups, np.array(want.groups)[order])
  np.testing.assert_array_equal(got.parts, np.where(want.parts == "", "train", want.parts)[order])
  for row in range(0, len(got), max(1, len(got) // 40)):
    source = want.read(order[row])
    if isinstance(source, bytes):
      assert got.read(row) == source  # the file's own bytes
    np.testing.assert_array_equal(readers.read(got.read(row), 28, 3), readers.read(source, 28, 3))
  some = np.random.default_rng(0).integers(0, len(got), 300).tolist()
  with futures.ThreadPoolExecutor(8) as pool:
    assert list(pool.map(got.read, some)) == [got.read(row) for row in some]
  return made


@pytest.mark.parametrize("kind", REAL)
def test_every_fortieth_image_of_the_real_sets(shared_data, tmp_path, monkeypatch, kind):
  made = _check(kind(root=str(shared_data / REAL[kind])), tmp_path, monkeypatch, 40)
  assert made.info.citation and made.info.description


@pytest.mark.slow
@pytest.mark.parametrize("kind", REAL)
def test_the_whole_real_sets(shared_data, tmp_path, monkeypatch, kind):
  made = _check(kind(root=str(shared_data / REAL[kind])), tmp_path, monkeypatch, 1)
  counts = {name: split.num_examples for name, split in made.info.splits.items()}
  assert (
    counts
    == {
      settings.HAM10000: dict(train=10_015),
      settings.CovidCT: dict(train=425, validation=118, test=203),
      settings.ChestXrayKermany: dict(train=5_216, test=624),
      settings.MNIST: dict(train=60_000, test=10_000),
      settings.MedMNIST: dict(train=4_708, validation=524, test=624),
    }[kind]
  )


def test_metadata_are_features(shared_data, tmp_path, monkeypatch):
  cfg = settings.HAM10000(root=str(shared_data / "ham10000"))
  _check(cfg, tmp_path, monkeypatch, 200)
  skip = {"image": tfds.decode.SkipDecoding()}
  source = tfds.data_source("ham10000", data_dir=tmp_path, split="train", decoders=skip)
  rows = data.PAPERS[settings.HAM10000].catalogue(cfg)
  known = dict(zip(rows.ids, rows.metadata, strict=True))
  for record in source:
    want = known[record["id"].decode()]
    assert record["sex"].decode() == want["sex"]
    assert record["localization"].decode() == want["localization"]
    np.testing.assert_equal(record["age"], np.float32(want["age"] or "nan"))


def test_multi_label_sets_and_missing_values(tmp_path, monkeypatch):
  _chest(tmp_path / "chest")
  cfg = settings.ChestXray14(root=str(tmp_path / "chest"))
  _check(cfg, tmp_path / "out", monkeypatch, 1)
  got = data.DATASETS[settings.Tfds](settings.Tfds(root=str(tmp_path / "out"), set="chestxray14"))
  assert got.multi_label
  assert sorted(got.labels.sum(1).tolist()) == [0, 1, 2]


def _chest(root: pathlib.Path) -> None:
  root.mkdir()
  names = ["00000001_000.png", "00000002_000.png", "00000003_000.png"]
  lines = ["Image Index,Finding Labels,Patient Age,Patient Gender,View Position"]
  findings = ["Mass|Nodule", "No Finding", "Hernia"]
  for name, labels in zip(names, findings, strict=True):
    lines.append(f"{name},{labels},414,F,AP")
    Image.new("L", (4, 4), len(labels)).save(root / name)
  (root / "Data_Entry_2017.csv").write_text("\n".join(lines))
  (root / "train_val_list.txt").write_text("\n".join(names[:2]))
  (root / "test_list.txt").write_text(names[2])


def test_choices_are_builder_configs():
  names = [
    builders.builder(cfg, "nowhere").info.full_name
    for cfg in (
      settings.BreakHis(root="a", image_size=9),
      settings.BreakHis(root="b", fold=2, task="types"),
      settings.MedMNIST(set="pathmnist"),
      settings.MedMNIST(set="pathmnist", pixels=64),
    )
  ]
  assert names == [
    "breakhis/1.0.0",
    "breakhis/task_types-fold_2/1.0.0",
    "pathmnist/1.0.0",
    "pathmnist/pixels_64/1.0.0",
  ]


def test_a_missing_set_says_how_to_get_it(tmp_path):
  with pytest.raises(FileNotFoundError, match="HAM10000_metadata as CSV"):
    builders.prepare(settings.HAM10000(root=str(tmp_path / "none")), tmp_path / "out")


def test_only_sets_of_the_papers_have_builders(tmp_path):
  with pytest.raises(KeyError, match="phantom is no set of the papers; these are: covid_ct, "):
    builders.builder(settings.Phantom(), tmp_path)


class TestPreparedByOthers:
  """Sets that medjax does not know, in the layouts of tensorflow-datasets' own builders."""

  def _prepare(self, folder, features, records, name="colours"):
    class Colours(tfds.core.GeneratorBasedBuilder, skip_registration=True):
      VERSION = tfds.core.Version("2.10.0")

      def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

      def _split_generators(self, dl_manager):
        return {split: iter(enumerate(own)) for split, own in records.items()}

      def _generate_examples(self):
        pass

    Colours.name = name
    Colours(data_dir=folder, file_format="array_record").download_and_prepare()

  @pytest.fixture
  def pictures(self, tmp_path):
    for i in range(6):
      image = Image.new("P", (5, 5), i)
      image.putpalette([0, 0, 0, 255, 0, 0] + [9] * 750)
      image.save(tmp_path / f"{i}.png")
    return [str(tmp_path / f"{i}.png") for i in range(6)]

  def _features(self):
    return {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "label": tfds.features.ClassLabel(names=["red", "blue"]),
    }

  def _records(self, pictures):
    return [{"image": p, "label": i % 2} for i, p in enumerate(pictures)]

  def test_splits_are_parts_and_palettes_are_colours(self, tmp_path, pictures):
    own = self._records(pictures)
    splits = {"train": own[:3], "validation": own[3:5], "test": own[5:], "unsupervised": own}
    self._prepare(tmp_path / "out", self._features(), splits)
    rows = data.DATASETS[settings.Tfds](settings.Tfds(root=str(tmp_path / "out"), set="colours"))
    assert collections.Counter(rows.parts.tolist()) == {"train": 3, "val": 2, "test": 1}
    assert rows.classes == ("red", "blue")
    assert rows.groups == rows.ids
    assert rows.notes == ("splits that are no parts are passed over: unsupervised",)
    reds = [readers.read(rows.read(row), 5, 3) for row in range(6)]
    assert any((image == [255, 0, 0]).all() for image in reds)

  def test_what_fits_the_name_or_alone_is_taken(self, tmp_path, pictures):
    features = {"scan": self._features()["image"], "kind": self._features()["label"]}
    records = [{"scan": r["image"], "kind": r["label"]} for r in self._records(pictures)]
    self._prepare(tmp_path / "out", features, {"train": records})
    cfg = settings.Tfds(root=str(tmp_path / "out"), set="colours")
    assert sorted(data.DATASETS[settings.Tfds](cfg).labels.tolist()) == [0, 0, 0, 1, 1, 1]
    features["other"] = features["scan"]
    records = [record | {"other": record["scan"]} for record in records]
    self._prepare(tmp_path / "out", features, {"train": records}, name="twice")
    with pytest.raises(ValueError, match=r"\['other', 'scan'\] could be the image"):
      data.DATASETS[settings.Tfds](dataclasses.replace(cfg, set="twice"))

  def test_a_set_that_is_not_there_is_told(self, tmp_path, pictures):
    self._prepare(tmp_path / "out", self._features(), {"train": self._records(pictures)})
    for name in ("colour", ""):
      with pytest.raises(FileNotFoundError, match=r"there is colours\.(.|\n)*download_and_prepare"):
        data.DATASETS[settings.Tfds](settings.Tfds(root=str(tmp_path / "out"), set=name))

  def test_other_file_formats_are_refused(self, tmp_path, pictures):
    self._prepare(tmp_path / "out", self._features(), {"train": self._records(pictures)})
    file = tmp_path / "out/colours/2.10.0/dataset_info.json"
    assert "array_record" in file.read_text()
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="is prepared as tfrecord"):
      data.DATASETS[settings.Tfds](settings.Tfds(root=str(tmp_path / "out"), set="colours"))


def test_example_reads_its_file_or_a_piece_of_it(tmp_path):
  (tmp_path / "a").write_bytes(b"whole")
  assert catalogue.Example("a", tmp_path / "a", None).read() == b"whole"
  assert catalogue.Example("a", tmp_path / "a", None, load=lambda: b"piece").read() == b"piece"
