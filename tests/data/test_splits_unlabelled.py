"""A fraction of the labels and every image: what the split leaves without labels, and who minds."""

import dataclasses

import numpy as np
import pytest

from medjax import config, contract, data, settings, wiring
from medjax.data import catalogue, splits

SET = dict(name="phantom", image_size=16, patients=60)


def made(**split):
  return data.make(config.parse({"data": SET | {"split": split}}).stages[0].data)


def test_the_rest_stays_without_its_labels():
  whole, some = made(), made(fraction=0.25)
  both = made(fraction=0.25, rest="unlabelled")
  train, labelled = both.parts["train"], both.parts["train"].labels != contract.UNLABELLED
  np.testing.assert_array_equal(train.ids, whole.parts["train"].ids)
  assert set(train.ids[labelled]) == set(some.parts["train"].ids)
  np.testing.assert_array_equal(
    train.labels[labelled], whole.parts["train"].labels[np.isin(train.ids, train.ids[labelled])]
  )
  np.testing.assert_array_equal(train.sets, ~labelled)
  assert both.info.class_counts == some.info.class_counts
  assert both.info.train_size == len(whole.parts["train"])
  for part in ("val", "test"):
    np.testing.assert_array_equal(both.parts[part].labels, whole.parts[part].labels)


def test_all_labels_leave_no_rest():
  train = made(rest="unlabelled").parts["train"]
  assert (train.labels != contract.UNLABELLED).all()


def test_a_set_of_several_sets_cannot_be_cut_in_two():
  one = catalogue.Catalogue(
    ("a", "b"), ("a", "b"), np.zeros(2, np.int32), np.full(2, ""), ("x", "y"), None, ""
  )
  several = dataclasses.replace(one, sets=np.arange(2, dtype=np.int32))
  parts = np.array(["train", "train"])
  with pytest.raises(ValueError, match="rest=unlabelled makes two sets of one"):
    splits.without_labels(several, parts, parts)


def test_unknown_ways_with_the_rest_are_told():
  with pytest.raises(ValueError, match=r"split\.rest.*'drop', 'unlabelled'"):
    made(rest="keep")
  assert settings.Split().rest == "drop"


@pytest.mark.parametrize("objective", ["supervised", "gan_cond"])
def test_images_without_labels_are_refused_where_each_needs_one(objective):
  tree = {
    "data": SET | {"split": {"fraction": 0.5, "rest": "unlabelled"}},
    "model": "gan" if objective == "gan_cond" else "survey_cnn",
    "objective": objective,
  }
  stage = config.parse(tree).stages[0]
  with pytest.raises(ValueError, match=r"rest=unlabelled keeps images without labels.*gan_semi"):
    wiring._check_labels(stage)
