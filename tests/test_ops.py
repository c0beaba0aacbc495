import functools
import re

import jax
from jax import lax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from medjax import ops

CANONICAL = "b01f_01io->b01f"
CHANNELS = 3

# What each network asks for: map, kernel, strides, padding, dilation. Maps are small, odd and even.
DENSE = {
  "1x1": ((5, 4), (1, 1), 1, "SAME"),
  "ResNet 1x1/2": ((7, 5), (1, 1), 2, "SAME"),
  "VGG, QuadSNet 3x3": ((7, 6), (3, 3), 1, "SAME"),
  "QuadSNet, MedNet, Inception 5x5": ((7, 6), (5, 5), 1, "SAME"),
  "MedNet 7x7, larger than the map": ((2, 3), (7, 7), 1, "SAME"),
  "MedNet, Darknet, MobileNet 3x3/2, even": ((8, 6), (3, 3), 2, "SAME"),
  "MedNet, Darknet, MobileNet 3x3/2, odd": ((9, 7), (3, 3), 2, "SAME"),
  "MedNet 5x5/2": ((9, 8), (5, 5), 2, "SAME"),
  "ResNet, DenseNet 7x7/2": ((10, 9), (7, 7), 2, ((3, 3), (3, 3))),
  "Inception 3x3 VALID": ((7, 6), (3, 3), 1, "VALID"),
  "Inception, NASNet, Xception 3x3/2 VALID, with a last row that no window meets": (
    (8, 10),
    (3, 3),
    2,
    "VALID",
  ),
  "Inception 1x7": ((5, 9), (1, 7), 1, "SAME"),
  "Inception 7x1": ((9, 5), (7, 1), 1, "SAME"),
  "Inception 1x3": ((5, 4), (1, 3), 1, "SAME"),
  "Inception 3x1": ((5, 4), (3, 1), 1, "SAME"),
  "soft attention over a map's height": ((4, 5), (10, 3), 1, "SAME"),
  "atrous": ((9, 11), (3, 3), (1, 2), "SAME", (2, 3)),
  "uneven": ((5, 6), (3, 2), (2, 1), ((2, 0), (0, 3))),
  "pads that a 1x1 kernel alone sees": ((4, 4), (1, 1), 1, ((1, 2), (0, 1))),
  "ResNet 3x3 on 2x2": ((2, 2), (3, 3), 1, "SAME"),
  "3x3/2 to one pixel": ((2, 2), (3, 3), 2, "SAME"),
  "5x5 on one pixel": ((1, 1), (5, 5), 1, "SAME"),
  "a kernel whose last column sees padding": ((4, 2), (3, 4), 1, ((1, 1), (0, 3))),
  "a kernel of which no tap meets the map": ((2, 2), (1, 2), 4, ((3, 0), (0, 0))),
}
DEPTHWISE = {
  "QuadSNet, Xception, MobileNet 3x3": ((7, 6), (3, 3), 1, "SAME"),
  "QuadSNet, MobileNet, NASNet 5x5": ((7, 6), (5, 5), 1, "SAME"),
  "NASNet 7x7": ((9, 8), (7, 7), 1, "SAME"),
  "5x5 on the smallest map": ((1, 2), (5, 5), 1, "SAME"),
  "MobileNet 3x3/2, even": ((8, 6), (3, 3), 2, ((0, 1), (0, 1))),
  "MobileNet 3x3/2, odd": ((9, 7), (3, 3), 2, ((1, 1), (1, 1))),
  "MobileNet, NASNet 5x5/2": ((8, 9), (5, 5), 2, ((1, 2), (2, 2))),
  "NASNet 7x7/2": ((9, 8), (7, 7), 2, ((3, 3), (2, 3))),
  "3x3/2 VALID, with a last row that no window meets": ((8, 10), (3, 3), 2, "VALID"),
  "atrous": ((9, 11), (3, 3), (1, 2), "SAME", (2, 3)),
  "uneven": ((5, 6), (3, 2), (2, 1), ((2, 0), (0, 3))),
  "NASNet 7x7/2 to one pixel": ((2, 2), (7, 7), 2, ((3, 3), (2, 3))),
  "atrous, wider than the map": ((3, 3), (3, 3), 1, "SAME", (4, 2)),
}


def _settings(strides, padding, dilation=(1, 1)):
  pair = (strides, strides) if isinstance(strides, int) else strides
  return dict(strides=pair, padding=padding, dilation=dilation)


def _lax(x, kernel, strides, padding, dilation, groups):
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )


def _with_gradients(conv, x, kernel):
  """The convolution and both gradients, for an output gradient that only its shape decides."""
  y, pull = jax.vjp(conv, x, kernel)
  g = jnp.cos(jnp.arange(y.size)).astype("bfloat16").astype(y.dtype)
  return y, *pull(g.reshape(y.shape))


@functools.cache
def _truths(filters):
  """Name of a shape -> settings, map, kernel, and lax's output and gradients, all float64.

  Of so many filters, or depthwise without a number.

  Whatever goes in is a bfloat16 number, so that one truth serves every dtype.
  """
  rng = np.random.default_rng(0)

  def drawn(*shape):
    return jnp.asarray(rng.normal(size=shape), "bfloat16").astype("float64")

  hows, inputs = {}, {}
  for name, (size, window, *settings) in (DENSE if filters else DEPTHWISE).items():
    hows[name] = _settings(*settings) | dict(groups=1 if filters else CHANNELS)
    kernel = drawn(*window, CHANNELS, filters) if filters else drawn(*window, 1, CHANNELS)
    inputs[name] = drawn(2, *size, CHANNELS), kernel
  run = jax.jit(
    lambda inputs: {
      name: _with_gradients(functools.partial(_lax, **hows[name]), *pair)
      for name, pair in inputs.items()
    }
  )
  return hows, inputs, run(inputs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("filters", [4, 2, 0], ids=["dense", "few filters", "depthwise"])
def test_both_forms_are_the_convolution_of_lax(x64, filters, dtype):
  """A bfloat16 output is rounded once, after a wide sum; the others round with every term."""
  hows, inputs, truths = _truths(filters)

  @jax.jit
  def run(inputs):
    found = {}
    for name, pair in jax.tree.map(lambda a: a.astype(dtype), inputs).items():
      cpu, plain = (functools.partial(ops.conv, **hows[name], form=f) for f in ("cpu", "plain"))
      found[name] = *_with_gradients(cpu, *pair), plain(*pair)
    return found

  for name, (y, dx, dk, plain) in run(inputs).items():
    true_y, true_dx, true_dk = truths[name]
    pairs = dict(y=(y, true_y), dx=(dx, true_dx), dk=(dk, true_dk), plain=(plain, true_y))
    for what, (ours, true) in pairs.items():
      assert ours.dtype == dtype
      off = abs(ours.astype("float64") - true).max() / abs(true).max()
      assert off <= 2 * jnp.finfo(dtype).eps, (name, what)


def _close_to_lax(x, kernel, strides):
  """Output and gradients."""
  how = _settings(strides, "SAME")
  found = _with_gradients(functools.partial(ops.conv, **how, form="cpu"), x, kernel)
  true = _with_gradients(functools.partial(_lax, **how, groups=1), x, kernel)
  for ours, theirs in zip(found, true, strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-13 * abs(theirs).max())


@pytest.mark.parametrize("examples", [64, 35, 37], ids=["eights", "parts of 7", "no parts"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("filters", [4, 2])
def test_gradients_of_large_batches(x64, examples, strides, filters):
  x = jnp.asarray(np.random.default_rng(1).normal(size=(examples, 6, 5, 3)))
  _close_to_lax(x, jnp.ones((3, 3, 3, filters)), strides)


@pytest.mark.parametrize(("examples", "piece"), [(72, 4), (67, 1)])
def test_large_batches_under_a_stride(x64, examples, piece):
  """More patches than are written out at once."""
  x = jnp.asarray(np.random.default_rng(1).normal(size=(examples, 48, 48, 32)))
  kernel = jnp.ones((5, 5, 32, 2))
  _close_to_lax(x, kernel, (2, 2))
  compiled = jax.jit(functools.partial(ops.conv, strides=(2, 2), form="cpu")).lower(x, kernel)
  assert f"f64[{piece},24,24,2]" in compiled.compile().as_text()


@pytest.mark.parametrize("groups", [2, 4])
def test_groups_without_a_cure_are_plain(groups):
  x, kernel = jnp.ones((1, 4, 4, 4)), jnp.ones((3, 3, 4 // groups, 8))
  assert jnp.array_equal(
    ops.conv(x, kernel, groups=groups, form="cpu"), ops.conv(x, kernel, groups=groups, form="plain")
  )


def test_a_form_that_is_none():
  with pytest.raises(ValueError, match="take 'cpu' or 'plain'"):
    ops.conv(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 1)), form="gpu")


def test_half_precision_sums_are_wide():
  """256 examples of 1/256 each: added up in bfloat16, such a sum stops growing at 1/2."""
  x = jnp.full((256, 1, 1, 1), 1 / 256, jnp.bfloat16)
  kernel = jnp.ones((1, 1, 1, 1), jnp.bfloat16)

  def total(kernel):
    return ops.conv(jnp.tile(x, 2), jnp.tile(kernel, 2), groups=2, form="cpu").sum(dtype="float32")

  grad = jax.grad(total)(kernel)
  assert grad.dtype == jnp.bfloat16
  assert grad.item() == 2


def test_a_depthwise_sum_is_computed_once():
  """25 products forward and 25 backward; the kernel's gradient is a loop over them."""

  def loss(x, scale, kernel):
    return jnp.square(ops.conv(jax.nn.relu(x * scale), kernel, groups=8, form="cpu")).sum()

  arrays = jnp.ones((4, 16, 16, 8)), jnp.ones(8), jnp.ones((5, 5, 1, 8))
  text = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile().as_text()
  assert 50 <= text.count(" multiply(") < 65


def test_a_weight_that_is_no_number_is_not_hidden():
  kernel = jnp.ones((3, 3, 1, 2)).at[0, 0, 0, 0].set(jnp.nan)
  found = ops.conv(jnp.ones((1, 5, 5, 2)), kernel, groups=2, form="cpu")
  assert np.isnan(found[0, 2, 2, 0])


def _steps(groups, length, strides=(1, 1)):
  """Kernel and input gradients, `length` times in a loop."""

  def loss(x, kernel):
    return (ops.conv(x, kernel, strides=strides, groups=groups, form="cpu") ** 2).mean()

  def step(carry, _):
    x, kernel = carry
    grads = jax.grad(loss, (0, 1))(x, kernel)
    return jax.tree.map(lambda value, grad: value - 0.1 * grad, carry, grads), None

  return lambda x, kernel: lax.scan(step, (x, kernel), length=length)[0]


@pytest.mark.parametrize(
  ("groups", "side", "size", "filters", "convolutions"),
  [(1, 16, 3, 8, 3), (1, 2, 3, 8, 3), (1, 4, 5, 8, 3), (1, 16, 3, 4, 3), (8, 16, 3, 8, 0)],
  ids=["dense", "kernel larger than the map", "5x5 on 4x4", "few filters", "depthwise"],
)
def test_loops_hold_only_the_fast_layout(groups, side, size, filters, convolutions):
  """What the slow loops come from: a convolution whose dimensions are permuted inside a loop."""
  x, kernel = jnp.ones((4, side, side, 8)), jnp.ones((size, size, 8 // groups, filters))
  compiled = jax.jit(_steps(groups, 2)).lower(x, kernel).compile().as_text()
  lines = [line for line in compiled.splitlines() if " convolution(" in line]
  assert len(lines) == convolutions
  assert all(CANONICAL in line and "rhs_reversal" not in line for line in lines)


@pytest.mark.parametrize("examples", [4, 64])
def test_strides_are_taken_apart(examples):
  """Four convolutions towards the input; none has room for every product of pixel and kernel."""
  x, kernel = jnp.ones((examples, 16, 16, 8)), jnp.ones((5, 5, 8, 8))
  compiled = jax.jit(_steps(1, 2, (2, 2))).lower(x, kernel).compile()
  lines = [line for line in compiled.as_text().splitlines() if " convolution(" in line]
  assert len(lines) == 1 + 4 + 1
  assert all(CANONICAL in line and "lhs_dilate" not in line for line in lines)


def _pooled_by_hand(x, window, strides, padding, reduce):
  """Pools square by square; what `SAME` adds is no part of a square."""
  pads = [(0, 0), (0, 0)]
  if padding == "SAME":
    extra = [max((-(-n // strides) - 1) * strides + window - n, 0) for n in x.shape[1:3]]
    pads = [(n // 2, n - n // 2) for n in extra]
  elif padding != "VALID":
    x = np.pad(x, [(0, 0), *padding, (0, 0)])
  starts = [
    range(-low, n + high - window + 1, strides)
    for n, (low, high) in zip(x.shape[1:3], pads, strict=True)
  ]
  out = [
    [reduce(x[:, max(i, 0) : i + window, max(j, 0) : j + window], axis=(1, 2)) for j in starts[1]]
    for i in starts[0]
  ]
  return np.array(out).transpose(2, 0, 1, 3)


POOLINGS = [  # map, window, strides, padding
  *((size, 2, None, padding) for size in ((4, 6), (5, 7)) for padding in ("SAME", "VALID")),
  *((size, 3, None, padding) for size in ((3, 8), (7, 5)) for padding in ("SAME", "VALID")),
  *((size, 3, 2, padding) for size in ((8, 6), (9, 7), (2, 3)) for padding in ("SAME", "VALID")),
  ((8, 9), 3, 2, ((1, 1), (1, 1))),  # ResNet and DenseNet
  ((8, 9), 3, 2, ((0, 1), (1, 1))),  # NASNet
  ((7, 6), 3, 1, "SAME"),  # Inception and NASNet
  ((7, 6), 1, 2, "VALID"),  # NASNet: every second pixel
  ((9, 8), 4, None, "VALID"),  # VGG with soft attention
]
POOLINGS.remove(((2, 3), 3, 2, "VALID"))  # nothing fits


@pytest.mark.parametrize("pool", [ops.max_pool, ops.avg_pool])
def test_pooling(pool):
  rng = np.random.default_rng(1)
  maps = [-rng.uniform(1, 2, (2, *size, 3)).astype("float32") for size, *_ in POOLINGS]
  run = jax.jit(lambda maps: [pool(x, *how) for x, (_, *how) in zip(maps, POOLINGS, strict=True)])
  reduce = np.max if pool is ops.max_pool else np.mean
  for x, ours, (_, window, strides, padding) in zip(maps, run(maps), POOLINGS, strict=True):
    truth = _pooled_by_hand(x, window, strides or window, padding, reduce)
    np.testing.assert_allclose(ours, truth, rtol=1e-6)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_pooling_equals_keras(padding):
  x = np.random.default_rng(2).normal(size=(2, 8, 7, 3)).astype("float32")
  how = dict(strides=2, padding=padding)
  layers = keras.layers
  theirs = layers.MaxPooling2D(3, **how)(x), layers.AveragePooling2D(3, **how)(x)
  for pool, truth in zip((ops.max_pool, ops.avg_pool), theirs, strict=True):
    np.testing.assert_allclose(pool(x, 3, 2, padding.upper()), truth, rtol=1e-5, atol=1e-6)


def test_max_pool_gradient_goes_to_the_largest():
  x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))
  cases = [(*how, padding) for how in ((2, 2), (3, 2), (3, 1)) for padding in ("SAME", "VALID")]

  def search(x, window, strides, padding):
    squares = (1, window, window, 1), (1, strides, strides, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, *squares, padding)

  def gradient(pool, how):
    return jax.grad(lambda x: (pool(x, *how) ** 3).sum())

  run = jax.jit(
    lambda x: [[gradient(pool, how)(x) for pool in (ops.max_pool, search)] for how in cases]
  )
  for ours, truth in run(x):
    np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("window", "strides"), [(2, 2), (3, 2)])
def test_no_pooling_searches_for_its_gradient(window, strides):
  run = jax.grad(lambda x: ops.max_pool(x, window, strides, "SAME").sum())
  assert "select-and-scatter" not in jax.jit(run).lower(jnp.ones((1, 9, 9, 2))).as_text("hlo")


def test_max_pool_shares_the_gradient_of_equal_values():
  grad = jax.grad(lambda x: ops.max_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))
  np.testing.assert_array_equal(grad.ravel(), [0.25] * 4)


def test_a_map_of_one_pixel():
  x = jnp.ones((1, 1, 1, 2))
  assert ops.max_pool(x, padding="SAME").shape == (1, 1, 1, 2)
  for pool in (ops.max_pool, ops.avg_pool):
    with pytest.raises(ValueError, match="1x1 is too small for 2x2"):
      pool(x)


def test_half_precision_means_are_wide():
  """64 values of 1 + 1/128 to 257/128: in bfloat16 their sum loses all that is below 1/2."""
  x = (1 + jnp.arange(64) % 2 / 128).astype("bfloat16").reshape(1, 8, 8, 1)
  assert ops.avg_pool(x, 8).item() == jnp.bfloat16(1 + 1 / 256)


@pytest.mark.parametrize(("rows", "columns", "out"), [(14, 14, 2), (7, 4, 2), (1, 3, 2), (5, 9, 3)])
def test_adaptive_avg_pool(rows, columns, out):
  x = np.random.default_rng(3).normal(size=(2, rows, columns, 3)).astype("f")
  ours = ops.adaptive_avg_pool(jnp.asarray(x), out)
  for i in range(out):
    for j in range(out):
      inside = x[
        :,
        int(np.floor(i * rows / out)) : int(np.ceil((i + 1) * rows / out)),
        int(np.floor(j * columns / out)) : int(np.ceil((j + 1) * columns / out)),
      ]
      np.testing.assert_allclose(ours[:, i, j], inside.mean((1, 2)), rtol=1e-4, atol=1e-6)


def test_global_avg_pool_is_adaptive_to_one():
  x = jax.random.normal(jax.random.key(4), (2, 5, 3, 4))
  np.testing.assert_allclose(
    ops.global_avg_pool(x), ops.adaptive_avg_pool(x, 1)[:, 0, 0], rtol=1e-5, atol=1e-6
  )


def test_layouts_in_the_text_of_a_program():
  """The pattern that the layout test searches for is what XLA prints."""
  x, kernel = jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
  run = jax.jit(lambda x, kernel: ops.conv(x, kernel, form="plain"))
  assert re.search(rf"dim_labels={CANONICAL}", run.lower(x, kernel).as_text("hlo"))
