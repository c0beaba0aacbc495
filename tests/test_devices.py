"""A run is the same run on any number of devices: in float64 to rounding, over fifty steps.

The parts are those of a real run: feed, augmentation, network, objective, optimiser, dispatcher.
The batch of 22 fits neither 3 nor 8 devices, so both fill up with masked slots.
"""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import augment, contract, models, objectives, ops, optim, settings, train
from medjax import mesh as mesh_lib
from medjax.data import catalogue
from medjax.data import feed as feed_lib
from medjax.models import net as net_lib

BATCH, SIZE, STEPS, K = 22, 16, 50, 10
INFO = contract.DataInfo(
  classes=("a", "b", "c"),
  image_shape=(SIZE, SIZE, 3),
  class_counts=(40, 20, 5),
  train_size=65,
  mean=(0.5, 0.5, 0.5),
  std=(0.3, 0.3, 0.3),
)
SMALL = settings.QuadSNet(
  widths=(4,), streams=("cs3", "ss5"), convs_per_block=1, sep_convs_per_block=1, hidden=8
)
WHOLE = settings.QuadSNet(widths=(4, 8), hidden=8)
CHANGE = settings.Augment(rotation=20, shift=0.1, zoom=0.2, hflip=True, noise=0.5)
OBJECTIVES = {
  "supervised": settings.Supervised(loss=settings.Margin(mix=0.5)),
  "simclr": settings.SimCLR(projector=(16, 8)),
  "micle": settings.MICLe(projector=(16, 8)),
  "byol": settings.BYOL(projector=(16, 8), predictor=(16, 8)),
  "rotation": settings.Rotation(),
}
EACH = [
  name if name in ("supervised", "simclr") else pytest.param(name, marks=pytest.mark.slow)
  for name in OBJECTIVES
]


def _part() -> catalogue.Part:
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (INFO.train_size, SIZE, SIZE, 3), np.uint8)
  labels = np.repeat(np.arange(3), INFO.class_counts).astype(np.int32)
  images[np.arange(len(labels)), :, labels * 4] = 255  # something to learn
  names = np.array([f"{i}.png" for i in range(len(labels))])
  groups = np.array([f"patient {i // 3}" for i in range(len(labels))])
  return catalogue.Part("train", names, groups, labels, images.__getitem__, images)


def _objective(name: str, quadsnet=SMALL, bn_group: int = 0, change=CHANGE, **optimizer):
  execution = net_lib.Execution("cpu", bn_group=bn_group, axis=contract.AXIS)
  cfg = OBJECTIVES[name]
  projector, predictor = (getattr(cfg, name, None) for name in ("projector", "predictor"))
  info = objectives.told(cfg, INFO)
  net = models.make(quadsnet, info, execution, projector, predictor=predictor)
  rule = optim.make(settings.AdamW(lr=1e-3, **optimizer), STEPS, 5)
  return objectives.make(cfg, net, rule, augment.make(change), INFO)


def _losses(name: str, quadsnet: settings.QuadSNet, mesh: jax.sharding.Mesh) -> np.ndarray:
  """[STEPS] losses of a run."""
  objective = _objective(name, quadsnet)
  feed = feed_lib.training(_part(), BATCH, 3, mesh, "resident", pairs=name == "micle")
  run = train.dispatcher(objective, feed.take, mesh)
  key = mesh_lib.put(mesh, jax.random.key(1))
  state = mesh_lib.put(mesh, jax.jit(objective.init)(jax.random.key(0)))
  found = []
  for start in range(0, STEPS, K):
    lrs = [objective.optimizer.schedule(step) for step in range(start, start + K)]
    lrs = mesh_lib.put(mesh, np.asarray(lrs))
    state, metrics = run(state, feed.resident, feed.next(K), lrs, key)
    found.append(metrics["loss"])
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float64)}
  return np.concatenate(jax.device_get(found))


@functools.cache
def _on_one_device(name: str, quadsnet: settings.QuadSNet) -> np.ndarray:
  return _losses(name, quadsnet, mesh_lib.make(jax.devices()[:1]))


@pytest.mark.parametrize("devices", [3, 8])
@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize(
  "quadsnet", [SMALL, pytest.param(WHOLE, marks=pytest.mark.slow)], ids=["two streams", "four"]
)
def test_fifty_steps_agree_in_float64(x64, name, quadsnet, devices):
  expected = _on_one_device(name, quadsnet)
  assert expected[-10:].mean() < expected[:10].mean()  # it learns
  found = _losses(name, quadsnet, mesh_lib.make(jax.devices()[:devices]))
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def _batch(slots: int) -> contract.Batch:
  """The first batch, on the host, in as many slots as the devices need."""
  part, rows = _part(), np.random.default_rng(5).permutation(INFO.train_size)[:BATCH]
  rows = np.concatenate([rows, np.zeros(slots - BATCH, int)])
  slot = np.arange(slots, dtype=np.int32)
  return {
    contract.IMAGE: part.images[rows],
    contract.LABEL: part.labels[rows],
    contract.MASK: (slot < BATCH).astype(np.float32),
    contract.SLOT: slot,
  }


def _moves(name: str, devices: int) -> np.ndarray:
  """Minus the gradient of the first step in one vector: an SGD step of length 1."""
  objective = _objective(name)
  sgd = settings.SGD(lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.0)
  object.__setattr__(objective, "optimizer", optim.make(sgd, 10, 0))
  mesh = mesh_lib.make(jax.devices()[:devices])
  whole = mesh_lib.REPLICATED
  specs = (whole, mesh_lib.cut(), whole, whole)
  step = mesh_lib.mapped(objective.step, mesh, specs, (whole, whole))
  before = objective.init(jax.random.key(0))
  after, _ = step(before, _batch(mesh_lib.padded(BATCH, mesh)), jax.random.key(1), jnp.float32(1))
  moved = jax.tree.map(lambda a, b: np.ravel(np.asarray(a) - np.asarray(b)), after, before)
  return np.concatenate(jax.tree.leaves(moved.params))


@pytest.mark.parametrize("name", EACH)
def test_gradients_agree_in_float32(name):
  one, three, eight = (_moves(name, devices) for devices in (1, 3, 8))
  assert one.dtype == np.float32
  for other in (three, eight):
    assert np.linalg.norm(other - one) < 1e-5 * np.linalg.norm(one)


@pytest.mark.parametrize(
  ("flags", "cores", "devices"),
  [("", 2, 2), ("", 1, 1), ("--xla_force_host_platform_device_count=3", 2, 3)],
)
def test_two_cores_are_two_devices_unless_one_asks_for_others(flags, cores, devices):
  lines = f"""
import os
os.sched_getaffinity = lambda _: set(range({cores}))
import jax
from medjax import mesh
mesh.divide_cpu()
print(mesh.make().size)
mesh.divide_cpu()  # a second run in one process
print(mesh.make().size)
"""
  environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-c", lines]
  done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
  assert done.stdout.split() == [str(devices)] * 2


def test_the_mapped_step_is_pmap_bit_for_bit():
  objective, mesh = _objective("supervised"), mesh_lib.make(jax.devices()[:8])
  whole = mesh_lib.REPLICATED
  specs = (whole, mesh_lib.cut(), whole, whole)
  mapped = mesh_lib.mapped(objective.step, mesh, specs, (whole, whole))
  pmapped = jax.pmap(objective.step, contract.AXIS, in_axes=(None, 0, None, None), out_axes=None)
  state, batch = objective.init(jax.random.key(0)), _batch(24)
  per_device = {name: value.reshape(8, -1, *value.shape[1:]) for name, value in batch.items()}
  ours = theirs = state
  for number in range(3):
    key, lr = jax.random.key(number), jnp.float32(1e-2)
    ours, found = mapped(ours, batch, key, lr)
    theirs, expected = pmapped(theirs, per_device, key, lr)
    jax.tree.map(np.testing.assert_array_equal, (ours, found), (theirs, expected))


def _grouped_net(form: str) -> net_lib.Net:
  """Real `ops` convolutions in two groups and depthwise, pooled into logits."""

  def init(key, images):
    del images
    first, second, last = jax.random.split(key, 3)
    return {
      "encoder": {
        "grouped": {"kernel": jax.random.normal(first, (3, 3, 3, 12)) / 6},
        "depthwise": {"kernel": jax.random.normal(second, (5, 5, 1, 12)) / 5},
      },
      "head": {"kernel": jax.random.normal(last, (12, 3)) / 4},
    }, {}

  def apply(params, stats, batch, *, train, key=None, momentum=None):
    x = jnp.concatenate([batch[contract.IMAGE], batch[contract.IMAGE]], axis=-1)
    encoder = params["encoder"]
    x = jax.nn.relu(ops.conv(x, encoder["grouped"]["kernel"], groups=2, form=form))
    x = ops.global_avg_pool(ops.conv(x, encoder["depthwise"]["kernel"], groups=12, form=form))
    return net_lib.Result(x @ params["head"]["kernel"], x), stats

  return net_lib.Net(init, apply)


def _compiled(objective, devices: int, images_each: int = 4):
  mesh, whole = mesh_lib.make(jax.devices()[:devices]), mesh_lib.REPLICATED
  slots = devices * images_each
  batch = jax.tree.map(lambda leaf: leaf[:slots], _batch(max(slots, BATCH)))
  step = mesh_lib.mapped(objective.step, mesh, (whole, mesh_lib.cut(), whole, whole), whole)
  state = jax.eval_shape(objective.init, jax.random.key(0))
  return step.lower(state, batch, jax.random.key(1), jnp.float32(1)).compile()


def _collectives(compiled) -> dict[str, int]:
  names = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
  lines = compiled.as_text().splitlines()
  count = lambda name: sum(f" {name}(" in line or f" {name}-start(" in line for line in lines)  # noqa: E731
  return {name: count(name) for name in names}


def _of_grouped_net(form: str):
  rule = optim.make(settings.AdamW(), 10, 0)
  cfg = settings.Supervised()
  return objectives.make(cfg, _grouped_net(form), rule, augment.make(CHANGE), INFO)


@pytest.mark.parametrize(
  "make",
  [
    lambda: _objective("supervised", bn_group=4),
    lambda: _of_grouped_net("plain"),
    lambda: _of_grouped_net("cpu"),
  ],
  ids=["quadsnet", "grouped, plain", "grouped, cpu"],
)
def test_a_step_gathers_nothing_and_reduces_little(make):
  found = _collectives(_compiled(make(), 8))
  reduced = found.pop("all-reduce")
  assert 1 <= reduced <= 4
  assert not any(found.values()), found


@pytest.mark.parametrize(
  "make",
  [
    lambda: _objective("supervised", bn_group=1, change=settings.Augment()),
    lambda: _of_grouped_net("plain"),
  ],
  ids=["quadsnet", "grouped"],
)
def test_each_of_eight_devices_does_an_eighth(make):
  """Per device: 2 images on one of eight do what 2 do alone, and an eighth of what 16 do.

  Of more than 16, kernel gradients are made in a loop, of which XLA counts one turn.
  """
  flops = lambda *how: _compiled(make(), *how).cost_analysis()["flops"]  # noqa: E731
  update = flops(1, 1) - (flops(1, 2) - flops(1, 1))  # of the optimiser, whatever the batch
  eighth = (flops(1, 16) - update) / 8
  assert flops(8, 2) - update == pytest.approx(eighth, rel=0.05)
