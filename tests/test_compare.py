"""`python -m medjax.compare`: two runs, stages or tables, in words, as a page and as a record."""

import csv
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from medjax import compare, contract, evaluate, metrics
from medjax.compare import __main__ as door
from medjax.compare import words


def _table(seed=0, skill=1.5, n=160, k=2, images=2, classes=None) -> contract.Predictions:
  """The same images for every seed and skill, each seen otherwise."""
  labels = np.random.default_rng(9).integers(k, size=n)
  z = np.random.default_rng(seed).normal(size=(n, k)) + skill * np.eye(k)[labels]
  return contract.Predictions(
    ids=np.array([f"patient/{i}.png" for i in range(n)]),
    groups=(np.arange(n) // images).astype(str),
    split="test",
    labels=labels,
    scores=np.exp(z) / np.exp(z).sum(1, keepdims=True),
    classes=classes or ("benign", "malignant", "other")[:k],
  )


def _written(folder: pathlib.Path, name: str, table: contract.Predictions) -> pathlib.Path:
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  evaluate.write(path, table)
  return path


@pytest.fixture
def pair(tmp_path) -> tuple[pathlib.Path, pathlib.Path]:
  """A good table and a poor one, whose rows lie in another order."""
  good, poor = _table(0, skill=3), _table(1, skill=0.5)
  backwards = poor.rows(np.arange(len(poor))[::-1])
  return _written(tmp_path, "good.csv", good), _written(tmp_path, "poor.csv", backwards)


def _workdir(folder: pathlib.Path, **stages: contract.Predictions | None) -> pathlib.Path:
  """A workdir as runs leave it, as far as comparing goes."""
  folder.mkdir()
  kept = [{"name": name, "eval": {"select": "accuracy"}} for name in stages]
  (folder / "config.json").write_text(json.dumps({"stages": kept}))
  for name, table in stages.items():
    (folder / name).mkdir()
    if table is not None:
      evaluate.write(folder / name / "predictions_test.csv", table)
  return folder


def test_command_says_which_is_better_and_leaves_a_page_and_a_record(pair, tmp_path):
  command = [sys.executable, "-m", "medjax.compare", *map(str, pair)]
  command += ["--resamples=500", f"--out={tmp_path / 'out'}"]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "A is better than B: AUC +0." in done.stdout
  assert "By DeLong's test, images of a group taken together: AUC +0." in done.stdout
  record = json.loads((tmp_path / "out" / "comparison.json").read_text())
  assert record["a_is"] == "better" and record["metric"] == "auc"
  page = (tmp_path / "out" / "comparison.html").read_text()
  assert "A is better than B" in page and 'name="viewport"' in page
  assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)


def test_record_holds_what_other_libraries_find(pair, tmp_path):
  assert door.main([*map(str, pair), "--resamples=300", "--seed=3", f"--out={tmp_path}"]) == 0
  record = json.loads((tmp_path / "comparison.json").read_text())
  good, poor = (evaluate.read(path) for path in pair)
  poor = poor.rows(np.argsort([int(re.search(r"\d+", each)[0]) for each in poor.ids]))
  for side, table in (("a", good), ("b", poor)):
    auc = sk.roc_auc_score(table.labels, table.scores[:, 1])
    assert record["metrics"]["auc"][side]["value"] == pytest.approx(auc)
    accuracy = sk.accuracy_score(table.labels, table.predicted)
    assert record["metrics"]["accuracy"][side]["value"] == pytest.approx(accuracy)
  d = record["metrics"]["auc"]["difference"]
  assert d == pytest.approx(metrics.paired(good, poor, ["auc"], 300, seed=3)["auc"]._asdict())
  right = [table.predicted == table.labels for table in (good, poor)]
  only = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
  expected = min(1, 2 * stats.binom.cdf(min(only), sum(only), 0.5))
  found = record["mcnemar"]
  assert (found["only_first"], found["only_second"]) == only
  assert found["p"] == pytest.approx(expected)
  assert (record["images"], record["groups"], record["resamples"]) == (160, 80, 300)


def test_swapping_the_two_turns_the_answer(pair):
  first, second = map(compare.opened, pair)
  there, back = compare.of(first, second, "auc", 300), compare.of(second, first, "auc", 300)
  assert words.statement(there)[0].startswith("A is better than B: AUC +")
  assert words.statement(back)[0].startswith("A is worse than B: AUC -")
  lower = compare.of(first, second, "brier", 300)
  assert words.statement(lower)[0].startswith("A is better than B: Brier score -")


def test_equals_are_not_told_apart(tmp_path, capsys):
  paths = [_written(tmp_path, f"{seed}.csv", _table(seed)) for seed in (1, 2)]
  assert door.main([*map(str, paths), "--resamples=500"]) == 0
  assert "No difference shown between A and B: AUC " in capsys.readouterr().out


def test_single_images_are_no_groups_to_beware_of(tmp_path):
  paths = [_written(tmp_path, f"{s}.csv", _table(s, images=1)) for s in (1, 2)]
  alone = " ".join(words.statement(compare.of(*map(compare.opened, paths), "auc", 50)))
  assert "By DeLong's test: AUC" in alone and "too sure of itself" not in alone
  paths = [_written(tmp_path, f"{s}.csv", _table(s, images=4)) for s in (1, 2)]
  grouped = " ".join(words.statement(compare.of(*map(compare.opened, paths), "auc", 50)))
  assert "too sure of itself" in grouped and "Only 40 groups" in grouped


def test_of_several_classes_delong_stands_in_the_table(tmp_path):
  paths = [_written(tmp_path, f"{s}.csv", _table(s, k=3)) for s in (1, 2)]
  found = compare.of(*map(compare.opened, paths), "macro_f1", 50)
  assert not any("DeLong" in said for said in words.statement(found))
  told = {row[0]: row for row in words.rows(found)}
  assert {"AUC of benign, DeLong", "AUC of malignant, DeLong", "AUC of other, DeLong"} < told.keys()
  assert all(len(row) == len(words.HEAD) for row in told.values())


def test_a_workdir_stands_for_its_last_stage_with_predictions(tmp_path, capsys):
  run = _workdir(tmp_path / "a", pretrain=None, finetune=_table(0), scratch=_table(1), last=None)
  assert compare.opened(run).path == run / "scratch" / "predictions_test.csv"
  assert compare.opened(run, "finetune").path == run / "finetune" / "predictions_test.csv"
  assert compare.opened(run / "finetune").path == run / "finetune" / "predictions_test.csv"
  assert compare.opened(run).select == compare.opened(run / "finetune").select == "accuracy"
  with pytest.raises(ValueError, match="no stage 'tune': choose from pretrain, finetune"):
    compare.opened(run, "tune")
  with pytest.raises(FileNotFoundError, match=r"no predictions_test.csv in .*pretrain: give"):
    compare.opened(run, "pretrain")
  with pytest.raises(FileNotFoundError, match=r"no predictions_other.csv in .*last, .*scratch"):
    compare.opened(run, part="other")
  assert door.main([str(run), str(run / "finetune"), "--resamples=50"]) == 0
  assert "A and B: accuracy " in capsys.readouterr().out  # the metric that the run was chosen by


def test_mistakes_are_told_in_a_line(pair, tmp_path, capsys):
  good, poor = map(str, pair)
  fewer = str(_written(tmp_path, "fewer.csv", _table(0).rows(np.arange(150))))
  classes = str(_written(tmp_path, "classes.csv", _table(0, classes=("a", "b"))))
  with (tmp_path / "other.csv").open("w", newline="") as file:
    csv.writer(file).writerows([["path", "predicted", "error"], ["a.png", "benign", ""]])
  wrong = {
    (good, fewer): "hold other images: 160 and 150 rows, 10 only in the first",
    (good, classes): "other classes",
    (good, str(tmp_path / "other.csv")): "no table of predictions",
    (good, str(tmp_path / "nothing")): "no predictions_test.csv in",
    (good, poor, "--metric=f3"): "no metric 'f3' of 2 classes: choose from accuracy",
    (good, poor, "--resamples=0"): "at least 1 is needed",
  }
  for given, told in wrong.items():
    assert door.main([*given]) == 1, given
    error = capsys.readouterr().err
    assert error.startswith("error: ") and told in error and error.count("\n") == 1, error
  with pytest.raises(ValueError, match="at least 1"):
    door.main([good, poor, "--resamples=0", "--debug"])
