"""Weight files of Keras: every layout it has written gives the weights of the live network.

What a file should give is read from that network by `keras_parity.copied`, which knows no files.
"""

import dataclasses
import io
import zipfile

import h5py
import keras_parity as parity
from keras_parity import keras  # on the backend that it chooses
import numpy as np
import pytest
import weight_files
from weight_files import SMALL

from medjax import models, settings, trees
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
from medjax.models.pretrained import files, manifests, names

# Keras's own, where it copies its variables.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PRESETS = settings.VARIANTS[settings.Model]
APPS = keras.applications


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


def _published(model, path):
  """As the weights of DenseNets that Keras hands out: slashes in the names of layers."""
  tensors = weight_files.by_name(model).items()
  weight_files.as_keras_2(
    path, {name.replace("conv1_conv", "conv1/conv"): tensor for name, tensor in tensors}
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
  target = weight_files.fresh(SMALL)
  found, account = pretrained.transfer(target, keras_files / name, SMALL)
  weight_files.assert_equal(weight_files.without_input(found), weight_files.without_input(expected))
  assert set(account.new) == {"stats/encoder/input/mean", "stats/encoder/input/std"}
  assert len(account.loaded) + 2 == len(trees.flatten(target))
  assert not account.adapted and not account.left_over


@pytest.mark.parametrize("name", KERAS_FILES)
def test_keras_to_medjax_to_safetensors_to_medjax_changes_no_bit(name, keras_files, tmp_path):
  source, path = keras_files / name, tmp_path / "small.safetensors"
  first, _ = pretrained.transfer(weight_files.fresh(SMALL), source, SMALL)
  about = manifests.describe(source, SMALL, ("a", "b"), "MIT")
  pretrained.save(path, first["params"], first["stats"], about)
  params, stats, again = pretrained.load(path)
  weight_files.assert_equal({"params": params, "stats": stats}, first)
  assert again == about and again.classes == ("a", "b") and again.source == name
  second, account = pretrained.transfer(weight_files.fresh(SMALL, seed=1), path, SMALL)
  weight_files.assert_equal(second, first)
  assert len(account.loaded) == len(trees.flatten(first))


def test_the_logits_are_those_of_keras(model, keras_files):
  found, _ = pretrained.transfer(weight_files.fresh(SMALL), keras_files / "model.keras", SMALL)
  pixels = parity.images(64)
  ours, theirs = weight_files.logits(SMALL, found, pixels), parity.keras_logits(model, pixels)
  shares = np.exp(ours) / np.exp(ours).sum(1, keepdims=True)
  np.testing.assert_allclose(shares, theirs, rtol=1e-4, atol=1e-6)


# Preset -> Keras's network, the names of its layers, what makes both smaller.
FAMILIES = {
  "densenet121": (APPS.DenseNet121, densenet, {}, {}),
  "densenet169": (APPS.DenseNet169, densenet, {}, {}),
  "densenet201": (APPS.DenseNet201, densenet, {}, {}),
  "mobilenet_v1": (APPS.MobileNet, mobilenet, dict(width=0.25), dict(alpha=0.25)),
  "mobilenet_v2": (APPS.MobileNetV2, mobilenet, {}, {}),
  "mobilenet_v3_small": (APPS.MobileNetV3Small, mobilenet, {}, {}),
  "mobilenet_v3_large": (APPS.MobileNetV3Large, mobilenet, {}, {}),
  "nasnet_mobile": (APPS.NASNetMobile, nasnet, {}, {}),
  "nasnet_large": (APPS.NASNetLarge, nasnet, {}, {}),
  "inception_v3": (APPS.InceptionV3, inception, {}, {}),
  "inception_resnet_v2": (APPS.InceptionResNetV2, inception_resnet, {}, {}),
  "xception": (APPS.Xception, xception, {}, {}),
  "vgg16": (APPS.VGG16, vgg, {}, {}),
  "vgg19": (APPS.VGG19, vgg, {}, {}),
  "resnet50": (APPS.ResNet50, resnet, {}, {}),
  "resnet152": (APPS.ResNet152, resnet, {}, {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_files_of_every_family(name, tmp_path):
  build, family, ours, theirs = FAMILIES[name]
  cfg = dataclasses.replace(PRESETS[name], preprocess="unit", **ours)
  keras.backend.clear_session()  # parity asks for layers by the numbers of a first network
  model = build(weights=None, input_shape=(96, 96, 3), classes=parity.CLASSES, **theirs)
  parity.randomise(model)
  expected = weight_files.without_input(in_keras(model, cfg, family.keras_layer, 96))
  target = weight_files.fresh(cfg, size=96)
  for file in ("model.keras", "model.h5", "model.weights.h5"):
    KERAS_FILES[file](model, tmp_path / file)
    found, account = pretrained.transfer(target, tmp_path / file, cfg)
    assert not account.left_over and not account.adapted
    weight_files.assert_equal(weight_files.without_input(found), expected)


# Layers of Keras 3's MobileNet-V3 and what tf.keras called them, in which Keras publishes weights.
TF_KERAS = {
  "conv": "Conv",
  "conv_bn": "Conv/BatchNorm",
  "expanded_conv_depthwise": "expanded_conv/depthwise",
  "expanded_conv_depthwise_bn": "expanded_conv/depthwise/BatchNorm",
  "expanded_conv_squeeze_excite_conv": "expanded_conv/squeeze_excite/Conv",
  "expanded_conv_squeeze_excite_conv_1": "expanded_conv/squeeze_excite/Conv_1",
  "expanded_conv_project": "expanded_conv/project",
  "expanded_conv_1_expand": "expanded_conv_1/expand",
  "expanded_conv_1_expand_bn": "expanded_conv_1/expand/BatchNorm",
  "expanded_conv_10_project_bn": "expanded_conv_10/project/BatchNorm",
  "conv_1": "Conv_1",
  "conv_1_bn": "Conv_1/BatchNorm",
  "conv_2": "Conv_2",
  "logits": "Logits",
}


def test_a_mobilenet_v3_that_tf_keras_named():
  cfg = PRESETS["mobilenet_v3_small"]
  paths = list(trees.flatten(weight_files.fresh(cfg)))
  named = names.of("keras", cfg, paths)
  pairs = [candidates for path in paths if len(candidates := named(path)) > 1]
  older = {now.rpartition("/")[0]: old.rpartition("/")[0] for now, *_, old in pairs}
  for now, old in TF_KERAS.items():
    assert older[now] == old.replace("/", "_"), now


@pytest.mark.parametrize("older", ["fc1000", "probs", "Logits"])
def test_older_names_of_the_last_layer(older, model, expected, tmp_path):
  tensors = weight_files.by_name(model).items()
  path = weight_files.written(
    tmp_path / "it.h5", {name.replace("predictions/", f"{older}/"): x for name, x in tensors}
  )
  found, account = pretrained.transfer(weight_files.fresh(SMALL), path, SMALL)
  weight_files.assert_equal(found["params"], expected["params"])
  assert not account.left_over


def test_layers_that_keras_numbers_count_from_the_first_of_the_file(tmp_path):
  keras.layers.Dense(1)
  net = keras.Sequential([keras.Input((1,)), *(keras.layers.Dense(n) for n in range(1, 13))])
  net.save(tmp_path / "chain.keras")
  assert "dense" not in {layer.name for layer in net.layers}
  found = files.read(tmp_path / "chain.keras").arrays
  dense = ["dense", *(f"dense_{n}" for n in range(1, 12))]
  assert [found[f"{name}/bias"].size for name in dense] == list(range(1, 13))


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
  found, _ = pretrained.transfer(weight_files.fresh(SMALL), tmp_path / "nameless.keras", SMALL)
  weight_files.assert_equal(weight_files.without_input(found), weight_files.without_input(expected))
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


# What is refused.


def _layer(file, name):
  """A layer's group in the layout of Keras 3, which names it beside its numbered weights."""
  (found,) = (group for group in file["layers"].values() if _name(group) == name)
  return found


def _name(group):
  return group["vars"].attrs.get("name")


def _misshape(file):
  weights = _layer(file, "conv1_conv")["vars"]
  kernel = weights["0"][:-1]
  del weights["0"]
  weights["0"] = kernel


def _extend(file):
  file.copy(_layer(file, "conv1_conv"), "layers/conv2d_900")
  file["layers/conv2d_900/vars"].attrs["name"] = "conv1_conv2"


def _rename(file):
  _layer(file, "conv1_conv")["vars"].attrs["name"] = "xconv1_conv"


def _remove(file):
  del _layer(file, "conv1_conv")["vars/0"]


MISSING = "no tensor conv1_conv/kernel for params/encoder/conv1/conv/kernel"
CHANGES = {
  "missing": (_remove, MISSING),
  "extra": (_extend, "tensor conv1_conv2/kernel is left over"),
  "misshaped": (
    _misshape,
    r"tensor conv1_conv/kernel is \(6, 7, 3, 64\) there and \(7, 7, 3, 64\)",
  ),
  "renamed": (_rename, f"{MISSING}; tensor xconv1_conv/kernel is left over"),
}


@pytest.mark.parametrize("name", ["model.keras", "model.weights.h5"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_tensor_that_does_not_fit_is_named(change, name, keras_files, tmp_path):
  path, (changed, told) = tmp_path / name, CHANGES[change]
  with zipfile.ZipFile(keras_files / "model.keras") as archive:
    parts = {part: archive.read(part) for part in archive.namelist()}
  weights = io.BytesIO(parts["model.weights.h5"])
  with h5py.File(weights, "a") as file:
    changed(file)
  parts["model.weights.h5"] = weights.getvalue()
  if path.suffix == ".h5":
    path.write_bytes(weights.getvalue())
  else:
    with zipfile.ZipFile(path, "w") as archive:
      for part, content in parts.items():
        archive.writestr(part, content)
  with pytest.raises(ValueError, match=rf"{path.name} does not fit densenet121: {told}"):
    pretrained.transfer(weight_files.fresh(SMALL), path, SMALL)


@pytest.mark.parametrize("damage", weight_files.DAMAGES)
def test_a_tensor_that_does_not_fit_is_named_in_the_layout_of_keras_2(damage, model, tmp_path):
  tensors, told = weight_files.damaged(weight_files.by_name(model), "conv1_conv/kernel", damage)
  path = weight_files.written(tmp_path / "it.h5", tensors)
  with pytest.raises(ValueError, match=rf"it\.h5 does not fit densenet121: {told}"):
    pretrained.transfer(weight_files.fresh(SMALL), path, SMALL)


@pytest.mark.parametrize("name", KERAS_FILES)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file_is_named(name, share, keras_files, tmp_path):
  whole = (keras_files / name).read_bytes()
  (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
  with pytest.raises(ValueError, match=rf"{name} cannot be read: .*get it again"):
    pretrained.transfer({}, tmp_path / name, SMALL)


# Heads, and networks inside networks.


def test_a_head_of_other_classes_is_new_where_the_old_one_may_be_left_over(keras_files):
  target, path = weight_files.fresh(SMALL, classes=3), keras_files / "model.keras"
  told = r"tensor predictions/kernel is \(72, 10\) there and \(72, 3\) here; tensor predictions/b"
  typed = r"add --config\.init_allow='predictions/\*'$"
  with pytest.raises(ValueError, match=rf"densenet121: {told}.*{typed}"):
    pretrained.transfer(target, path, SMALL)
  found, account = pretrained.transfer(target, path, SMALL, ["predictions/*"])
  head = ("params/head/classes/bias", "params/head/classes/kernel")
  assert {path for path in account.new if "input" not in path} == set(head)
  assert set(account.left_over) == {"predictions/kernel", "predictions/bias"}
  weight_files.assert_equal(found["params"]["head"], target["params"]["head"])


@pytest.mark.parametrize("name", ["model.keras", "ours.safetensors"])
def test_a_backbone_in_a_network_around_it(name, keras_files, expected, tmp_path):
  path = keras_files / name
  if name == "ours.safetensors":
    path = weight_files.written(tmp_path / name, weight_files.without_input(expected))
  cfg = settings.SoftAttention(backbone=SMALL, cut="conv3_block1_concat", maps=2)
  target = weight_files.fresh(cfg)
  with pytest.raises(ValueError, match=r"left over; and \d+ more\. .*--config\.init_allow='\*'$"):
    pretrained.transfer(target, path, cfg)
  found, account = pretrained.transfer(target, path, cfg, ["*"])
  inside = trees.flatten(found["params"]["encoder"]["backbone"]["encoder"])
  theirs = trees.flatten(expected["params"]["encoder"])
  assert len(inside) > 10
  for at, value in inside.items():
    np.testing.assert_array_equal(value, theirs[at])
  new = [at for at in account.new if "input" not in at]
  assert new and all(at.startswith(("params/encoder/attention/", "params/head/")) for at in new)
