"""Every network as `model.jaxexport` and as ONNX against its own `forward`; and on real images.

The first of these tests makes the environment that converts (see launch/onnx.sh). All are slow.
"""

import collections
import csv
import dataclasses
import json
import pathlib
import subprocess
import sys

import exported
import numpy as np
import pytest

from medjax import artifact, contract, export, main, settings
from medjax.data import inputs, readers
from medjax.export import __main__ as command
from medjax.export import converting, handing, program
from medjax.models import MODELS, zoo

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
# One of each type of settings, and of each arithmetic that only some of a type have.
FAMILIES = (
  "quadsnet",
  "mednet/gray",
  "densenet121",
  "resnet18",
  "resnet50",
  "vgg16",
  "pneumonia_cnn/color/rows",
  "survey_cnn_se",
  "darknet53_fpn",
  "gan",
  "inception_v3",
  "inception_resnet_v2",
  "xception",
  "soft_attention/mobilenet_v3_small/paper/metadata",
  "vgg16_soft_attention",
  "metadata_mlp",
  "mobilenet_v1",
  "mobilenet_v2",
  "mobilenet_v3_small",
  "nasnet_mobile",
)
BATCHES = (1, 7)
TOLERANCE = 1e-4  # of the largest logit

# What a stranger runs: ONNX Runtime and NumPy.
RUNTIME = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
given = np.load(sys.argv[2])
feeds = {name: given[name].astype(np.float32) for name in given.files}
found = {}
for size in map(int, sys.argv[4:]):
  found[str(size)] = session.run(["scores"], {name: each[:size] for name, each in feeds.items()})[0]
np.savez(sys.argv[3], **found)
"""


def scored_by_onnx(
  model: pathlib.Path, given: dict[str, np.ndarray], tmp: pathlib.Path, *sizes: int
) -> list[np.ndarray]:
  """[size, K] of so many first images, by a process of the environment that converts."""
  np.savez(tmp / "given.npz", **given)
  python, paths = ROOT / ".venv-onnx/bin/python", (model, tmp / "given.npz", tmp / "scores.npz")
  subprocess.run([python, "-I", "-c", RUNTIME, *paths, *map(str, sizes)], check=True)
  with np.load(tmp / "scores.npz") as found:
    return [found[str(size)] for size in sizes]


def check(name: str, tmp: pathlib.Path) -> None:
  source = exported.of_zoo(name)
  kept = export.write(tmp / "out", source, onnx=True)
  assert kept["onnx"]["opset"] == converting.OPSET
  found, given = artifact.opened(tmp / "out"), program.random_inputs(source, max(BATCHES))
  want = exported.forward(source, given)
  told = {
    "jax": [found.scores(*(each[:size] for each in given.values())) for size in BATCHES],
    "onnx": scored_by_onnx(tmp / "out" / artifact.ONNX, given, tmp, *BATCHES),
  }
  for kind, tables in told.items():
    for size, got in zip(BATCHES, tables, strict=True):
      off = exported.difference(got, want[:size])
      print(f"{name:>50} {kind:>5} {size} {off:.1e}")
      assert off < TOLERANCE, f"{kind} is off by {off:.1e} at {size}"


def test_every_type_of_network_is_among_the_families():
  chosen = {type(zoo.ENTRIES[name].model) for name in FAMILIES}
  assert chosen == set(MODELS)


@pytest.mark.parametrize("name", FAMILIES)
def test_both_forms_equal_forward(name, tmp_path):
  check(name, tmp_path)


@pytest.mark.parametrize("name", [name for name in zoo.ENTRIES if name not in FAMILIES])
def test_both_forms_of_every_counted_network_equal_forward(name, tmp_path):
  check(name, tmp_path)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_folded_batch_norms_leave_the_scores(name, tmp_path):
  source = exported.of_zoo(name)
  kept = export.write(tmp_path / "out", source, fold=True, onnx=True)
  assert kept["batch_norms"]["folded"] == kept["batch_norms"]["found"] > 10
  given = program.random_inputs(source, 3)
  want = exported.forward(source, given)
  got = artifact.opened(tmp_path / "out").scores(*given.values())
  assert exported.difference(got, want) < 3e-5  # two orders of 52 products, in float32
  (got,) = scored_by_onnx(tmp_path / "out" / artifact.ONNX, given, tmp_path, 3)
  assert exported.difference(got, want) < TOLERANCE


def test_images_of_sixteen_bits_and_several_labels_convert(tmp_path):
  source = exported.source(settings.QuadSNet(widths=(4, 8), hidden=8), 32, 1)
  data = settings.Phantom(reading=settings.Reading(depth=16))
  objective = settings.Supervised(loss=settings.SigmoidBCE(), class_weights="none")
  stage = dataclasses.replace(source.stage, data=data, objective=objective)
  info = dataclasses.replace(source.info, multi_label=True)
  source = dataclasses.replace(source, stage=stage, info=info)
  kept = export.write(tmp_path / "out", source, onnx=True)
  assert kept["inputs"]["image"]["type"] == "uint16"
  rng = np.random.default_rng(0)
  given = {"image": rng.integers(0, 2**16, (3, 32, 32, 1)).astype(np.uint16)}
  want = exported.forward(source, given)
  np.testing.assert_allclose(artifact.opened(tmp_path / "out").scores(given["image"]), want, 1e-4)
  (got,) = scored_by_onnx(tmp_path / "out" / artifact.ONNX, given, tmp_path, 3)
  np.testing.assert_allclose(got, want, 1e-4)


def test_onnx_takes_floats_of_any_batch_and_only_steps_of_the_standard(tmp_path):
  source = exported.source(settings.QuadSNet(widths=(4, 8), hidden=8), 32, 1)
  export.write(tmp_path / "out", source, onnx=True)
  lines = """
import json, sys, onnx
model = onnx.load(sys.argv[1])
onnx.checker.check_model(model, full_check=True)
first = model.graph.input[0]
print(json.dumps(dict(
  name=first.name, type=first.type.tensor_type.elem_type,
  shape=[each.dim_param or each.dim_value for each in first.type.tensor_type.shape.dim],
  opsets=[(each.domain, each.version) for each in model.opset_import], ir=model.ir_version)))
"""
  python, path = ROOT / ".venv-onnx/bin/python", tmp_path / "out" / artifact.ONNX
  done = subprocess.run([python, "-c", lines, path], check=True, capture_output=True, text=True)
  assert json.loads(done.stdout) == {
    "name": "image",
    "type": 1,  # float
    "shape": ["b", 32, 32, 1],
    "opsets": [["", converting.OPSET]],
    "ir": converting.IR,
  }


def test_channels_are_brought_first_once_and_last_once(tmp_path):
  # The standard wants channels before places: each of 120 convolutions is written with both turns.
  export.write(tmp_path / "out", exported.of_zoo("densenet121"), onnx=True)
  lines = "import onnx, sys; print(*[n.op_type for n in onnx.load(sys.argv[1]).graph.node])"
  python, path = ROOT / ".venv-onnx/bin/python", tmp_path / "out" / artifact.ONNX
  done = subprocess.run([python, "-c", lines, path], check=True, capture_output=True, text=True)
  counts = collections.Counter(done.stdout.split())
  assert (counts["Conv"], counts["Transpose"]) == (120, 2)


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
  script = tmp_path / "onnx.sh"
  script.write_text("#!/bin/sh\necho error: no network >&2\nexit 1\n")
  script.chmod(0o755)
  monkeypatch.setattr(handing, "SCRIPT", script)
  source = exported.source(settings.QuadSNet(widths=(2, 4), hidden=4), 16, 1)
  with pytest.raises(RuntimeError, match="no network"):
    export.write(tmp_path / "out", source, onnx=True)
  assert [path.name for path in tmp_path.iterdir()] == ["onnx.sh"]


def test_a_fresh_environment_with_jax_alone_runs_the_program(tmp_path):
  source = exported.source(settings.QuadSNet(widths=(2, 4), hidden=4), 16, 1)
  export.write(tmp_path / "out", source)
  subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
  python = tmp_path / "venv/bin/python"
  install = [python, "-m", "pip", "install", "-q", "jax", "flatbuffers"]  # which jax.export wants
  subprocess.run(install, check=True)
  given = program.random_inputs(source, 5)
  np.save(tmp_path / "given.npy", given["image"])
  lines = """
import sys
import jax, numpy as np
from jax import export
model = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[3], jax.jit(model.call)(np.load(sys.argv[2])))
"""
  paths = [tmp_path / "out" / artifact.PROGRAM, tmp_path / "given.npy", tmp_path / "scores.npy"]
  subprocess.run([python, "-I", "-c", lines, *paths], check=True, env={"JAX_PLATFORMS": "cpu"})
  want = exported.forward(source, given)
  assert exported.difference(np.load(tmp_path / "scores.npy"), want) < TOLERANCE


def test_checkpoint_artifact_and_onnx_agree_on_the_test_images_of_covid_ct(shared_data, tmp_path):
  root, workdir = shared_data / "covid_ct", tmp_path / "workdir"
  small = ("--config.model.widths=4,8", "--config.model.hidden=8", "--config.data.image_size=64")
  quick = ("--config.train.length=20 steps", "--config.eval.bootstrap=10")
  config = ROOT / "configs/quadsnet/covid_ct.py"
  arguments = [f"--config={config}", f"--workdir={workdir}", f"--config.data.root={root}"]
  assert main.main([*arguments, *small, *quick]) == 0
  assert command.main([str(workdir), f"--out={tmp_path / 'out'}", "--onnx"]) == 0
  table = next(workdir.glob("*/predictions_test.csv"))
  with table.open() as file:
    rows = list(csv.DictReader(file))
  found = artifact.opened(tmp_path / "out")
  view = inputs.View(found.image_shape[0], found.image_shape[2], found.reading)
  images = np.stack([readers.read((root / row["id"]).read_bytes(), *view) for row in rows])
  want = np.array([[float(row[f"score_{name}"]) for name in found.classes] for row in rows])
  assert len(rows) > 100 and want.std(axis=0).min() > 1e-3
  (by_onnx,) = scored_by_onnx(
    tmp_path / "out" / artifact.ONNX, {contract.IMAGE: images}, tmp_path, len(rows)
  )
  for name, got in {"artifact": found.scores(images), "onnx": by_onnx}.items():
    print(f"{name}: {np.abs(got - want).max():.1e} on {len(rows)} images")
    np.testing.assert_allclose(got, want, atol=1e-5, err_msg=name)
