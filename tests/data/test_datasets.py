"""Folders, tables, arrays and zips as sets of images."""

import collections
from concurrent import futures
import csv
import os
import zipfile

import numpy as np
from PIL import Image
import pydicom
from pydicom import uid
import pytest

from medjax import settings
from medjax.data.datasets import image_folder, npz, table, zip_folder


def _image(path, shade=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("L", (8, 8), shade).save(path, "PNG")
  return path


def _tree(root, *names):
  for name in names:
    _image(root / name)
  return root


def _folder(root, **fields):
  return image_folder.catalogue(settings.ImageFolder(root=str(root), **fields))


class TestImageFolder:
  def test_classes_are_folders(self, tmp_path):
    rows = _folder(_tree(tmp_path, "b/1.png", "a/x/y/2.png", "a/3"))
    assert rows.ids == ("a/3", "a/x/y/2.png", "b/1.png")
    assert rows.classes == ("a", "b")
    assert rows.labels.tolist() == [0, 0, 1]
    assert rows.labels.dtype == np.int32
    assert rows.groups == rows.ids
    assert set(rows.parts) == {""}
    assert rows.read(2) == (tmp_path / "b/1.png").read_bytes()
    assert not rows.notes

  def test_parts_are_folders(self, tmp_path):
    names = [f"{part}/{label}/1.png" for part in ("train", "test") for label in "ab"]
    rows = _folder(_tree(tmp_path, *names))
    assert dict(zip(rows.ids, rows.parts.tolist(), strict=True)) == {
      n: n.split("/")[0] for n in names
    }
    assert rows.labels.tolist() == [0, 1, 0, 1]

  def test_clutter_is_passed_over_and_told(self, tmp_path):
    _tree(tmp_path, "a/1.png", "b/1.png", ".git/x.png", "__MACOSX/a/._1.png")
    for name in ("a/.DS_Store", "b/.DS_Store", "b/Thumbs.db", "notes.txt"):
      (tmp_path / name).write_bytes(b"x")
    rows = _folder(tmp_path)
    assert rows.ids == ("a/1.png", "b/1.png")
    assert len(rows.notes) == 1
    assert "passed over 6 files" in rows.notes[0]
    assert ".DS_Store (2)" in rows.notes[0]

  def test_links_are_followed_and_loops_are_not(self, tmp_path):
    elsewhere = _tree(tmp_path / "elsewhere", "1.png")
    root = _tree(tmp_path / "root", "a/1.png")
    (root / "b").symlink_to(elsewhere)
    (root / "a" / "2.png").symlink_to(elsewhere / "1.png")
    (root / "a" / "up").symlink_to(root)
    assert _folder(root).ids == ("a/1.png", "a/2.png", "b/1.png")

  def test_group_pattern(self, tmp_path):
    _tree(tmp_path, "a/p1_1.png", "a/p1_2.png", "b/p1_3.png", "b/p22_1.png")
    assert _folder(tmp_path, group_pattern=r"(p\d+)_").groups == ("p1", "p1", "p1", "p22")
    assert _folder(tmp_path, group_pattern=r"p\d+").groups == ("p1", "p1", "p1", "p22")
    with pytest.raises(ValueError, match=r"fits no part of 3 file names: a/p1_1.png"):
      _folder(tmp_path, group_pattern="p22")
    with pytest.raises(ValueError, match="no regular expression"):
      _folder(tmp_path, group_pattern="(p")

  @pytest.mark.parametrize(
    ("names", "folders", "error"),
    [
      ([], [], "no image below"),
      ([], ["a", "b"], "no image below"),
      (["1.png", "a/1.png", "b/1.png"], [], "1 files lie in no class folder: 1.png"),
      (["a/1.png"], [], "only one class, 'a'"),
      (["a/1.png"], ["b"], "class folders without an image .*: b"),
      (["train/a/1.png", "a/1.png"], [], "beside them a"),
      (["train/a/1.png", "train/2.png"], [], "lie in no class folder: train/2.png"),
    ],
  )
  def test_bad_layouts(self, tmp_path, names, folders, error):
    _tree(tmp_path, *names)
    for folder in folders:
      (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match=error):
      _folder(tmp_path)

  def test_bad_roots(self, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
      _folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"--config\.data\.root=PATH"):
      image_folder.catalogue(settings.ImageFolder())
    with pytest.raises(ValueError, match="is a file"):
      _folder(_image(tmp_path / "1.png"))

  def test_dicom_files_of_a_patient_are_a_group(self, tmp_path):
    _tree(tmp_path, "a/photo.png", "b/photo.png")
    for name, patient in {"a/1": "Doe^2", "a/2": "Roe^1", "b/1": "Doe^2", "b/2": ""}.items():
      header = pydicom.Dataset()
      header.PatientID, header.Modality = patient, "OT"
      header.SOPClassUID, header.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3"
      header.file_meta = pydicom.dataset.FileMetaDataset()
      header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
      pydicom.dcmwrite(tmp_path / f"{name}.dcm", header, enforce_file_format=True)
    rows = _folder(tmp_path)
    assert dict(zip(rows.ids, rows.groups, strict=True)) == {
      "a/1.dcm": "patient 0",
      "a/2.dcm": "patient 1",
      "a/photo.png": "a/photo.png",
      "b/1.dcm": "patient 0",
      "b/2.dcm": "b/2.dcm",
      "b/photo.png": "b/photo.png",
    }
    assert rows.notes[-1] == "3 DICOM files are of 2 patients, by their headers"
    assert set(_folder(tmp_path, group_pattern="[0-9]|photo").groups) == {"1", "2", "photo"}

  def test_content_follows_the_files(self, tmp_path):
    _tree(tmp_path, "a/1.png", "b/1.png")
    before = _folder(tmp_path).content
    assert _folder(tmp_path).content == before
    os.utime(tmp_path / "a/1.png", (1, 1))
    assert _folder(tmp_path).content != before

  def test_kermany_counts(self, shared_data):
    rows = _folder(shared_data / "chest_xray_kermany")
    counts = collections.Counter(zip(rows.parts.tolist(), rows.labels.tolist(), strict=True))
    assert counts == {("train", 0): 1341, ("train", 1): 3875, ("test", 0): 234, ("test", 1): 390}
    assert rows.classes == ("NORMAL", "PNEUMONIA")


def _csv(folder, rows, header=("path", "label")):
  with (folder / "table.csv").open("w", newline="", encoding="utf-8-sig") as stream:
    csv.writer(stream).writerows([header, *rows])
  for row in rows:
    if row and row[0].strip():
      _image(folder / row[0].strip())
  return folder / "table.csv"


def _table(file, **fields):
  return table.catalogue(settings.Table(root=str(file), **fields))


class TestTable:
  def test_all_columns(self, tmp_path):
    rows = [
      ("x/1.png", "sick", "train", "p1"),
      ("2.png", "well", "train", "p2"),
      ("3.png", "sick", "test", "p3"),
    ]
    got = _table(_csv(tmp_path, rows, ("path", "label", "split", "group")))
    assert got.ids == ("x/1.png", "2.png", "3.png")
    assert got.classes == ("sick", "well")
    assert got.labels.tolist() == [0, 1, 0]
    assert got.parts.tolist() == ["train", "train", "test"]
    assert got.groups == ("p1", "p2", "p3")
    assert got.read(0) == (tmp_path / "x/1.png").read_bytes()

  def test_only_path_and_label(self, tmp_path):
    got = _table(_csv(tmp_path, [("1.png", "b"), ("2.png", "a")]))
    assert got.groups == got.ids
    assert got.parts.tolist() == ["", ""]
    assert got.labels.tolist() == [1, 0]

  def test_named_columns_and_classes(self, tmp_path):
    rows = [("1.png", "b", "p1"), ("2.png", "a", "p1")]
    file = _csv(tmp_path, rows, ("file", "dx", "patient"))
    got = _table(file, path="file", label="dx", group="patient", classes=("c", "b", "a"))
    assert got.classes == ("c", "b", "a")
    assert got.labels.tolist() == [1, 2]
    assert got.groups == ("p1", "p1")

  def test_absolute_paths(self, tmp_path):
    image = _image(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "set").mkdir()
    got = _table(_csv(tmp_path / "set", [(str(image), "a"), ("2.png", "b")]))
    assert got.ids == ("../elsewhere/1.png", "2.png")

  def test_missing_column_suggests(self, tmp_path):
    file = _csv(tmp_path, [("1.png", "a"), ("2.png", "b")], ("path", "labels"))
    with pytest.raises(KeyError, match=r"no column 'label'.*Did you mean 'labels'\?"):
      _table(file)

  def test_a_named_group_column_must_be_there(self, tmp_path):
    file = _csv(tmp_path, [("1.png", "a"), ("2.png", "b")])
    with pytest.raises(KeyError, match="no column 'patient_id'"):
      _table(file, group="patient_id")

  @pytest.mark.parametrize(
    ("header", "rows", "error"),
    [
      (("path", "label"), [], "no row below its header"),
      (("path", "label"), [("1.png", "a"), ("2.png", " ")], "'label' is blank in lines 3"),
      (("path", "label"), [("1.png", "a"), ("", "b")], "'path' is blank in lines 3"),
      (("path", "label"), [("1.png", "a"), ("2.png",)], "more or fewer cells .*: 3"),
      (("path", "label"), [("1.png", "a"), ("2.png", "b", "c")], "more or fewer cells .*: 3"),
      (("path", "label"), [("1.png", "a"), ("2.png", "a")], "only one class, 'a'"),
      (
        ("path", "label"),
        [("1.png", "a"), ("2.png", "b"), ("./1.png", "b")],
        r"more than one row: '1.png' \(line 2\), '1.png' \(line 4\)",
      ),
      (
        ("path", "label", "split"),
        [("1.png", "a", "train"), ("2.png", "b", "validation")],
        r"train, val or test, not 'validation' \(line 3\)",
      ),
      (
        ("path", "label", "split"),
        [("1.png", "a", "val"), ("2.png", "b", "test")],
        "no row is in the part 'train'",
      ),
      (
        ("path", "label", "split"),
        [("1.png", "a", "train"), ("2.png", "b", "train"), ("3.png", "aa", "test")],
        r"1 labels are not in the class list \['a', 'b'\]: 'aa' \(line 4\)\. Did you mean 'a'\?",
      ),
      (
        ("path", "label", "group"),
        [("1.png", "a", "p"), ("2.png", "b", "")],
        "'group' is blank in lines 3",
      ),
    ],
  )
  def test_bad_tables(self, tmp_path, header, rows, error):
    with pytest.raises(ValueError, match=error):
      _table(_csv(tmp_path, rows, header))

  def test_label_outside_the_given_classes(self, tmp_path):
    file = _csv(tmp_path, [("1.png", "a"), ("2.png", "b")])
    with pytest.raises(ValueError, match=r"class list \['a', 'c'\]: 'b' \(line 3\)"):
      _table(file, classes=("a", "c"))

  def test_missing_files(self, tmp_path):
    file = _csv(tmp_path, [("1.png", "a"), ("2.png", "b"), ("3.png", "b")])
    (tmp_path / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"files that are not there .*2\.png' \(line 3\)"):
      _table(file)

  def test_no_csv(self, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
      _table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is a folder"):
      _table(tmp_path)
    with pytest.raises(ValueError, match="no CSV in UTF-8"):
      _table(_image(tmp_path / "1.png"))


class TestNpz:
  @pytest.fixture
  def arrays(self):
    rng = np.random.default_rng(0)
    return {
      f"{part}_{what}": value
      for part, n in (("train", 6), ("val", 2), ("test", 3))
      for what, value in (
        ("images", rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)),
        ("labels", np.arange(n, dtype=np.uint8)[:, None] % 2),
      )
    }

  def _load(self, tmp_path, arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return npz.catalogue(settings.Npz(root=str(tmp_path / "set.npz")))

  def test_rows(self, tmp_path, arrays):
    rows = self._load(tmp_path, arrays)
    assert rows.ids[5:8] == ("train/5", "val/0", "val/1")
    assert rows.classes == ("0", "1")
    assert collections.Counter(rows.parts.tolist()) == {"train": 6, "val": 2, "test": 3}
    images = np.concatenate([arrays[f"{part}_images"] for part in ("train", "val", "test")])
    labels = np.concatenate([arrays[f"{part}_labels"] for part in ("train", "val", "test")])
    np.testing.assert_array_equal(np.stack([rows.read(i) for i in range(11)]), images)
    np.testing.assert_array_equal(rows.labels, labels[:, 0])

  @pytest.mark.parametrize(
    ("change", "error"),
    [
      ({"train_images": None}, "no train_images"),
      ({"val_labels": None}, "no val_labels"),
      ({"train_labels": np.zeros((6, 14), np.uint8)}, "one integer an image"),
      ({"train_labels": np.zeros(5, np.uint8)}, "one integer an image"),
      ({"train_labels": np.zeros(6)}, "one integer an image"),
      ({"train_labels": np.zeros(6, np.uint8)}, "only one class"),
      ({"test_labels": np.array([0, 1, 2])}, "labels 2 are not in the class list 0 to 1"),
    ],
  )
  def test_bad_arrays(self, tmp_path, arrays, change, error):
    kept = {name: value for name, value in (arrays | change).items() if value is not None}
    with pytest.raises(ValueError, match=error):
      self._load(tmp_path, kept)

  def test_no_npz(self, tmp_path):
    (tmp_path / "set.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match=r"no readable \.npz"):
      npz.catalogue(settings.Npz(root=str(tmp_path / "set.npz")))

  def test_pneumoniamnist_counts(self, shared_data):
    file = shared_data / "pneumoniamnist" / "pneumoniamnist.npz"
    rows = npz.catalogue(settings.Npz(root=str(file)))
    counts = collections.Counter(zip(rows.parts.tolist(), rows.labels.tolist(), strict=True))
    official = {"train": (1214, 3494), "val": (135, 389), "test": (234, 390)}
    assert counts == {(part, k): n for part, pair in official.items() for k, n in enumerate(pair)}


class TestZipFolder:
  def _zips(self, folder, **members):
    for source, names in members.items():
      with zipfile.ZipFile(folder / f"{source}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
          archive.writestr(name, name.encode() * 100)
    return zip_folder.catalogue(settings.ZipFolder(root=str(folder)))

  def test_members_are_read_in_place(self, tmp_path):
    rows = self._zips(tmp_path, ct=["ct/1.png", "ct/.DS_Store"], mr=["2.png", "x/"])
    assert rows.ids == ("ct.zip/ct/1.png", "mr.zip/2.png")
    assert rows.classes == ("ct", "mr")
    assert rows.labels.tolist() == [0, 1]
    assert rows.read(1) == b"2.png" * 100
    assert "1 files that are no images" in rows.notes[0]
    assert os.listdir(tmp_path).count("ct") == 0

  def test_content_follows_the_members(self, tmp_path):
    before = self._zips(tmp_path, ct=["1.png"]).content
    assert self._zips(tmp_path, ct=["1.png"]).content == before
    assert self._zips(tmp_path, ct=["1.png", "2.png"]).content != before

  def test_errors(self, tmp_path):
    with pytest.raises(ValueError, match=r"no \.zip file"):
      self._zips(tmp_path)
    with pytest.raises(ValueError, match=r"without an image in .*: ct"):
      self._zips(tmp_path, ct=["readme.txt"], mr=["1.png"])
    (tmp_path / "ct.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"ct\.zip is damaged"):
      self._zips(tmp_path)

  def test_a_damaged_member_is_a_reading_error(self, tmp_path):
    self._zips(tmp_path, ct=["1.png"])
    data = bytearray((tmp_path / "ct.zip").read_bytes())
    data[45] ^= 255
    (tmp_path / "ct.zip").write_bytes(data)
    rows = zip_folder.catalogue(settings.ZipFolder(root=str(tmp_path)))
    with pytest.raises(OSError):
      rows.read(0)

  def test_mednist_by_many_threads(self, shared_data):
    rows = zip_folder.catalogue(settings.ZipFolder(root=str(shared_data / "mednist")))
    assert len(rows) == 15_000
    assert np.bincount(rows.labels).tolist() == [2500] * 6
    order = np.random.default_rng(0).permutation(len(rows))[:2000].tolist()
    want = []
    for row in order:
      source, member = rows.ids[row].split("/", 1)
      want.append(zipfile.ZipFile(shared_data / "mednist" / source).getinfo(member).CRC)
      if len(want) == 60:  # opening a zip for each is slow
        break
    with futures.ThreadPoolExecutor(8) as pool:
      got = list(pool.map(rows.read, order))
    assert [zipfile.crc32(data) for data in got[:60]] == want
    assert got == [rows.read(row) for row in order]
