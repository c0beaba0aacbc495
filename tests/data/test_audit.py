import collections
import csv
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image
import pydicom
from pydicom import dataset as dicom_dataset
from pydicom import uid
import pytest
from scipy import fft

from medjax import data, settings
from medjax.data import __main__ as command
from medjax.data import duplicates
from medjax.data.audit import leaks


def _pictures(count, seed=0, side=96):
  """Unlike one another, with most of their light in low frequencies: uint8 [n, side, side]."""
  rng = np.random.default_rng(seed)
  low = rng.normal(size=(count, 12, 12)) / (1 + np.add.outer(np.arange(12), np.arange(12)))
  low[:, 0, 0] = 0
  waves = fft.idctn(low, s=(side, side), axes=(1, 2), norm="ortho")
  waves /= np.abs(waves).max((1, 2), keepdims=True)
  return np.rint(128 + 110 * waves).astype(np.uint8)


def _save(path, picture, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(picture).save(path, **options)
  return path


def _audit(out, *arguments):
  """(crossing images that were told, rows of the table) of a run."""
  stdout = io.StringIO()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "stdout", stdout)
    status = command.main(["audit", *map(str, arguments), "--out", str(out), "--workers", "1"])
  assert status == 0, stdout.getvalue()
  told = stdout.getvalue().splitlines()[-1]
  assert told.startswith("crossing images: ")
  with (out / "pairs.csv").open(newline="") as stream:
    rows = list(csv.DictReader(stream))
  assert not rows or list(rows[0]) == ["path_a", "path_b", "kind"]
  return int(told.split()[-1]), [(row["path_a"], row["path_b"], row["kind"]) for row in rows]


def _images(parts, labels=None, groups=None, files=None, pixels=None, hashes=None):
  count = len(parts)
  blank = [""] * count
  return leaks.Images(
    names=np.array([f"image-{i}" for i in range(count)]),
    parts=np.array(list(parts)),
    labels=np.array(labels or blank),
    groups=np.array(groups or blank),
    files=np.array(files or blank, "S64"),
    pixels=np.array(pixels or blank, "S64"),
    hashes=np.zeros(count, np.uint64) if hashes is None else hashes,
  )


def _no_thumbs(rows):
  raise AssertionError("no picture is to be looked at")


def _found(images, thumbs_of=_no_thumbs):
  found = leaks.find(images, thumbs_of)
  kinds = [leaks.KINDS[kind] for kind in found.kinds]
  return set(zip(found.left.tolist(), found.right.tolist(), kinds, strict=True))


class TestLeaks:
  def test_only_the_strongest_kind_of_a_picture_is_told(self):
    images = _images("aabb", files=["f", "", "f", ""], pixels=["p", "q", "p", "q"])
    assert _found(images) == {(0, 2, "bytes"), (1, 3, "pixels")}

  def test_unknown_digests_are_not_equal(self):
    assert _found(_images("aabb")) == set()

  def test_within_a_part_nothing_leaks(self):
    assert _found(_images("aab", files=["f", "f", "g"], groups=["p", "p", "q"])) == set()

  def test_every_image_that_crosses_is_in_a_pair_and_pairs_stay_few(self):
    rng = np.random.default_rng(0)
    parts = rng.choice(["train", "val", "test"], 600)
    files = rng.choice(["f", "g", "h", "unique"], 600)
    files = np.where(files == "unique", np.arange(600).astype(str), files)
    images = _images(parts.tolist(), files=files.tolist(), pixels=files.tolist())
    found = leaks.find(images, _no_thumbs)
    brute = {
      i
      for a, b in itertools.combinations(range(600), 2)
      if files[a] == files[b] and parts[a] != parts[b]
      for i in (a, b)
    }
    assert set(leaks.crossing(images, found).tolist()) == brute
    assert len(found) <= 2 * len(brute)
    same, apart = files[found.left] == files[found.right], parts[found.left] != parts[found.right]
    assert (same & apart & (found.left < found.right)).all()

  def test_near_pictures_of_equal_ones_cross_too(self):
    picture = _pictures(1, side=64)[0]
    thumbs = np.stack([picture, picture, picture // 2, 255 - picture])
    images = _images("aabb", pixels=["p", "p", "q", "r"], hashes=duplicates.hashes(thumbs))
    assert _found(images, lambda rows: thumbs[rows]) == {
      *((0, 2, "near"), (1, 2, "near")),
      *((0, 3, "near"), (1, 3, "near")),
    }

  def test_groups_are_told_beside_pictures(self):
    images = _images("aab", groups=["p", "p", "p"], files=["f", "", "f"])
    assert _found(images) == {(0, 2, "bytes"), (0, 2, "group"), (1, 2, "group")}

  def test_one_picture_under_two_labels(self):
    thumbs = np.stack([*_pictures(2, side=64), _pictures(1, side=64)[0] // 2])
    images = _images(
      "aaaaa",
      labels=["sick", "well", "sick", "well", ""],
      pixels=["p", "q", "r", "r", "r"],
      hashes=np.append(duplicates.hashes(thumbs[[0, 2, 1, 1]]), np.uint64(0)),
    )
    places = np.array([0, 2, 1, 1, 1])
    assert _found(images, lambda rows: thumbs[places[rows]]) == {(0, 1, "label"), (2, 3, "label")}

  def test_folders_that_only_one_part_has_are_no_labels(self):
    images = _images("aabb", labels=["site1", "site2", "sick", "well"], files=["f", "g", "f", "h"])
    assert _found(images) == {(0, 2, "bytes")}
    images = _images("aabb", labels=["well", "sick", "sick", "well"], files=["f", "g", "f", "h"])
    assert _found(images) == {(0, 2, "bytes"), (0, 2, "label")}


class TestCommand:
  def test_every_kind_and_paths_as_given(self, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two, three, four, five = _pictures(5)
    first = _save(tmp_path / "a/sick/1.png", one)
    shutil.copy(first, _save(tmp_path / "b/sick/copy.png", one))
    _save(tmp_path / "a/sick/2.png", two)
    _save(tmp_path / "b/sick/2.bmp", two)
    _save(tmp_path / "a/well/3.png", three)
    _save(tmp_path / "b/well/3.jpg", three, quality=40)
    _save(tmp_path / "a/well/p7_1.png", four)
    _save(tmp_path / "b/well/p7_2.png", five)
    _save(tmp_path / "a/sick/again.png", three)
    crossing, rows = _audit(tmp_path / "out", "a", "./b/", "--group-pattern", r"^(p\d+)_")
    assert set(rows) == {
      ("a/sick/1.png", "./b/sick/copy.png", "bytes"),
      ("a/sick/2.png", "./b/sick/2.bmp", "pixels"),
      ("a/well/3.png", "./b/well/3.jpg", "near"),
      ("a/sick/again.png", "./b/well/3.jpg", "near"),
      ("a/sick/again.png", "./b/well/3.jpg", "label"),
      ("a/sick/again.png", "a/well/3.png", "label"),
      ("a/well/p7_1.png", "./b/well/p7_2.png", "group"),
    }
    assert crossing == 9
    page = (tmp_path / "out/audit.html").read_text()
    assert page.count("<img") == 7
    assert "a/sick/again.png" in page

  def test_one_path_has_its_parts_in_folders_of_any_case(self, tmp_path):
    one, two, three = _pictures(3)
    _save(tmp_path / "set/Training/x/1.png", one)
    _save(tmp_path / "set/TRAIN2/x/1.png", one)
    _save(tmp_path / "set/validation/x/2.png", two)
    _save(tmp_path / "set/test_images/2.tif", two)
    _save(tmp_path / "set/other/1.png", one)
    _save(tmp_path / "set/test_images/1.png", three)
    crossing, rows = _audit(tmp_path / "out", f"{tmp_path}/set")
    names = (f"{tmp_path}/set/validation/x/2.png", f"{tmp_path}/set/test_images/2.tif", "pixels")
    assert rows == [names]
    assert crossing == 2

  def test_scaled_negative_and_transparent_pictures_are_found(self, tmp_path):
    one, two, three = _pictures(3)
    _save(tmp_path / "a/1.png", one)
    small = Image.fromarray(one).resize((70, 50), Image.Resampling.LANCZOS)
    _save(tmp_path / "b/1.png", np.asarray(small))
    _save(tmp_path / "a/2.png", two)
    _save(tmp_path / "b/2.png", 255 - two)
    _save(tmp_path / "a/3.png", three)
    _save(tmp_path / "b/3.png", np.stack([three, three, three, np.full_like(three, 255)], axis=2))
    _, rows = _audit(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    kinds = {os.path.basename(a): (os.path.basename(b), kind) for a, b, kind in rows}
    assert kinds == {
      "1.png": ("1.png", "near"),
      "2.png": ("2.png", "near"),
      "3.png": ("3.png", "pixels"),
    }

  def test_flat_pictures_are_no_duplicates_unless_equal(self, tmp_path):
    for shade in range(3):
      _save(tmp_path / f"a/{shade}.png", np.full((20, 20), shade, np.uint8))
      _save(tmp_path / f"b/{shade}.png", np.full((20, 30), shade, np.uint8))
    _save(tmp_path / "b/equal.png", np.full((20, 20), 1, np.uint8))
    crossing, rows = _audit(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert [(os.path.basename(a), os.path.basename(b)) for a, b, _ in rows] == [
      ("1.png", "equal.png")
    ]
    assert crossing == 2

  def test_members_of_archives(self, tmp_path):
    one, two = _pictures(2)
    _save(tmp_path / "a/1.png", one)
    _save(tmp_path / "a/2.png", two)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
      archive.write(tmp_path / "a/1.png", "deep/1.png")
    crossing, rows = _audit(tmp_path / "out", tmp_path / "a", tmp_path / "b.zip")
    assert rows == [(f"{tmp_path}/a/1.png", f"{tmp_path}/b.zip/deep/1.png", "bytes")]
    assert crossing == 2

  def test_what_cannot_be_read_is_told_and_the_rest_is_audited(self, tmp_path):
    one = _pictures(1)[0]
    for part in "ab":
      _save(tmp_path / part / "1.png", one)
    (tmp_path / "a/broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (tmp_path / "b/notes.txt").write_text("no image")
    crossing, _ = _audit(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert crossing == 2
    lines = (tmp_path / "out/unreadable.csv").read_text().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith(f"{tmp_path}/a/broken.png,")

  def test_patients_of_dicom_headers_are_groups(self, tmp_path):
    pictures = _pictures(3)
    for number, (part, patient) in enumerate([("a", "one"), ("a", "two"), ("b", "two")]):
      _save_dicom(tmp_path / part / f"{number}.dcm", pictures[number], patient)
    crossing, rows = _audit(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert rows == [(f"{tmp_path}/a/1.dcm", f"{tmp_path}/b/2.dcm", "group")]
    assert crossing == 2
    assert all(b"PATIENT-" not in f.read_bytes() for f in (tmp_path / "out").iterdir())

  def test_panels_of_a_figure_are_a_group_by_their_names(self, tmp_path):
    names = ["x.1-p17-91-1.png", "10%2.jpg", "scan.png", "x.1-p17-99.png", "10%3.png", "scan2.png"]
    for number, picture in enumerate(_pictures(6)):
      _save(tmp_path / "ab"[number // 3] / names[number], picture)
    crossing, rows = _audit(tmp_path / "out", tmp_path / "a", tmp_path / "b")
    assert [(os.path.basename(a), os.path.basename(b), kind) for a, b, kind in rows] == [
      ("10%2.jpg", "10%3.png", "group"),
      ("x.1-p17-91-1.png", "x.1-p17-99.png", "group"),
    ]
    assert crossing == 4
    crossing, _ = _audit(tmp_path / "out", tmp_path / "a", tmp_path / "b", "--group-pattern", "")
    assert crossing == 0

  def test_a_pool_that_is_a_prepared_collection(self, tmp_path):
    one, two, three, four = _pictures(4)
    for number, picture in enumerate((one, two, three)):
      _save(tmp_path / f"files/{number}.png", picture)
    _save(tmp_path / "test/near.jpg", two, quality=50)
    shutil.copy(tmp_path / "files/2.png", tmp_path / "test/copy.png")
    _save(tmp_path / "test/equal.bmp", one)
    _save(tmp_path / "test/other.png", four)
    made = ["prepare", str(tmp_path / "files"), "--out", str(tmp_path / "pool"), "--keep-paths"]
    assert command.main([*made, "--size", "64", "--workers", "1"]) == 0
    crossing, rows = _audit(tmp_path / "out", tmp_path / "test", tmp_path / "pool")
    assert {(os.path.basename(a), os.path.basename(b), kind) for a, b, kind in rows} == {
      ("copy.png", "2.png", "bytes"),
      ("equal.bmp", "0.png", "pixels"),
      ("near.jpg", "1.png", "near"),
    }
    assert all(b.startswith(f"{tmp_path}/pool/") for _, b, _ in rows)
    assert crossing == 6

  @pytest.mark.slow
  def test_table_is_the_same_for_any_number_of_workers(self, tmp_path):
    pictures = _pictures(40)
    for number, picture in enumerate(pictures):
      _save(tmp_path / f"a/{number}.png", picture)
      _save(tmp_path / f"b/{number}.jpg", picture)
    tables = []
    for workers in ("1", "2"):
      out = tmp_path / f"out{workers}"
      paths = [str(tmp_path / part) for part in "ab"]
      assert command.main(["audit", *paths, "--out", str(out), "--workers", workers]) == 0
      tables.append((out / "pairs.csv").read_bytes())
    assert tables[0] == tables[1]
    assert tables[0].count(b"near") == 40

  @pytest.mark.parametrize(
    ("names", "options", "error"),
    [
      (["a"], [], "holds none of the folders train"),
      (["nowhere"], [], "nowhere does not exist"),
      (["a", "nowhere"], [], "nowhere does not exist"),
      (["a", "a"], [], "a is named twice"),
      (["a", "empty"], [], "no image in .*empty"),
      (
        ["a"],
        ["--set", "covid_tc"],
        "--set covid_tc: no set is called so. Did you mean 'covid_ct'",
      ),
      (["a", "b"], ["--set", "covid_ct"], "takes one PATH, the set's root, not 2"),
    ],
  )
  def test_mistakes_say_what_to_type(self, tmp_path, capsys, names, options, error):
    _save(tmp_path / "a/1.png", _pictures(1)[0])
    (tmp_path / "empty").mkdir()
    paths = [str(tmp_path / name) for name in names]
    assert command.main(["audit", *paths, *options, "--out", str(tmp_path / "out")]) == 1
    assert re.search(error, capsys.readouterr().err)

  def test_as_users_start_it(self, tmp_path):
    picture = _pictures(1)[0]
    for part in ("train", "test"):
      _save(tmp_path / part / "1.png", picture)
    words = [sys.executable, "-m", "medjax.data", "audit", str(tmp_path), "--out"]
    done = subprocess.run([*words, str(tmp_path / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("crossing images: 2\n")


class TestTraining:
  """What `data.make` finds by itself."""

  def _folder(self, tmp_path, *names):
    for name, picture in zip(names, _pictures(len(names)), strict=True):
      _save(tmp_path / "set" / name, picture)
    return tmp_path / "set"

  def _make(self, tmp_path, **split):
    cfg = settings.ImageFolder(
      root=str(tmp_path / "set"),
      split=settings.Split(**split),
      cache=str(tmp_path / "cache"),
      channels=1,
    )
    return data.make(cfg)

  def _parted(self, tmp_path):
    names = [f"{part}/{label}/1.png" for part in ("train", "test") for label in ("sick", "well")]
    folder = self._folder(tmp_path, *names)
    shutil.copy(folder / "train/sick/1.png", folder / "test/sick/copy.png")

  def test_a_copy_in_another_part_is_refused(self, tmp_path):
    self._parted(tmp_path)
    with pytest.raises(ValueError, match=r"1 groups stand .*copy.png \(train, test\).*leaks=stamp"):
      self._make(tmp_path, val=0.0)

  def test_or_stamped_where_the_config_says_so(self, tmp_path):
    self._parted(tmp_path)
    made = self._make(tmp_path, val=0.0, leaks="stamp")
    assert made.leaky
    assert any(note.startswith("LEAKY: the given split cuts 1 groups") for note in made.notes)

  def test_copies_are_dealt_to_one_part(self, tmp_path):
    names = [f"{label}/{number}.png" for label in ("sick", "well") for number in range(20)]
    folder = self._folder(tmp_path, *names)
    for name in names[::2]:
      shutil.copy(folder / name, folder / f"{name[:-4]}-copy.png")
    made = self._make(tmp_path)
    assert not made.leaky
    parts = {name: part for part, own in made.parts.items() for name in own.ids}
    assert set(parts.values()) == {"train", "val", "test"}
    assert all(parts[name] == parts[f"{name[:-4]}-copy.png"] for name in names[::2])

  def test_black_images_join_nothing(self, tmp_path):
    self._folder(tmp_path, *(f"{part}/{k}/1.png" for part in ("train", "test") for k in "ab"))
    for part in ("train", "test"):
      _save(tmp_path / "set" / part / "a/black.png", np.zeros((9, 9), np.uint8))
    assert not self._make(tmp_path, val=0.0).leaky

  def test_one_picture_under_two_labels_is_told(self, tmp_path):
    folder = self._folder(
      tmp_path, *(f"{part}/{k}/1.png" for part in ("train", "test") for k in "ab")
    )
    shutil.copy(folder / "train/a/1.png", folder / "train/b/again.png")
    notes = self._make(tmp_path, val=0.0).notes
    assert any("train/a/1.png, train/b/again.png" in note for note in notes)


def _save_dicom(path, picture, patient):
  path.parent.mkdir(parents=True, exist_ok=True)
  found = dicom_dataset.Dataset()
  found.file_meta = dicom_dataset.FileMetaDataset()
  found.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
  found.SOPClassUID = uid.SecondaryCaptureImageStorage
  found.SOPInstanceUID = uid.generate_uid()
  found.PatientID, found.Modality = f"PATIENT-{patient}", "OT"
  found.Rows, found.Columns = picture.shape
  found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
  found.BitsAllocated = found.BitsStored = 8
  found.HighBit, found.PixelRepresentation = 7, 0
  found.PixelData = picture.tobytes()
  pydicom.dcmwrite(path, found, enforce_file_format=True)


def _again(picture, number):
  """A picture of another's content: (name, options) of how it is saved, and its pixels."""
  if number % 3 == 0:
    return picture.resize((round(picture.width * 0.6), round(picture.height * 0.7))), "png", {}
  return picture, "jpg", {"quality": 30 + number % 60}


def _planted(tmp_path, files, every):
  """Deals files to two parts; copies of every so many go to the other one: pairs of paths."""
  pairs = []
  for number, file in enumerate(files):
    part = "train" if number % 10 < 7 else "test"
    own = tmp_path / part / f"{number}{file.suffix}"
    own.parent.mkdir(exist_ok=True)
    own.symlink_to(file)
    if number % every == 0:
      picture, ending, options = _again(Image.open(file), number // every)
      other = tmp_path / ("test" if part == "train" else "train") / f"{number}-again.{ending}"
      pairs.append((_save(other, np.asarray(picture), **options), own))
  return pairs


def _check_planted(tmp_path, files, every, most, subject=str):
  """`subject` of a file: pairs of one subject are no false ones."""
  pairs = _planted(tmp_path, files, every)
  _, rows = _audit(tmp_path / "out", tmp_path)
  found = {frozenset((a, b)) for a, b, kind in rows if kind == "near"}
  planted = {frozenset((str(a), str(b))) for a, b in pairs}
  assert len(found & planted) >= 0.99 * len(planted)
  number = lambda path: int(os.path.basename(path).split(".")[0].split("-")[0])  # noqa: E731
  false = [pair for pair in found if len({subject(files[number(path)]) for path in pair}) > 1]
  assert len(false) <= most, false


def test_planted_leaks_are_found_among_real_films(shared_data, tmp_path):
  _check_planted(tmp_path, sorted((shared_data / "chest_xray_kermany").glob("*/*/*"))[::8], 5, 0)


@pytest.mark.slow
def test_planted_leaks_are_found_among_five_thousand(shared_data, tmp_path):
  films = sorted((shared_data / "chest_xray_kermany").glob("*/*/*"))[::2]
  skin = sorted((shared_data / "ham10000/images").glob("*"))[::4]
  with (shared_data / "ham10000/HAM10000_metadata.csv").open(newline="") as stream:
    lesions = {row["image_id"]: row["lesion_id"] for row in csv.DictReader(stream)}
  files = [*films, *skin][:5000]
  assert len(files) == 5000
  _check_planted(tmp_path, files, 10, 5, lambda file: lesions.get(file.stem, str(file)))


def test_figures_of_covid_ct_are_cut_by_its_official_split(shared_data, tmp_path):
  crossing, rows = _audit(tmp_path / "out", shared_data / "covid_ct", "--set", "covid_ct")
  figure = str(shared_data / "covid_ct/CT_COVID/2020.03.12.20034686-p17-91-")
  cut = {(a, b) for a, b, kind in rows if kind == "group" and a.startswith(figure)}
  assert {a for pair in cut for a in pair} >= {f"{figure}{panel}.png" for panel in (1, 2, 3)}
  assert crossing > 20
  assert collections.Counter(kind for _, _, kind in rows)["bytes"] == 0
