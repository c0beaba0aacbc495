"""Keras's own networks as the truth: random weights and statistics, copied over, compared.

A family says which Keras layer each of its modules is; everything else is here.
"""

from collections.abc import Callable
import functools
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np

from medjax import contract, models, settings, trees
from medjax.models import blocks
from medjax.models import net as net_lib

CLASSES = 10
# Leaf of ours -> weight of a Keras layer. A depthwise or pointwise module of a separable
# convolution is the Keras layer of the module around it.
_WEIGHTS = {
  "kernel": "kernel",
  "bias": "bias",
  "scale": "gamma",
  "mean": "moving_mean",
  "var": "moving_variance",
}
_DRAWS = np.random.default_rng(0)


def _uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None) -> jax.Array:
  del seed
  return jnp.asarray(_DRAWS.uniform(minval, maxval, shape), dtype)


def _cut_normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None) -> jax.Array:
  del seed
  return jnp.asarray(mean + stddev * _DRAWS.standard_normal(shape).clip(-2, 2), dtype)


# Keras draws its initial kernels by JAX, which compiles a program for each shape: 29 of the 31
# seconds that building an Inception-V3 took. These draws are NumPy's, and the same in every run.
keras.src.backend.random.uniform = _uniform
keras.src.backend.random.truncated_normal = _cut_normal

# For a program that runs once, LLVM's optimisation takes several times as long as it saves.
once = functools.partial(
  jax.jit,
  compiler_options={
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
  },
)


def info(size: int, classes: int = CLASSES, channels: int = 3) -> contract.DataInfo:
  names = tuple(f"class{i}" for i in range(classes))
  half = (0.5,) * channels
  return contract.DataInfo(names, (size, size, channels), (1,) * classes, classes, half, half)


def counts(cfg: settings.Model, size: int, classes: int = 1000, channels: int = 3):
  """(total, trainable) parameters, total with the moving statistics as Keras counts them."""
  about = info(size, classes, channels)
  net = models.make(cfg, about, net_lib.Execution())
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  constants = stats["encoder"].pop("input", {})
  del constants
  return trees.count(params) + trees.count(stats), trees.count(params)


def randomise(model: keras.Model, seed: int = 0) -> None:
  """Random batch-norm weights and statistics; kernels stay as drawn, biases become random."""
  rng = np.random.default_rng(seed)
  ranges = {"gamma": (0.5, 1.5), "moving_variance": (0.5, 1.5)}
  for layer in model.layers:
    for weight in layer.weights:
      if weight.name in ("gamma", "beta", "moving_mean", "moving_variance", "bias"):
        low, high = ranges.get(weight.name, (-0.3, 0.3))
        weight.assign(rng.uniform(low, high, weight.shape))


def copied(model: keras.Model, net: net_lib.Net, about: contract.DataInfo, layer_of: Callable):
  """Our (params, stats) with a Keras model's weights; every weight must be used exactly once.

  Args:
    model: of Keras. net: ours. about: its data.
    layer_of: our module's path, such as `encoder/conv2/block1/bn0` -> name of the Keras layer.
  """
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  trees_like = jax.eval_shape(net.init, jax.random.key(0), images)
  used: set[int] = set()
  filled = [
    trees.unflatten(
      {path: _weight(model, path, leaf, layer_of, used) for path, leaf in flat.items()}
    )
    for flat in map(trees.flatten, trees_like)
  ]
  wanted = {id(w) for layer in model.layers for w in layer.weights if "seed" not in w.name}
  assert used == wanted, "weights of Keras that nothing of ours took"
  return filled


def _weight(model: keras.Model, path: str, leaf, layer_of: Callable, used: set[int]) -> np.ndarray:
  module, _, name = path.rpartition("/")
  if module == "encoder/input":
    return np.full(leaf.shape, 0.5, leaf.dtype)
  layer = model.get_layer(layer_of(module))
  part = module.rpartition("/")[2]
  attribute = "beta" if name == "bias" and hasattr(layer, "gamma") else _WEIGHTS[name]
  if name == "kernel" and hasattr(layer, "depthwise_kernel") and part == "depthwise":
    attribute = "depthwise_kernel"
  elif name == "kernel" and isinstance(layer, keras.layers.DepthwiseConv2D):
    attribute = "kernel"
  elif name == "kernel" and hasattr(layer, "pointwise_kernel"):
    attribute = "pointwise_kernel"
  weight = getattr(layer, attribute)
  used.add(id(weight))
  value = np.asarray(weight)
  depthwise = attribute == "depthwise_kernel" or isinstance(layer, keras.layers.DepthwiseConv2D)
  if depthwise and name == "kernel":
    value = value.transpose(0, 1, 3, 2)
  if value.shape != leaf.shape and value.size == np.prod(leaf.shape):
    value = value.reshape(leaf.shape)  # a dense layer that Keras writes as a 1x1 convolution
  assert value.shape == leaf.shape, (path, value.shape, leaf.shape)
  return value


def assert_same_logits(ours, theirs, tolerance: float = 1e-4) -> None:
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert np.abs(theirs).max() > 1e-3  # something to compare
  assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def images(size: int, n: int = 2, channels: int = 3, seed: int = 1) -> np.ndarray:
  """[n, size, size, channels] float32 in [0, 1]."""
  return np.random.default_rng(seed).random((n, size, size, channels)).astype(np.float32)


def batch_of(pixels: np.ndarray) -> contract.Batch:
  n = len(pixels)
  return {
    contract.IMAGE: jnp.asarray(pixels),
    contract.MASK: jnp.ones(n),
    contract.SLOT: jnp.arange(n, dtype=jnp.int32),
  }


def keras_logits(model: keras.Model, pixels: np.ndarray, train: bool = False) -> jax.Array:
  """What a Keras network says, without moving its statistics."""
  groups = model.trainable_variables, model.non_trainable_variables
  values = [[variable.value for variable in group] for group in groups]
  run = once(lambda *args: model.stateless_call(*args, training=train)[0])
  return run(*values, jnp.asarray(pixels))


def assert_same_network(
  model: keras.Model,
  cfg: settings.Model,
  about: contract.DataInfo,
  layer_of: Callable,
  *,
  train: bool = False,
  n: int = 2,
) -> None:
  """Equal logits with a Keras network's weights; `cfg` must not preprocess or drop anything."""
  randomise(model)
  net = models.make(cfg, about, net_lib.Execution())
  params, stats = copied(model, net, about, lambda path: layer_of(path, cfg))
  pixels = np.random.default_rng(1).random((n, *about.image_shape)).astype(np.float32)
  run = once(lambda *args: net.apply(*args, train=train, momentum=0.0)[0].output)
  ours = run(params, stats, batch_of(pixels))
  assert_same_logits(ours, keras_logits(model, pixels, train))


def assert_same_step(
  model: keras.Model,
  cfg: settings.Model,
  about: contract.DataInfo,
  layer_of: Callable,
  *,
  n: int,
) -> None:
  """Equal logits, batch statistics and gradients of a loss by every parameter, in training mode."""
  randomise(model)
  norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
  assert {(layer.momentum, layer.epsilon) for layer in norms} == {(cfg.bn_momentum, cfg.bn_epsilon)}
  for layer in norms:
    layer.momentum = 0.0  # moved statistics are then those of the batch
  net = models.make(cfg, about, net_lib.Execution())
  take = lambda: copied(model, net, about, lambda path: layer_of(path, cfg))  # noqa: E731
  params, stats = take()
  pixels, labels = jnp.asarray(images(about.image_shape[0], n)), jnp.arange(n) % CLASSES

  def ours(params, stats, batch):
    result, moved = net.apply(params, stats, batch, train=True, momentum=0.0)
    return _cross_entropy(result.output, labels), (result.output, moved)

  def theirs(trainable, fixed, pixels):
    logits, fixed = model.stateless_call(trainable, fixed, pixels, training=True)
    return _cross_entropy(logits, labels), (logits, fixed)

  variables = model.trainable_variables, model.non_trainable_variables
  values = [[variable.value for variable in group] for group in variables]
  their_grads, (their_logits, their_fixed) = _gradient(theirs)(*values, pixels)
  grads, (logits, moved) = _gradient(ours)(params, stats, batch_of(pixels))
  # Keras's gradients, in the places of its weights, are copied by name as those are.
  for group, values in zip(variables, (their_grads, their_fixed), strict=True):
    for variable, value in zip(group, values, strict=True):
      variable.assign(value)
  expected_grads, expected_moved = take()
  assert_same_logits(logits, their_logits)
  _assert_same_tensors(moved, expected_moved, 1e-4)
  _assert_same_tensors(grads, expected_grads, 1e-3)


def _gradient(loss: Callable) -> Callable:
  return once(jax.grad(loss, has_aux=True))


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def _assert_same_tensors(ours, theirs, tolerance: float) -> None:
  """Each within that share of its norm."""
  ours, theirs = trees.flatten(ours), trees.flatten(theirs)
  wrong = {
    path: error
    for path, value in theirs.items()
    if (error := np.linalg.norm(ours[path] - value) / np.linalg.norm(value)) > tolerance
  }
  assert not wrong


def random_weights(net: net_lib.Net, about: contract.DataInfo, seed: int = 3):
  """(params, stats) in JAX's default type: kernels by He et al. 2015, all others in [0.5, 1.5]."""
  rng = np.random.default_rng(seed)

  def drawn(leaf):
    if leaf.ndim < 2:
      return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape))
    return jnp.asarray(rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape))

  like = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  return jax.tree.map(drawn, jax.eval_shape(net.init, jax.random.key(0), like))


def assert_gradients_by_offsets(
  cfg: settings.Model, about: contract.DataInfo, names: list[str]
) -> None:
  """Central differences of the first logit along a random direction of each map; in float64."""
  net = models.make(cfg, about, net_lib.Execution())
  weights = random_weights(net, about)
  batch = batch_of(np.random.default_rng(1).random((2, *about.image_shape)))
  run = functools.partial(net.apply, train=False)
  maps = jax.eval_shape(functools.partial(run, endpoints=names), *weights, batch)[0].endpoints
  rng = np.random.default_rng(2)
  directions = {name: jnp.asarray(rng.normal(size=maps[name].shape)) for name in names}

  @once
  @jax.value_and_grad
  def logit(steps):
    offsets = {name: steps[name] * directions[name] for name in names}
    return run(*weights, batch, offsets=offsets)[0].output[0, 0]

  zeros, step = dict.fromkeys(names, 0.0), 1e-6
  _, found = logit(zeros)
  for name in names:
    numerical = (logit(zeros | {name: step})[0] - logit(zeros | {name: -step})[0]) / (2 * step)
    assert abs(numerical) > 1e-4
    np.testing.assert_allclose(found[name], numerical, rtol=1e-4)


def assert_stages_cover(cfg: settings.Model, about: contract.DataInfo) -> None:
  """Every parameter lies below exactly one stage, and every stage has some."""
  net = models.make(cfg, about, net_lib.Execution())
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  params, _ = jax.eval_shape(net.init, jax.random.key(0), images)
  above = [
    [stage for stage in net.stages if path.startswith(f"{stage}/")]
    for path in trees.flatten(params)
  ]
  assert all(len(stages) == 1 for stages in above)
  assert {stage for (stage,) in above} == set(net.stages)


def cut_total(cfg: settings.Model, size: int, endpoint: str, remat: bool = False) -> int:
  """Parameters and moving statistics of an encoder that ends at an end point."""
  about = info(size)
  encoder = blocks.Cut(models.MODELS[type(cfg)](cfg, about).encoder, endpoint)
  images = jax.ShapeDtypeStruct((1, *about.image_shape), jnp.float32)
  mode = net_lib.Mode(net_lib.Execution(remat=remat))
  variables = jax.eval_shape(encoder.init, jax.random.key(0), images, mode)
  variables["batch_stats"]["encoder"].pop("input")
  return trees.count(variables["params"]) + trees.count(variables["batch_stats"])
