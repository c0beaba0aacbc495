"""Label fractions: whole groups, the share of every class, the smaller in the larger."""

import dataclasses

import numpy as np
import pytest

from medjax import data, settings
from medjax.data import catalogue, splits

FRACTIONS = (0.01, 0.1, 0.3, 0.7, 1.0)
SHARES = np.array([0.55, 0.3, 0.1, 0.05])


def mixed(seed: int, groups: int = 300, multi_label: bool = False) -> catalogue.Catalogue:
  """Groups of one to six images, mostly of one class, one in ten of several."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, 7, groups)
  names = np.repeat([f"g{i}" for i in range(groups)], sizes)
  main = np.repeat(rng.choice(4, groups, p=SHARES), sizes)
  other = rng.integers(0, 4, len(names))
  labels = np.where(np.repeat(rng.random(groups) < 0.1, sizes), other, main).astype(np.int32)
  if multi_label:  # a class, perhaps a second one; one image in five of neither
    both = np.eye(4)[labels] + np.eye(4)[other] * (rng.random((len(names), 1)) < 0.2) > 0
    labels = (both & (rng.random((len(names), 1)) > 0.2)).astype(np.float32)
  return catalogue.Catalogue(
    ids=tuple(f"{i}" for i in range(len(names))),
    groups=tuple(names.tolist()),
    labels=labels,
    parts=np.full(len(names), ""),
    classes=("a", "b", "c", "d"),
    read=lambda row: b"",
    content="",
  )


def kept(rows: catalogue.Catalogue, fraction: float, seed: int = 0, **split) -> np.ndarray:
  cfg = settings.Split(mode="grouped", fraction=fraction, fraction_seed=seed, **split)
  return splits.thinned(rows, splits.deal(rows, cfg), cfg)


def groups_of(rows: catalogue.Catalogue, mask: np.ndarray) -> set[str]:
  return {group for group, own in zip(rows.groups, mask, strict=True) if own}


@pytest.mark.parametrize("multi_label", [False, True], ids=["one label", "several"])
@pytest.mark.parametrize("seed", range(12))
def test_groups_stay_whole_nested_and_of_every_class(seed, multi_label):
  rows = mixed(seed, multi_label=multi_label)
  whole = kept(rows, 1.0, seed)
  larger = groups_of(rows, whole == "train")
  for fraction in reversed(FRACTIONS):
    parts = kept(rows, fraction, seed)
    for part in ("val", "test"):
      np.testing.assert_array_equal(parts == part, whole == part)
    mine = groups_of(rows, parts == "train")
    assert mine <= larger and not mine & groups_of(rows, parts != "train")
    assert rows.members[parts == "train"].any(0).all()
    larger = mine


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_every_class_keeps_the_share(seed, fraction):
  """By count: within a group of the share, where all images of a group are of one class."""
  rows = mixed(seed)
  main = dict(zip(rows.groups, rows.labels.tolist(), strict=True))
  rows = dataclasses.replace(rows, labels=np.array([main[g] for g in rows.groups], np.int32))
  whole, parts = kept(rows, 1.0, seed), kept(rows, fraction, seed)
  for label in range(4):
    was, left = (
      len(groups_of(rows, (p == "train") & (rows.labels == label))) for p in (whole, parts)
    )
    assert left == max(1, round(fraction * was))


def test_a_class_that_hides_in_groups_of_rarer_ones_is_kept():
  """Class a is in one group only, beside an image of the rarer b, of which there are many."""
  labels = [1] * 40 + [0, 1] + [2] * 60
  groups = [f"b{i}" for i in range(40)] + ["both"] * 2 + [f"c{i}" for i in range(60)]
  rows = dataclasses.replace(
    mixed(0),
    ids=tuple(map(str, range(len(labels)))),
    groups=tuple(groups),
    labels=np.array(labels, np.int32),
    parts=np.full(len(labels), "train"),
    classes=("a", "b", "c"),
  )
  for seed in range(10):
    cfg = settings.Split(val=0, test=0, fraction=0.02, fraction_seed=seed)
    parts = splits.thinned(rows, splits.deal(rows, cfg), cfg)
    assert "both" in groups_of(rows, parts == "train")
    assert len(groups_of(rows, parts == "train")) <= 3


def test_the_choice_goes_by_its_seed_and_not_by_the_order():
  rows = mixed(1)
  parts = kept(rows, 0.1, 3)
  order = np.random.default_rng(0).permutation(len(rows))
  moved = dataclasses.replace(
    rows,
    ids=tuple(rows.ids[row] for row in order),
    groups=tuple(rows.groups[row] for row in order),
    labels=rows.labels[order],
  )
  np.testing.assert_array_equal(kept(moved, 0.1, 3), parts[order])
  others = {frozenset(groups_of(rows, kept(rows, 0.1, seed) == "train")) for seed in range(8)}
  assert len(others) == 8


def test_folds_are_dealt_before_and_stay():
  rows = mixed(2)
  for fold in range(3):
    whole, parts = (kept(rows, f, folds=3, fold=fold) for f in (1.0, 0.1))
    np.testing.assert_array_equal(parts == "val", whole == "val")
    assert 0 < (parts == "train").sum() < 0.2 * (whole == "train").sum()


def test_an_unlabelled_set_is_thinned_too():
  rows = dataclasses.replace(mixed(3), classes=(), labels=np.full(len(mixed(3)), -1, np.int32))
  parts = kept(rows, 0.1)
  assert set(parts) == {"train", ""}
  assert len(groups_of(rows, parts == "train")) == 30


def test_images_dealt_singly_are_kept_singly():
  cfg = settings.Split(mode="image_random", fraction=0.1)
  rows = mixed(4)
  dealt = splits.deal(rows, cfg)
  parts = splits.thinned(rows, dealt, cfg)
  was = (dealt == "train").sum()
  assert abs((parts == "train").sum() - 0.1 * was) <= 2


def test_statistics_and_counts_are_those_of_the_kept_images(tmp_path):
  """Against NumPy on the very images that are left; told in the notes and above the table."""
  split = settings.Split(fraction=0.25, fraction_seed=2)
  cfg = settings.Phantom(patients=60, image_size=16, split=split, cache=str(tmp_path))
  made, whole = data.make(cfg), data.make(dataclasses.replace(cfg, split=settings.Split()))
  train = made.parts["train"]
  assert set(train.ids) < set(whole.parts["train"].ids) and len(train) == made.info.train_size
  pixels = np.stack([train.fetch(row) for row in range(len(train))]) / 255
  np.testing.assert_allclose(made.info.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
  np.testing.assert_allclose(made.info.std, pixels.std((0, 1, 2)), rtol=1e-6)
  assert made.info.class_counts == tuple(np.bincount(train.labels, minlength=3))
  for part in ("val", "test"):
    np.testing.assert_array_equal(made.parts[part].ids, whole.parts[part].ids)
  groups = len(set(train.groups)), len(set(whole.parts["train"].groups))
  told = f"train holds {len(train)} of its {len(whole.parts['train'])} images and {groups[0]} of"
  assert any(note.startswith(f"{told} its {groups[1]} groups") for note in made.notes)
  assert "split.fraction=0.25" in made.table and f"{len(train)}" in made.table


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_a_fraction_is_a_share(fraction):
  with pytest.raises(ValueError, match="choose a share above 0"):
    settings.Split(fraction=fraction)
