"""Further test sets: which images are scored, under which labels, and what may not be scored."""

import pathlib

import numpy as np
import pytest

from medjax import data, settings
from tests.data import trees_of_files as trees

CLASSES = ("ill", "well")


def put(root: pathlib.Path, name: str, label: str, seed: int, kind: str = "PNG", **how) -> None:
  pixels = trees.picture(seed)
  trees.write(root / label / f"{name}.{kind.lower()}", trees.encoded(pixels, kind, **how))


def of(root: pathlib.Path, **more) -> settings.ImageFolder:
  cache = str(root.parent / "cache")
  return settings.ImageFolder(**dict(root=str(root), image_size=64, channels=1, cache=cache) | more)


def table(folder: pathlib.Path, name: str, **more) -> settings.Table:
  root, cache = str(folder / f"{name}.csv"), str(folder / "cache")
  return settings.Table(root=root, image_size=64, channels=1, cache=cache, **more)


@pytest.fixture
def ours(tmp_path) -> settings.ImageFolder:
  """Twelve pictures of each class to learn from, validate and test on."""
  for label, name in enumerate(CLASSES):
    for seed in range(12):
      put(tmp_path / "ours", f"{seed:02d}", name, 100 * label + seed)
  return of(tmp_path / "ours", split=settings.Split(val=0.25, test=0.25))


@pytest.fixture
def north(tmp_path) -> pathlib.Path:
  """Four other pictures of each class."""
  for label, name in enumerate(CLASSES):
    for seed in range(4):
      put(tmp_path / "north", f"n{seed}", name, 1000 + 100 * label + seed)
  return tmp_path / "north"


def beside(ours, *tests):
  return data.beside(data.make(ours), ours, tests)


def test_all_images_of_a_set_without_parts_are_scored(ours, north):
  alone = data.make(ours)
  both = beside(ours, of(north))
  assert list(both.parts) == ["train", "val", "test", "north"]
  part = both.parts["north"]
  assert part.name == "north" and len(part) == 8
  assert part.ids[0] == "ill/n0.png" and part.labels.tolist() == [0] * 4 + [1] * 4
  for name in alone.parts:
    assert alone.parts[name].ids.tolist() == both.parts[name].ids.tolist()
  assert both.info == alone.info and not both.leaky
  assert "north, a further test set: 8 images of 8 groups: ill 4, well 4" in both.table
  assert both.census.checks["images of north that were learnt from"] == "none"


def test_of_a_set_with_a_test_part_that_part_is_scored_and_all_where_it_is_dealt_anew(ours, north):
  for part, seeds in (("train", range(2)), ("test", range(2, 5))):
    for label, name in enumerate(CLASSES):
      for seed in seeds:
        put(north.parent / "parted" / part, str(seed), name, 2000 + 100 * label + seed)
  root = north.parent / "parted"
  assert len(beside(ours, of(root)).parts["parted"]) == 6
  anew = of(root, split=settings.Split(mode="grouped"))
  assert len(beside(ours, anew).parts["parted"]) == 10


def test_classes_are_told_apart_by_name_whatever_their_order(ours, north, tmp_path):
  rows = [f"north/{label}/n{seed}.png,{label}" for label in CLASSES for seed in range(4)]
  (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows]))
  part = beside(ours, table(tmp_path, "list", classes=("well", "ill"))).parts["list"]
  assert part.labels.tolist() == [0] * 4 + [1] * 4
  assert (part.fetch(0) == beside(ours, of(north)).parts["north"].fetch(0)).all()


def test_a_table_that_lacks_a_class_has_the_networks(ours, north, tmp_path):
  (tmp_path / "well.csv").write_text("path,label,split\nnorth/well/n1.png,well,test\n")
  assert beside(ours, table(tmp_path, "well")).parts["well"].labels.tolist() == [1]


def test_other_classes_pixels_or_labels_are_refused(ours, north, tmp_path):
  put(north, "x", "odd", 5000)
  with pytest.raises(ValueError, match=r"north has the classes ill, odd, well.*knows ill, well"):
    beside(ours, of(north))
  (tmp_path / "several.csv").write_text("path,label\nnorth/ill/n1.png,ill|well\n")
  with pytest.raises(ValueError, match=r"several has several classes an image"):
    beside(ours, table(tmp_path, "several", separator="|"))
  with pytest.raises(ValueError, match=r"has images of 32 pixels, 3 channels, 8 bits.*image_size"):
    beside(ours, of(north, image_size=32, channels=3))


@pytest.mark.parametrize("size", [16, 64])
def test_a_set_that_shows_an_image_that_was_learnt_from_is_refused_or_stamped(ours, north, size):
  ours = of(pathlib.Path(ours.root), image_size=size, split=ours.split)
  splits = data.make(ours)
  learnt = [splits.parts[part].ids[0] for part in ("train", "val")]
  for place, name in enumerate(learnt):
    label, file = name.split("/")
    seed = int(file[:2]) + 100 * CLASSES.index(label)
    put(north, f"again{place}", label, seed, "JPEG", quality=60)
  tested = splits.parts["test"].ids[0]
  label, file = tested.split("/")
  put(north, "tested", label, int(file[:2]) + 100 * CLASSES.index(label))
  with pytest.raises(ValueError, match=r"2 of the 11 images of north were learnt.*leaks='stamp'"):
    data.beside(splits, ours, [of(north, image_size=size)])
  stamped = of(north, image_size=size, split=settings.Split(leaks="stamp"))
  found = data.beside(splits, ours, [stamped])
  assert found.leaky and not splits.leaky
  (said,) = [note for note in found.notes if note.startswith("LEAKY")]
  assert "again0.jpeg" in said and "again1.jpeg" in said and "tested" not in said
  assert found.census.checks["images of north that were learnt from"] == said


def test_other_images_of_patients_who_were_learnt_from_are_seen_by_a_tables_groups(ours, north):
  """The patients of one table are those of another by name; images without one are their own."""
  folder = north.parent
  lines = [f"ours/{label}/{n:02d}.png,{label},p{n}" for label in CLASSES for n in range(12)]
  (folder / "base.csv").write_text("\n".join(["path,label,group", *lines]))
  base = table(folder, "base", split=ours.split)
  splits = data.make(base)
  groups = {part: splits.parts[part].groups[0] for part in ("train", "val", "test")}
  rows = [f"north/ill/n{i}.png,ill,{group}" for i, group in enumerate([*groups.values(), "new"])]
  (folder / "more.csv").write_text("\n".join(["path,label,group", *rows]))
  with pytest.raises(ValueError, match=r"2 of the 4 images of more .* as north/ill/n0.png, north"):
    data.beside(splits, base, [table(folder, "more")])


def test_unreadable_files_are_left_out_and_told_or_too_many(ours, north):
  (north / "ill" / "broken.png").write_bytes(b"no image")
  with pytest.raises(ValueError, match="max_unreadable"):
    beside(ours, of(north))
  found = beside(ours, of(north, max_unreadable=0.5))
  assert len(found.parts["north"]) == 8
  assert "1 unreadable files of north are left out" in found.notes


def metadata_table(folder: pathlib.Path, name: str, ages, columns=("age",)) -> settings.Table:
  lines = ["path,label,age"] + [
    f"ours/{label}/{seed:02d}.png,{label},{ages[seed]}" for label in CLASSES for seed in range(12)
  ]
  (folder / f"{name}.csv").write_text("\n".join(lines))
  split = settings.Split(val=0.25, test=0.25, leaks="stamp")
  return table(folder, name, numbers=columns, split=split)


def test_metadata_are_encoded_by_what_the_training_part_had(ours, tmp_path):
  base = metadata_table(tmp_path, "base", range(30, 54, 2))
  older = metadata_table(tmp_path, "older", range(60, 84, 2))
  splits = data.make(base)
  found = data.beside(splits, base, [older]).parts["older"]
  train = splits.parts["train"]
  ages = np.array([30 + 2 * int(name[-6:-4]) for name in train.ids], float)
  theirs = np.array([60 + 2 * int(name[-6:-4]) for name in found.ids], float)
  np.testing.assert_allclose(found.metadata[:, 0], (theirs - ages.mean()) / ages.std(), rtol=1e-5)
  with pytest.raises(ValueError, match="does not tell age"):
    data.beside(splits, base, [metadata_table(tmp_path, "none", range(12), columns=())])


def test_sets_are_named_by_kind_or_by_file_or_folder():
  sets = [
    settings.CovidCT(root="/a"),
    settings.MedMNIST(set="breastmnist"),
    settings.ImageFolder(root="/data/north"),
    settings.ImageFolder(root="/other/north/"),
    settings.Npz(root="/data/my list.npz"),
    settings.ImageFolder(root="/data/south/test"),
    settings.Phantom(),
    settings.Phantom(seed=3),
  ]
  assert settings.named(sets) == (
    "covid_ct",
    "breastmnist",
    "north",
    "north-2",
    "my_list",
    "south_test",
    "phantom",
    "phantom-2",
  )
