import collections
import dataclasses
import itertools

import numpy as np
import pytest
from sklearn import model_selection

from medjax import contract, settings
from medjax.data import catalogue, splits


def _rows(groups, labels, parts=None, published=False):
  groups = tuple(map(str, groups))
  labels = np.asarray(labels, np.int32)
  return catalogue.Catalogue(
    ids=tuple(f"image-{i}" for i in range(len(groups))),
    groups=groups,
    labels=labels,
    parts=np.array(parts if parts is not None else [""] * len(groups)),
    classes=tuple(f"class-{k}" for k in range(labels.max() + 1)),
    read=lambda row: b"",
    content="",
    published=published,
  )


def _patients(rng, count=150, classes=(0.6, 0.3, 0.1)):
  """Groups of one to six images; in one of ten the images are of several classes."""
  groups, labels = [], []
  for group in range(count):
    size, main = rng.integers(1, 7), rng.choice(len(classes), p=classes)
    mixed = rng.random() < 0.1
    groups += [group] * size
    labels += rng.integers(0, len(classes), size).tolist() if mixed else [main] * size
  return _rows(groups, labels)


def _brute_force_crossing(rows, parts):
  return {
    group
    for (group, part), (other, place) in itertools.combinations(
      zip(rows.groups, parts, strict=True), 2
    )
    if group == other and part != place
  }


def _shares(rows, parts, part):
  """Share of each class's images that a part holds."""
  return np.array([np.mean(parts[rows.labels == k] == part) for k in range(len(rows.classes))])


@pytest.mark.parametrize("seed", range(8))
def test_no_group_crosses_and_shares_are_as_asked(seed):
  rows = _patients(np.random.default_rng(seed))
  cfg = settings.Split(mode="grouped", seed=seed)
  parts = splits.deal(rows, cfg)
  assert set(parts) == set(contract.PARTS)
  assert not _brute_force_crossing(rows, parts)
  assert splits.check(rows, parts, cfg) == ""
  # The rarest class has some fifteen groups of up to six images: one image is 2 % of it.
  np.testing.assert_allclose(_shares(rows, parts, "test"), 0.2, atol=0.06)
  np.testing.assert_allclose(_shares(rows, parts, "val"), 0.125 * 0.8, atol=0.06)


def test_as_balanced_as_scikit_learn():
  ours, theirs = [], []
  for seed in range(8):
    rows = _patients(np.random.default_rng(seed))
    parts = splits.deal(rows, settings.Split(mode="grouped", seed=seed, val=0.0))
    ours.append(np.abs(_shares(rows, parts, "test") - 0.2).max())
    folds = model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    _, test = next(folds.split(np.zeros(len(rows)), rows.labels, rows.groups))
    parts = np.where(np.isin(np.arange(len(rows)), test), "test", "train")
    theirs.append(np.abs(_shares(rows, parts, "test") - 0.2).max())
  assert np.mean(ours) <= np.mean(theirs)


def test_images_without_groups_are_split_to_the_image():
  rows = _rows(range(1000), [0] * 700 + [1] * 240 + [2] * 60)
  parts = splits.deal(rows, settings.Split(mode="grouped"))
  count = collections.Counter(zip(rows.labels.tolist(), parts.tolist(), strict=True))
  for label, size in enumerate((700, 240, 60)):
    assert abs(count[label, "test"] - 0.2 * size) <= 0.5
    assert abs(count[label, "val"] - 0.125 * (size - count[label, "test"])) <= 0.5


def test_large_groups_are_not_drawn_to_one_part():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 7, 200)
  rows = _rows(np.repeat(np.arange(200), sizes), np.zeros(sizes.sum(), int))
  means = []
  for seed in range(20):
    parts = splits.deal(rows, settings.Split(mode="grouped", seed=seed))
    means.append(np.mean(sizes[np.unique(np.array(rows.groups)[parts == "test"].astype(int))]))
  assert abs(np.mean(means) - sizes.mean()) < 0.25


def test_is_a_function_of_the_seed_and_not_of_the_order():
  rng = np.random.default_rng(0)
  rows = _patients(rng)
  cfg = settings.Split(mode="grouped", seed=3)
  parts = splits.deal(rows, cfg)
  np.testing.assert_array_equal(parts, splits.deal(rows, cfg))
  order = rng.permutation(len(rows))
  moved = _rows(np.array(rows.groups)[order], rows.labels[order])
  np.testing.assert_array_equal(splits.deal(moved, cfg), parts[order])
  assert (splits.deal(rows, settings.Split(mode="grouped", seed=4)) != parts).any()


@pytest.mark.parametrize("seed", range(20))
def test_three_groups_of_a_rare_class_are_enough(seed):
  sizes = np.random.default_rng(seed).integers(1, 9, 3)
  rare = np.repeat(["r0", "r1", "r2"], sizes)
  rows = _rows([*range(100), *rare], [0] * 100 + [1] * len(rare))
  cfg = settings.Split(mode="grouped", seed=seed)
  parts = splits.deal(rows, cfg)
  splits.check(rows, parts, cfg)
  assert set(parts[100:]) == set(contract.PARTS)


def test_two_groups_of_a_rare_class_are_too_few():
  rows = _rows([*range(50), "p", "p", "q"], [0] * 50 + [1] * 3)
  cfg = settings.Split(mode="grouped")
  with pytest.raises(
    ValueError, match=r"class 'class-1' has no image in .*3 images are of 2 groups"
  ):
    splits.check(rows, splits.deal(rows, cfg), cfg)
  cfg = settings.Split(mode="grouped", val=0.0)
  assert set(splits.deal(rows, cfg)) == {"train", "test"}
  assert splits.check(rows, splits.deal(rows, cfg), cfg) == ""


def test_official_parts_stay_and_missing_ones_are_made():
  rng = np.random.default_rng(0)
  drawn = _patients(rng)
  tested = np.isin(np.array(drawn.groups).astype(int) % 4, 0)
  rows = _rows(drawn.groups, drawn.labels, np.where(tested, "test", "train"))
  cfg = settings.Split()
  parts = splits.deal(rows, cfg)
  np.testing.assert_array_equal(parts == "test", tested)
  assert not _brute_force_crossing(rows, parts)
  assert abs(np.mean(parts[~tested] == "val") - 0.125) < 0.02
  assert splits.check(rows, parts, cfg) == ""
  assert (splits.deal(rows, settings.Split(mode="grouped")) == "test").tolist() != tested.tolist()


def test_missing_test_is_a_share_of_all_images():
  rows = _rows(range(200), [0, 1] * 100, ["val"] * 40 + ["train"] * 160)
  parts = splits.deal(rows, settings.Split())
  assert collections.Counter(parts.tolist()) == {"train": 120, "val": 40, "test": 40}


def test_no_shares_make_no_parts():
  rows = _rows(range(10), [0, 1] * 5)
  assert set(splits.deal(rows, settings.Split(val=0.0, test=0.0))) == {"train"}


def test_unlabelled_images_are_training_data():
  rows = _rows(range(20), [contract.UNLABELLED] * 20)
  assert rows.classes == ()
  assert set(splits.deal(rows, settings.Split())) == {"train"}
  assert splits.check(rows, splits.deal(rows, settings.Split()), settings.Split()) == ""
  rows = _rows(range(20), [contract.UNLABELLED] * 20, ["train"] * 15 + ["test"] * 5)
  np.testing.assert_array_equal(splits.deal(rows, settings.Split()), rows.parts)


def test_by_image_cuts_groups_and_is_tagged():
  rows = _rows(np.repeat(range(40), 5), np.repeat([0, 1] * 20, 5))
  cfg = settings.Split(mode="image_random")
  parts = splits.deal(rows, cfg)
  cut = _brute_force_crossing(rows, parts)
  assert len(cut) > 20
  assert set(splits.crossing(rows.groups, parts)) == cut
  assert f"LEAKY: dealt by image, {len(cut)} groups" in splits.check(rows, parts, cfg)


def test_crossing_groups_stop_a_user_and_are_told_of_a_publication():
  groups = ["p", "p", "q", "r", "s", "s"]
  labels = [0, 0, 1, 1, 0, 0]
  given = ["train", "test", "train", "test", "test", "train"]
  cfg = settings.Split(val=0.0)
  rows = _rows(groups, labels, given)
  with pytest.raises(ValueError, match=r"2 groups .*: p \(train, test\); s \(train, test\)\. Put"):
    splits.check(rows, splits.deal(rows, cfg), cfg)
  rows = _rows(groups, labels, given, published=True)
  told = splits.check(rows, splits.deal(rows, cfg), cfg)
  assert "LEAKY: the published split cuts 2 groups" in told
  assert "p (train, test); s (train, test)" in told


@pytest.mark.parametrize("missing", contract.PARTS)
def test_a_class_missing_in_an_official_part(missing):
  given = np.repeat(contract.PARTS, 4)
  labels = np.where((given == missing) | (np.arange(12) % 2 == 0), 0, 1)
  rows = _rows(range(12), labels, given)
  with pytest.raises(ValueError, match=f"class 'class-1' has no image in {missing}: its 4 images"):
    splits.check(rows, splits.deal(rows, settings.Split()), settings.Split())


def test_only_test_images():
  rows = _rows(range(4), [0, 1, 0, 1], ["test"] * 4)
  with pytest.raises(ValueError, match="no image is in the part 'train'"):
    splits.deal(rows, settings.Split())


def test_a_user_may_go_on_with_a_stamp():
  rows = _rows(["p", "p", "q", "r"], [0, 0, 1, 1], ["train", "test", "train", "test"])
  cfg = settings.Split(val=0.0, leaks="stamp")
  told = splits.check(rows, splits.deal(rows, cfg), cfg)
  assert "LEAKY: the given split cuts 1 groups across parts: p (train, test)" in told


def test_groups_that_share_a_picture_are_one():
  rows = _rows(["p", "q", "r", "s", "t", "q"], [0] * 6)
  pictures = np.array([7, 7, 2, 2, -1, 2])
  assert splits.joined(rows, pictures).groups == ("p", "p", "p", "p", "t", "p")
  assert splits.joined(rows, np.full(6, -1)).groups == rows.groups
  assert splits.joined(rows, np.arange(6)).groups == rows.groups


def test_a_picture_under_two_labels_is_told():
  rows = _rows(range(5), [0, 1, 1, 0, 1])
  assert splits.conflicts(rows, np.array([3, -1, 4, 4, -1])) == (
    "1 pictures stand under more than one label, such as image-2, image-3"
  )
  assert splits.conflicts(rows, np.array([3, 4, 4, 3, -1])) == ""


class TestFolds:
  @pytest.mark.parametrize("seed", range(4))
  def test_each_group_lies_in_one_fold_and_shares_are_even(self, seed):
    rows = _patients(np.random.default_rng(seed), count=300)
    parts = np.full(len(rows), "train")
    folds = splits.folds(rows, parts, 5, seed)
    assert set(folds) == set(range(5))
    assert not _brute_force_crossing(rows, folds)
    for fold in range(5):
      np.testing.assert_allclose(_shares(rows, folds, fold), 0.2, atol=0.06)

  def test_every_training_image_is_val_once_and_test_stays(self):
    drawn = _patients(np.random.default_rng(0))
    official = np.array(["train", "val", "train", "test"])[np.array(drawn.groups).astype(int) % 4]
    rows = _rows(drawn.groups, drawn.labels, official)
    dealt = [splits.deal(rows, settings.Split(folds=4, fold=fold)) for fold in range(4)]
    for fold, parts in enumerate(dealt):
      np.testing.assert_array_equal(parts == "test", official == "test")
      assert not _brute_force_crossing(rows, parts)
      assert splits.check(rows, parts, settings.Split(folds=4, fold=fold)) == ""
    times = np.sum([parts == "val" for parts in dealt], axis=0)
    np.testing.assert_array_equal(times, official != "test")

  def test_test_part_is_the_same_with_and_without_folds(self):
    rows = _patients(np.random.default_rng(0))
    plain = splits.deal(rows, settings.Split(mode="grouped"))
    folded = splits.deal(rows, settings.Split(mode="grouped", folds=3, fold=1))
    np.testing.assert_array_equal(plain == "test", folded == "test")

  def test_are_a_function_of_the_seed_and_not_of_the_order(self):
    rng = np.random.default_rng(0)
    rows = _patients(rng)
    parts = np.full(len(rows), "train")
    folds = splits.folds(rows, parts, 5, seed=3)
    order = rng.permutation(len(rows))
    moved = dataclasses.replace(
      rows,
      ids=tuple(np.array(rows.ids)[order].tolist()),
      groups=tuple(np.array(rows.groups)[order].tolist()),
      labels=rows.labels[order],
    )
    np.testing.assert_array_equal(splits.folds(moved, parts, 5, seed=3), folds[order])
    assert (splits.folds(rows, parts, 5, seed=4) != folds).any()

  def test_many_labels_an_image(self):
    rng = np.random.default_rng(0)
    drawn = _patients(rng, count=300, classes=(1.0,))
    labels = (rng.random((len(drawn), 3)) < (0.5, 0.2, 0.08)).astype(np.float32)
    rows = dataclasses.replace(drawn, labels=labels, classes=("a", "b", "c"))
    folds = splits.folds(rows, np.full(len(rows), "train"), 4, seed=0)
    assert not _brute_force_crossing(rows, folds)
    for fold in range(4):
      shares = labels[folds == fold].sum(0) / labels.sum(0)
      np.testing.assert_allclose(shares, 0.25, atol=0.06)

  def test_a_class_needs_a_group_a_fold(self):
    rows = _rows([*range(50), "p", "p", "q", "r"], [0] * 50 + [1] * 4)
    cfg = settings.Split(mode="grouped", test=0.0, folds=4)
    with pytest.raises(
      ValueError, match=r"class 'class-1' has 3 groups .* than 4 folds: .*folds=3\), or leave"
    ):
      splits.deal(rows, cfg)
    cfg = settings.Split(mode="grouped", test=0.0, folds=3)
    assert splits.check(rows, splits.deal(rows, cfg), cfg) == ""

  def test_unlabelled_images_have_no_folds(self):
    rows = _rows(range(20), [contract.UNLABELLED] * 20)
    assert set(splits.deal(rows, settings.Split(folds=5))) == {"train"}

  @pytest.mark.parametrize(
    "wrong", [{"folds": 1}, {"folds": -2}, {"fold": 1}, {"folds": 3, "fold": 3}]
  )
  def test_settings_that_make_no_sense(self, wrong):
    with pytest.raises(ValueError, match=r"split\.fold"):
      settings.Split(**wrong)


def test_table_counts_images_and_groups():
  rows = _rows(["p", "p", "q", "r"], [0, 1, 1, 0], ["train", "train", "train", "test"])
  lines = [line.split() for line in splits.table(rows, rows.parts).splitlines()]
  assert lines == [
    ["part", "class", "images", "groups"],
    ["train", "class-0", "1", "1"],
    ["train", "class-1", "2", "2"],
    ["train", "all", "3", "2"],
    ["test", "class-0", "1", "1"],
    ["test", "class-1", "0", "0"],
    ["test", "all", "1", "1"],
  ]


def test_folds_as_test_hold_every_image_once_whatever_its_part():
  rng = np.random.default_rng(5)
  rows = _patients(rng)
  official = rng.choice(["train", "val", "test"], size=len(rows))
  given = dataclasses.replace(rows, parts=official, groups=rows.ids, published=True)
  for each, mode in ((rows, "grouped"), (given, "official")):
    cfgs = [settings.Split(mode=mode, folds=3, fold=f, folded="test", val=0.2) for f in range(3)]
    dealt = [splits.deal(each, cfg) for cfg in cfgs]
    assert (np.sum([parts == "test" for parts in dealt], axis=0) == 1).all()
    for parts, cfg in zip(dealt, cfgs, strict=True):
      assert splits.check(each, parts, cfg) == ""
      left = parts != "test"
      assert (parts[left] == "val").mean() == pytest.approx(0.2, abs=0.03)
