"""`report.json` of a real run: its numbers are those of the predictions, by another library."""

import hashlib
import json
import pathlib

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from medjax import evaluate, main

TINY = pathlib.Path(__file__).with_name("tiny.py")


def _run(*args: object) -> None:
  assert main.main([str(arg) for arg in args]) == 0


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
  folder = tmp_path_factory.mktemp("run") / "workdir"
  words = ["--config.question=Does it run?", "--config.intended_use=To try the report"]
  return [f"--config={TINY}", f"--workdir={folder}", "--config.eval.maps=gradcam", *words]


@pytest.fixture(scope="module")
def workdir(command) -> pathlib.Path:
  _run(*command)
  return pathlib.Path(command[1].removeprefix("--workdir="))


@pytest.fixture(scope="module")
def told(workdir):
  return json.loads((workdir / "report.json").read_text())


@pytest.fixture(scope="module")
def table(workdir):
  return evaluate.read(workdir / "train" / "predictions_test.csv")


def test_metrics_are_those_of_the_predictions(told, table):
  found = {name: one["value"] for name, one in told["stages"][0]["test"]["metrics"].items()}
  truth, guess = table.labels, table.scores.argmax(1)
  hot = np.eye(len(table.classes))[truth]
  expected = {
    "accuracy": sklearn_metrics.accuracy_score(truth, guess),
    "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(truth, guess),
    "macro_f1": sklearn_metrics.f1_score(truth, guess, average="macro", zero_division=0),
    "auc": sklearn_metrics.roc_auc_score(hot, table.scores, average="macro"),
    "ap": sklearn_metrics.average_precision_score(hot, table.scores, average="macro"),
    "log_loss": -np.log(table.scores[np.arange(len(truth)), truth]).mean(),
  }
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, abs=1e-9), name


def test_every_interval_holds_its_value(told):
  stage = told["stages"][0]["test"]
  each = [*stage["metrics"].values()]
  each += [one for of_class in stage["per_class"].values() for one in list(of_class.values())[1:]]
  assert len(each) > 20
  for one in each:
    if one["defined"] == 1:
      assert one["low"] <= one["value"] <= one["high"] and one["low"] < one["high"] + 1e-12
    elif one["defined"] == 0:
      assert one["value"] is None


def test_classes_and_confusion_are_those_of_the_predictions(told, table):
  stage, guess = told["stages"][0]["test"], table.scores.argmax(1)
  expected = sklearn_metrics.confusion_matrix(table.labels, guess, labels=range(3))
  np.testing.assert_array_equal(stage["confusion"], expected)
  arguments = {"labels": range(3), "average": None, "zero_division": 0}
  recall = sklearn_metrics.recall_score(table.labels, guess, **arguments)
  precision = sklearn_metrics.precision_score(table.labels, guess, **arguments)
  for c, name in enumerate(table.classes):
    mine = stage["per_class"][name]
    assert mine["images"] == (table.labels == c).sum()
    assert mine["sensitivity"]["value"] == pytest.approx(recall[c])
    if (guess == c).any():
      assert mine["ppv"]["value"] == pytest.approx(precision[c])
    else:
      assert mine["ppv"]["value"] is None
    area = sklearn_metrics.roc_auc_score(table.labels == c, table.scores[:, c])
    assert mine["auc"]["value"] == pytest.approx(area)


def test_images_flow_from_found_to_tested(told, table):
  flow, test = told["stages"][0]["flow"], told["stages"][0]["test"]
  images = {count["what"]: count["images"] for rows in flow.values() for count in rows}
  groups = {count["what"]: count["groups"] for rows in flow.values() for count in rows}
  assert images["found"] == sum(images[part] for part in ("train", "val", "test"))
  assert groups["found"] == sum(groups[part] for part in ("train", "val", "test")) == 40
  assert images["scored: test"] == images["test"] == test["images"] == len(table.ids)
  assert groups["scored: test"] == test["groups"] == len(set(table.groups))


def test_hashes_are_those_of_the_files(told, workdir):
  def digits(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()

  hashes = told["stages"][0]["hashes"]
  assert hashes["predictions_test.csv"] == digits(workdir / "train" / "predictions_test.csv")
  assert told["hashes"] == {"config.json": digits(workdir / "config.json")}
  (place,) = [what for what in hashes if what.startswith("weights of ")]
  assert (workdir / "train" / place.removeprefix("weights of ")).is_dir()


def test_the_page_says_what_was_asked_and_what_it_is_for(told, workdir):
  html = (workdir / "report.html").read_text()
  assert told["question"] == "Does it run?" and "Does it run?" in html
  card = html.partition(">Model card</h2>")[2]
  for heading in ("Intended use", "Training data", "Evaluation", "Limits"):
    assert f">{heading}</h3>" in card
  assert "To try the report" in card and "quadsnet" in card


def test_pictures_are_shown_with_where_the_network_looked(workdir):
  kept = np.load(workdir / "train" / "pictures.npz")
  assert kept["overlays"].shape == (*kept["pictures"].shape[:3], 3)
  assert kept["overlays"].dtype == np.uint8
  tinted = (kept["overlays"].max(-1) != kept["overlays"].min(-1)).mean(axis=(1, 2))
  assert (tinted > 0).any()
  html = (workdir / "report.html").read_text()
  assert "gradcam" in html and html.count('class="id"') == len(kept["rows"])


def test_a_finished_run_started_again_has_the_same_report(workdir, command):
  names = ("report.html", "report.json")
  before = [(workdir / name).read_bytes() for name in names]
  for name in names:
    (workdir / name).unlink()
  _run(*command)
  assert [(workdir / name).read_bytes() for name in names] == before


def test_scoring_again_finds_the_same(workdir, told):
  (workdir / "report.json").unlink()
  _run("--task=evaluate", f"--workdir={workdir}")
  assert json.loads((workdir / "report.json").read_text()) == told
