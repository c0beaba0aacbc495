"""What `ops` is for on CPU, timed: run with `-n 0 -m slow -s`, on a quiet machine, for figures.

Every figure is a median over alternating pairs, so that other work on the machine meets both sides.
"""

from collections.abc import Callable, Iterator
import statistics
import time

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import augment, contract, models, objectives, ops, optim, settings, train
from medjax import mesh as mesh_lib
from medjax.models import net as net_lib

pytestmark = pytest.mark.slow

PAIRS = 9


def _seconds(run: Callable) -> float:
  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def _times_as_long(run: Callable, other: Callable, pairs: int = PAIRS) -> float:
  """Median over alternating pairs of the time of `run` by that of `other`."""
  _seconds(run), _seconds(other)  # compiles
  return statistics.median(_seconds(run) / _seconds(other) for _ in range(pairs))


def _normal(seed: int, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.normal(jax.random.key(seed), shape)


def _with_gradients(conv: Callable) -> Callable:
  def run(x, kernel, g):
    y, pull = jax.vjp(conv, x, kernel)
    return y, *pull(g)

  return jax.jit(run)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5, 7])
@pytest.mark.parametrize(("side", "channels"), [(32, 32), (32, 128), (64, 32), (64, 64)])
def test_depthwise_is_five_times_as_fast_as_lax(side, channels, size, stride):
  x, kernel = _normal(0, (16, side, side, channels)), _normal(1, (size, size, 1, channels))
  g = _normal(2, (16, side // stride, side // stride, channels))
  how = dict(strides=(stride, stride), groups=channels)
  plain = _with_gradients(lambda x, kernel: ops.conv(x, kernel, **how, form="plain"))
  cpu = _with_gradients(lambda x, kernel: ops.conv(x, kernel, **how, form="cpu"))
  ratio = _times_as_long(lambda: plain(x, kernel, g), lambda: cpu(x, kernel, g))
  print(f"{size}x{size}/{stride}, 16 x {side} x {side} x {channels}: {ratio:.1f}")
  assert ratio >= 5


def _step(groups: int) -> Callable:
  """Both gradients and an update with them."""

  def loss(x, kernel):
    return (ops.conv(x, kernel, groups=groups, form="cpu") ** 2).mean()

  def step(carry, _):
    grads = jax.grad(loss, (0, 1))(*carry)
    return jax.tree.map(lambda value, grad: value - 0.1 * grad, carry, grads), None

  return step


@pytest.mark.parametrize(
  ("size", "groups", "channels"), [(3, 1, 64), (5, 64, 64)], ids=["dense", "depthwise"]
)
def test_a_step_in_a_loop_costs_no_more(size, groups, channels):
  start = _normal(0, (16, 32, 32, channels)), _normal(1, (size, size, channels // groups, channels))
  step = _step(groups)
  alone = jax.jit(lambda carry: step(carry, None)[0])
  scanned = jax.jit(lambda carry: lax.scan(step, carry, length=4)[0])

  def called():
    carry = start
    for _ in range(4):
      carry = alone(carry)
    return carry

  ratio = _times_as_long(lambda: scanned(start), called)
  print(f"{size}x{size}, groups {groups}: scan of 4 by 4 calls: {ratio:.2f}")
  assert ratio <= 1.1


@pytest.fixture
def no_compilation_cache() -> Iterator[None]:
  kept = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  yield
  jax.config.update("jax_enable_compilation_cache", kept)


def _compiling(name: str, form: ops.Form) -> float:
  """CPU seconds of compiling a training step on 16 images of 64 pixels."""
  mesh = mesh_lib.make(jax.devices()[:1])
  info = contract.DataInfo(("a", "b"), (64, 64, 3), (1, 1), 2, (0.5,) * 3, (0.2,) * 3)
  execution = net_lib.Execution(form, axis=contract.AXIS)
  net = models.make(settings.VARIANTS[settings.Model][name], info, execution)
  optimizer, unchanged = optim.make(settings.AdamW(), 100, 0), augment.make(settings.Augment())
  objective = objectives.make(settings.Supervised(), net, optimizer, unchanged, info)
  batch = {
    contract.IMAGE: np.zeros((1, 16, *info.image_shape), np.uint8),
    contract.MASK: np.ones((1, 16), np.float32),
    **{name: np.zeros((1, 16), np.int32) for name in (contract.LABEL, contract.SLOT)},
  }
  state = mesh_lib.like(mesh, jax.eval_shape(objective.init, jax.random.key(0)))
  arguments = state, {}, mesh_lib.put(mesh, batch, mesh_lib.cut(1)), jnp.ones(1), jax.random.key(0)
  lowered = train.dispatcher(objective, lambda _, ticket: ticket, mesh).lower(*arguments)
  start = time.process_time()
  lowered.compile()
  return time.process_time() - start


@pytest.mark.parametrize("name", ["densenet201", "nasnet_large"])
def test_large_nets_compile_in_about_the_time_of_plain_convolutions(no_compilation_cache, name):
  ours, plain = _compiling(name, "cpu"), _compiling(name, "plain")
  print(f"{name}: CPU seconds {ours:.1f}, with plain convolutions {plain:.1f}: {ours / plain:.2f}")
  assert ours / plain <= 1.3


def _trained(cfg: settings.Objective, images: int) -> Callable:
  """Training steps on random images of 64 pixels, two a call, on one device."""
  mesh = mesh_lib.make(jax.devices()[:1])
  info = contract.DataInfo(("a", "b"), (64, 64, 1), (1, 1), 2, (0.5,), (0.2,))
  execution = net_lib.Execution("cpu", axis=contract.AXIS)
  projector = getattr(cfg, "projector", None)
  net = models.make(settings.MedNet(width=16), info, execution, projector)
  policy = settings.VARIANTS[settings.Augment]["simclr_gray"]
  rule = optim.make(settings.AdamW(), 1000, 0)
  objective = objectives.make(cfg, net, rule, augment.make(policy), info)
  rng = np.random.default_rng(0)
  batch = {
    contract.IMAGE: rng.integers(0, 256, (2, images, *info.image_shape), np.uint8),
    contract.MASK: np.ones((2, images), np.float32),
    contract.LABEL: rng.integers(0, 2, (2, images)).astype(np.int32),
    contract.SLOT: np.tile(np.arange(images, dtype=np.int32), (2, 1)),
  }
  dispatch = train.dispatcher(objective, lambda _, ticket: ticket, mesh)
  ticket = mesh_lib.put(mesh, batch, mesh_lib.cut(1))
  state = mesh_lib.put(mesh, jax.jit(objective.init)(jax.random.key(0)))

  def run():
    nonlocal state
    state, metrics = dispatch(state, {}, ticket, jnp.full(2, 1e-3), jax.random.key(1))
    return metrics

  return run


def test_simclr_is_about_as_fast_as_classification_of_as_many_views():
  """The same network and augmentation: 64 images in two views each, and 128 images."""
  pretrained = _trained(settings.SimCLR(), 64)
  rate = _times_as_long(_trained(settings.Supervised(), 128), pretrained)
  print(f"views a second, SimCLR by supervised: {rate:.2f}")
  assert rate >= 0.8
