import re
import time

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import ops

CANONICAL = "b01f_01io->b01f"


def _conv_by_hand(x, kernel, strides, pads, dilation):
  """Dense or depthwise convolution, one output position after the other."""
  x = np.pad(x, [(0, 0), *pads, (0, 0)])
  kh, kw, inputs, _ = kernel.shape
  span = [(n - 1) * d + 1 for n, d in zip((kh, kw), dilation, strict=True)]
  size = [(x.shape[1 + a] - span[a]) // strides[a] + 1 for a in (0, 1)]
  out = np.zeros((x.shape[0], *size, kernel.shape[3]))
  for row in range(size[0]):
    for column in range(size[1]):
      top, left = row * strides[0], column * strides[1]
      patch = x[:, top : top + span[0] : dilation[0], left : left + span[1] : dilation[1]]
      terms = "bijc,ijcf->bf" if inputs == x.shape[3] else "bijc,ijc->bc"
      weights = kernel if inputs == x.shape[3] else kernel[:, :, 0]
      out[:, row, column] = np.einsum(terms, patch, weights)
  return out


def _case(size, kernel, strides=(1, 1), padding="SAME", dilation=(1, 1)):
  return pytest.param(size, kernel, strides, padding, dilation)


CASES = [
  *(_case((9, 8), (k, k), (s, s)) for k in (1, 3, 5, 7) for s in (1, 2)),
  _case((8, 7), (3, 2), (2, 1), "VALID"),
  _case((10, 9), (3, 3), (2, 2), "VALID"),  # the last row is reached by no window
  _case((9, 11), (3, 3), (1, 2), "SAME", (2, 3)),
  _case((5, 6), (3, 3), (1, 1), ((2, 0), (0, 3))),
  _case((4, 4), (1, 1), (1, 1), ((1, 2), (0, 1))),  # pads that a 1x1 kernel alone sees
  _case((2, 3), (5, 5)),  # a kernel larger than the map
]


@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize(("size", "window", "strides", "padding", "dilation"), CASES)
def test_forms_agree(x64, size, window, strides, padding, dilation, depthwise):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, *size, 3))
  kernel = rng.normal(size=(*window, 1, 3) if depthwise else (*window, 3, 4))
  how = dict(
    strides=strides, padding=padding, dilation=dilation, groups=x.shape[3] if depthwise else 1
  )

  @jax.jit
  def both(x, kernel):
    def run(form):
      y, pull = jax.vjp(lambda x, kernel: ops.conv(x, kernel, **how, form=form), x, kernel)
      return y, *pull(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    return run("plain"), run("cpu")

  plain, cpu = both(x, kernel)
  if isinstance(padding, str):
    spans = [(n - 1) * d + 1 for n, d in zip(window, dilation, strict=True)]
    padding = lax.padtype_to_pads(size, spans, strides, padding)
  np.testing.assert_allclose(
    cpu[0], _conv_by_hand(x, kernel, strides, padding, dilation), atol=1e-12
  )
  for ours, truth in zip(cpu, plain, strict=True):
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, truth, atol=1e-12)


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


def _gradient(groups, length):
  """Kernel and input gradients, `length` times in a loop."""

  def loss(x, kernel):
    return (ops.conv(x, kernel, strides=(1, 1), groups=groups, form="cpu") ** 2).mean()

  def step(carry, _):
    x, kernel = carry
    grads = jax.grad(loss, (0, 1))(x, kernel)
    return jax.tree.map(lambda value, grad: value - 0.1 * grad, carry, grads), None

  return lambda x, kernel: lax.scan(step, (x, kernel), length=length)[0]


@pytest.mark.parametrize(("groups", "convolutions"), [(1, 3), (8, 0)], ids=["dense", "depthwise"])
def test_loops_hold_only_the_fast_layout(groups, convolutions):
  """What the slow loops come from: a convolution whose dimensions are permuted inside a loop."""
  x, kernel = jnp.ones((4, 16, 16, 8)), jnp.ones((3, 3, 8 // groups, 8))
  compiled = jax.jit(_gradient(groups, 2)).lower(x, kernel).compile().as_text()
  lines = [line for line in compiled.splitlines() if " convolution(" in line]
  assert len(lines) == convolutions
  assert all(CANONICAL in line and "rhs_reversal" not in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 32], ids=["dense", "depthwise"])
def test_a_step_in_a_loop_costs_no_more(groups):
  x = jax.random.normal(jax.random.key(0), (8, 32, 32, 32))
  kernel = jax.random.normal(jax.random.key(1), (5, 5, 32 // groups, 32)) / 30

  def seconds(length):
    run = jax.jit(_gradient(groups, length))
    jax.block_until_ready(run(x, kernel))
    times = []
    for _ in range(5):
      start = time.perf_counter()
      jax.block_until_ready(run(x, kernel))
      times.append(time.perf_counter() - start)
    return min(times)

  assert seconds(4) < 3 * 4 * seconds(1)  # XLA's own gradients: 20 to 60 times


def _squares_by_hand(x, window, padding, reduce):
  """Pools the squares that fit (VALID), or that begin in a map padded on both sides (SAME)."""
  rows, columns = x.shape[1:3]
  if padding == "VALID":
    starts = [range(0, n - window + 1, window) for n in (rows, columns)]
  else:
    starts = [range(-((-n % window) // 2), n, window) for n in (rows, columns)]
  out = [
    [reduce(x[:, max(i, 0) : i + window, max(j, 0) : j + window], axis=(1, 2)) for j in starts[1]]
    for i in starts[0]
  ]
  return np.array(out).transpose(2, 0, 1, 3)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
  ("rows", "columns", "window"), [(4, 6, 2), (5, 7, 2), (3, 8, 3), (7, 5, 3)]
)
def test_max_pool(rows, columns, window, padding):
  x = (
    -np.random.default_rng(1)
    .permutation(2 * rows * columns * 3)
    .astype("f")
    .reshape(2, rows, columns, 3)
  )
  ours = ops.max_pool(jnp.asarray(x), window, padding)
  np.testing.assert_array_equal(ours, _squares_by_hand(x, window, padding, np.max))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_max_pool_gradient_goes_to_the_largest(padding):
  x = jax.random.normal(jax.random.key(0), (2, 5, 7, 3))

  def windows(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), padding)

  ours = jax.grad(lambda x: (ops.max_pool(x, 2, padding) ** 3).sum())(x)
  np.testing.assert_allclose(ours, jax.grad(lambda x: (windows(x) ** 3).sum())(x), rtol=1e-6)


def test_max_pool_shares_the_gradient_of_equal_values():
  grad = jax.grad(lambda x: ops.max_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))
  np.testing.assert_array_equal(grad.ravel(), [0.25] * 4)


def test_a_map_of_one_pixel():
  x = jnp.ones((1, 1, 1, 2))
  assert ops.max_pool(x, padding="SAME").shape == (1, 1, 1, 2)
  with pytest.raises(ValueError, match="1x1 is too small for 2x2"):
    ops.max_pool(x)


def test_avg_pool():
  x = np.random.default_rng(2).normal(size=(2, 5, 6, 3)).astype("f")
  ours = ops.avg_pool(jnp.asarray(x), 2)
  np.testing.assert_allclose(ours, _squares_by_hand(x, 2, "VALID", np.mean), rtol=1e-5)


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
