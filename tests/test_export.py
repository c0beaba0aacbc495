"""Exported classifiers: equal to the network, alone with JAX, and free of this machine."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import exported
import jax
from jax import export as jax_export
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from scipy import special

from medjax import artifact, export, main, predict, settings, trained, trees
from medjax.export import __main__ as command
from medjax.export import program, simplify
from medjax.metrics import operating
from medjax.models.pretrained import files as weight_files

TINY = pathlib.Path(__file__).with_name("tiny.py")
BATCHES = (1, 7)
# Kinds of layers, small: streams; batch norm behind convolutions and squeezing; metadata.
SMALL = {
  "quadsnet": (settings.QuadSNet(widths=(2, 4), hidden=4), 1, 0),
  "survey_cnn": (settings.SurveyCNN(widths=(4, 8), hidden=8, squeeze=2), 3, 0),
  "metadata_mlp": (settings.MetadataMLP(), 3, 5),
}

# What a stranger runs: JAX and NumPy, and a guard that nothing else comes in.
ALONE = """
import sys
assert not any(name.split(".")[0] in {"medjax", "flax", "optax", "orbax"} for name in sys.modules)
for name in ("medjax", "flax", "optax", "orbax", "safetensors"):
  sys.modules[name] = None  # importing it fails
import jax, numpy as np
from jax import export
model = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
given = np.load(sys.argv[2])
np.save(sys.argv[3], np.asarray(jax.jit(model.call)(*given.values())))
print(model.platforms, model.in_avals, model.out_avals)
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  """A finished run."""
  folder = tmp_path_factory.mktemp("run") / "workdir"
  quick = ("--config.train.length=4 steps", "--config.eval.bootstrap=10")
  assert main.main([f"--config={TINY}", f"--workdir={folder}", *quick]) == 0
  return folder


@pytest.fixture(scope="module")
def out(workdir, tmp_path_factory) -> pathlib.Path:
  """Its classifier, exported by the command."""
  folder = tmp_path_factory.mktemp("export") / "exported"
  assert command.main([str(workdir), f"--out={folder}"]) == 0
  return folder


def check_program(source: program.Source, fold: bool = False) -> int:
  """The program for any batch equals `forward` at each of `BATCHES`; how much was folded."""
  function = program.scores(source, fold=fold)
  called = jax.jit(jax_export.deserialize(bytearray(program.serialised(function, source))).call)
  given = program.random_inputs(source, max(BATCHES))
  want = exported.forward(source, given)
  for size in BATCHES:
    got = np.asarray(called(*(each[:size] for each in given.values())))
    off = exported.difference(got, want[:size])
    assert off < 1e-4, f"off by {off:.1e} at {size}"
  return function.folded


# How far two forms of a program may be apart.


@pytest.mark.parametrize("sure", [0.1, 1, 15])
def test_forms_differ_by_their_logits_however_sure_the_network_is(sure):
  rng = np.random.default_rng(0)
  logits = sure * rng.uniform(-1, 1, (50, 4))
  logits[0] = sure * np.array([1, -1, 0, 0])
  moved = logits + 1e-3 * sure * rng.choice([-1, 1], logits.shape)
  several = program.difference(special.expit(moved), special.expit(logits), multi_label=True)
  assert several == pytest.approx(1e-3, rel=1e-3)
  got, want = (special.softmax(each, axis=1) for each in (moved, logits))
  largest = np.abs(special.log_softmax(logits, axis=1)).max()  # logits that are at most 0
  apart = np.abs(special.log_softmax(moved, axis=1) - special.log_softmax(logits, axis=1)).max()
  assert program.difference(got, want, False) == pytest.approx(apart / largest, rel=1e-6)


def test_scores_that_are_no_numbers_or_tell_nothing_have_a_difference_too():
  even = np.full((2, 3), 0.5)
  assert program.difference(even, even, multi_label=True) == 0
  assert np.isnan(program.difference(np.where(np.eye(2, 3), np.nan, even), even, True))


# Equal to the network.


def test_a_program_with_metadata_equals_forward_at_any_batch():
  model, channels, metadata = SMALL["metadata_mlp"]
  check_program(exported.source(model, 32, channels, metadata=metadata))


def test_the_command_exports_what_the_run_evaluated(workdir, out):
  opened = trained.opened(workdir)
  found = artifact.opened(out)
  images = np.random.default_rng(0).integers(0, 256, (5, *opened.info.image_shape), np.uint8)
  want = opened.objective.forward(opened.state, {"image": images}).scores
  want = operating.read(opened.folder).apply(np.asarray(want, float))
  np.testing.assert_allclose(found.scores(images), want, atol=1e-6)
  assert found.classes == opened.info.classes and found.reading == opened.stage.data.reading
  assert found.manifest["origin"]["stage"] == "train"
  assert re.fullmatch(r"checkpoints/best/\d+", found.manifest["origin"]["checkpoint"])


def test_the_temperature_is_inside():
  model, channels, _ = SMALL["quadsnet"]
  source = exported.source(model, 16, channels)
  given = program.random_inputs(source, 3)
  plain = dataclasses.replace(source, operating=operating.Operating())
  tempered, bare = (
    np.log(np.asarray(jax.jit(program.scores(each))(*given.values()), float))
    for each in (source, plain)
  )
  kept = np.s_[:, 1:], np.s_[:, :1]  # a softmax keeps the differences of logits
  want = (bare[kept[0]] - bare[kept[1]]) / exported.TEMPERATURE
  np.testing.assert_allclose(tempered[kept[0]] - tempered[kept[1]], want, atol=1e-4)


def test_predictions_by_the_folder_are_those_by_the_run(workdir, out):
  rng = np.random.default_rng(2)
  images = [rng.integers(0, 256, shape, np.uint8) for shape in ((16, 16), (20, 31), (40, 9))]
  by_run, by_folder = (predict.opened([model], batch_size=4)(images) for model in (workdir, out))
  np.testing.assert_allclose(by_folder, by_run, atol=1e-6)


# Alone with JAX.


def test_the_program_runs_with_jax_alone(out, tmp_path):
  found = artifact.opened(out)
  images = np.random.default_rng(1).integers(0, 256, (2, *found.image_shape), np.uint8)
  np.savez(tmp_path / "given.npz", image=images)
  paths = [out / artifact.PROGRAM, tmp_path / "given.npz", tmp_path / "scores.npy"]
  done = subprocess.run(
    [sys.executable, "-I", "-c", ALONE, *map(str, paths)],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={"PATH": os.environ["PATH"], "JAX_PLATFORMS": "cpu"},
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("('cpu', 'cuda', 'tpu')")
  np.testing.assert_allclose(np.load(paths[2]), found.scores(images), atol=1e-6)


def test_nothing_of_this_machine_is_inside(out, workdir):
  own = [str(pathlib.Path(export.__file__).parent), str(workdir.parent), str(out.parent)]
  for path in out.iterdir():
    content = path.read_bytes()
    assert not [name for name in own if name.encode() in content], path.name
    assert b".py" not in content, path.name


def test_two_exports_are_the_same_bytes(workdir, out, tmp_path):
  again = tmp_path / "again"
  assert command.main([str(workdir), f"--out={again}"]) == 0
  for path in out.iterdir():
    assert (again / path.name).read_bytes() == path.read_bytes(), path.name


def test_weights_are_those_of_the_checkpoint_and_start_another_run(workdir, out):
  state = trained.opened(workdir).state
  want = trees.flatten({"params": state.params, "stats": state.stats})
  got = safetensors.numpy.load_file(out / artifact.WEIGHTS)
  assert got.keys() == want.keys()
  for name, value in got.items():
    np.testing.assert_array_equal(value, want[name])
  assert weight_files.read(out / artifact.WEIGHTS).kind == "medjax"


# Folding.


def test_folding_takes_up_every_batch_norm_behind_a_convolution():
  model, channels, _ = SMALL["survey_cnn"]
  source = exported.source(model, 32, channels)
  folded = check_program(source, fold=True)
  norms = [path for path in trees.flatten(source.state.stats) if path.endswith("/var")]
  assert folded == len(norms) == 2


def test_a_factor_goes_into_the_kernel_before_it():
  rng = np.random.default_rng(0)
  kernel, factor = rng.normal(size=(3, 3, 2, 4)), rng.normal(size=4)
  bias, offset = rng.normal(size=4), rng.normal(size=4)
  kernel, factor, bias, offset = (np.float32(each) for each in (kernel, factor, bias, offset))
  images = np.float32(rng.normal(size=(2, 5, 5, 2)))

  def network(x):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return jax.nn.relu((y + bias) * factor - offset)

  settled = simplify.Settled(network, fold=True)
  np.testing.assert_allclose(jax.jit(settled)(images), network(images), atol=1e-5)
  assert settled.folded == 1


def test_a_convolution_that_two_steps_read_is_left_as_it_is():
  kernel, factor = np.ones((1, 1, 2, 2), np.float32), np.float32([2, 3])

  def network(x):
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
    return y * factor + y

  settled, images = simplify.Settled(network, fold=True), np.ones((1, 2, 2, 2), np.float32)
  np.testing.assert_allclose(jax.jit(settled)(images), network(images))
  assert settled.folded == 0


def test_a_network_without_anything_to_fold_is_refused(tmp_path):
  model, channels, _ = SMALL["quadsnet"]  # a ReLU stands between convolution and batch norm
  with pytest.raises(ValueError, match="nothing to fold"):
    export.write(tmp_path / "out", exported.source(model, 16, channels), fold=True)
  assert not (tmp_path / "out").exists()


def test_what_depends_on_weights_alone_is_computed_beforehand():
  weights = np.float32([1, 4])
  settled = simplify.Settled(lambda x: x * jnp.sqrt(weights) + jnp.ones(2).sum())
  steps = jax.make_jaxpr(settled)(np.zeros(2, np.float32)).eqns
  assert [step.primitive.name for step in steps] == ["mul", "add"]
  np.testing.assert_allclose(settled(np.float32([3, 5])), [5, 12])


# What users are told.


def told(capsys, *args: object) -> str:
  assert command.main([str(arg) for arg in args]) == 1
  text = capsys.readouterr().err
  assert text.startswith("error: ") and "Traceback" not in text
  return text


def test_a_full_folder_is_not_written_into(workdir, tmp_path, capsys):
  (tmp_path / "kept").write_text("mine")
  assert "not empty" in told(capsys, workdir, f"--out={tmp_path}")
  assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_stage_without_classifier_is_refused(workdir):
  opened = trained.opened(workdir)
  stage = dataclasses.replace(opened.stage, objective=settings.SimCLR())
  with pytest.raises(ValueError, match="no classifier"):
    program.Source(stage, opened.info, opened.state)


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
  assert "no trained network" in told(capsys, tmp_path, f"--out={tmp_path / 'out'}")


def test_the_manifest_holds_what_a_reader_needs(out):
  kept = json.loads((out / artifact.MANIFEST).read_text())
  assert kept[artifact.KEY] == 1
  assert kept["inputs"] == {"image": {"shape": ["batch", 16, 16, 1], "type": "uint8"}}
  assert kept["output"]["shape"] == ["batch", 3] and kept["platforms"] == ["cpu", "cuda", "tpu"]
  assert kept["synthetic"] and kept["model"]["name"] == "quadsnet"
