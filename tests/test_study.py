"""A study: its tables against predictions made by hand, and a run from the command line."""

import csv
import dataclasses
import pathlib

import numpy as np
import pytest

from medjax import config, contract, main, metrics, report, settings, study

CFG = settings.Study(columns=("arm", "fraction", "seed"), repeats="seed", baseline="random")


def table(wrong: list[int], ids=range(12)) -> contract.Predictions:
  """Of two classes in turn, two images a patient; the images in `wrong` are taken for the other."""
  ids = np.array(list(ids))
  labels = ids % 2
  sure = np.where(np.isin(ids, wrong), 1 - labels, labels)
  scores = np.where(np.arange(2) == sure[:, None], 0.9, 0.1)
  return contract.Predictions(
    ids.astype(str), (ids // 2).astype(str), "test", labels, scores, ("ill", "well")
  )


def scored(cell: tuple[str, ...], predictions: contract.Predictions) -> study.Scored:
  found = metrics.intervals(predictions, ["accuracy"], 200, seed=0)["accuracy"]
  return study.Scored(cell, predictions, found)


@pytest.fixture(scope="module")
def found() -> study.Study:
  rows = [
    scored(("random", "0.1", "0"), table([0, 1, 2, 3, 4, 5])),
    scored(("random", "0.1", "1"), table([0, 1, 2, 3])),
    scored(("pretrained", "0.1", "0"), table([0, 1, 2])),
    scored(("pretrained", "0.1", "1"), table([0])),
    scored(("random", "1", "0"), table([])),
  ]
  return study.of(CFG, rows, "accuracy", 200, 0)


def rows_of(path: pathlib.Path) -> list[dict[str, str]]:
  with path.open() as file:
    return list(csv.DictReader(file))


def test_study_csv_has_a_row_a_stage_with_its_interval(found, tmp_path):
  study.write(tmp_path, found)
  rows = rows_of(tmp_path / study.FILE)
  assert list(rows[0]) == ["arm", "fraction", "seed", "value", "low", "high"]
  values = [float(row["value"]) for row in rows]
  assert values == [6 / 12, 8 / 12, 9 / 12, 11 / 12, 1]
  assert [row["arm"] for row in rows] == [row.cell[0] for row in found.rows]
  for row, kept in zip(rows, found.rows, strict=True):
    assert (float(row["low"]), float(row["high"])) == kept.interval[1:3]


def test_a_summary_has_the_mean_and_the_spread_over_the_repeats(found, tmp_path):
  random, pretrained, all_labels = found.summaries
  assert random.mean == pytest.approx((6 + 8) / 24)
  assert random.spread == pytest.approx(2 / 12 / 2**0.5)
  assert pretrained.difference.value == pytest.approx((9 + 11 - 6 - 8) / 24)
  assert random.difference is None and all_labels.difference is None
  assert all_labels.spread is None and all_labels.level == ("1",)
  study.write(tmp_path, found)
  rows = rows_of(tmp_path / study.SUMMARY)
  assert [row["repeats"] for row in rows] == ["2", "2", "1"]
  assert float(rows[1]["difference_low"]) == pretrained.difference.low
  assert rows[0]["difference_value"] == rows[2]["spread"] == ""


def test_intervals_of_means_are_those_of_a_loop_over_patients(found):
  hits = {
    row.cell: (row.predictions.predicted == row.predictions.labels).reshape(6, 2).mean(1)
    for row in found.rows
  }
  means = {
    arm: np.mean([hits[arm, "0.1", seed] for seed in "01"], axis=0)
    for arm in ("random", "pretrained")
  }
  drawn = np.concatenate(list(metrics.draws(6, 200, 0, rows=200)))
  resampled = {arm: [np.average(mean, weights=row) for row in drawn] for arm, mean in means.items()}
  random, pretrained, _ = found.summaries
  bounds = np.percentile(resampled["random"], [2.5, 97.5])
  np.testing.assert_allclose(random.interval[1:3], bounds)
  apart = np.subtract(resampled["pretrained"], resampled["random"])
  np.testing.assert_allclose(pretrained.difference[1:3], np.percentile(apart, [2.5, 97.5]))


def test_folds_are_scored_as_one_table():
  cfg = settings.Study(columns=("arm", "fold"), pooled="fold", baseline="plain")
  whole = {"plain": table([0, 1, 7]), "focal": table([0, 11])}
  rows = [
    scored((arm, fold), table(np.flatnonzero(each.predicted != each.labels), ids))
    for fold, ids in (("0", range(6)), ("1", range(6, 12)))
    for arm, each in whole.items()
  ]
  plain, focal = study.of(cfg, rows, "accuracy", 200, 0).summaries
  assert plain.values == (9 / 12,) and plain.spread is None
  assert plain.interval == metrics.intervals(whole["plain"], ["accuracy"], 200, 0)["accuracy"]
  pair = metrics.paired(whole["focal"], whole["plain"], ["accuracy"], 200, 0)
  assert focal.difference == pair["accuracy"]


def test_folds_scored_on_the_same_images_are_refused():
  cfg = settings.Study(columns=("arm", "fold"), pooled="fold")
  rows = [scored(("plain", fold), table([0])) for fold in "01"]
  with pytest.raises(ValueError, match=r"data\.split\.folded=test"):
    study.of(cfg, rows, "accuracy", 10, 0)


def test_stages_scored_on_other_images_have_no_interval_in_common():
  rows = [
    scored(("random", "1", "0"), table([0])),
    scored(("random", "1", "1"), table([0], ids=range(12, 24))),
    scored(("pretrained", "1", "0"), table([1])),
  ]
  random, pretrained = study.of(CFG, rows, "accuracy", 10, 0).summaries
  assert random.interval is None and random.mean == pytest.approx((11 + 12) / 24)
  assert pretrained.interval is not None and pretrained.difference is None


def test_the_report_tells_the_arms_in_place_of_the_stages(found, tmp_path):
  info = contract.DataInfo(("ill", "well"), (8, 8, 1), (4, 4), 8, (0.5,), (0.2,))
  chapters = [
    report.StageReport(
      "_".join(row.cell),
      info,
      "",
      predictions=row.predictions,
      intervals={"accuracy": row.interval},
    )
    for row in found.rows
  ]
  whole = report.Report("A study", chapters, "accuracy", 200, study=found)
  lines = report.terminal_table(whole).splitlines()
  assert lines[0].split() == ["fraction", "accuracy", "spread", "minus", "random", "p"]
  assert lines[1].split()[:3] == ["random", "0.1", "0.583"]
  assert "+0.250" in lines[2] and "intervals are for other patients" in "\n".join(lines)
  assert "Against random, accuracy " in "\n".join(lines)
  html = report.write(tmp_path / "report.html", whole).read_text()
  assert "0.118 of 2" in html and "pretrained" in html
  assert html.count("As in stage ") == len(chapters) - 1
  assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["study.png"]


@pytest.mark.parametrize(
  ("low", "high", "metric", "said"),
  [
    (0.1, 0.3, "accuracy", "accuracy is better with pretrained (0.1)."),
    (0.1, 0.3, "log_loss", "log loss is worse with pretrained (0.1)."),
    (-0.1, 0.3, "accuracy", "accuracy shows no difference with pretrained (0.1)."),
  ],
)
def test_the_answer_comes_first(found, low, high, metric, said):
  difference = metrics.Difference((low + high) / 2, low, high, 1.0, 0.01)
  summaries = [study.Summary("pretrained", ("0.1",), (0.5,), None, difference)]
  told = dataclasses.replace(found, metric=metric, summaries=summaries)
  info = contract.DataInfo(("ill", "well"), (8, 8, 1), (4, 4), 8, (0.5,), (0.2,))
  stage = report.StageReport("a", info, "", predictions=found.rows[0].predictions)
  whole = report.Report("A study", [stage], metric, 200, study=told)
  assert report.terminal_table(whole).splitlines()[3] == f"Against random, {said}"


# From the command line.

FLOORS = """
from ml_collections import ConfigDict

def get_config(arg=""):
  split = lambda fold: dict(mode="grouped", folds=2, fold=fold, folded="test")
  return ConfigDict(dict(
    data=dict(name="phantom", image_size=16, patients=40),
    study=dict(columns=("arm", "fold"), pooled="fold", baseline="svm"),
    eval=dict(bootstrap=50, select="accuracy"),
    stages=tuple(
      dict(
        name=f"{arm}_{fold}", cell=(arm, str(fold)), data=dict(split=split(fold)),
        objective=dict(name="classical", classifier=arm, features=("lbp",), trees=20),
      )
      for fold in range(2)
      for arm in ("svm", "random_forest")
    ),
  ))
"""


def run(*args: str) -> int:
  return main.main([str(arg) for arg in args])


def test_a_run_without_networks_writes_the_table_and_the_plot_and_is_not_done_twice(
  tmp_path, capsys
):
  (tmp_path / "floors.py").write_text(FLOORS)
  command = (f"--config={tmp_path}/floors.py", f"--workdir={tmp_path}/w")
  command += (f"--config.data.cache={tmp_path}/cache",)
  assert run(*command) == 0
  text = capsys.readouterr().out
  assert "stage 1 of 4: svm_0" in text and "stage 4 of 4: random_forest_1, about " in text
  kept = {path: path.read_bytes() for path in (tmp_path / "w").rglob("*.csv")}
  rows = rows_of(tmp_path / "w" / "study.csv")
  assert list(rows[0]) == ["arm", "fold", "value", "low", "high"] and len(rows) == 4
  assert (tmp_path / "w" / "study.png").read_bytes().startswith(b"\x89PNG")
  assert len(rows_of(tmp_path / "w" / "study_summary.csv")) == 2
  tested = [rows_of(tmp_path / "w" / f"svm_{f}" / "predictions_test.csv") for f in range(2)]
  groups = [{row["group"] for row in each} for each in tested]
  assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 40
  (tmp_path / "w" / "svm_1" / "predictions_test.csv").unlink()
  assert run(*command) == 0
  assert capsys.readouterr().out.count("finished before") == 3
  assert {path: path.read_bytes() for path in kept} == kept
  assert run(*command, "--config.objective.features=glcm") != 0
  assert "was made by another config" in capsys.readouterr().err
  assert run("--task=evaluate", f"--workdir={tmp_path}/w") == 0
  assert "finished before" not in capsys.readouterr().out
  assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.slow
def test_worth_tells_every_arm_fraction_and_seed(tmp_path):
  small = ("--config.model.name=quadsnet", "--config.model.widths=4,8", "--config.model.hidden=8")
  spec = "--config=configs/mednet/worth.py:smoke"
  assert run(spec, f"--workdir={tmp_path}/w", *small) == 0
  rows = rows_of(tmp_path / "w" / "study.csv")
  assert list(rows[0]) == ["arm", "fraction", "seed", "value", "low", "high"]
  arms, fractions = ("random", "pretrained", "svm", "random_forest"), ("0.5", "1")
  assert [(r["fraction"], r["arm"]) for r in rows] == [(f, a) for f in fractions for a in arms]
  assert (tmp_path / "w" / "study.png").read_bytes().startswith(b"\x89PNG")
  page = (tmp_path / "w" / "report.html").read_text()
  assert "audit: 0 of 117 images are left out" in page


@pytest.mark.slow
def test_the_imbalance_bench_tests_every_film_once(tmp_path):
  small = ("--config.model.name=quadsnet", "--config.model.widths=4,8", "--config.model.hidden=8")
  spec = "--config=configs/imbalance_bench.py:smoke"
  assert run(spec, f"--workdir={tmp_path}/w", *small) == 0
  rows = rows_of(tmp_path / "w" / "study_summary.csv")
  assert [row["arm"] for row in rows] == ["softmax", "mixup", "random_forest"]
  assert rows[0]["difference_value"] == "" and float(rows[1]["p"]) <= 1


# What a config's author may get wrong.


def parsed(*stages: dict, **top) -> settings.Config:
  return config.parse(dict(stages=stages, **top))


ROW = dict(columns=("arm", "seed"))


@pytest.mark.parametrize(
  ("stages", "study_cfg", "says"),
  [
    ([dict(name="a", cell=("x",))], ROW, "must hold a text for each of study.columns"),
    ([dict(name="a", cell=("x",))], {}, "must hold a text for each of study.columns"),
    ([dict(name=n, cell=("x", "0")) for n in "ab"], ROW, "two stages of the study have the same"),
    ([dict(name="a", cell=("x", "0"))], ROW | dict(baseline="y"), "the arm of no stage's cell"),
    ([], ROW | dict(repeats="fold"), "'fold' is none"),
    ([], ROW | dict(repeats="seed", pooled="seed"), "take two columns"),
    ([], dict(columns=("arm", "value")), "each its own name"),
    ([dict(name="a", audit_against=("bb",)), dict(name="b")], {}, "did you mean 'b'"),
    ([dict(name="a", audit_against=("a",))], {}, "no other stage"),
    (
      [dict(name="a", objective="classical", init_from="w.h5")],
      {},
      "objective=classical learns from nothing else",
    ),
  ],
)
def test_what_makes_no_study_is_told(stages, study_cfg, says):
  with pytest.raises(ValueError, match=says):
    parsed(*(stages or [dict(name="a")]), study=study_cfg)


def test_a_stage_has_a_seed_of_its_own_beside_that_of_the_run():
  found = config.parse(dict(seed=3, stages=(dict(name="a", seed=5), dict(name="b"))), ["seed=7"])
  assert (found.seed, [stage.seed for stage in found.stages]) == (7, [5, None])
  assert config.parse(config.to_dict(found)) == found
  found = config.parse(config.to_dict(found), ["stages.b.seed=2", "stages.a.seed=None"])
  assert [stage.seed for stage in found.stages] == [None, 2]
