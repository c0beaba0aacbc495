"""How scores are used: kept in a file, and what images are taken for by thresholds."""

import json

import numpy as np
import pytest

from medjax.metrics import calibration, operating, thresholds

CLASSES = ("nv", "mel", "bcc")


def of(*pairs, temperature=None) -> operating.Operating:
  return operating.Operating(
    temperature, tuple(thresholds.Threshold(name, "youden", "val", v) for name, v in pairs)
  )


def test_the_file_holds_what_was_chosen_and_on_what(tmp_path):
  chosen = of(("mel", 0.125), temperature=calibration.Temperature(1.7, "val"))
  operating.write(tmp_path, chosen)
  assert json.loads((tmp_path / "operating.json").read_text()) == {
    "temperature": {"value": 1.7, "part": "val"},
    "thresholds": [{"class": "mel", "criterion": "youden", "part": "val", "value": 0.125}],
    "notes": [],
  }
  assert operating.read(tmp_path) == chosen
  assert [path.name for path in tmp_path.iterdir()] == ["operating.json"]


def test_nothing_chosen_is_no_file(tmp_path):
  operating.write(tmp_path, of(("mel", 0.1)))
  operating.write(tmp_path, operating.Operating())
  assert not list(tmp_path.iterdir()) and operating.read(tmp_path) == operating.Operating()


def test_a_temperature_of_the_test_part_written_by_hand_is_refused(tmp_path):
  (tmp_path / "operating.json").write_text('{"temperature": {"value": 2, "part": "test"}}')
  with pytest.raises(ValueError, match=r"cannot be used.*test part.*--task=evaluate"):
    operating.read(tmp_path)


@pytest.mark.parametrize(
  "text", ["", "[]", '{"thresholds": [{"class": "mel"}]}', '{"temperature": 2}']
)
def test_a_damaged_file_is_told(tmp_path, text):
  (tmp_path / "operating.json").write_text(text)
  with pytest.raises(ValueError, match=r"operating.json cannot be used.*write it anew"):
    operating.read(tmp_path)


def test_scores_are_tempered_and_thresholds_leave_them_alone():
  scores = np.array([[0.7, 0.2, 0.1]])
  assert of(("mel", 0.1)).apply(scores) is scores
  warm = of(("mel", 0.1), temperature=calibration.Temperature(2.0, "val"))
  root = np.sqrt(scores)  # softmax(log p / 2)
  np.testing.assert_allclose(warm.apply(scores), root / root.sum(), rtol=1e-12)


def predicted(chosen, *scores, multi_label=False):
  return chosen.predicted(np.array(scores), CLASSES, multi_label).tolist()


def test_without_thresholds_the_highest_score_wins():
  assert predicted(of(), (0.2, 0.5, 0.3), (0.4, 0.4, 0.2)) == [1, 0]
  assert predicted(of(), (0.2, 0.5, 0.3), multi_label=True) == [[False, True, False]]


def test_a_class_is_given_from_its_threshold_on_and_never_below():
  mel = of(("mel", 0.3))
  assert predicted(mel, (0.6, 0.3, 0.1), (0.1, 0.29, 0.61), (0.41, 0.3, 0.29)) == [1, 2, 1]
  high = of(("mel", 0.9))
  assert predicted(high, (0.15, 0.8, 0.05), (0.05, 0.9, 0.05)) == [0, 1]


def test_of_several_classes_that_are_reached_the_highest_score_wins():
  both = of(("mel", 0.1), ("bcc", 0.2))
  assert predicted(both, (0.5, 0.2, 0.3), (0.75, 0.15, 0.1), (0.9, 0.05, 0.05)) == [2, 1, 0]


def test_where_no_threshold_of_any_class_is_reached_the_highest_score_wins():
  every = of(("nv", 0.9), ("mel", 0.9), ("bcc", 0.9))
  assert predicted(every, (0.2, 0.5, 0.3)) == [1]


def test_of_several_thresholds_for_a_class_the_first_decides():
  assert predicted(of(("mel", 0.1), ("mel", 0.9)), (0.8, 0.2, 0.0)) == [1]


def test_classes_of_which_an_image_may_have_several_each_go_by_their_own():
  found = predicted(of(("mel", 0.2)), (0.6, 0.2, 0.4), (0.4, 0.1, 0.5), multi_label=True)
  assert found == [[True, True, False], [False, False, True]]


def test_thresholds_of_another_networks_classes_are_refused():
  with pytest.raises(ValueError, match=r"'cat'.*nv, mel, bcc"):
    predicted(of(("cat", 0.5)), (0.2, 0.5, 0.3))
