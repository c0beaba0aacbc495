"""Small networks with random tensors, and files that hold them, for the tests of weight files."""

import dataclasses
import re

import h5py
import jax
import jax.numpy as jnp
import keras_parity as parity
import numpy as np
import safetensors.numpy
import torch_zip

from medjax import models, settings, trees
from medjax.models import net as net_lib
from medjax.models.pretrained import manifests

SMALL = settings.DenseNet(units=(2, 1, 1, 1), preprocess="unit")
TINY = settings.DenseNet(units=(1,), growth=4, preprocess="unit")


def fresh(cfg, classes=parity.CLASSES, channels=3, size=64, seed=0):
  """A network's tensors, all random: kernels by He et al. 2015; what must be positive is."""
  about = parity.info(size, classes, channels)
  net = models.make(cfg, about, net_lib.Execution())
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  rng = np.random.default_rng(seed)

  def drawn(path, leaf):
    if path.endswith(("var", "std", "scale")):
      return rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype)
    deviation = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
    return rng.normal(0, deviation, leaf.shape).astype(leaf.dtype)

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
  found = manifests.Manifest("x.keras", "0" * 64, "CC0", cfg.preprocess, ("a", "b"), {})
  return dataclasses.replace(found, **changes)


def written(path, tensors):
  """A file of named arrays, by its suffix."""
  if path.suffix == ".npz":
    np.savez(path, **tensors)
  elif path.suffix == ".h5":
    as_keras_2(path, tensors)
  elif path.suffix in (".pth", ".pt"):
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


def by_name(model):
  return {f"{layer.name}/{w.name}": np.asarray(w) for layer in model.layers for w in layer.weights}


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


def without(tensors, name):
  return {key: value for key, value in tensors.items() if key != name}


# What happens to a tensor n of t, and how that is told.
DAMAGES = {
  "missing": (without, "no tensor {} for params/encoder/conv1/conv/kernel"),
  "extra": (lambda t, n: t | {f"{n}2": t[n]}, "tensor {}2 is left over"),
  "misshaped": (lambda t, n: t | {n: t[n][:-1].copy()}, "tensor {} is .* there and .* here"),
  "renamed": (lambda t, n: without(t, n) | {f"x{n}": t[n]}, "no tensor {} .*; tensor x{} is left"),
}


def damaged(tensors, name, damage):
  """The tensors, of which the first kernel's was damaged, and a pattern of the error."""
  change, told = DAMAGES[damage]
  return change(tensors, name), told.replace("{}", re.escape(name))


def logits(cfg, tree, pixels, classes=parity.CLASSES):
  """What a network with these tensors says of [n, side, side, C] pixels, in inference."""
  about = parity.info(pixels.shape[1], classes, pixels.shape[-1])
  net = models.make(cfg, about, net_lib.Execution())
  run = jax.jit(lambda *args: net.apply(*args, train=False)[0].output)
  return np.asarray(run(tree["params"], tree["stats"], parity.batch_of(pixels)))
