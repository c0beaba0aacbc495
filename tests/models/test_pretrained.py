"""Weight files: each tensor goes where it belongs, whoever wrote it, and a wrong one is told.

What a Keras file should give is read from the live Keras network by `keras_parity.copied`, which
knows no files; what a PyTorch file should give is spelled out here, layer by layer.
"""

import dataclasses
import io
import json
import pathlib
import subprocess
import zipfile

import h5py
import jax
import jax.numpy as jnp
import keras_parity as parity
from keras_parity import keras  # on the backend that it chooses
import numpy as np
import pytest
import safetensors.numpy
import torch_zip

from medjax import main, models, settings, trees
from medjax.models import (
  densenet,
  inception,
  inception_resnet,
  mobilenet,
  nasnet,
  pretrained,
  resnet,
  vgg,
  xception,
)
from medjax.models import net as net_lib
from medjax.models.pretrained import files

# Keras's own, where it copies its variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TESTS = pathlib.Path(__file__).parents[1]
PRESETS = settings.VARIANTS[settings.Model]
SMALL = settings.DenseNet(units=(2, 1, 1, 1), preprocess="unit")
TINY = settings.DenseNet(units=(1,), growth=4, preprocess="unit")
BASIC = settings.ResNet(units=(1, 2), bottleneck=False, use_bias=False, preprocess="torch")


def fresh(cfg, classes=parity.CLASSES, channels=3, size=64, seed=0):
  """A network's tensors, all random; variances, deviations and factors positive."""
  about = parity.info(size, classes, channels)
  net = models.make(cfg, about, net_lib.Execution())
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  rng = np.random.default_rng(seed)

  def drawn(path, leaf):
    positive = path.endswith(("var", "std", "scale"))
    values = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(0, 0.3, leaf.shape)
    return values.astype(leaf.dtype)

  flat = trees.flatten({"params": params, "stats": stats})
  return trees.unflatten({path: drawn(path, leaf) for path, leaf in flat.items()})


def without_input(tree):
  return {path: x for path, x in trees.flatten(tree).items() if "encoder/input/" not in path}


def assert_equal(tree, other):
  one, two = trees.flatten(tree), trees.flatten(other)
  assert list(one) and set(one) == set(two)
  for path, value in one.items():
    np.testing.assert_array_equal(value, two[path], err_msg=path)


def manifest(cfg=TINY, **changes):
  found = pretrained.Manifest("x.keras", "0" * 64, "CC0", cfg.preprocess, ("a", "b"), {})
  return dataclasses.replace(found, **changes)


def written(path, tensors):
  """A file of named arrays, by its suffix."""
  if path.suffix == ".npz":
    np.savez(path, **tensors)
  elif path.suffix == ".h5":
    as_keras_2(path, tensors)
  elif path.suffix == ".pth":
    torch_zip.save(path, tensors)
  else:
    safetensors.numpy.save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path)
  return path


def as_keras_2(path, tensors):
  """The layout of Keras 2: the groups of the layers, and lists of names, here in two parts."""
  layers = list(dict.fromkeys(name.rpartition("/")[0] for name in tensors))
  with h5py.File(path, "w") as file:
    for layer in layers:
      weights = [name for name in tensors if name.rpartition("/")[0] == layer]
      group = file.create_group(layer)
      group.attrs["weight_names"] = np.array([f"{name}:0" for name in weights], "S")
      for name in weights:
        group[f"{name}:0"] = tensors[name]
    file.attrs["layer_names0"] = np.array(layers[:3], "S")
    file.attrs["layer_names1"] = np.array(layers[3:], "S")


# Keras.


@pytest.fixture(scope="module")
def model():
  """Keras's DenseNet with few units."""
  net = keras.src.applications.densenet.DenseNet(
    list(SMALL.units), weights=None, input_shape=(64, 64, 3), classes=parity.CLASSES
  )
  parity.randomise(net)
  return net


def in_keras(model, cfg, layer_of, size=64):
  """Our tensors, read from the live network."""
  about = parity.info(size)
  net = models.make(cfg, about, net_lib.Execution())
  params, stats = parity.copied(model, net, about, lambda path: layer_of(path, cfg))
  return {"params": params, "stats": stats}


@pytest.fixture(scope="module")
def expected(model):
  return in_keras(model, SMALL, densenet.keras_layer)


def by_name(model):
  return {f"{layer.name}/{w.name}": np.asarray(w) for layer in model.layers for w in layer.weights}


def _published(model, path):
  """As the weights of DenseNets that Keras hands out: slashes in the names of layers."""
  as_keras_2(
    path, {name.replace("conv1_conv", "conv1/conv"): x for name, x in by_name(model).items()}
  )


KERAS_FILES = {
  "model.keras": lambda model, path: model.save(path),
  "model.h5": lambda model, path: model.save(path),
  "model.weights.h5": lambda model, path: model.save_weights(path),
  "published.h5": _published,
}


@pytest.fixture(scope="module")
def keras_files(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp("keras")
  for name, write in KERAS_FILES.items():
    write(model, folder / name)
  return folder


@pytest.mark.parametrize("name", KERAS_FILES)
def test_every_file_of_keras_gives_the_weights_of_the_live_network(name, keras_files, expected):
  target = fresh(SMALL)
  found, account = pretrained.transfer(target, keras_files / name, SMALL)
  assert without_input(found).keys() == without_input(target).keys()
  assert_equal(without_input(found), without_input(expected))
  assert set(account.new) == {"stats/encoder/input/mean", "stats/encoder/input/std"}
  assert len(account.loaded) + 2 == len(trees.flatten(target))
  assert not account.adapted and not account.left_over


def test_the_logits_are_those_of_keras(model, keras_files):
  net = models.make(SMALL, parity.info(64), net_lib.Execution())
  found, _ = pretrained.transfer(fresh(SMALL), keras_files / "model.keras", SMALL)
  pixels = parity.images(64)
  run = jax.jit(lambda *args: net.apply(*args, train=False)[0].output)
  ours = run(found["params"], found["stats"], parity.batch_of(pixels))
  theirs = parity.keras_logits(model, pixels)
  np.testing.assert_allclose(jax.nn.softmax(ours), theirs, rtol=1e-4, atol=1e-6)


APPS = keras.applications
FAMILIES = (
  ("mobilenet_v1", APPS.MobileNet, mobilenet, dict(width=0.25), dict(alpha=0.25)),
  ("mobilenet_v2", APPS.MobileNetV2, mobilenet, {}, {}),
  ("mobilenet_v3_small", APPS.MobileNetV3Small, mobilenet, {}, {}),
  ("nasnet_mobile", APPS.NASNetMobile, nasnet, {}, {}),
  ("inception_v3", APPS.InceptionV3, inception, {}, {}),
  ("inception_resnet_v2", APPS.InceptionResNetV2, inception_resnet, {}, {}),
  ("xception", APPS.Xception, xception, {}, {}),
  ("vgg16", APPS.VGG16, vgg, {}, {}),
  ("resnet50", APPS.ResNet50, resnet, {}, {}),
)


@pytest.mark.slow
@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case[0])
def test_files_of_every_family(case, tmp_path):
  name, build, family, ours, theirs = case
  cfg = dataclasses.replace(PRESETS[name], preprocess="unit", **ours)
  keras.backend.clear_session()  # parity asks for layers by the numbers of a first network
  model = build(weights=None, input_shape=(96, 96, 3), classes=parity.CLASSES, **theirs)
  parity.randomise(model)
  expected = in_keras(model, cfg, family.keras_layer, 96)
  for file in ("it.keras", "it.h5"):
    model.save(tmp_path / file)
    found, account = pretrained.transfer(fresh(cfg, size=96), tmp_path / file, cfg)
    assert not account.left_over and not account.adapted
    assert_equal(without_input(found), without_input(expected))


def test_layers_that_keras_numbers_count_from_the_first_of_the_file(tmp_path):
  keras.layers.Dense(1)
  net = keras.Sequential([keras.Input((1,)), *(keras.layers.Dense(n) for n in range(1, 13))])
  net.save(tmp_path / "chain.keras")
  assert "dense" not in {layer.name for layer in net.layers}
  found = files.read(tmp_path / "chain.keras").arrays
  names = ["dense", *(f"dense_{n}" for n in range(1, 12))]
  assert {name: found[f"{name}/bias"].size for name in names} == dict(
    zip(names, range(1, 13), strict=True)
  )


def _nameless(source, path):
  """A file in which Keras did not yet say which layer a group is of."""
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
    weights = io.BytesIO(old.read("model.weights.h5"))
    with h5py.File(weights, "a") as file:
      groups = []
      file.visit(groups.append)
      for group in groups:
        file[group].attrs.pop("name", None)
    new.writestr("model.weights.h5", weights.getvalue())
    new.writestr("config.json", old.read("config.json"))
  return weights


def test_an_archive_of_the_first_keras_3_takes_names_from_its_config(
  keras_files, tmp_path, expected
):
  weights = _nameless(keras_files / "model.keras", tmp_path / "nameless.keras")
  found, _ = pretrained.transfer(fresh(SMALL), tmp_path / "nameless.keras", SMALL)
  assert_equal(without_input(found), without_input(expected))
  (tmp_path / "nameless.weights.h5").write_bytes(weights.getvalue())
  with pytest.raises(ValueError, match=r"nameless\.weights\.h5.*does not say which layer.*\.keras"):
    files.read(tmp_path / "nameless.weights.h5")


def test_the_optimizer_is_no_weight(tmp_path):
  net = keras.Sequential([keras.Input((3,)), keras.layers.Dropout(0.5), keras.layers.Dense(2)])
  net.compile("adam", "mse")
  net.fit(np.zeros((2, 3)), np.zeros((2, 2)), verbose=0)
  for name in ("it.keras", "it.h5"):
    net.save(tmp_path / name)
    assert set(files.read(tmp_path / name).arrays) == {"dense/kernel", "dense/bias"}


# Ours.


@pytest.mark.parametrize("name", KERAS_FILES)
def test_keras_to_medjax_to_safetensors_to_medjax_changes_no_bit(name, keras_files, tmp_path):
  source, path = keras_files / name, tmp_path / "small.safetensors"
  first, _ = pretrained.transfer(fresh(SMALL), source, SMALL)
  about = pretrained.describe(source, SMALL, ("a", "b"), "MIT")
  pretrained.save(path, first["params"], first["stats"], about)
  params, stats, again = pretrained.load(path)
  assert_equal({"params": params, "stats": stats}, first)
  assert again == about and again.classes == ("a", "b") and again.source == name
  second, account = pretrained.transfer(fresh(SMALL, seed=1), path, SMALL)
  assert_equal(second, first)
  assert len(account.loaded) == len(trees.flatten(first))


def test_the_manifest_is_json_beside_the_file(tmp_path):
  source = tmp_path / "source.keras"
  source.write_bytes(b"abc")
  tree = fresh(TINY)
  about = pretrained.describe(source, TINY, ["a", "b"], "CC BY 4.0")
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


def test_weights_are_applied_with_the_preprocessing_they_were_trained_with(tmp_path):
  path, tree = tmp_path / "tiny.safetensors", fresh(TINY)
  pretrained.save(path, tree["params"], tree["stats"], manifest(preprocess="tf"))
  with pytest.raises(ValueError, match=r"trained with preprocess='tf'.* is 'unit': set"):
    pretrained.transfer(fresh(TINY), path, TINY)
  cfg = pretrained.adopted(TINY, path)
  assert cfg == dataclasses.replace(TINY, preprocess="tf")
  assert_equal(pretrained.transfer(fresh(TINY, seed=1), path, cfg)[0], tree)
  around = pretrained.adopted(settings.SoftAttention(backbone=TINY), path)
  assert around == settings.SoftAttention(backbone=cfg)
  assert pretrained.adopted(TINY, tmp_path / "tiny.npz") == TINY


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_safetensors_keep_every_type(dtype, tmp_path):
  values = np.random.default_rng(0).normal(size=(3, 5)).astype(dtype)
  path = written(tmp_path / "it.safetensors", {"params/x": values})
  found = files.read(path).arrays["params/x"]
  assert found.dtype == dtype
  np.testing.assert_array_equal(found, values)


def test_npz_of_ours_and_of_pytorch(tmp_path):
  tree = fresh(TINY)
  path = written(tmp_path / "it.npz", trees.flatten(tree))
  assert_equal(pretrained.transfer(fresh(TINY, seed=1), path, TINY)[0], tree)
  path = written(tmp_path / "torch.npz", torch_densenet(fresh(SMALL)))
  assert_equal(
    without_input(pretrained.transfer(fresh(SMALL, seed=1), path, SMALL)[0]),
    without_input(fresh(SMALL)),
  )


# PyTorch.


def torch_densenet(tree):
  """Our small DenseNet's tensors by torchvision's names, in its layouts."""
  params, stats = tree["params"]["encoder"], tree["stats"]["encoder"]
  found = {}

  def conv(name, module):
    found[f"{name}.weight"] = np.ascontiguousarray(module["kernel"].transpose(3, 2, 0, 1))

  def norm(name, weights, moving):
    found[f"{name}.weight"], found[f"{name}.bias"] = weights["scale"], weights["bias"]
    found[f"{name}.running_mean"], found[f"{name}.running_var"] = moving["mean"], moving["var"]
    found[f"{name}.num_batches_tracked"] = np.asarray(7)

  conv("features.conv0", params["conv1"]["conv"])
  norm("features.norm0", params["conv1"]["bn"], stats["conv1"]["bn"])
  for block, units in enumerate(SMALL.units, 1):
    ours, moving = params[f"conv{block + 1}"], stats[f"conv{block + 1}"]
    for unit in range(1, units + 1):
      where, layers, moves = (
        f"features.denseblock{block}.denselayer{unit}",
        *(part[f"block{unit}"] for part in (ours, moving)),
      )
      norm(f"{where}.norm1", layers["0_bn"], moves["0_bn"])
      conv(f"{where}.conv1", layers["1_conv"])
      norm(f"{where}.norm2", layers["1_bn"], moves["1_bn"])
      conv(f"{where}.conv2", layers["2_conv"])
    if block < len(SMALL.units):
      ours, moving = params[f"pool{block + 1}"], stats[f"pool{block + 1}"]
      norm(f"features.transition{block}.norm", ours["bn"], moving["bn"])
      conv(f"features.transition{block}.conv", ours["conv"])
  norm("features.norm5", params["bn"], stats["bn"])
  dense = tree["params"]["head"]["classes"]
  found["classifier.weight"], found["classifier.bias"] = dense["kernel"].T.copy(), dense["bias"]
  return found


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_densenet_of_torchvision_or_timm(suffix, tmp_path):
  tree = fresh(SMALL)
  path = written(tmp_path / f"densenet{suffix}", torch_densenet(tree))
  found, account = pretrained.transfer(fresh(SMALL, seed=1), path, SMALL)
  assert_equal(without_input(found), without_input(tree))
  assert not account.left_over and len(account.new) == 2


def test_a_training_checkpoint_of_a_data_parallel_net_with_the_first_names(tmp_path):
  tree = fresh(SMALL)
  old = {
    f"module.{name}".replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): array
    for name, array in torch_densenet(tree).items()
  }
  torch_zip.save(tmp_path / "run.pt", {"epoch": 3, "arch": "densenet121", "state_dict": old})
  found, account = pretrained.transfer(fresh(SMALL, seed=1), tmp_path / "run.pt", SMALL)
  assert_equal(without_input(found), without_input(tree))
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
  tree, state = fresh(BASIC), {}
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
  found, _ = pretrained.transfer(fresh(BASIC, seed=1), tmp_path / "resnet.pth", BASIC)
  assert_equal(without_input(found), without_input(tree))


def test_bottlenecks_of_pytorch_are_another_network(tmp_path):
  path = written(tmp_path / "it.pth", {"conv1.weight": np.zeros(3, np.float32)})
  cfg = dataclasses.replace(PRESETS["resnet50"], preprocess="torch")
  with pytest.raises(ValueError, match=r"resnet50.*stride in the first 1x1.*file of Keras"):
    pretrained.transfer({}, path, cfg)
  with pytest.raises(ValueError, match="no network takes preprocess='caffe'"):
    pretrained.transfer({}, path, PRESETS["resnet50"])


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


PEERS = TESTS / "peers" / ".venv" / "bin" / "python"


@pytest.mark.slow
def test_files_that_pytorch_wrote(tmp_path):
  if not PEERS.is_file():
    pytest.skip("no PyTorch: tests/peers/run.sh installs it for the comparisons")
  script = pathlib.Path(__file__).with_name("torch_densenet.py")
  subprocess.run([PEERS, script, tmp_path], check=True)
  net = models.make(SMALL, parity.info(64), net_lib.Execution())
  run = jax.jit(lambda *args: net.apply(*args, train=False)[0].output)
  truth = np.load(tmp_path / "logits.npz")
  for name in ("small.pth", "run.pt"):
    found, account = pretrained.transfer(fresh(SMALL), tmp_path / name, SMALL)
    assert not account.left_over
    ours = run(found["params"], found["stats"], parity.batch_of(truth["image"]))
    parity.assert_same_logits(ours, truth["logits"])
  with pytest.raises(ValueError, match=r"asks for torch\.nn"):
    files.read(tmp_path / "whole.pt")
  with pytest.raises(ValueError, match=r"older file is a bare pickle"):
    files.read(tmp_path / "old.pth")


# Heads, and networks inside networks.


def test_a_head_of_other_classes_is_new_where_the_old_one_may_be_left_over(keras_files):
  target = fresh(SMALL, classes=3)
  with pytest.raises(ValueError, match=r"tensor predictions/kernel is left over"):
    pretrained.transfer(target, keras_files / "model.keras", SMALL)
  found, account = pretrained.transfer(
    target, keras_files / "model.keras", SMALL, pretrained.CLASSIFIERS
  )
  head = ("params/head/classes/bias", "params/head/classes/kernel")
  assert {path for path in account.new if "input" not in path} == set(head)
  assert set(account.left_over) == {"predictions/kernel", "predictions/bias"}
  assert_equal(found["params"]["head"], target["params"]["head"])


def test_half_a_head_is_damage(tmp_path):
  tensors = trees.flatten(fresh(TINY))
  del tensors["params/head/classes/bias"]
  path = written(tmp_path / "it.safetensors", tensors)
  with pytest.raises(ValueError, match="no tensor params/head/classes/bias"):
    pretrained.transfer(fresh(TINY), path, TINY, pretrained.CLASSIFIERS)


@pytest.mark.parametrize("name", ["model.keras", "ours.safetensors"])
def test_a_backbone_in_a_network_around_it(name, keras_files, expected, tmp_path):
  path = keras_files / name
  if name == "ours.safetensors":
    path = written(tmp_path / name, without_input(expected))
  cfg = settings.SoftAttention(backbone=SMALL, cut="conv3_block1_concat", maps=2)
  beyond = ["pool[34]_*", "conv[45]_*", "bn/*", "*/pool[34]/*", "*/conv[45]/*", "*/encoder/bn/*"]
  allow = [*pretrained.CLASSIFIERS, *beyond]
  found, account = pretrained.transfer(fresh(cfg), path, cfg, allow)
  inside = trees.flatten(found["params"]["encoder"]["backbone"]["encoder"])
  theirs = trees.flatten(expected["params"]["encoder"])
  assert len(inside) > 10
  for at, value in inside.items():
    np.testing.assert_array_equal(value, theirs[at])
  new = [at for at in account.new if "input" not in at]
  assert new and all(at.startswith(("params/encoder/attention/", "params/head/")) for at in new)


# Grey images.


def _logits(cfg, tree, pixels):
  net = models.make(cfg, parity.info(32, channels=pixels.shape[-1]), net_lib.Execution())
  run = jax.jit(lambda *args: net.apply(*args, train=False)[0].output)
  return np.asarray(run(tree["params"], tree["stats"], parity.batch_of(pixels)))


ALIKE = ("unit", "tf", "stats")  # modes that treat channels alike


@pytest.mark.parametrize(
  "mode, channels", [("torch", 1), ("caffe", 1), *((mode, n) for mode in ALIKE for n in (1, 4))]
)
def test_a_grey_image_gives_what_it_gives_in_colour(mode, channels, tmp_path):
  cfg = dataclasses.replace(TINY, preprocess=mode)
  colour = fresh(cfg)
  colour["stats"]["encoder"]["input"] = {
    "mean": np.full(3, 0.4, np.float32),
    "std": np.full(3, 0.2, np.float32),
  }
  path = tmp_path / "colour.safetensors"
  pretrained.save(path, colour["params"], colour["stats"], manifest(cfg))
  ours, account = pretrained.transfer(fresh(cfg, channels=channels), path, cfg)
  assert not account.left_over and not account.new
  assert ("params/encoder/conv1/conv/kernel" in account.adapted) == (mode in ALIKE)
  pixels = parity.images(32, channels=1)
  theirs = _logits(cfg, colour, np.repeat(pixels, 3, -1))
  parity.assert_same_logits(_logits(cfg, ours, np.repeat(pixels, channels, -1)), theirs, 1e-5)


# What is refused.


def _without(tensors, name):
  return {key: value for key, value in tensors.items() if key != name}


SOURCES = {
  ".safetensors": ("params/encoder/conv1/conv/kernel", lambda tree, _: trees.flatten(tree)),
  ".npz": ("params/encoder/conv1/conv/kernel", lambda tree, _: trees.flatten(tree)),
  ".pth": ("features.conv0.weight", lambda tree, _: torch_densenet(tree)),
  ".h5": ("conv1_conv/kernel", lambda _, model: by_name(model)),
}
CHANGES = {
  "missing": (lambda t, n: _without(t, n), "no tensor {} for params/encoder/conv1/conv/kernel"),
  "extra": (lambda t, n: t | {f"{n}2": t[n]}, "tensor {}2 is left over"),
  "misshaped": (lambda t, n: t | {n: t[n][:-1].copy()}, "tensor {} is .* there and .* here"),
  "renamed": (lambda t, n: _without(t, n) | {f"x{n}": t[n]}, "no tensor {} .*; tensor x{} is left"),
}


@pytest.mark.parametrize("suffix", SOURCES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_that_does_not_fit_is_named(change, suffix, model, tmp_path):
  (name, source), (changed, told) = SOURCES[suffix], CHANGES[change]
  target = fresh(SMALL)
  path = tmp_path / f"file{suffix}"
  written(path, changed(source(target, model), name))
  told = told.replace("{}", name.replace(".", r"\."))
  with pytest.raises(ValueError, match=rf"{path.name} does not fit densenet121: {told}"):
    pretrained.transfer(target, path, SMALL)


@pytest.mark.parametrize("name", [*KERAS_FILES, "it.safetensors", "it.npz", "it.pth"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(name, share, keras_files, tmp_path):
  path = tmp_path / name
  if name in KERAS_FILES:
    path.write_bytes((keras_files / name).read_bytes())
  else:
    written(path, {"params/x": np.ones(1000, np.float32), "params/y": np.ones(3, np.float32)})
  files.read(path)
  path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
  with pytest.raises(ValueError, match=rf"{name} cannot be read: .*get it again"):
    pretrained.transfer({}, path, SMALL)


def test_a_short_storage_is_named_with_its_tensor(tmp_path):
  tensors = {"a": np.ones(5, np.float32), "b": np.ones(5, np.float32)}
  torch_zip.save(tmp_path / "it.pth", tensors, cut="b")
  with pytest.raises(ValueError, match=r"it\.pth.*tensor b reaches beyond its storage of 4"):
    files.read(tmp_path / "it.pth")


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


def test_objects_in_npz_are_refused_by_name(tmp_path):
  np.savez(tmp_path / "it.npz", good=np.ones(2), bad=np.array([object()]))
  with pytest.raises(ValueError, match=r"it\.npz.*tensor bad: Object arrays"):
    files.read(tmp_path / "it.npz")


def test_other_files_and_missing_ones_are_told(tmp_path):
  with pytest.raises(ValueError, match=r"it\.onnx is no weight file.*\.keras.*\.safetensors"):
    files.read(tmp_path / "it.onnx")
  with pytest.raises(FileNotFoundError, match=r"it\.pth"):
    files.read(tmp_path / "it.pth")


def test_networks_without_names_in_other_libraries_are_told(tmp_path):
  path = written(tmp_path / "it.pth", {"w": np.ones(2, np.float32)})
  with pytest.raises(ValueError, match=r"quadsnet.*torch.*only of DenseNet, ResNet"):
    pretrained.transfer({}, path, settings.QuadSNet())


# In a run.


@pytest.fixture
def start(tmp_path):
  """Arguments of a run that starts from a weight file of five classes."""
  cfg = settings.QuadSNet(widths=(4, 8), hidden=8)
  tree = fresh(cfg, classes=5, channels=1, size=16)
  path = tmp_path / "quadsnet.safetensors"
  pretrained.save(path, tree["params"], tree["stats"], manifest(cfg))
  length = "--config.train.length=2 steps"
  return [f"--config={TESTS / 'tiny.py'}", f"--config.init_from={path}", length]


def test_a_stage_refuses_a_file_that_does_not_fit(start, tmp_path, capsys):
  assert main.main([*start, f"--workdir={tmp_path}/run", "--config.model.widths=4,12"]) != 0
  text = capsys.readouterr().err
  assert "quadsnet.safetensors does not fit quadsnet: tensor params/encoder/" in text


@pytest.mark.slow
def test_a_stage_starts_from_a_weight_file(start, tmp_path, capsys):
  assert main.main([*start, f"--workdir={tmp_path}/run"]) == 0
  text = capsys.readouterr().out
  assert "init_from " in text and "quadsnet.safetensors:" in text and "tensors loaded" in text
  assert "left over: params/head/classes" in text
