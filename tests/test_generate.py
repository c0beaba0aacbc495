"""From a generator to images of a training part: written, accounted for, kept from tests."""

import contextlib
import json
import pathlib

import jax
import numpy as np
from PIL import Image
import pytest

from medjax import checkpoint, config, data, generate, judge, main, settings, writer
from medjax import mesh as mesh_lib
from medjax.data import generated
from medjax.generate import __main__ as command

GAN = pathlib.Path(__file__).with_name("gan.py")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """What a run of a judge and a GAN leaves, were it stopped before its first step."""
  folder = tmp_path_factory.mktemp("gan") / "w"
  tree = config.load(str(GAN))
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config.to_dict(config.parse(tree))))
  for name in ("judge", "gan"):
    bench = judge.opened(folder / name, mesh_lib.make(jax.devices()[:1]))
    state = jax.jit(bench.objective.init)(jax.random.key(0))
    with contextlib.closing(checkpoint.Checkpoints(folder / name / "checkpoints")) as saved:
      saved.save(checkpoint.LAST, 0, state, {})
  return folder


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
  """Twelve images of every class, and what was printed besides."""
  out = tmp_path_factory.mktemp("out") / "images"
  args = [str(workdir), "--out", str(out), "--per-class", "12", "--judge", str(workdir / "judge")]
  assert command.main(args) == 0
  return out


def stored(workdir):
  return config.parse(json.loads((workdir / "config.json").read_text())).stages[-1].data


def with_generated(cfg, folder):
  tree = config.to_dict(cfg) | {"generated": str(folder)}
  return config.parse({"data": tree}).stages[0].data


@pytest.mark.slow
def test_a_run_logs_distances_and_pictures(tmp_path):
  assert main.main([f"--config={GAN}", f"--workdir={tmp_path}/w"]) == 0
  rows = [row for row in writer.read(tmp_path / "w/gan/metrics.jsonl") if "kid" in row]
  assert [row["step"] for row in rows] == [2, 4, 6]
  assert all(np.isfinite(row["kid"]) for row in rows)
  events = b"".join(path.read_bytes() for path in (tmp_path / "w/gan").glob("events*"))
  assert events.count(b"generated") >= 3


@pytest.fixture(scope="module")
def maker(workdir):
  return generate.opened(workdir)


def test_images_are_what_the_generator_makes_of_seed_number_and_class(maker, folder):
  classes = maker.classes
  labels = np.repeat(np.arange(len(classes)), 12)
  again = maker.images(labels, 0)
  for row in (0, 11, 13, len(labels) - 1):
    path = folder / classes[labels[row]] / f"{row % 12:06d}.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), again[row].squeeze())
  alone = maker.images(labels[:14], 0)
  np.testing.assert_array_equal(alone, again[:14])
  assert (maker.images(labels, 1) != again).any()


def test_a_generator_that_copies_training_images_gives_the_alarm(maker, workdir):
  parts = maker.bench.splits.parts
  copies, labels = judge.pixels(parts["train"], 60)
  told = generate.judged(maker, copies, labels, workdir / "judge")
  assert told["memorised"] and told["copies"] == 1 and told["generated"] == pytest.approx(0)
  assert set(told["fid"]) == set(told["kid"]) == set(maker.classes)
  unseen = [judge.pixels(parts[part], 60) for part in ("val", "test")]
  new, labels = (np.concatenate(both) for both in zip(*unseen, strict=True))
  assert not generate.judged(maker, new, labels, workdir / "judge")["memorised"]


def test_the_account_tells_where_images_come_from(workdir, folder):
  told = generated.account(folder)
  assert told["synthetic"] is True and told["run"] == "w/gan" and told["seed"] == 0
  assert set(told["images"].values()) == {12}
  train = data.make(stored(workdir)).parts["train"]
  assert told["learnt_from"] == generated.digests(train.ids)
  assert {"fid", "kid", "copies", "memorised", "weights_sha256"} <= set(told)


def test_generated_images_train_and_are_never_scored(workdir, folder):
  real = data.make(stored(workdir))
  found = data.make(with_generated(stored(workdir), folder))
  classes = len(real.info.classes)
  assert len(found.parts["train"]) == len(real.parts["train"]) + 12 * classes
  assert found.info.class_counts == tuple(n + 12 for n in real.info.class_counts)
  for part in ("val", "test"):
    np.testing.assert_array_equal(found.parts[part].ids, real.parts[part].ids)
  ids = found.parts["train"].ids[len(real.parts["train"]) :]
  assert all(name.startswith("generated/") for name in ids)
  last = len(found.parts["train"]) - 1
  expected = np.asarray(Image.open(folder / str(ids[-1]).removeprefix("generated/")))
  np.testing.assert_array_equal(found.parts["train"].fetch(last).squeeze(), expected)
  np.testing.assert_array_equal(found.parts["train"].images[last].squeeze(), expected)
  assert any("generated images besides, by w/gan" in note for note in found.notes)


def test_a_folder_of_generated_images_is_no_test_set(folder):
  with pytest.raises(ValueError, match="on which nothing can be validated or tested"):
    data.make(settings.ImageFolder(root=str(folder), image_size=16, channels=1))


def test_a_generator_that_has_seen_the_test_part_is_refused(workdir, folder):
  cfg = stored(workdir)
  tree = config.to_dict(cfg) | {"generated": str(folder)}
  tree["split"]["seed"] = 5
  with pytest.raises(ValueError, match=r"learnt from .* images that are in (val|test) here"):
    data.make(config.parse({"data": tree}).stages[0].data)


def test_more_generated_than_real_images_are_refused(workdir, folder, tmp_path):
  out = tmp_path / "many"
  assert command.main([str(workdir), "--out", str(out), "--per-class", "200"]) == 0
  with pytest.raises(ValueError, match="at most half"):
    data.make(with_generated(stored(workdir), out))


def test_classes_that_the_set_does_not_have_are_refused(workdir, folder, tmp_path):
  (tmp_path / "lung").mkdir()
  (tmp_path / generated.ACCOUNT).write_text((folder / generated.ACCOUNT).read_text())
  with pytest.raises(ValueError, match=r"holds the classes \['lung'\]"):
    data.make(with_generated(stored(workdir), tmp_path))


@pytest.mark.parametrize(
  ("counts", "share", "expected"),
  [
    ((100, 30, 60), 0.5, [0, 20, 0]),
    ((100, 30, 60), 1.0, [0, 70, 40]),
    ((10, 10), 0.5, [0, 0]),
    ((100, 1, 1, 1), 1.0, [0, 34, 34, 34]),  # 297 are wanted, and 103 are real
  ],
)
def test_balancing_brings_small_classes_up(counts, share, expected):
  assert generate.balancing(counts, share) == expected


@pytest.mark.parametrize(
  ("args", "told"),
  [
    (["nowhere", "--out", "x", "--per-class", "1"], "is no workdir of medjax"),
    (["{workdir}", "--out", "x", "--balance", "2"], "above 0 and up to 1"),
    (["{workdir}", "--out", "x", "--per-class", "1", "--stage", "judge"], "name a stage of"),
    (["{workdir}", "--out", "{workdir}", "--per-class", "1"], "is not empty"),
  ],
)
def test_mistakes_are_told(workdir, capsys, args, told):
  assert command.main([arg.format(workdir=workdir) for arg in args]) == 1
  assert told in capsys.readouterr().err
