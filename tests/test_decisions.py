"""Tables of images with several classes: against scikit-learn, and to the disk and the page."""

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as sk

from medjax import contract, evaluate, figures, metrics, report
from medjax.metrics import rates
from medjax.report import contents, examples

CLASSES = ("mass", "nodule", "effusion", "hernia")


def _table(n=300, seed=0, shares=(0.3, 0.2, 0.5, 0.05)) -> contract.Predictions:
  """A noisy classifier with ties; some images have no class."""
  rng = np.random.default_rng(seed)
  labels = (rng.random((n, len(shares))) < shares).astype(np.float32)
  z = rng.normal(size=labels.shape) + 2 * labels - 1
  return contract.Predictions(
    ids=np.array([f"image{i}" for i in range(n)]),
    groups=rng.integers(60, size=n).astype(str),
    split="test",
    labels=labels,
    scores=np.round(1 / (1 + np.exp(-z)), 2),
    classes=CLASSES[: len(shares)],
  )


def test_metrics_agree_with_scikit_learn():
  table = _table()
  truth, scores, guess = table.labels.astype(int), table.scores, table.scores >= 0.5
  found = metrics.summary(table)
  assert tuple(found) == metrics.names(4, multi_label=True)
  expected = {
    "exact_match": sk.accuracy_score(truth, guess),
    "label_accuracy": 1 - sk.hamming_loss(truth, guess),
    "macro_f1": sk.f1_score(truth, guess, average="macro"),
    "macro_sensitivity": sk.recall_score(truth, guess, average="macro"),
    "macro_specificity": sk.recall_score(1 - truth, ~guess, average="macro"),
    "macro_ppv": sk.precision_score(truth, guess, average="macro"),
    "macro_npv": sk.precision_score(1 - truth, ~guess, average="macro"),
    "ovr_balanced": np.mean(
      [sk.balanced_accuracy_score(truth[:, c], guess[:, c]) for c in range(4)]
    ),
    "auc": sk.roc_auc_score(truth, scores, average="macro"),
    "ap": sk.average_precision_score(truth, scores, average="macro"),
    "brier": np.mean([sk.brier_score_loss(truth[:, c], scores[:, c]) for c in range(4)]),
    "log_loss": np.mean(
      [sk.log_loss(truth[:, c], np.clip(scores[:, c], 1e-7, 1 - 1e-7)) for c in range(4)]
    ),
  }
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, abs=1e-9), name
  assert expected.keys() < found.keys()  # all the others: test_metrics_random


def test_calibration_counts_every_decision():
  """By a loop: 15 bins (low, high], the score against how often the class is there."""
  table = _table()
  score, there = table.scores.ravel(), table.labels.ravel().astype(float)
  error = 0.0
  for low in range(15):
    inside = (score > low / 15) & (score <= (low + 1) / 15)
    inside |= (low == 0) & (score == 0)
    if inside.any():
      error += inside.sum() * abs(score[inside].mean() - there[inside].mean())
  assert metrics.summary(table)["ece"] == pytest.approx(error / score.size, abs=1e-12)


def test_a_class_that_no_image_has_is_left_out_of_every_mean():
  table = _table()
  labels = table.labels.copy()
  labels[:, 3] = 0
  three = dataclasses.replace(
    table, labels=labels[:, :3], scores=table.scores[:, :3], classes=CLASSES[:3]
  )
  absent = dataclasses.replace(table, labels=labels)
  assert metrics.absent_classes(absent) == ("hernia",)
  found, expected = metrics.summary(absent), metrics.summary(three)
  for name in found:
    if name.startswith("macro") or name in ("auc", "ap", "ovr_balanced"):
      assert found[name] == pytest.approx(expected[name], abs=1e-12), name


def test_an_image_of_weight_three_is_three_images():
  table, times = _table(40), np.random.default_rng(5).integers(0, 4, 40)
  again = np.repeat(np.arange(40), times)
  repeated = dataclasses.replace(
    table, **{f: getattr(table, f)[again] for f in ("ids", "groups", "labels", "scores")}
  )
  expected = metrics.summary(repeated)
  for name, value in metrics.summary(table, times).items():
    assert value == pytest.approx(expected[name], abs=1e-12), name


def test_decisions_of_one_class_an_image_are_its_confusion_matrix():
  rng = np.random.default_rng(1)
  table = dataclasses.replace(_table(), labels=rng.integers(0, 4, 300))
  matrix = rates.confusion(table.labels, table.predicted, 4)
  found = rates.decisions(table.members, table.assigned, np.ones(300))
  for rate in (rates.sensitivity, rates.specificity, rates.ppv, rates.npv, rates.ovr_accuracy):
    np.testing.assert_allclose(rates.of_class(rate(found), 1).value, rate(matrix).value)


def test_intervals_and_differences_exist():
  table = _table()
  wanted = metrics.names(4, multi_label=True)
  for name, found in metrics.intervals(table, wanted, 50, seed=0).items():
    assert found.low <= found.value <= found.high, name
  other = dataclasses.replace(table, scores=_table(seed=1).scores)
  assert metrics.paired(table, other, ("auc",), 50, seed=0)["auc"].value > 0.1


def test_labels_that_are_neither_there_nor_not_are_refused():
  table = _table()
  table.labels[7, 1] = 0.5
  with pytest.raises(ValueError, match=r"1 of 300 images .* 'image7'"):
    metrics.summary(table)


def test_a_table_with_several_labels_survives_the_disk(tmp_path):
  before = _table()
  evaluate.write(tmp_path / "t.csv", before)
  header, first, *_ = (tmp_path / "t.csv").read_text().splitlines()
  assert header.startswith("id,group,split,labels,predicted,score_mass,")
  held = [name for name, there in zip(CLASSES, before.labels[0], strict=True) if there]
  assert first.split(",")[3] == "|".join(held)
  after = evaluate.read(tmp_path / "t.csv")
  assert (after.split, after.classes, after.labels.dtype) == ("test", CLASSES, np.float32)
  for name in ("ids", "groups", "labels", "scores"):
    np.testing.assert_array_equal(getattr(after, name), getattr(before, name))


def test_tables_of_one_label_each_still_tell_that_there_may_be_several(tmp_path):
  one = dataclasses.replace(_table(4), labels=np.eye(4, dtype=np.float32))
  evaluate.write(tmp_path / "t.csv", one)
  np.testing.assert_array_equal(evaluate.read(tmp_path / "t.csv").labels, one.labels)


def test_the_report_shows_each_class_by_itself(tmp_path):
  table = _table(60)
  info = contract.DataInfo(CLASSES, (8, 8, 1), (1,) * 4, 60, (0.5,), (0.2,), multi_label=True)
  names = report.names(4, "macro_f1", multi_label=True)
  rows = examples.pick(table)
  each = metrics.by_class(table, 20, 0)
  stage = report.StageReport(
    name="train",
    info=info,
    counts="",
    predictions=table,
    intervals=metrics.intervals(table, names, 20, 0),
    per_class={
      name: {metric: found[c] for metric, found in each.items()} for c, name in enumerate(CLASSES)
    },
    gallery=contents.Gallery(np.zeros((len(rows), 8, 8, 1), np.uint8), rows.tolist()),
  )
  page = report.write(
    tmp_path / "report.html", report.Report("several", [stage], "macro_f1", 20)
  ).read_text()
  worst = int(rows[0])
  held = [name for name, there in zip(CLASSES, table.labels[worst], strict=True) if there]
  assert f"truth {', '.join(held) or 'none'}" in page
  assert "An image may have several classes" in page
  assert (table.assigned[worst] != table.members[worst]).any()
  truth, guess = table.labels[:, 2], table.scores[:, 2] >= 0.5
  assert f"<td>{sk.recall_score(truth, guess):.3f} (" in page


def test_curves_are_drawn_of_every_class():
  for draw in (figures.roc, figures.precision_recall):
    legend = draw(_table(shares=(0.3, 0.4))).axes[0].get_legend()
    assert [text.get_text().split()[-1] for text in legend.get_texts()] == ["mass", "nodule"]
  texts = [text.get_text() for text in figures.confusion_matrix(_table()).axes[0].texts]
  matrix = rates.decisions(_table().members, _table().assigned, np.ones(300))
  assert len(texts) == 16 and texts[0].startswith(f"{matrix[0, 1, 1]:.0f} ")
