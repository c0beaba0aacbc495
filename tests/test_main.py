"""The command line: what a run leaves behind, and how a user's mistake is told."""

import csv
import gc
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
from PIL import Image
import pytest

from medjax import command, evaluate, main, stages, writer

TINY = pathlib.Path(__file__).with_name("tiny.py")
SMALL = ("--config.model.widths=4,8", "--config.model.hidden=8", "--config.eval.bootstrap=50")
QUICK = (
  "--config.train.length=2 steps",
  "--config.train.batch_size=8",
  "--config.data.image_size=16",
)


def run(*args: str) -> int:
  return main.main([str(arg) for arg in args])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  """A finished run of all three stages."""
  folder = tmp_path_factory.mktemp("run") / "workdir"
  assert run(f"--config={TINY}:stages", f"--workdir={folder}") == 0
  return folder


def told(capsys, *args: str) -> str:
  """The error of a run that must fail, as the user sees it."""
  assert run(*args) not in (0, main.STOPPED)
  text = capsys.readouterr().err
  assert text.startswith("error: ") and "Traceback" not in text
  assert len(text.splitlines()) <= 12
  return text


# What a run leaves behind.


def test_a_workdir_holds_what_users_script_against(workdir):
  with (workdir / "finetune" / "predictions_test.csv").open() as file:
    rows = list(csv.DictReader(file))
  classes = ["clear", "nodular", "spiculated"]
  columns = ["id", "group", "split", "label", "predicted", *(f"score_{c}" for c in classes)]
  assert list(rows[0]) == columns
  assert {row["split"] for row in rows} == {"test"} and len({row["id"] for row in rows}) == len(
    rows
  )
  scores = np.asarray([[float(row[f"score_{c}"]) for c in classes] for row in rows])
  np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
  assert [row["predicted"] for row in rows] == [classes[i] for i in scores.argmax(1)]
  for stage in ("pretrain", "finetune", "scratch"):
    logged = writer.read(workdir / stage / "metrics.jsonl")
    assert [row["step"] for row in logged] == [4, 8, 12, 16, 20, 24]
    assert all(row["stage"] == stage and np.isfinite(row["loss"]) for row in logged)
    assert list((workdir / stage).glob("events.*"))
  assert "SYNTHETIC" in (workdir / "report.html").read_text()
  assert not list((workdir / "pretrain").glob("predictions*"))


def test_monitors_are_in_the_log_and_the_report_of_a_stage_without_a_classifier(workdir):
  logged = writer.read(workdir / "pretrain" / "metrics.jsonl")
  looks = [row for row in logged if "probe/phantom" in row]
  assert [row["step"] for row in looks] == [8, 16, 24]
  for name in ("knn", "knn_balanced", "probe", "probe_balanced"):
    assert all(0 <= row[f"{name}/phantom"] <= 1 for row in looks)
  assert list((workdir / "figures").glob("*pretrain*monitors*"))


def test_the_best_checkpoint_is_the_one_the_log_names(workdir):
  logged = writer.read(workdir / "finetune" / "metrics.jsonl")
  scored = [row for row in logged if "val/macro_f1" in row]
  best = max(scored, key=lambda row: row["val/macro_f1"])
  (step,) = (path.name for path in (workdir / "finetune" / "checkpoints" / "best").iterdir())
  assert int(step) == best["step"] and [row["step"] for row in scored] == [8, 16, 24]


def test_the_pretrained_encoder_is_taken_and_told(tmp_path, workdir, capsys):
  args = [f"--config={TINY}", f"--workdir={tmp_path}/w", f"--config.init_from={workdir}/pretrain"]
  assert run(*args, *QUICK) == 0
  text = capsys.readouterr().out
  assert "tensors loaded" in text and "left over: params/head/bn" in text
  assert "new: params/head/classes/bias" in text


def test_evaluating_a_copy_gives_the_same_rows(workdir, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  before = (workdir / "finetune" / "predictions_test.csv").read_bytes()
  (copy / "finetune" / "predictions_test.csv").unlink()
  assert run("--task=evaluate", f"--workdir={copy}") == 0
  assert (copy / "finetune" / "predictions_test.csv").read_bytes() == before
  table = evaluate.read(copy / "finetune" / "predictions_test.csv")
  assert table.classes == ("clear", "nodular", "spiculated") and len(table.ids) == len(table.scores)


def test_the_same_command_again_does_nothing_twice(workdir, capsys):
  log = (workdir / "finetune" / "metrics.jsonl").read_bytes()
  assert run(f"--config={TINY}:stages", f"--workdir={workdir}") == 0
  assert capsys.readouterr().out.count("finished before") == 3
  assert (workdir / "finetune" / "metrics.jsonl").read_bytes() == log


def test_what_another_version_told_of_a_stage_is_told_anew(workdir, tmp_path, capsys):
  copy = tmp_path / "copy"
  shutil.copytree(workdir, copy)
  chapter = copy / "finetune" / "chapter.json"
  before = json.loads(chapter.read_text())
  chapter.write_text(json.dumps({k: v for k, v in before.items() if k != "per_class"}))
  assert run(f"--config={TINY}:stages", f"--workdir={copy}") == 0
  assert capsys.readouterr().out.count("finished before") == 2
  assert json.loads(chapter.read_text())["per_class"] == before["per_class"]


def test_statistics_that_lag_behind_the_weights_are_told(tmp_path, capsys):
  slow = [f"--config={TINY}", *QUICK, "--config.model.bn_momentum=0.99"]
  assert run(*slow, f"--workdir={tmp_path}/slow") == 0
  assert "WARNING: after 2 steps 98% of batch norm's running" in capsys.readouterr().out
  assert run(*slow, f"--workdir={tmp_path}/anew", "--config.eval.recalibrate=8") == 0
  assert "WARNING" not in capsys.readouterr().out


def test_a_network_without_batch_norm_has_none_that_lag(tmp_path, capsys):
  vgg = "--config.model=vgg16", "--config.data.image_size=32", "--config.data.channels=3"
  assert run(f"--config={TINY}", *QUICK[:2], *vgg, f"--workdir={tmp_path}/w") == 0
  assert "WARNING" not in capsys.readouterr().out


def test_a_stage_that_no_longer_improves_slows_down_and_stops(tmp_path, capsys):
  """Nothing is good enough to be an improvement: lr halves at each evaluation after the first."""
  command = [f"--config={TINY}:rules", f"--workdir={tmp_path}/w", "--config.eval.every=2 steps"]
  command += ["--config.optimizer.plateau.min_delta=9", "--config.train.stop.min_delta=9"]
  assert run(*command, "--config.train.stop.patience=3", "--config.optimizer.lr=0.01") == 0
  assert run(*command, "--config.train.stop.patience=3", "--config.optimizer.lr=0.01") == 0
  rows = writer.read(tmp_path / "w" / "train" / writer.FILE)
  assert [row["step"] for row in rows] == [2, 4, 6, 8]
  assert [row["lr"] for row in rows] == [0.01, 0.01, 0.005, 0.0025]
  assert capsys.readouterr().out.count("finished before") == 1


# What a user may get wrong.


def test_another_configs_workdir_is_refused(workdir, capsys):
  text = told(capsys, f"--config={TINY}:stages", f"--workdir={workdir}", "--config.seed=5")
  assert "another config" in text and "seed: 0 there, 5 here" in text


@pytest.mark.parametrize("start", [lambda: main.main(["--task=x"]), lambda: command.status(int)])
def test_commands_search_seldom_for_cycles_of_objects(start, capsys):
  gc.set_threshold(700)
  start()
  assert gc.get_threshold()[0] >= 10_000


def test_an_unknown_task_lists_the_tasks(capsys):
  assert "there are train, evaluate" in told(capsys, "--task=trian")


def test_too_little_is_told(capsys, tmp_path):
  assert "--config=configs/quickstart.py" in told(capsys)
  assert "no workdir of medjax" in told(capsys, "--task=evaluate", f"--workdir={tmp_path}")
  assert "no config file" in told(capsys, "--config=nowhere.py")
  assert "unknown flag --lr=3" in told(capsys, f"--config={TINY}", "--lr=3")


def test_an_unknown_metric_is_told_before_training(tmp_path, capsys):
  command = [f"--config={TINY}", f"--workdir={tmp_path}/w", "--config.eval.select=f1_macro"]
  assert "there are accuracy" in told(capsys, *command)
  assert not (tmp_path / "w" / "train" / stages.CHECKPOINTS).exists()


def test_a_prevalence_that_is_none_is_told_before_training(tmp_path, capsys):
  command = [f"--config={TINY}", f"--workdir={tmp_path}/w", "--config.eval.prevalence=0.9,0.2,0.1"]
  assert "eval.prevalence=(0.9, 0.2, 0.1) of 3 classes: give each one a share" in told(
    capsys, *command
  )
  assert not (tmp_path / "w" / "train" / stages.CHECKPOINTS).exists()


def test_what_is_watched_must_exist(tmp_path, capsys):
  command = [f"--config={TINY}:simclr", f"--workdir={tmp_path}/w", "--config.train.stop.patience=2"]
  assert "'pretrain' is never validated" in told(capsys, *command)
  command = [f"--config={TINY}", f"--workdir={tmp_path}/w", "--config.train.stop.monitor=loss"]
  assert "no metric train.stop.monitor='loss'" in told(capsys, *command)


def test_a_frozen_part_that_does_not_exist_is_told(tmp_path, capsys):
  command = [f"--config={TINY}", f"--workdir={tmp_path}/w", "--config.optimizer.freeze=stem"]
  text = told(capsys, *command)
  assert "'stem' fits no parameter" in text and "encoder/cs3" in text


def test_debug_shows_the_traceback():
  with pytest.raises(ValueError, match="unknown task"):
    run("--task=trian", "--debug")


def test_another_models_checkpoint_is_refused(workdir, tmp_path, capsys):
  args = [f"--config={TINY}", f"--workdir={tmp_path}/w", f"--config.init_from={workdir}/pretrain"]
  assert "checkpoint of another model" in told(capsys, *args, "--config.model.widths=4,12")


def picture(path: pathlib.Path, seed: int) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = np.random.default_rng(seed).integers(0, 256, (20, 20), np.uint8)
  Image.fromarray(pixels).save(path)


def folder_of(root: pathlib.Path, **classes: int) -> pathlib.Path:
  for name, images in classes.items():
    for i in range(images):
      picture(root / name / f"{i}.png", hash((name, i)) % 1000)
  return root


def folder_run(root: pathlib.Path, tmp_path: pathlib.Path, *more: str) -> list[str]:
  return [
    "--config=configs/folder.py",
    f"--config.data.root={root}",
    f"--config.data.cache={tmp_path}/decoded",
    f"--workdir={tmp_path}/w",
    *SMALL,
    *QUICK,
    *more,
  ]


def test_ones_own_folder_trains(tmp_path):
  root = folder_of(tmp_path / "mine", ill=20, well=20)
  deep = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
  Image.fromarray(deep).save(root / "ill" / "deep.png")
  assert run(*folder_run(root, tmp_path)) == 0
  assert (tmp_path / "w" / "train" / "predictions_test.csv").is_file()


def test_folders_that_cannot_train_are_told(tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  assert "empty" in told(capsys, *folder_run(tmp_path / "empty", tmp_path))
  assert "one class" in told(capsys, *folder_run(folder_of(tmp_path / "one", ill=9), tmp_path))
  split = folder_of(tmp_path / "split" / "train", ill=9, well=9)
  folder_of(split.parent / "test", ill=3)
  assert "well" in told(capsys, *folder_run(split.parent, tmp_path))
  assert "nowhere" in told(capsys, *folder_run(tmp_path / "nowhere", tmp_path))


def test_damaged_images_are_counted_listed_and_stop_the_run(tmp_path, capsys):
  root = folder_of(tmp_path / "mine", ill=20, well=20)
  (root / "ill" / "0.png").write_bytes(b"")
  (root / "well" / "1.png").write_bytes((root / "well" / "1.png").read_bytes()[:60])
  text = told(capsys, *folder_run(root, tmp_path))
  assert "2 of 40 images cannot be read" in text and "--config.data.max_unreadable=0.05" in text
  shutil.rmtree(tmp_path / "w")
  assert run(*folder_run(root, tmp_path, "--config.data.max_unreadable=0.05")) == 0
  listed = (tmp_path / "w" / "train" / "quarantine.tsv").read_text()
  assert "ill/0.png" in listed and "well/1.png" in listed


def table_run(tmp_path: pathlib.Path, *lines: str) -> list[str]:
  for i in range(40):
    picture(tmp_path / f"{i}.png", i)
  table = tmp_path / "table.csv"
  table.write_text("\n".join(lines) + "\n")
  return ["--config=configs/table.py", *folder_run(table, tmp_path)[1:]]


ROWS = [f"{i}.png,{'ill' if i % 3 else 'well'},{'train' if i < 24 else 'test'}" for i in range(40)]


def test_ones_own_table_trains(tmp_path):
  assert run(*table_run(tmp_path, "path,label,split", *ROWS)) == 0
  table = evaluate.read(tmp_path / "w" / "train" / "predictions_test.csv")
  assert sorted(table.ids) == sorted(f"{i}.png" for i in range(24, 40))


@pytest.mark.parametrize(
  ("lines", "says"),
  [
    (["path,lable,split", *ROWS], "Did you mean 'lable'?"),
    (["path,label,split", *ROWS[:-1], "39.png,,test"], "blank"),
    (["path,label,split", *ROWS, "3.png,ill,train"], "more than one row: '3.png' (line 5)"),
    (["path,label,split", *ROWS[:-1], "39.png,odd,test"], "'odd'"),
    (["path,label,split", *ROWS[:-1], "39x.png,ill,test"], "not there"),
  ],
)
def test_tables_that_cannot_train_are_told(tmp_path, capsys, lines, says):
  assert says in told(capsys, *table_run(tmp_path, *lines))


def test_a_read_only_workdir_is_told(tmpfs, capsys):
  text = told(capsys, f"--config={TINY}", f"--workdir={tmpfs('size=1m,ro')}/w")
  assert "Read-only" in text


def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tmpfs, capsys):
  place = tmpfs("size=300k")
  command = [f"--config={TINY}", f"--workdir={place}/w"]
  assert "No space left on device" in told(capsys, *command)
  subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
  assert run(*command) == 0
  assert json.loads((place / "w" / "config.json").read_text())["seed"] == 0


def test_a_loss_that_is_not_finite_names_step_images_and_the_last_good_checkpoint(tmp_path, capsys):
  command = [f"--config={TINY}", f"--workdir={tmp_path}/w"]
  text = told(capsys, *command, "--config.optimizer.lr=1e38", "--config.optimizer.clip=0")
  assert "at step" in text and "phantom-s0-p" in text and "last good checkpoint" in text


def test_help_lists_the_flags():
  with pytest.raises(SystemExit, match="0"):
    run("--help")


def test_folders_of_stages_are_where_scripts_look(workdir):
  assert {"pretrain", "finetune", "scratch"} <= set(os.listdir(workdir))
  assert (workdir / "finetune" / stages.CHECKPOINTS / "last").is_dir()
