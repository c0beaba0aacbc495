"""The sets of the papers: the real files where they are at hand, else small trees of real names."""

import collections
import csv

import numpy as np
from PIL import Image
import pytest

from medjax import contract, data, settings
from medjax.data import splits
from medjax.data.datasets import breakhis, chestxray14, ham10000

# What a paper needs for a tree of its own is in these: names as the authors give them.
SLIDES = "BreaKHis_v1/histology_slides/breast"


def _images(root, *names):
  """Small images that differ."""
  for number, name in enumerate(names):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    Image.new("RGB", (6, 5), (number % 256, 40, 200)).save(path, kind)


def _csv(file, *lines):
  file.parent.mkdir(parents=True, exist_ok=True)
  with file.open("w", newline="") as stream:
    csv.writer(stream).writerows(lines)


def _rows(cfg):
  return data.DATASETS[type(cfg)](cfg)


def _table(rows):
  """id -> (label, group, part)."""
  labels = [rows.classes[label] for label in rows.labels]
  return dict(
    zip(rows.ids, zip(labels, rows.groups, rows.parts.tolist(), strict=True), strict=True)
  )


def _counts(rows):
  labels = [rows.classes[label] for label in rows.labels]
  return collections.Counter(zip(rows.parts.tolist(), labels, strict=True))


class TestChestXrayKermany:
  def test_groups_are_patients_of_a_folder_and_a_kind(self, tmp_path):
    names = [
      "train/NORMAL/IM-0115-0001.jpeg",
      "train/NORMAL/IM-0115-0001-0002.jpeg",
      "train/NORMAL/NORMAL2-IM-0115-0001.jpeg",
      "train/PNEUMONIA/person1_bacteria_1.jpeg",
      "train/PNEUMONIA/person1_bacteria_2.jpeg",
      "train/PNEUMONIA/person1_virus_6.jpeg",
      "val/NORMAL/NORMAL2-IM-1427-0001.jpeg",
      "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
      "test/NORMAL/IM-0115-0001.jpeg",
      "test/PNEUMONIA/person1_virus_6.jpeg",
    ]
    _images(tmp_path, *names)
    (tmp_path / "train/NORMAL/.DS_Store").write_bytes(b"x")
    got = _table(_rows(settings.ChestXrayKermany(root=str(tmp_path))))
    assert [got[name] for name in names] == [
      ("normal", "train/im-0115", "train"),
      ("normal", "train/im-0115", "train"),
      ("normal", "train/normal2-im-0115", "train"),
      ("pneumonia", "train/1-bacteria", "train"),
      ("pneumonia", "train/1-bacteria", "train"),
      ("pneumonia", "train/1-virus", "train"),
      ("normal", "train/normal2-im-1427", "train"),  # Kaggle's val goes back to train
      ("pneumonia", "train/1946-bacteria", "train"),
      ("normal", "test/im-0115", "test"),
      ("pneumonia", "test/1-virus", "test"),
    ]
    assert len(got) == len(names)

  def test_the_real_files(self, shared_data):
    rows = _rows(settings.ChestXrayKermany(root=str(shared_data / "chest_xray_kermany")))
    assert _counts(rows) == {
      ("train", "normal"): 1341,
      ("train", "pneumonia"): 3875,
      ("test", "normal"): 234,
      ("test", "pneumonia"): 390,
    }
    parts = splits.deal(rows, settings.Split())
    assert collections.Counter(parts.tolist()).keys() == {*contract.PARTS}
    assert not splits.crossing(rows.groups, parts)
    assert (parts[rows.parts == "test"] == "test").all()  # val is made of train alone

  def test_another_name_is_told(self, tmp_path):
    _images(tmp_path, *(f"{p}/{c}/x.jpeg" for p in ("train", "test") for c in ("NORMAL",)))
    with pytest.raises(ValueError, match=r"x\.jpeg is not named as the set's authors do"):
      _rows(settings.ChestXrayKermany(root=str(tmp_path)))


class TestOctKermany:
  NAMES = (
    "train/CNV/CNV-1016042-1.jpeg",
    "train/CNV/CNV-1016042-2.jpeg",
    "train/DME/DME-15307-1.jpeg",
    "train/DRUSEN/DRUSEN-1016042-1.jpeg",
    "train/NORMAL/NORMAL-1017237-1.jpeg",
    "test/CNV/CNV-15307-9.jpeg",
    "test/DME/DME-11053-1.jpeg",
    "test/DRUSEN/DRUSEN-95633-1.jpeg",
    "test/NORMAL/NORMAL-12494-1.jpeg",
  )

  def test_groups_are_patients_whatever_the_class(self, tmp_path):
    _images(tmp_path, *self.NAMES)
    got = _table(_rows(settings.OctKermany(root=str(tmp_path))))
    assert list(got) == list(self.NAMES)
    assert [group for _, group, _ in got.values()] == [
      *("1016042", "1016042", "15307", "1016042", "1017237", "15307", "11053", "95633", "12494")
    ]

  def test_a_patient_in_two_official_parts_is_told_and_does_not_stop(self, tmp_path):
    _images(tmp_path, *self.NAMES)
    rows = _rows(settings.OctKermany(root=str(tmp_path)))
    told = splits.check(rows, rows.parts, settings.Split(val=0.0))
    assert told.startswith("LEAKY") and "15307 (train, test)" in told

  def test_the_val_of_kaggle_goes_back_to_test_once(self, tmp_path):
    folders = [f"val/{name}" for name in ("CNV", "DME", "DRUSEN", "NORMAL")]
    own = [f"{folder}/{folder[4:]}-77-1.jpeg" for folder in folders]
    _images(tmp_path, *self.NAMES, *own, "val/DME/DME-11053-1.jpeg")  # the last is in test, too
    got = _table(_rows(settings.OctKermany(root=str(tmp_path))))
    assert set(got) == {*self.NAMES, *own}
    assert all(got[name][2] == "test" for name in own)


class TestHAM10000:
  HEADER = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
  TEST = "ISIC2018_Task3_Test_GroundTruth.csv"

  @pytest.fixture
  def root(self, tmp_path):
    """Three images of two lesions, in the two folders of the Dataverse."""
    _csv(
      tmp_path / "HAM10000_metadata.csv",
      self.HEADER,
      ("HAM_0000118", "ISIC_0027419", "bkl", "histo", "80.0", "male", "scalp"),
      ("HAM_0000118", "ISIC_0025030", "bkl", "histo", "80.0", "male", "scalp"),
      ("HAM_0002730", "ISIC_0026769", "nv", "histo", "", "unknown", "unknown"),
    )
    _images(
      tmp_path,
      "HAM10000_images_part_1/ISIC_0027419.jpg",
      "HAM10000_images_part_2/ISIC_0025030.jpg",
      "HAM10000_images_part_2/ISIC_0026769.jpg",
    )
    return tmp_path

  def test_lesions_are_groups(self, root):
    rows = _rows(settings.HAM10000(root=str(root)))
    assert list(_table(rows).values()) == [
      ("bkl", "HAM_0000118", ""),
      ("bkl", "HAM_0000118", ""),
      ("nv", "HAM_0002730", ""),
    ]
    assert rows.metadata[0] == {"age": "80.0", "sex": "male", "localization": "scalp"}

  def test_unknown_ages_can_be_dropped(self, root):
    rows = _rows(settings.HAM10000(root=str(root), drop_missing=True))
    assert [name.split("/")[1] for name in rows.ids] == ["ISIC_0027419.jpg", "ISIC_0025030.jpg"]

  @pytest.mark.parametrize("dropped", [False, True])
  def test_official_test_of_the_challenge(self, root, dropped):
    place = root / "ISIC2018_Task3_Test_GroundTruth" / self.TEST
    kinds = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
    _csv(place, ("image", *kinds), ("ISIC_0034524", 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    _images(root, "ISIC2018_Task3_Test_Input/ISIC_0034524.jpg")
    rows = _rows(settings.HAM10000(root=str(root), official_test=True, drop_missing=dropped))
    name = "ISIC2018_Task3_Test_Input/ISIC_0034524.jpg"
    assert _table(rows)[name] == ("df", name, "test")
    assert rows.parts.tolist() == ["train"] * (2 if dropped else 3) + ["test"]
    assert rows.metadata[-1] == {"age": None, "sex": None, "localization": None}

  def test_official_test_of_the_dataverse(self, root):
    row = ("HAMTEST_0000014", "ISIC_0034524", "akiec", "histo", "75.0", "female", "back")
    _csv(root / self.TEST, self.HEADER, row)
    _images(root, "test/ISIC_0034524.jpg")
    rows = _rows(settings.HAM10000(root=str(root), official_test=True))
    assert _table(rows)["test/ISIC_0034524.jpg"] == ("akiec", "HAMTEST_0000014", "test")
    assert rows.metadata[-1]["age"] == "75.0"

  def test_missing_files_are_told(self, root):
    with pytest.raises(FileNotFoundError, match=r"no ISIC2018_Task3_Test_GroundTruth\.csv below"):
      _rows(settings.HAM10000(root=str(root), official_test=True))
    (root / "HAM10000_images_part_1/ISIC_0027419.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images .*: ISIC_0027419\.jpg\.\nGet"):
      _rows(settings.HAM10000(root=str(root)))

  def test_the_real_files(self, shared_data):
    cfg = settings.HAM10000(root=str(shared_data / "ham10000"))
    rows = _rows(cfg)
    want = dict(akiec=327, bcc=514, bkl=1099, df=115, mel=1113, nv=6705, vasc=142)
    assert rows.classes == tuple(want) == ham10000.CLASSES
    assert _counts(rows) == {("", name): count for name, count in want.items()}
    assert len(set(rows.groups)) == 7470
    assert not splits.crossing(rows.groups, splits.deal(rows, cfg.split))
    dropped = _rows(settings.HAM10000(root=cfg.root, drop_missing=True))
    assert len(dropped) == 9958
    assert _counts(rows) - _counts(dropped) == {("", "bkl"): 10, ("", "mel"): 2, ("", "nv"): 45}


def test_isic_malignant_benign(tmp_path):
  names = [
    f"{p}/{c}/{n}.jpg" for p in ("train", "test") for c in ("benign", "malignant") for n in "12"
  ]
  _images(tmp_path, *names, "data/train/benign/1.jpg")  # Kaggle's archive holds everything twice
  got = _table(_rows(settings.IsicMalignantBenign(root=str(tmp_path))))
  assert got == {name: (name.split("/")[1], name, name.split("/")[0]) for name in names}


class TestEyePACS:
  @pytest.fixture
  def root(self, tmp_path):
    grades = {"10_left": 0, "10_right": 0, "13_left": 0, "13_right": 3, "15_left": 1, "16_left": 0}
    _csv(tmp_path / "trainLabels.csv", ("image", "level"), *grades.items())
    _csv(
      tmp_path / "retinopathy_solution.csv", ("image", "level", "Usage"), ("1_left", 4, "Public")
    )
    _images(tmp_path, *(f"train/{name}.jpeg" for name in grades), "test/1_left.jpeg")
    return tmp_path

  def test_both_eyes_are_one_group(self, root):
    assert _table(_rows(settings.EyePACS(root=str(root)))) == {
      "train/10_left.jpeg": ("none", "10", ""),
      "train/10_right.jpeg": ("none", "10", ""),
      "train/13_left.jpeg": ("none", "13", ""),
      "train/13_right.jpeg": ("severe", "13", ""),
      "train/15_left.jpeg": ("mild", "15", ""),
      "train/16_left.jpeg": ("none", "16", ""),
    }

  def test_official_test(self, root):
    got = _table(_rows(settings.EyePACS(root=str(root), official_test=True)))
    assert got["test/1_left.jpeg"] == ("proliferative", "1", "test")
    assert {part for _, _, part in got.values()} == {"train", "test"}

  def test_binary_and_balanced(self, root):
    rows = _rows(settings.EyePACS(root=str(root), task="binary"))
    assert _counts(rows) == {("", "none"): 4, ("", "retinopathy"): 2}
    chosen = {
      _rows(settings.EyePACS(root=str(root), task="balanced", split=settings.Split(seed=seed))).ids
      for seed in range(9)
    }
    for ids in chosen:
      assert {"train/13_right.jpeg", "train/15_left.jpeg"} < set(ids)
      assert len(ids) == 4
    assert len(chosen) > 1


def test_malaria_cells(tmp_path):
  names = {
    "Uninfected/C1_thinF_IMG_20150604_104722_cell_9.png": ("uninfected", "c1", ""),
    "Uninfected/C33P1thinF_IMG_20150619_114756a_cell_1.png": ("uninfected", "c33p1", ""),
    "Parasitized/C33P1thinF_IMG_20150619_114756a_cell_179.png": ("parasitized", "c33p1", ""),
    "Parasitized/C100P61ThinF_IMG_20150918_144104_cell_162.png": ("parasitized", "c100p61", ""),
  }
  _images(tmp_path, *names)
  (tmp_path / "Parasitized/Thumbs.db").write_bytes(b"x")
  rows = _rows(settings.MalariaCells(root=str(tmp_path)))
  assert _table(rows) == names
  assert rows.classes == ("uninfected", "parasitized")


class TestBreakHis:
  SLIDES = (
    ("benign", "adenosis", "SOB_B_A-14-22549AB"),
    ("benign", "phyllodes_tumor", "SOB_B_PT-14-21998AB"),
    ("malignant", "ductal_carcinoma", "SOB_M_DC-14-13412"),
    ("malignant", "lobular_carcinoma", "SOB_M_LC-14-13412"),
  )

  @pytest.fixture
  def root(self, tmp_path):
    lines = []
    for kind, tumour, slide in self.SLIDES:
      folder = slide.replace("-", "_", 1).replace("_14-", "_14-")
      for zoom in (40, 100, 200, 400):
        name = f"{slide}-{zoom}-001.png"
        _images(tmp_path, f"{SLIDES}/{kind}/SOB/{tumour}/{folder}/{zoom}X/{name}")
        part = "test" if "22549AB" in slide else "train"
        lines.append(f"{name}|{zoom}|2|{part}")
    (tmp_path / "dsfold2.txt").write_text("\n".join(lines))
    return tmp_path

  def test_patients_stay_together_over_magnifications_and_tumours(self, root):
    rows = _rows(settings.BreakHis(root=str(root), fold=0))
    assert len(rows) == 16
    assert collections.Counter(rows.groups) == {
      "14-22549ab": 4,
      "14-21998ab": 4,
      "14-13412": 8,  # stands under two tumours
    }
    assert _counts(rows) == {("", "benign"): 8, ("", "malignant"): 8}

  def test_folds_types_and_magnifications(self, root):
    rows = _rows(settings.BreakHis(root=str(root), fold=2, task="types", magnification=200))
    assert rows.classes == tuple(breakhis.TYPES.values())
    assert _counts(rows) == {
      ("test", "adenosis"): 1,
      ("train", "phyllodes_tumor"): 1,
      ("train", "ductal_carcinoma"): 1,
      ("train", "lobular_carcinoma"): 1,
    }
    assert all("-200-" in name for name in rows.ids)

  def test_missing_lists_and_images_are_told(self, root):
    with pytest.raises(FileNotFoundError, match=r"no dsfold1\.txt beside the images\.\nGet"):
      _rows(settings.BreakHis(root=str(root)))
    next(root.rglob("*-40-001.png")).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 16 images that .*dsfold2\.txt names"):
      _rows(settings.BreakHis(root=str(root), fold=2))
    _images(root, f"{SLIDES}/benign/SOB/adenosis/x/40X/SOB_B_A-14-22549AB-40-099.png")
    (root / "dsfold2.txt").write_text(f"{next(root.rglob('*-400-001.png')).name}|400|2|train")
    with pytest.raises(FileNotFoundError, match="15 of 16 images that BreaKHis_v1 names"):
      _rows(settings.BreakHis(root=str(root), fold=2))


class TestChestXray14:
  @pytest.fixture
  def root(self, tmp_path):
    header = (
      "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    )
    _csv(
      tmp_path / "Data_Entry_2017.csv",
      header.split(","),
      ("00000001_000.png", "Cardiomegaly", 0, 1, 58, "M", "PA"),
      ("00000001_001.png", "Cardiomegaly|Emphysema", 1, 1, "058Y", "M", "PA"),
      ("00000002_000.png", "No Finding", 0, 2, 414, "F", "AP"),
      ("00000003_000.png", "Hernia", 0, 3, 81, "F", "PA"),
    )
    names = ["00000001_000.png", "00000001_001.png", "00000002_000.png", "00000003_000.png"]
    _images(tmp_path, *(f"images_001/images/{name}" for name in names))
    (tmp_path / "train_val_list.txt").write_text("\n".join(names[:3]))
    (tmp_path / "test_list.txt").write_text(names[3])
    return tmp_path

  def test_findings_are_marks(self, root):
    rows = _rows(settings.ChestXray14(root=str(root)))
    assert rows.multi_label and rows.labels.dtype == np.float32 and rows.labels.shape == (4, 14)
    found = [[rows.classes[k] for k in np.flatnonzero(row)] for row in rows.labels]
    assert found == [["Cardiomegaly"], ["Cardiomegaly", "Emphysema"], [], ["Hernia"]]
    assert rows.groups == ("00000001", "00000001", "00000002", "00000003")
    assert rows.parts.tolist() == ["train", "train", "train", "test"]
    assert [record["age"] for record in rows.metadata] == [58, 58, None, 81]

  def test_six_are_films_of_one_finding_at_most_a_thousand_of_each(self, root):
    more = [(f"{number:08}_000.png", "Mass") for number in range(100, 1105)]
    more += [("00000004_000.png", "Nodule"), ("00000004_001.png", "Nodule|Mass")]
    with (root / "Data_Entry_2017.csv").open("a", newline="") as stream:
      csv.writer(stream).writerows((*film, 0, film[0][:8], 58, "M", "PA") for film in more)
    with (root / "train_val_list.txt").open("a") as stream:
      stream.writelines(f"\n{name}" for name, _ in more)
    for name, _ in more:
      (root / name).touch()
    rows = _rows(settings.ChestXray14(root=str(root), task="six"))
    assert not rows.multi_label and set(rows.parts) == {""}
    assert _counts(rows) == {("", "Mass"): 1000, ("", "Nodule"): 1}
    split = settings.Split(seed=1)
    other = _rows(settings.ChestXray14(root=str(root), task="six", split=split))
    assert set(rows.ids) != set(other.ids)

  def test_an_image_in_no_list_is_told(self, root):
    (root / "test_list.txt").write_text("")
    with pytest.raises(FileNotFoundError, match="1 images are in no official list: 00000003_000"):
      _rows(settings.ChestXray14(root=str(root)))

  def test_classes_are_those_of_the_paper(self):
    assert len(chestxray14.CLASSES) == 14
    assert list(chestxray14.CLASSES) == sorted(chestxray14.CLASSES)


@pytest.mark.parametrize("kind", data.PAPERS)
def test_a_missing_set_says_where_to_get_it_and_how_to_lay_it_out(tmp_path, kind):
  download = data.PAPERS[kind].download
  assert "--config.data.root=FOLDER" in download and "  FOLDER/" in download
  for root in (tmp_path / "nowhere", tmp_path):  # no folder, and an empty one
    with pytest.raises(FileNotFoundError) as caught:
      _rows(kind(root=str(root)))
    assert download in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("kind", data.PAPERS)
def test_a_set_says_what_to_cite_and_what_to_beware_of(kind):
  found = data.PAPERS[kind]
  assert found.citation.startswith("@") and "year=" in found.citation
  assert found.licence and found.traps
  assert kind().name == next(
    n for n, v in settings.VARIANTS[settings.Data].items() if type(v) is kind
  )
