"""Sizes over a training: drawn by step, brought there as Pillow does it, compiled once each."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from medjax import contract, data, settings, train, wiring
from medjax import mesh as mesh_lib
from medjax.augment import scales


def test_sizes_hold_for_their_steps_and_are_drawn_alike():
  course = scales.Course((32, 48, 64, 80), every=10, seed=3)
  sizes = np.array([course.at(step) for step in range(8000)]).reshape(-1, 10)
  assert (sizes == sizes[:, :1]).all()
  drawn, counts = np.unique(sizes[:, 0], return_counts=True)
  assert drawn.tolist() == [32, 48, 64, 80] and counts.min() > 160
  assert (sizes[1:, 0] == sizes[:-1, 0]).mean() == pytest.approx(0.25, abs=0.05)


def test_a_step_has_its_size_whatever_came_before():
  sizes = [scales.Course((1, 2, 3), 4, seed=0).at(step) for step in range(100)]
  resumed = scales.Course((1, 2, 3), 4, seed=0)
  assert [resumed.at(step) for step in range(60, 100)] == sizes[60:]
  other = scales.Course((1, 2, 3), 4, seed=1)
  assert [other.at(step) for step in range(100)] != sizes


@pytest.mark.parametrize(
  ("step", "total", "per_dispatch", "expected"),
  [(0, 8, 4, {4}), (0, 10, 4, {4, 2}), (8, 10, 4, {2}), (0, 3, 4, {3}), (4, 4, 4, set())],
)
def test_calls_of_one_size_come_in_at_most_two_lengths(step, total, per_dispatch, expected):
  calls = scales.Course((7,), total, 0).calls(step, total, per_dispatch)
  assert calls == ({7: expected} if expected else {})


def test_calls_are_those_that_the_steps_will_make():
  course = scales.Course((16, 24, 32), every=4, seed=5)
  made = {(course.at(start), min(2, 51 - start)) for start in range(6, 51, 2)}
  calls = course.calls(6, 51, 2)
  assert {(size, k) for size, ks in calls.items() for k in ks} == made
  assert sum(k == 1 for _, k in made) == 1  # the remainder is compiled for its own size alone


@pytest.mark.parametrize("size", [10, 20, 33])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_are_resized_as_pillow_does(size, dtype):
  """Bilinear; where images shrink, over as many pixels as fall into one."""
  images = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 1)).astype(dtype)
  take = scales.resized(lambda resident, ticket: {**resident, **ticket}, size)
  batch = take({contract.IMAGE: jnp.asarray(images)}, {contract.MASK: jnp.ones(2)})
  found = np.asarray(batch[contract.IMAGE])
  assert found.dtype == dtype and batch.keys() == {contract.IMAGE, contract.MASK}
  truth = [
    Image.fromarray(image[..., 0].astype(np.float32)).resize(
      (size, size), Image.Resampling.BILINEAR
    )
    for image in images
  ]
  np.testing.assert_allclose(found[..., 0], np.round(np.stack(truth)), atol=1)


NET = settings.QuadSNet(
  widths=(4,), streams=("cs3",), convs_per_block=1, pool="gap", hidden=0, bn_momentum=0.9
)
STAGE = settings.Stage(
  data=settings.Phantom(image_size=16, patients=40),
  model=NET,
  optimizer=settings.SGD(),
  train=settings.Train(
    batch_size=8,
    length=settings.Duration(9, "steps"),
    steps_per_dispatch=2,
    sizes=(12, 16),
    sizes_every=settings.Duration(3, "steps"),  # becomes 4, a multiple of the dispatch
  ),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A stage at two sizes: what was compiled, and the state at its end."""
  folder, names = tmp_path_factory.mktemp("scales"), []

  def compiled(event, seconds, fun_name="", **_):
    if event.endswith("backend_compile_duration"):
      names.append(fun_name)

  bench = _wired(folder)
  feed = bench.shuffled(0)
  jax.monitoring.register_event_duration_secs_listener(compiled)
  try:
    run = bench.program(feed, 0)
    at_start = names.count("jit(dispatch)")
    state = _steps(bench, feed, run)
  finally:
    jax.monitoring.unregister_event_duration_listener(compiled)
  return bench, state, at_start, names.count("jit(dispatch)")


def _wired(folder, model=NET):
  stage = dataclasses.replace(
    STAGE, model=model, data=dataclasses.replace(STAGE.data, cache=str(folder))
  )
  mesh = mesh_lib.make(jax.devices()[:1])
  return wiring.wire(1, stage, data.make(stage.data), folder, mesh)


def _steps(bench, feed, run):
  """The state after all steps by `run`, begun anew."""
  feed.position = 0
  state = mesh_lib.put(bench.mesh, jax.jit(bench.objective.init)(jax.random.key(bench.seed)))
  key = mesh_lib.put(bench.mesh, jax.random.key(bench.seed))
  for start in range(0, bench.total, 2):
    k = min(2, bench.total - start)
    lrs = bench.lrs(lambda: 1.0)(range(start, start + k))
    ticket = feed.next(k)
    state, _ = run(state, feed.resident, ticket, lrs, key)
  return state


def test_each_size_is_compiled_once(trained):
  bench, _, at_start, at_end = trained
  course = scales.Course((12, 16), 4, seed=1)
  assert {course.at(step) for step in range(bench.total)} == {12, 16}
  one_and_two_steps = {(course.at(start), min(2, 9 - start)) for start in range(0, 9, 2)}
  assert at_start == at_end == len(one_and_two_steps)


def test_steps_see_the_images_in_their_sizes(trained):
  """Against single steps, each at the size of its place, put together by hand."""
  bench, state, *_ = trained
  course, feed, by_hand = scales.Course((12, 16), 4, seed=1), bench.shuffled(0), {}
  for size in (12, 16):
    take = scales.resized(feed.take, size)
    by_hand[size] = train.dispatcher(bench.objective, take, bench.mesh)

  def run(*args):
    return by_hand[course.at(feed.position - len(args[3]))](*args)

  expected = _steps(bench, feed, run)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), state.params, expected.params
  )


def test_a_network_of_one_size_is_refused(tmp_path):
  with pytest.raises(ValueError, match=r"train\.sizes: quadsnet has other weights for 12 pixels"):
    _wired(tmp_path, dataclasses.replace(NET, pool="avg2"))
