"""Operating points of a run, from the command line: chosen, kept, shown, and refused."""

import csv
import json
import pathlib
import shutil

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from medjax import config, evaluate, main, metrics, points, settings
from medjax.chapters import appendix
from medjax.metrics import calibration, operating, thresholds

TINY = pathlib.Path(__file__).with_name("tiny.py")
FURTHER = "{'name': 'phantom', 'seed': 7, 'patients': 30}"
CHOSEN = (
  f"--config.eval.tests=({FURTHER},)",
  "--config.eval.temperature=True",
  "--config.eval.thresholds=('youden', {'name': 'sensitivity', 'positive': 'nodular'})",
)


def run(*args: object) -> int:
  return main.main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> pathlib.Path:
  """A finished run in which nothing was chosen."""
  folder = tmp_path_factory.mktemp("bare") / "workdir"
  assert run(f"--config={TINY}", f"--workdir={folder}", "--config.optimizer.lr=0.01") == 0
  return folder


@pytest.fixture(scope="module")
def workdir(bare, tmp_path_factory) -> pathlib.Path:
  """The same, scored again with all that can be chosen."""
  folder = tmp_path_factory.mktemp("chosen") / "workdir"
  shutil.copytree(bare, folder)
  assert run("--task=evaluate", f"--workdir={folder}", *CHOSEN) == 0
  return folder


def told(capsys, *args: object) -> str:
  assert run(*args) == 1
  text = capsys.readouterr().err
  assert text.startswith("error: ") and "Traceback" not in text
  return text


def table(workdir: pathlib.Path, part: str):
  return evaluate.read(workdir / "train" / f"predictions_{part}.csv")


def test_nothing_is_kept_where_nothing_is_asked_for(bare):
  assert not (bare / "train" / operating.FILE).exists()
  assert not list((bare / "train").glob("predictions_phantom*"))


def test_a_finished_run_gets_its_operating_points_by_evaluating_it(bare, workdir):
  used = operating.read(workdir / "train")
  raw, warm = table(bare, "val"), table(workdir, "val")
  assert used.temperature == calibration.fit(raw)
  np.testing.assert_allclose(warm.scores, used.apply(raw.scores), rtol=1e-12)
  assert [(t.positive, t.criterion, t.part) for t in used.thresholds] == [
    ("clear", "youden", "val"),
    ("nodular", "youden", "val"),
    ("spiculated", "youden", "val"),
    ("nodular", "sensitivity >= 0.95", "val"),
  ]
  for each in used.thresholds[:3]:
    assert each == thresholds.choose(settings.Threshold(), warm, each.positive)
  before, after = metrics.summary(raw)["log_loss"], metrics.summary(warm)["log_loss"]
  assert after < before


def test_a_further_test_set_is_scored_into_a_file_of_its_own(workdir):
  with (workdir / "train" / "predictions_phantom.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert {row["split"] for row in rows} == {"phantom"}
  assert {row["label"] for row in rows} == {"clear", "nodular", "spiculated"}
  assert all(row["id"].startswith("phantom-s7-") for row in rows)
  assert len({row["group"] for row in rows}) == 30


def test_the_report_shows_every_part_but_the_one_that_was_chosen_on(workdir):
  page = (workdir / "report.html").read_text()
  for title in (
    "Further test sets",
    "Operating points on phantom<",
    "Operating points on the test",
  ):
    assert title in page
  assert "Calibration on the test part" in page and "Calibration on phantom" in page
  assert "Operating points on the val" not in page and "Calibration on the val" not in page
  assert len(list((workdir / "figures").glob("*_phantom.png"))) == 3


def test_the_rates_in_the_report_are_scikit_learns(workdir):
  test, used = table(workdir, "test"), operating.read(workdir / "train")
  point = used.thresholds[1]
  given = test.scores[:, 1] >= point.value
  tn, fp, fn, tp = sk.confusion_matrix(test.labels == 1, given, labels=[False, True]).ravel()
  cfg = settings.Eval(bootstrap=20)
  _, over, each = appendix.tables(cfg, {"test": test}, workdir / "train", 0)
  counts = [(tp, tp + fn), (tn, tn + fp), (tp, tp + fp), (tn, tn + fn)]
  assert over.rows[1][:3] == each.rows[1][:3] == ["nodular", "youden on val", f"{point.value:.4g}"]
  for interval, text, (hits, total) in zip(over.rows[1][3:], each.rows[1][3:], counts, strict=True):
    assert text.startswith(f"{hits} of {total}: ")
    if total:
      assert interval.value == pytest.approx(hits / total)
      bounds = stats.binomtest(hits, total).proportion_ci(method="wilson")
      assert text.endswith(f"{bounds.low:.3f} to {bounds.high:.3f}")
    assert bool(interval.defined) == bool(total)


def raw(bare: pathlib.Path, workdir: pathlib.Path) -> dict:
  """Part -> predictions as the network gives them."""
  used = operating.read(workdir / "train").temperature
  further = used.undone(table(workdir, "phantom"))
  return {"val": table(bare, "val"), "test": table(bare, "test"), "phantom": further}


def test_what_was_chosen_before_goes_with_the_next_scoring(bare, workdir, tmp_path):
  for name in (operating.FILE, "predictions_test.csv"):
    shutil.copy(workdir / "train" / name, tmp_path)
  points.settled(settings.Eval(), {"test": table(bare, "test")}, tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["predictions_test.csv"]
  before = (bare / "train" / "predictions_test.csv").read_bytes()
  assert (tmp_path / "predictions_test.csv").read_bytes() == before


def test_a_threshold_chosen_on_a_further_set_is_shown_on_the_test_part_alone(
  bare, workdir, tmp_path
):
  wanted = (settings.Threshold(part="phantom", positive="nodular"),)
  cfg = settings.Eval(thresholds=wanted, bootstrap=20)
  tables = points.settled(cfg, raw(bare, workdir), tmp_path)
  (found,) = operating.read(tmp_path).thresholds
  assert found.part == "phantom"
  titles = [each.title for each in appendix.tables(cfg, tables, tmp_path, 0)]
  assert titles == [
    "Further test sets",
    "Operating points on the test part",
    "Operating points on the test part, image by image",
  ]
  with pytest.raises(ValueError, match="chosen on the part 'phantom'"):
    found.decided(tables["phantom"])


def test_a_threshold_of_the_test_part_is_refused_by_the_command_line(bare, capsys):
  before = (bare / "report.html").read_bytes()
  text = told(
    capsys,
    "--task=evaluate",
    f"--workdir={bare}",
    "--config.eval.thresholds=({'name': 'youden', 'part': 'test'},)",
  )
  assert "part=test" in text and "cannot be scored there" in text and "part=val" in text
  assert (bare / "report.html").read_bytes() == before


def test_a_temperature_of_the_test_part_is_refused_by_the_command_line(bare, tmp_path, capsys):
  text = told(capsys, "--task=evaluate", f"--workdir={bare}", "--config.eval.temperature=test")
  assert "eval.temperature = 'test' is not true or false" in text
  text = told(
    capsys,
    f"--config={TINY}",
    f"--workdir={tmp_path}/w",
    "--config.eval.temperature=True",
    "--config.data.split.val=0",
  )
  assert "fitted on the val part, and there is none" in text and "data.split.val" in text


def test_what_cannot_be_chosen_is_told_before_a_training(tmp_path, capsys):
  start = [f"--config={TINY}", f"--workdir={tmp_path}/w"]
  text = told(capsys, *start, "--config.eval.thresholds={'name': 'youden', 'part': 'north'}")
  assert "'north', and scored are val, test" in text
  text = told(capsys, *start, "--config.eval.thresholds={'name': 'youden', 'positive': 'cat'}")
  assert "'cat', and the classes are clear, nodular, spiculated" in text
  text = told(capsys, *start, "--config.eval.tests=({'name': 'image_folder', 'root': 'nowhere'},)")
  assert "nowhere" in text
  assert not list((tmp_path / "w").glob("*/checkpoints"))


def test_a_set_that_was_learnt_from_is_refused(bare, capsys):
  same = "--config.eval.tests=({'name': 'phantom', 'patients': 40},)"
  text = told(capsys, "--task=evaluate", f"--workdir={bare}", same)
  assert "88 of the 112 images of phantom were learnt from" in text and "leaks='stamp'" in text


def test_a_run_goes_on_where_its_config_is_older_than_a_setting(bare, tmp_path, capsys):
  copy = tmp_path / "copy"
  shutil.copytree(bare, copy)
  kept = json.loads((copy / "config.json").read_text())
  for name in ("tests", "temperature", "thresholds"):
    del kept["stages"][0]["eval"][name]
  (copy / "config.json").write_text(json.dumps(kept))
  assert run(f"--config={TINY}", f"--workdir={copy}", "--config.optimizer.lr=0.01") == 0
  assert "finished before" in capsys.readouterr().out


def test_further_sets_have_the_pixels_of_the_stages_unless_they_say_otherwise():
  tree = {
    "data": {"name": "covid_ct", "image_size": 96, "reading": {"depth": 16}},
    "eval": {"tests": ["phantom", {"name": "mnist", "channels": 1, "image_size": 28}]},
  }
  first, second = config.parse(tree).stages[0].eval.tests
  assert (first.image_size, first.channels, first.reading.depth) == (96, 3, 16)
  assert (second.image_size, second.channels, second.reading.depth) == (28, 1, 16)


def test_settings_that_a_checkpoint_depends_on_may_still_not_change(bare, capsys):
  text = told(capsys, "--task=evaluate", f"--workdir={bare}", "--config.eval.select=accuracy")
  assert "another config" in text and "eval.select" in text


def test_a_stage_without_a_network_has_operating_points_too(tmp_path):
  """Its scores come from shares of trees; all else goes the same way."""
  start = [f"--config={TINY}", f"--workdir={tmp_path}/w", "--config.objective.name=classical"]
  assert run(*start, "--config.objective.trees=20", *CHOSEN) == 0
  kept = json.loads((tmp_path / "w" / "train" / operating.FILE).read_text())
  assert len(kept["thresholds"]) == 4 and kept["temperature"]["part"] == "val"
  assert (tmp_path / "w" / "train" / "predictions_phantom.csv").is_file()
