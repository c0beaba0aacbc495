"""Seeds are averaged, folds put together, weights averaged into a workdir like any other."""

import contextlib
import dataclasses
import json
import shutil

import numpy as np
import pytest
import untrained

from medjax import checkpoint, contract, evaluate, main, trained, trees
from medjax.ensemble import __main__ as command
from medjax.ensemble import scores, weights
from medjax.objectives import base


def table(ids, p, labels=None, **known) -> contract.Predictions:
  ids, p = np.array(list(ids)), np.array(p, float)
  labels = np.zeros(len(ids), np.int32) if labels is None else np.array(labels, np.int32)
  known = {name: np.array(column) for name, column in known.items()}
  both = np.stack([1 - p, p], axis=1)
  return contract.Predictions(ids, ids, "test", labels, both, ("no", "yes"), known)


def test_an_image_gets_the_mean_of_its_scores_whatever_the_order_of_the_rows():
  found = scores.together([table("cab", [0.3, 0.1, 0.2]), table("abc", [0.5, 0.6, 0.9])])
  assert found.ids.tolist() == ["c", "a", "b"]
  np.testing.assert_allclose(found.scores[:, 1], [0.6, 0.3, 0.4])
  np.testing.assert_allclose(found.scores.sum(1), 1)


def test_folds_are_put_together_and_seeds_of_each_fold_averaged():
  folds = [table("ab", [0.1, 0.2], [0, 1], age=["5", "6"]), table("cd", [0.3, 0.4], age=["", "7"])]
  seeds = [table("ba", [0.4, 0.3], [1, 0], age=["6", "5"]), table("cd", [0.5, 0.6], age=["", "7"])]
  found = scores.together([*folds, *seeds])
  assert found.ids.tolist() == list("abcd") and found.labels.tolist() == [0, 1, 0, 0]
  np.testing.assert_allclose(found.scores[:, 1], [0.2, 0.3, 0.4, 0.5])
  assert found.metadata["age"].tolist() == ["5", "6", "", "7"]


def test_images_that_some_networks_have_not_scored_are_refused():
  with pytest.raises(ValueError, match=r"1 of 3 images are in fewer tables.*'c' in 1 and 'a' in 2"):
    scores.together([table("abc", [0.1] * 3), table("ab", [0.1] * 2)])


def test_tables_of_other_labels_classes_or_parts_are_refused():
  one = table("ab", [0.1, 0.2], [0, 1])
  with pytest.raises(ValueError, match=r"1 images have another label or group.*first 'b'"):
    scores.together([one, table("ab", [0.1, 0.2], [0, 0])])
  for other in (
    dataclasses.replace(one, classes=("no", "maybe")),
    dataclasses.replace(one, split="val"),
  ):
    with pytest.raises(ValueError, match="different parts or classes: test of no, yes;"):
      scores.together([one, other])


@pytest.fixture(scope="module")
def workdirs(tmp_path_factory):
  """Two networks of random weights, scored on the same images."""
  folder = tmp_path_factory.mktemp("runs")
  data = dict(name="phantom", image_size=16, patients=40)
  return [
    untrained.workdir(
      folder / f"seed{seed}", data=data, seed=seed, eval=dict(bootstrap=50, recalibrate=64)
    )
    for seed in (0, 1)
  ]


def run(*args) -> int:
  return command.main([str(arg) for arg in args])


def test_the_command_averages_the_scores_of_runs(workdirs, tmp_path, capsys):
  assert run(*workdirs, "--out", tmp_path / "both", "--resamples", 20) == 0
  members = [evaluate.read(w / "train" / "predictions_test.csv") for w in workdirs]
  found = evaluate.read(tmp_path / "both" / "predictions_test.csv")
  np.testing.assert_array_equal(found.ids, members[0].ids)
  np.testing.assert_allclose(found.scores, (members[0].scores + members[1].scores) / 2, rtol=1e-12)
  kept = json.loads((tmp_path / "both" / "ensemble.json").read_text())["mean_of_scores"]
  assert [len(each["sha256"]) for each in kept] == [64, 64]
  assert capsys.readouterr().out.count("auc") == 3
  assert run(*workdirs, "--out", tmp_path / "both") == 1
  assert "is not empty" in capsys.readouterr().err
  assert run(workdirs[0], "--out", tmp_path / "one") == 1
  assert "two models or more" in capsys.readouterr().err


@pytest.fixture(scope="module")
def averaged(workdirs, tmp_path_factory):
  out = tmp_path_factory.mktemp("mean") / "workdir"
  assert run(*workdirs, "--weights", "--out", out) == 0
  return out


def test_weights_are_averaged_into_a_workdir(workdirs, averaged):
  one, other, mean = (
    trees.flatten(checkpoint.weights(each / "train")[0]["params"]) for each in (*workdirs, averaged)
  )
  for path, leaf in mean.items():
    np.testing.assert_allclose(leaf, (one[path] + other[path]) / 2, rtol=1e-6, atol=1e-7)
  assert any(np.abs(one[path] - other[path]).max() > 0.01 for path in one)


def test_its_batch_norm_is_estimated_for_the_averaged_weights(workdirs, averaged):
  plain = trees.flatten(weights.mean(workdirs)[0]["stats"])
  kept = trees.flatten(checkpoint.weights(averaged / "train")[0]["stats"])
  moments = [path for path in kept if path.endswith("mean")]
  assert any(np.abs(kept[path] - plain[path]).max() > 1e-3 for path in moments)


def test_it_opens_like_any_network_and_its_table_is_scored(averaged):
  network = trained.opened(averaged)
  assert network.stage.name == "train" and network.info.classes
  assert len(evaluate.read(averaged / "train" / "predictions_test.csv"))


@pytest.mark.slow
def test_scored_again_it_gives_the_same_table_and_a_report(averaged):
  before = evaluate.read(averaged / "train" / "predictions_test.csv")
  assert main.main(["--task=evaluate", f"--workdir={averaged}"]) == 0
  after = evaluate.read(averaged / "train" / "predictions_test.csv")
  np.testing.assert_allclose(after.scores, before.scores, atol=1e-6)
  assert "Mean weights of 2 networks" in (averaged / "report.html").read_text()


def test_snapshots_of_one_training_stay_and_have_a_mean(workdirs, tmp_path):
  shutil.copytree(workdirs[0], tmp_path / "run")
  folder = tmp_path / "run" / "train" / "checkpoints"
  shutil.rmtree(folder)
  with contextlib.closing(checkpoint.Checkpoints(folder, snapshots=3)) as saved:
    for step in (2, 4, 8, 16):
      params = {"encoder": {"kernel": np.full(3, step, np.float32)}}
      stats = {"moments": np.ones(2, np.float32), "count": np.int32(5)}
      saved.save("last", step, base.TrainState(np.int32(step), params, stats, (), {}), {})
    saved.wait()
  kept = sorted((folder / "last").iterdir())
  assert {path.name for path in kept} == {"4", "8", "16"}
  assert checkpoint.weights(folder.parent)[1].endswith("/16")
  found, step = weights.mean(kept)
  np.testing.assert_allclose(found["params"]["encoder"]["kernel"], [28 / 3] * 3, rtol=1e-6)
  assert (step, found["stats"]["count"], found["stats"]["count"].dtype) == (16, 5, np.int32)
  with pytest.raises(ValueError, match="different networks, whose weights have no mean"):
    weights.mean([workdirs[0], kept[0]])
