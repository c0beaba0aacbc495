"""Weight files of PyTorch, read without it: torchvision's and timm's names, and hostile pickles.

What such a file should give is spelled out here, layer by layer, and where PyTorch is installed it
writes the files and says what its networks make of an image.
"""

import dataclasses
import json
import pathlib
import subprocess
import zipfile

import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import pytest
import torch_resnet50
import torch_zip
import weight_files
from weight_files import SMALL

from medjax import settings, trees
from medjax.models import pretrained
from medjax.models.pretrained import files

PRESETS = settings.VARIANTS[settings.Model]
BASIC = settings.ResNet(units=(1, 2), bottleneck=False, use_bias=False, preprocess="torch")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".npz"])
def test_a_densenet_of_torchvision_or_timm(suffix, tmp_path):
  tree = weight_files.fresh(SMALL)
  path = weight_files.written(tmp_path / f"densenet{suffix}", weight_files.torch_densenet(tree))
  found, account = pretrained.transfer(weight_files.fresh(SMALL, seed=1), path, SMALL)
  weight_files.assert_equal(weight_files.without_input(found), weight_files.without_input(tree))
  assert not account.left_over and len(account.new) == 2


def test_a_training_checkpoint_of_a_data_parallel_net_with_the_first_names(tmp_path):
  tree = weight_files.fresh(SMALL)
  old = {
    f"module.{name}".replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): array
    for name, array in weight_files.torch_densenet(tree).items()
  }
  torch_zip.save(tmp_path / "run.pt", {"epoch": 3, "arch": "densenet121", "state_dict": old})
  found, account = pretrained.transfer(
    weight_files.fresh(SMALL, seed=1), tmp_path / "run.pt", SMALL
  )
  weight_files.assert_equal(weight_files.without_input(found), weight_files.without_input(tree))
  assert not account.left_over


def _basic_names():
  """Ours -> torchvision's, of a ResNet of basic blocks with one and two units."""
  yield "conv1/conv", "conv1"
  yield "conv1/bn", "bn1"
  for ours, theirs in (("conv2/block1", "layer1.0"), ("conv3/block1", "layer2.0")):
    yield from (
      (f"{ours}/{n}_{kind}", f"{theirs}.{kind}{n}") for n in "12" for kind in ("conv", "bn")
    )
  yield from ((f"conv3/block2/{n}_{k}", f"layer2.1.{k}{n}") for n in "12" for k in ("conv", "bn"))
  yield "conv3/block1/0_conv", "layer2.0.downsample.0"
  yield "conv3/block1/0_bn", "layer2.0.downsample.1"


def test_a_resnet_of_torchvision_or_timm(tmp_path):
  tree, state = weight_files.fresh(BASIC), {}
  flat = trees.flatten(tree)
  for ours, theirs in _basic_names():
    if ours.endswith("conv"):
      state[f"{theirs}.weight"] = flat[f"params/encoder/{ours}/kernel"].transpose(3, 2, 0, 1).copy()
      continue
    for leaf, name in (("params/-/scale", "weight"), ("params/-/bias", "bias")):
      state[f"{theirs}.{name}"] = flat[leaf.replace("-", f"encoder/{ours}")]
    for leaf in ("mean", "var"):
      state[f"{theirs}.running_{leaf}"] = flat[f"stats/encoder/{ours}/{leaf}"]
  state["fc.weight"] = flat["params/head/classes/kernel"].T.copy()
  state["fc.bias"] = flat["params/head/classes/bias"]
  torch_zip.save(tmp_path / "resnet.pth", state)
  found, _ = pretrained.transfer(weight_files.fresh(BASIC, seed=1), tmp_path / "resnet.pth", BASIC)
  weight_files.assert_equal(weight_files.without_input(found), weight_files.without_input(tree))


# ResNet "v1.5": torchvision's layers in NumPy, by its names, one image [C, H, W] in float64.


class Torchvision:
  """A ResNet of one bottleneck a stage, drawing its weights as they are needed."""

  def __init__(self):
    self.state = {}
    self._rng = np.random.default_rng(0)

  def _drawn(self, name, shape, low, high):
    if name not in self.state:
      self.state[name] = self._rng.uniform(low, high, shape).astype(np.float32)
    return self.state[name].astype(np.float64)

  def conv_bn(self, x, conv, bn, features, side, stride):
    around, bound = side // 2, (len(x) * side * side) ** -0.5
    kernel = self._drawn(f"{conv}.weight", (features, len(x), side, side), -3 * bound, 3 * bound)
    x = np.pad(x, ((0, 0), (around, around), (around, around)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))
    x = np.einsum("chwij,fcij->fhw", windows[:, ::stride, ::stride], kernel)
    scale, var = (
      self._drawn(f"{bn}.{name}", features, 0.5, 1.5) for name in ("weight", "running_var")
    )
    bias, mean = (
      self._drawn(f"{bn}.{name}", features, -0.3, 0.3) for name in ("bias", "running_mean")
    )
    scale = scale / np.sqrt(var + 1e-5)
    return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]

  def bottleneck(self, x, name, width, stride):
    shortcut = self.conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", 4 * width, 1, stride)
    x = np.maximum(self.conv_bn(x, f"{name}.conv1", f"{name}.bn1", width, 1, 1), 0)
    x = np.maximum(self.conv_bn(x, f"{name}.conv2", f"{name}.bn2", width, 3, stride), 0)
    x = self.conv_bn(x, f"{name}.conv3", f"{name}.bn3", 4 * width, 1, 1)
    return np.maximum(shortcut + x, 0)

  def logits(self, image, stages, classes):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    x = ((image - mean) / std).transpose(2, 0, 1)
    x = np.maximum(self.conv_bn(x, "conv1", "bn1", 64, 7, 2), 0)
    x = np.pad(x, ((0, 0), (1, 1), (1, 1)))  # after ReLU zeros are as good as minus infinity
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    x = windows[:, ::2, ::2].max((-1, -2))
    for stage in range(stages):
      x = self.bottleneck(x, f"layer{stage + 1}.0", 64 * 2**stage, 2 if stage else 1)
    weight = self._drawn("fc.weight", (classes, len(x)), -0.1, 0.1)
    return weight @ x.mean((1, 2)) + self._drawn("fc.bias", classes, -0.3, 0.3)


def test_bottlenecks_of_torchvision_have_their_stride_in_the_3x3(tmp_path):
  theirs, pixels = Torchvision(), parity.images(64)
  expected = [theirs.logits(image.astype(np.float64), 2, parity.CLASSES) for image in pixels]
  torch_zip.save(tmp_path / "resnet.pth", theirs.state)
  cfg = dataclasses.replace(PRESETS["resnet50_v15"], units=(1, 1))
  found, account = pretrained.transfer(weight_files.fresh(cfg), tmp_path / "resnet.pth", cfg)
  assert not account.left_over and len(account.new) == 2
  parity.assert_same_logits(weight_files.logits(cfg, found, pixels), expected, 1e-5)


# torchvision's counts of parameters, and two moving statistics a channel of batch norm.
@pytest.mark.parametrize(
  ("name", "trainable", "moving"),
  [("resnet50_v15", 25_557_032, 53_120), ("resnet152_v15", 60_192_808, 151_424)],
)
def test_counts_of_torchvision(name, trainable, moving):
  assert parity.counts(PRESETS[name], 224) == (trainable + moving, trainable)


@pytest.mark.parametrize(
  ("file", "preset", "other"),
  [("it.pth", "resnet50", "resnet50_v15"), ("it.h5", "resnet50_v15", "resnet50")],
)
def test_bottlenecks_of_another_kind_are_another_network(file, preset, other, tmp_path):
  path = weight_files.written(tmp_path / file, {"conv1/weight": np.zeros(3, np.float32)})
  cfg = dataclasses.replace(PRESETS[preset], preprocess="torch")
  with pytest.raises(ValueError, match=rf"{preset} has the stride.*--config\.model={other} "):
    pretrained.transfer({}, path, cfg)


def test_no_file_of_pytorch_has_the_preprocessing_of_caffe(tmp_path):
  path = weight_files.written(tmp_path / "it.pth", {"conv1.weight": np.zeros(3, np.float32)})
  cfg = dataclasses.replace(PRESETS["resnet50_v15"], preprocess="caffe")
  with pytest.raises(ValueError, match="no network takes preprocess='caffe'"):
    pretrained.transfer({}, path, cfg)


def test_slices_of_one_storage(tmp_path):
  whole = np.arange(24, dtype=np.float32)
  parts = {"a": whole[3:11].reshape(2, 4).T, "b": whole[::5], "c": whole[:0], "d": whole[7:8]}
  assert all(part.base is whole for part in parts.values())
  torch_zip.save(tmp_path / "it.pt", parts)
  found = files.read(tmp_path / "it.pt").arrays
  for name, part in parts.items():
    np.testing.assert_array_equal(found[name], part)
  assert found["a"].shape == (4, 2)


def test_bfloat16_of_pytorch(tmp_path):
  half = np.arange(6).astype(jnp.bfloat16)
  torch_zip.save(tmp_path / "it.pt", {"half": half})
  found = files.read(tmp_path / "it.pt").arrays["half"]
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found, half)


# What PyTorch itself writes and says.

PEERS = pathlib.Path(__file__).parents[1] / "peers" / ".venv" / "bin" / "python"


@pytest.mark.slow
def test_files_that_pytorch_wrote(tmp_path):
  if not PEERS.is_file():
    pytest.skip("no PyTorch: tests/peers/run.sh installs it for the comparisons")
  script = pathlib.Path(__file__).with_name("torch_densenet.py")
  subprocess.run([PEERS, script, tmp_path], check=True)
  truth = np.load(tmp_path / "truth.npz")
  for name in ("small.pth", "run.pt"):
    found, account = pretrained.transfer(weight_files.fresh(SMALL), tmp_path / name, SMALL)
    assert not account.left_over
    ours = weight_files.logits(SMALL, found, truth["image"])
    parity.assert_same_logits(ours, truth["logits"])
  with pytest.raises(ValueError, match=r"asks for torch\.nn"):
    files.read(tmp_path / "whole.pt")
  with pytest.raises(ValueError, match=r"older file is a bare pickle"):
    files.read(tmp_path / "old.pth")


@pytest.mark.slow
def test_resnet50_is_that_of_torchvision_and_timm(tmp_path):
  truth = json.loads(torch_resnet50.FILE.read_text())
  state = torch_resnet50.tensors(truth["shapes"])
  torch_zip.save(tmp_path / "it.pth", {name: x.astype(np.float32) for name, x in state.items()})
  cfg, pixels = PRESETS["resnet50_v15"], torch_resnet50.images().astype(np.float32)
  target = weight_files.fresh(cfg)
  found, account = pretrained.transfer(target, tmp_path / "it.pth", cfg)
  assert not account.left_over and not account.adapted and len(account.new) == 2
  parity.assert_same_logits(weight_files.logits(cfg, found, pixels), truth["logits"])


# What is refused.


def test_a_short_storage_is_named_with_its_tensor(tmp_path):
  tensors = {"a": np.ones(5, np.float32), "b": np.ones(5, np.float32)}
  torch_zip.save(tmp_path / "it.pth", tensors, cut="b")
  with pytest.raises(ValueError, match=r"it\.pth.*tensor b reaches beyond its storage of 4"):
    files.read(tmp_path / "it.pth")


def test_a_few_bytes_do_not_fill_the_memory(tmp_path):
  repeated = np.broadcast_to(np.ones(4, np.float32), (10**12, 4))
  torch_zip.save(tmp_path / "it.pth", {"w": repeated})
  with pytest.raises(ValueError, match=r"it\.pth.*tensor w is larger than its storage of 4"):
    files.read(tmp_path / "it.pth")
  with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", bytes(2**27))
  with pytest.raises(ValueError, match=r"bomb\.pth.*its members are compressed"):
    files.read(tmp_path / "bomb.pth")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
  path, trace = tmp_path / "evil.pth", tmp_path / "ran"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", torch_zip.code_in_a_pickle(f"touch {trace}"))
  with pytest.raises(ValueError, match=r"evil\.pth.*asks for (posix|nt)\.system.*is not run"):
    files.read(path)
  assert not trace.exists()


@pytest.mark.parametrize(
  "named",
  [
    ("builtins", "eval"),
    ("collections", "Counter"),
    ("torch", "load"),
    ("torch._utils", "_rebuild_tensor"),
    ("numpy.core.multiarray", "scalar"),
  ],
  ids=".".join,
)
def test_whatever_is_no_tensor_is_refused_by_its_name(named, tmp_path):
  torch_zip.save(tmp_path / "it.pth", {"conv1.weight": torch_zip.Global(*named)})
  with pytest.raises(ValueError, match=rf"it\.pth.*asks for {'.'.join(named)}, which is no tensor"):
    files.read(tmp_path / "it.pth")


def test_a_state_dict_holds_tensors_alone(tmp_path):
  torch_zip.save(tmp_path / "it.pth", {"w": np.ones(2, np.float32), "epoch": 3})
  with pytest.raises(ValueError, match=r"it\.pth.*epoch is no tensor"):
    files.read(tmp_path / "it.pth")


def test_a_bare_pickle_is_refused_with_what_to_do(tmp_path):
  (tmp_path / "old.pth").write_bytes(torch_zip.code_in_a_pickle("true"))
  with pytest.raises(ValueError, match=r"old\.pth.*1\.6.*torch\.save its state_dict again"):
    files.read(tmp_path / "old.pth")


def test_networks_without_names_in_other_libraries_are_told(tmp_path):
  path = weight_files.written(tmp_path / "it.pth", {"w": np.ones(2, np.float32)})
  with pytest.raises(ValueError, match=r"quadsnet.*torch.*only of DenseNet, ResNet"):
    pretrained.transfer({}, path, settings.QuadSNet())
