"""Weight files of ours: each tensor goes where it belongs, and a wrong one is told by its name.

Files of Keras and of PyTorch have tests of their own beside this file.
"""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest
import weight_files
from weight_files import SMALL, TINY

from medjax import config, main, runs, settings, trees
from medjax.models import pretrained
from medjax.models.pretrained import __main__ as conversion
from medjax.models.pretrained import files, manifests

TESTS = pathlib.Path(__file__).parents[1]


# The file and its manifest.


def test_the_manifest_is_json_beside_the_file(tmp_path):
  source = tmp_path / "source.keras"
  source.write_bytes(b"abc")
  tree = weight_files.fresh(TINY)
  about = manifests.describe(source, TINY, ["a", "b"], "CC BY 4.0")
  pretrained.save(tmp_path / "tiny.safetensors", tree["params"], tree["stats"], about)
  found = json.loads((tmp_path / "tiny.json").read_text())
  assert found["sha256"] == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  assert (found["source"], found["licence"]) == ("source.keras", "CC BY 4.0")
  assert (found["preprocess"], found["classes"]) == ("unit", ["a", "b"])
  assert found["model"]["units"] == [1]
  (tmp_path / "tiny.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"tiny\.json"):
    pretrained.load(tmp_path / "tiny.safetensors")
  (tmp_path / "tiny.json").write_text('{"licence": "MIT"}')
  with pytest.raises(ValueError, match=r"tiny\.json is no manifest"):
    pretrained.load(tmp_path / "tiny.safetensors")


def test_weights_are_refused_with_another_preprocessing_than_theirs(tmp_path):
  path, tree = tmp_path / "tiny.safetensors", weight_files.fresh(TINY)
  about = weight_files.manifest(TINY, preprocess="tf")
  pretrained.save(path, tree["params"], tree["stats"], about)
  with pytest.raises(ValueError, match=r"trained with preprocess='tf'.* is 'unit': set"):
    pretrained.transfer(weight_files.fresh(TINY), path, TINY)
  cfg = manifests.adopted(TINY, about)
  assert cfg == dataclasses.replace(TINY, preprocess="tf")
  found, _ = pretrained.transfer(weight_files.fresh(TINY, seed=1), path, cfg)
  weight_files.assert_equal(found, tree)
  around = manifests.adopted(settings.SoftAttention(backbone=TINY), about)
  assert around == settings.SoftAttention(backbone=cfg)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_safetensors_keep_every_type(dtype, tmp_path):
  values = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
  path = weight_files.written(tmp_path / "it.safetensors", {"params/x": values})
  found = files.read(path).arrays["params/x"]
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, values)


def test_npz_of_ours(tmp_path):
  tree = weight_files.fresh(TINY)
  path = weight_files.written(tmp_path / "it.npz", trees.flatten(tree))
  found, _ = pretrained.transfer(weight_files.fresh(TINY, seed=1), path, TINY)
  weight_files.assert_equal(found, tree)


# Grey images.


def saved(path, cfg, tree):
  pretrained.save(path, tree["params"], tree["stats"], weight_files.manifest(cfg))
  return path


def standardised(cfg, mean, std):
  """Random tensors of a network for colour images with these constants."""
  tree = weight_files.fresh(cfg, channels=len(mean))
  constants = {"mean": np.asarray(mean, np.float32), "std": np.asarray(std, np.float32)}
  tree["stats"]["encoder"]["input"] = constants
  return tree


def grey_images():
  """A dark one and a bright one, [2, 32, 32, 1]."""
  return parity.images(32, channels=1) * np.float32([0.2, 1])[:, None, None, None]


ALIKE = ("unit", "tf", "stats")  # modes that treat channels alike


@pytest.mark.parametrize(
  "mode, channels", [("torch", 1), ("caffe", 1), *((mode, n) for mode in ALIKE for n in (1, 4))]
)
def test_a_grey_image_gives_what_it_gives_in_colour(mode, channels, tmp_path):
  cfg = dataclasses.replace(TINY, preprocess=mode)
  colour = standardised(cfg, [0.4] * 3, [0.2] * 3)
  path = saved(tmp_path / "colour.safetensors", cfg, colour)
  ours, account = pretrained.transfer(weight_files.fresh(cfg, channels=channels), path, cfg)
  assert not account.left_over and not account.new
  assert ("params/encoder/conv1/conv/kernel" in account.adapted) == (mode in ALIKE)
  pixels = grey_images()
  theirs = weight_files.logits(cfg, colour, np.repeat(pixels, 3, -1))
  found = weight_files.logits(cfg, ours, np.repeat(pixels, channels, -1))
  parity.assert_same_logits(found, theirs, 1e-5)


def test_weights_of_grey_images_on_grey_ones_in_colour(tmp_path):
  cfg = dataclasses.replace(TINY, preprocess="stats")
  grey = standardised(cfg, [0.4], [0.2])
  path = saved(tmp_path / "grey.safetensors", cfg, grey)
  ours, _ = pretrained.transfer(weight_files.fresh(cfg), path, cfg)
  pixels = grey_images()
  found = weight_files.logits(cfg, ours, np.repeat(pixels, 3, -1))
  parity.assert_same_logits(found, weight_files.logits(cfg, grey, pixels), 1e-5)


@pytest.mark.parametrize("unequal", ["mean", "std"])
def test_constants_that_differ_between_channels_do_not_adapt(unequal, tmp_path):
  cfg = dataclasses.replace(TINY, preprocess="stats")
  constants = dict(mean=[0.5] * 3, std=[0.25] * 3) | {unequal: [0.75, 0.5, 0.5]}
  path = saved(tmp_path / "colour.safetensors", cfg, standardised(cfg, **constants))
  told = rf"input/{unequal} = \[0\.75, 0\.5, 0\.5\].*images of 1: set data\.channels=3$"
  with pytest.raises(ValueError, match=told):
    pretrained.transfer(weight_files.fresh(cfg, channels=1), path, cfg)
  found, _ = pretrained.transfer(weight_files.fresh(cfg), path, cfg)
  taken = found["stats"]["encoder"]["input"][unequal]
  np.testing.assert_array_equal(taken, np.float32([0.75, 0.5, 0.5]))


# What is refused. Files in the layouts of Keras 3 are among the tests of Keras.


KERNEL = "params/encoder/conv1/conv/kernel"


SOURCES = {
  ".safetensors": (KERNEL, trees.flatten),
  ".npz": (KERNEL, trees.flatten),
  ".pth": ("features.conv0.weight", weight_files.torch_densenet),
}


@pytest.mark.parametrize("suffix", SOURCES)
@pytest.mark.parametrize("damage", weight_files.DAMAGES)
def test_a_tensor_that_does_not_fit_is_named(damage, suffix, tmp_path):
  name, source = SOURCES[suffix]
  target = weight_files.fresh(SMALL)
  damaged, told = weight_files.damaged(source(target), name, damage)
  path = weight_files.written(tmp_path / f"file{suffix}", damaged)
  with pytest.raises(ValueError, match=rf"{path.name} does not fit densenet121: {told}"):
    pretrained.transfer(target, path, SMALL)


@pytest.mark.parametrize(
  ("extra", "typed"),
  [
    (["predictions.weight", "predictions.bias"], "'predictions.*'"),
    (["a.x", "b.c.x"], """'["a.*", "b.c.*"]'"""),
    (["loose"], "loose"),
    ([f"{name}.x" for name in "abcd"], "'*'"),
  ],
)
def test_the_error_says_what_to_type_and_that_helps(extra, typed, tmp_path):
  target = weight_files.fresh(SMALL)
  tensors = weight_files.torch_densenet(target) | {n: np.zeros(1, np.float32) for n in extra}
  path = weight_files.written(tmp_path / "it.pth", tensors)
  with pytest.raises(ValueError) as refused:
    pretrained.transfer(target, path, SMALL)
  assert str(refused.value).endswith(f"add --config.init_allow={typed}")
  override = f"init_allow={typed.strip(chr(39))}"  # the quotes are the shell's
  (stage,) = config.parse({}, [override]).stages
  _, account = pretrained.transfer(target, path, SMALL, stage.init_allow)
  assert list(account.left_over) == extra


def test_what_is_missing_cannot_be_allowed(tmp_path):
  target = weight_files.fresh(TINY)
  tensors = weight_files.without(trees.flatten(target), KERNEL) | {
    "params/x": np.zeros(1, np.float32)
  }
  path = weight_files.written(tmp_path / "it.safetensors", tensors)
  with pytest.raises(ValueError, match=rf"no tensor {KERNEL} .*params/x is left over$"):
    pretrained.transfer(target, path, TINY)
  with pytest.raises(ValueError, match=rf"no tensor {KERNEL} for {KERNEL}$"):
    pretrained.transfer(target, path, TINY, ["*"])


def test_half_a_head_is_damage(tmp_path):
  tensors = weight_files.without(
    trees.flatten(weight_files.fresh(TINY)), "params/head/classes/bias"
  )
  path = weight_files.written(tmp_path / "it.safetensors", tensors)
  with pytest.raises(ValueError, match="no tensor params/head/classes/bias"):
    pretrained.transfer(weight_files.fresh(TINY), path, TINY, ["*"])


@pytest.mark.parametrize("name", ["it.safetensors", "it.npz", "it.pth", "it.pt"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(name, share, tmp_path):
  tensors = {"params/x": np.ones(1000, np.float32), "params/y": np.ones(3, np.float32)}
  path = weight_files.written(tmp_path / name, tensors)
  files.read(path)
  path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
  with pytest.raises(ValueError, match=rf"{name} cannot be read: .*get it again"):
    pretrained.transfer({}, path, SMALL)


@pytest.mark.parametrize("name", ["it.npz", "it.pth"])
def test_flipped_bits_are_told_with_their_tensor(name, tmp_path):
  tensors = {"params/x": np.ones(1000, np.float32), "params/y": np.full(1000, 2, np.float32)}
  path = weight_files.written(tmp_path / name, tensors)
  damaged = path.read_bytes().replace(np.float32(2).tobytes() * 9, np.float32(3).tobytes() * 9, 1)
  path.write_bytes(damaged)
  with pytest.raises(ValueError, match=rf"{name} cannot be read: tensor params/y: Bad CRC"):
    files.read(path)


def test_objects_in_npz_are_refused_by_name(tmp_path):
  np.savez(tmp_path / "it.npz", good=np.ones(2), bad=np.array([object()]))
  with pytest.raises(ValueError, match=r"it\.npz.*tensor bad: Object arrays"):
    files.read(tmp_path / "it.npz")


def test_other_files_and_missing_ones_are_told(tmp_path):
  with pytest.raises(ValueError, match=r"it\.onnx is no weight file.*\.keras.*\.safetensors"):
    files.read(tmp_path / "it.onnx")
  with pytest.raises(FileNotFoundError, match=r"it\.pth"):
    files.read(tmp_path / "it.pth")


# The command that converts.


FLAGS = ["--model=densenet121", "--config.model.units=2,1,1,1"]


@pytest.fixture
def source(tmp_path):
  """A small DenseNet of torchvision's names, and its tensors by ours."""
  tree = weight_files.fresh(SMALL)
  return weight_files.written(tmp_path / "it.pth", weight_files.torch_densenet(tree)), tree


def test_a_file_is_converted_by_a_command(source, tmp_path):
  path, tree = source
  command = [sys.executable, "-m", "medjax.models.pretrained", path, *FLAGS]
  out = tmp_path / "ours.safetensors"
  names = ",".join(f"class{i}" for i in range(parity.CLASSES))
  done = subprocess.run(
    [*command, f"--out={out}", f"--classes={names}", "--licence=MIT"],
    capture_output=True,
    text=True,
    check=True,
  )
  assert "tensors loaded" in done.stdout and "left over: -" in done.stdout
  assert f"{out}, with ours.json: preprocess=torch, 10 classes" in done.stdout
  params, stats, about = pretrained.load(out)
  found = trees.flatten({"params": params, "stats": stats})
  expected = weight_files.without_input(tree)
  assert found.keys() == expected.keys()
  assert all((found[at] == expected[at]).all() for at in found)
  assert (about.source, about.licence, about.preprocess) == ("it.pth", "MIT", "torch")
  assert about.classes == tuple(names.split(","))
  assert about.model["units"] == [2, 1, 1, 1]


def test_a_converted_head_that_is_left_over_is_new_to_whoever_starts_from_it(source, tmp_path):
  path, tree = source
  tensors = weight_files.torch_densenet(tree)
  weight_files.written(path, {n: x for n, x in tensors.items() if "classifier" not in n})
  out = tmp_path / "encoder.safetensors"
  assert conversion.main([str(path), *FLAGS, f"--out={out}"]) == 0
  cfg = dataclasses.replace(SMALL, preprocess="torch")
  _, account = pretrained.transfer(weight_files.fresh(cfg, classes=3), out, cfg)
  assert not account.left_over
  assert {at for at in account.new if "head" in at} == {
    "params/head/classes/bias",
    "params/head/classes/kernel",
  }


@pytest.mark.parametrize(
  ("flags", "told"),
  [
    (["--classes=a,b"], "--classes names 2, .*it.pth tells 10 apart"),
    (["--config.optimizer.lr=1"], "unknown flag --config.optimizer.lr=1"),
    (["--config.model.units=2,1,1,2"], r"tensor features\.norm5\.weight is \(72,\) there"),
    (["--model=densenet12"], "did you mean 'densenet121'"),
    (["--out=ours.keras"], "name ours.safetensors"),
  ],
)
def test_a_mistake_is_told_and_nothing_is_written(flags, told, source, tmp_path, capsys):
  out = tmp_path / "ours.safetensors"
  assert conversion.main([str(source[0]), *FLAGS, f"--out={out}", *flags]) == 1
  assert re.search(f"^error: .*{told}", capsys.readouterr().err)
  assert not list(tmp_path.glob("ours.*"))


# In a run.


@pytest.fixture
def start(tmp_path):
  """Arguments of a run that starts from a weight file of five classes, trained as in `tf`."""
  cfg = settings.SurveyCNN(widths=(4, 8), hidden=8, preprocess="tf")
  tree = weight_files.fresh(cfg, classes=5, channels=1, size=16)
  path = saved(tmp_path / "cnn.safetensors", cfg, tree)
  flags = ("model=survey_cnn", "model.widths=4,8", "model.hidden=8", f"init_from={path}")
  return [f"--config={TESTS / 'tiny.py'}", *(f"--config.{flag}" for flag in flags)]


def told(capsys, *args):
  assert main.main([*map(str, args)]) not in (0, main.STOPPED)
  return capsys.readouterr().err


def test_a_stage_refuses_a_file_that_does_not_fit(start, tmp_path, capsys):
  text = told(capsys, *start, f"--workdir={tmp_path}/run", "--config.model.widths=4,12")
  assert "cnn.safetensors does not fit survey_cnn: tensor params/encoder/" in text


def test_a_stage_says_what_may_be_left_over(start, tmp_path, capsys):
  text = told(capsys, *start, f"--workdir={tmp_path}/run")
  assert "tensor params/head/classes/kernel is (8, 5) there and (8, 3) here" in text
  assert text.endswith("add --config.init_allow='params/head/classes/*'\n")


def test_stages_preprocess_as_the_file_at_their_beginning_was_trained_with(start, capsys):
  tree = config.load(f"{TESTS / 'tiny.py'}:stages")
  tree["stages"][0]["init_from"] = start[-1].partition("init_from=")[2]
  found = runs._preprocessed(config.parse(tree))
  assert [s.model.preprocess for s in found.stages] == ["tf", "tf", "unit"]
  assert capsys.readouterr().out.count("preprocess=tf: ") == 2


def test_a_stage_starts_from_a_weight_file_and_from_its_preprocessing(start, tmp_path, capsys):
  allow = "--config.init_allow=params/head/classes/*"
  run = [*start, allow, f"--workdir={tmp_path}/run", "--config.train.length=2 steps"]
  assert main.main(run) == 0
  text = capsys.readouterr().out
  assert re.search(r"^train  preprocess=tf: .*cnn\.safetensors was trained with it$", text, re.M)
  assert re.search(r"init_from .*cnn\.safetensors:\ntrain  \d+ tensors loaded", text)
  assert "left over: params/head/classes" in text
  stored = json.loads((tmp_path / "run" / "config.json").read_text())
  assert stored["stages"][0]["model"]["preprocess"] == "tf"
  (tmp_path / "cnn.safetensors").unlink()
  assert main.main(["--task=evaluate", f"--workdir={tmp_path}/run"]) == 0
