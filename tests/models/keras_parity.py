"""Keras's own networks as the truth: random weights and statistics, copied over, compared.

A family says which Keras layer each of its modules is; everything else is here.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np

from medjax import contract, models, settings, trees
from medjax.models import net as net_lib

CLASSES = 10
TOLD_APART = 0.05  # of the largest logit: by so much those of two images must differ
# Leaf of ours -> weight of a Keras layer. A depthwise or pointwise module of a separable
# convolution is the Keras layer of the module around it.
_WEIGHTS = {
  "kernel": "kernel",
  "bias": "bias",
  "scale": "gamma",
  "mean": "moving_mean",
  "var": "moving_variance",
}
_RANGES = {"gamma": (0.6, 1.3), "moving_variance": (0.6, 1.6)}  # on average they change no size
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


@contextlib.contextmanager
def float64() -> Iterator[None]:
  """JAX and Keras in float64, for networks that are built here.

  Statistics of batches need it: over the last maps of small images they are of a dozen values, and
  division by a deviation that is small by chance magnifies rounding. In float32 gradients of
  MobileNetV2, of two images of 64 pixels, were 5e-3 apart.
  """
  _set_type("float64")
  try:
    with jax.enable_x64(True):
      yield
  finally:
    _set_type("float32")


def compiled(function: Callable) -> Callable:
  """For one run. XLA's float64 convolutions are loops, slow without LLVM's optimisation.

  A step of MobileNetV2 took 48 s with it, 72 s without.
  """
  return (jax.jit if keras.config.floatx() == "float64" else once)(function)


def _tolerance() -> float:
  """Share by which equal results may differ; what was measured in float64 is below 1e-9."""
  return {"float32": 1e-4, "float64": 1e-8}[keras.config.floatx()]


def _set_type(dtype: str) -> None:
  keras.config.set_floatx(dtype)
  keras.config.set_dtype_policy(dtype)
  # On JAX, Keras takes float32 for the larger of float32 and float64, in every batch norm.
  keras.src.backend.common.dtypes.BIT64_TO_BIT32_DTYPE["float64"] = dtype


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


def assert_described(model: keras.Model, cfg: settings.Model, counts: tuple[int, int]) -> None:
  """A Keras network has this many parameters, (total, trainable), and batch norms as ours."""
  trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
  assert (model.count_params(), trainable) == counts
  kinds = {(norm.momentum, norm.epsilon) for norm in _norms(model)}
  assert kinds <= {(cfg.bn_momentum, cfg.bn_epsilon)}


def _norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
  return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def built(application: Callable, size: int, **keywords) -> keras.Model:
  """A network of `keras.applications` that says logits, of CLASSES classes where none are named."""
  keras.utils.clear_session()  # the numbers of layers without names count from there
  keywords = {"classes": CLASSES, "weights": None, "classifier_activation": None} | keywords
  return application(input_shape=(size, size, 3), **keywords)


def randomise(model: keras.Model, seed: int = 0) -> None:
  """Random weights with which images show in the logits, to any depth.

  Maps keep their size (He et al. 2015; a third of the variance survives a ReLU), and filters of
  several maps sum to zero, those of one to one: the mean of what a ReLU leaves is the same for all
  images, and would otherwise outgrow what tells them apart.
  """
  rng = np.random.default_rng(seed)
  for layer in model.layers:
    for weight in layer.weights:
      weight.assign(_drawn(rng, layer, weight))


def _drawn(rng: np.random.Generator, layer: keras.Layer, weight: keras.Variable) -> np.ndarray:
  if not weight.name.endswith("kernel"):
    return rng.uniform(*_RANGES.get(weight.name, (-0.15, 0.15)), weight.shape)
  kernel = rng.standard_normal(weight.shape)
  if _is_depthwise(layer, weight.name):
    area = np.prod(weight.shape[:2])
    return (kernel - kernel.mean((0, 1))) / np.sqrt(area) + 1 / area
  seen = tuple(range(kernel.ndim - 1))
  fan_in = kernel[..., 0].size
  if fan_in > 1:
    kernel -= kernel.mean(seen)
  return kernel * np.sqrt(3 / fan_in)


def _is_depthwise(layer: keras.Layer, name: str) -> bool:
  only_one = isinstance(layer, keras.layers.DepthwiseConv2D) and name == "kernel"
  return only_one or name == "depthwise_kernel"


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
  if name == "kernel" and hasattr(layer, f"{part}_kernel"):
    attribute = f"{part}_kernel"  # of a separable convolution
  weight = getattr(layer, attribute)
  used.add(id(weight))
  value = np.asarray(weight)
  if _is_depthwise(layer, attribute):
    value = value.transpose(0, 1, 3, 2)
  if value.shape != leaf.shape and value.size == np.prod(leaf.shape):
    value = value.reshape(leaf.shape)  # a dense layer that Keras writes as a 1x1 convolution
  assert value.shape == leaf.shape, (path, value.shape, leaf.shape)
  return value


def assert_same_logits(ours, theirs, tolerance: float = 1e-4) -> None:
  """Within that share of the largest logit; and both tell one image from another."""
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  largest = np.abs(theirs).max()
  for logits in (ours, theirs):
    assert np.ptp(logits, 0).max() > TOLD_APART * largest
  assert np.abs(ours - theirs).max() <= tolerance * largest


def images(size: int, n: int = 2, channels: int = 3, seed: int = 1) -> np.ndarray:
  """[n, size, size, channels] in [0, 1], of Keras's type: large squares under noise.

  Noise alone averages out: after some layers one image of it is like another.
  """
  rng = np.random.default_rng(seed)
  side = -(-size // 6)
  squares = rng.random((n, 6, 6, channels)).repeat(side, 1).repeat(side, 2)[:, :size, :size]
  noise = rng.random((n, size, size, channels))
  return (0.75 * squares + 0.25 * noise).astype(keras.config.floatx())


def batch_of(pixels: np.ndarray) -> contract.Batch:
  n = len(pixels)
  return {
    contract.IMAGE: jnp.asarray(pixels),
    contract.MASK: jnp.ones(n),
    contract.SLOT: jnp.arange(n, dtype=jnp.int32),
  }


def _values(model: keras.Model) -> list[list[jax.Array]]:
  groups = model.trainable_variables, model.non_trainable_variables
  return [[variable.value for variable in group] for group in groups]


def keras_logits(model: keras.Model, pixels: np.ndarray, train: bool = False) -> jax.Array:
  """What a Keras network says, without moving its statistics."""
  run = once(lambda *args: model.stateless_call(*args, training=train)[0])
  return run(*_values(model), jnp.asarray(pixels))


class _Twins:
  """A Keras network with random weights, and ours, which takes them over."""

  def __init__(self, model, cfg, about, layer_of):
    randomise(model)
    for norm in _norms(model):
      norm.momentum = 0.0  # moved statistics are then those of the batch
    self.model, self.about = model, about
    self.net = models.make(cfg, about, net_lib.Execution())
    self.layer_of = lambda path: layer_of(path, cfg)

  def weights(self):
    """Keras's, as ours: (params, stats)."""
    return copied(self.model, self.net, self.about, self.layer_of)

  def as_ours(self, trainable, fixed):
    """What Keras has for its weights, such as gradients, as a pair of trees like `weights`."""
    for variables, values in (
      (self.model.trainable_variables, trainable),
      (self.model.non_trainable_variables, fixed),
    ):
      for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return self.weights()


def assert_same_network(
  model: keras.Model,
  cfg: settings.Model,
  about: contract.DataInfo,
  layer_of: Callable,
  *,
  train: bool = False,
  n: int = 2,
  prepared: Callable = lambda pixels: pixels / 255,
) -> None:
  """Equal logits, and batch statistics in training, with a Keras network's weights.

  Args:
    model: of Keras. cfg: ours, which must not drop anything. about: its data.
    layer_of: (our module's path, cfg) to the name of the Keras layer.
    train: with the statistics of a batch of `n` images.
    prepared: pixels in [0, 255] to what Keras's network wants to be fed.
  """
  twins = _Twins(model, cfg, about, layer_of)
  size, _, channels = about.image_shape
  pixels = images(size, n, channels)
  run = compiled(functools.partial(twins.net.apply, train=train, momentum=0.0))
  result, moved = run(*twins.weights(), batch_of(pixels))
  run = compiled(functools.partial(model.stateless_call, training=train))
  trainable, fixed = _values(model)
  logits, fixed = run(trainable, fixed, jnp.asarray(prepared(255 * pixels)))
  assert_same_logits(result.output, logits, _tolerance())
  assert_same_tensors(moved, twins.as_ours(trainable, fixed)[1], _tolerance())


def assert_same_step(
  model: keras.Model,
  cfg: settings.Model,
  about: contract.DataInfo,
  layer_of: Callable,
  *,
  n: int,
  prepared: Callable = lambda pixels: pixels / 255,
) -> None:
  """Equal logits, batch statistics and gradients of a loss by every parameter, in training mode."""
  twins = _Twins(model, cfg, about, layer_of)
  pixels, labels = images(about.image_shape[0], n), jnp.arange(n) % CLASSES
  fed = jnp.asarray(prepared(255 * pixels))

  def ours(params, stats, batch):
    result, moved = twins.net.apply(params, stats, batch, train=True, momentum=0.0)
    return cross_entropy(result.output, labels), (result.output, moved)

  def theirs(trainable, fixed, images):
    logits, fixed = model.stateless_call(trainable, fixed, images, training=True)
    return cross_entropy(logits, labels), (logits, fixed)

  grads, (logits, moved) = _gradient(ours)(*twins.weights(), batch_of(pixels))
  their_grads, (their_logits, fixed) = _gradient(theirs)(*_values(model), fed)
  expected_grads, expected_moved = twins.as_ours(their_grads, fixed)
  assert_same_logits(logits, their_logits, _tolerance())
  assert_same_tensors(moved, expected_moved, _tolerance())
  assert_same_tensors(grads, expected_grads, _tolerance())


def _gradient(loss: Callable) -> Callable:
  return compiled(jax.grad(loss, has_aux=True))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def assert_same_tensors(ours, theirs, tolerance: float) -> None:
  """Each within that share of its norm.

  A millionth of the largest norm counts as zero: a bias that the next batch norm takes away again
  has no gradient but rounding.
  """
  ours, theirs = trees.flatten(ours), trees.flatten(theirs)
  norms = {path: np.linalg.norm(value) for path, value in theirs.items()}
  least = 1e-6 * max(norms.values(), default=0)
  errors = {path: np.linalg.norm(ours[path] - value) for path, value in theirs.items()}
  assert not {p: error for p, error in errors.items() if error > tolerance * max(norms[p], least)}


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
