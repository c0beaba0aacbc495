"""Optimisers against Keras and steps worked by hand in NumPy float64, schedules in closed form."""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

from medjax import optim, settings, trees

PARAMS = {"dense": {"kernel": [[1.0, -2.0]], "bias": [0.5, 0.25]}, "bn": {"scale": [2.0]}}
GRADS = [
  {"dense": {"kernel": [[0.3, -0.1]], "bias": [0.2, 0.0]}, "bn": {"scale": [-0.4]}},
  {"dense": {"kernel": [[-0.2, 0.5]], "bias": [0.1, 0.3]}, "bn": {"scale": [0.1]}},
  {"dense": {"kernel": [[0.0, 0.7]], "bias": [-0.6, 0.2]}, "bn": {"scale": [0.9]}},
]
FLAT = dict(schedule="constant", clip=0.0)


def _arrays(tree):
  return jax.tree.map(jnp.asarray, tree, is_leaf=lambda leaf: isinstance(leaf, list))


def _vector(tree):
  """kernel (2), bias (2), scale (1) in one float64 vector."""
  leaves = tree["dense"]["kernel"], tree["dense"]["bias"], tree["bn"]["scale"]
  return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in leaves])


IS_KERNEL = np.array([1, 1, 0, 0, 0])


def _updated(optimizer, params, grads):
  """Parameters after one update for each of `grads`, and the rule's state."""
  state = optimizer.init(params)
  for update, each in enumerate(grads):
    lr = jnp.asarray(optimizer.schedule(update))
    params, state = optimizer.apply(each, state, params, lr)
  return params, state


def _trained(cfg, total=10, warmup=0):
  """Parameters after the three gradients, in float64."""
  with jax.enable_x64(True):
    optimizer = optim.make(cfg, total, warmup)
    params, _ = _updated(optimizer, _arrays(PARAMS), map(_arrays, GRADS))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float64)}
    return _vector(params)


def _adam_by_hand(lr, b1, b2, eps, decay=0.0):
  x, m, v = _vector(PARAMS), np.zeros(5), np.zeros(5)
  for t, grads in enumerate(GRADS, 1):
    g = _vector(grads)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
    step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    x = x - lr * (step + decay * IS_KERNEL * x)
  return x


def test_adam_by_hand():
  cfg = settings.Adam(lr=0.1, b1=0.8, b2=0.95, eps=1e-3, **FLAT)
  np.testing.assert_allclose(_trained(cfg), _adam_by_hand(0.1, 0.8, 0.95, 1e-3), rtol=1e-12)


def test_adamw_decays_kernels_only():
  cfg = settings.AdamW(lr=0.1, weight_decay=0.3, **FLAT)
  expected = _adam_by_hand(0.1, 0.9, 0.999, 1e-8, decay=0.3)
  np.testing.assert_allclose(_trained(cfg), expected, rtol=1e-6)
  without = _trained(settings.Adam(lr=0.1, **FLAT))
  np.testing.assert_array_equal(_trained(cfg) == without, IS_KERNEL == 0)


@pytest.mark.parametrize("eps", [1e-7, 0.1])
def test_adam_of_keras_by_hand(eps):
  x, m, v = _vector(PARAMS), np.zeros(5), np.zeros(5)
  for t, grads in enumerate(GRADS, 1):
    g = _vector(grads)
    m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
    x = x - 0.1 * np.sqrt(1 - 0.95**t) / (1 - 0.8**t) * m / (np.sqrt(v) + eps)
  cfg = settings.KerasAdam(lr=0.1, b1=0.8, b2=0.95, eps=eps, **FLAT)
  np.testing.assert_allclose(_trained(cfg), x, rtol=1e-12)


def test_the_two_adams_part_where_eps_is_large():
  """First step, g = 0.3: 0.3 / (0.3 + eps), and in Keras 0.3 / (0.3 + eps / sqrt(1 - b2))."""
  moved = {}
  for cls in (settings.Adam, settings.KerasAdam):
    optimizer = optim.make(cls(lr=1.0, eps=0.1, **FLAT), 10, 0)
    params, grads = {"kernel": jnp.zeros(1)}, {"kernel": jnp.full(1, 0.3)}
    moved[cls] = -float(_updated(optimizer, params, [grads])[0]["kernel"][0])
  assert moved[settings.Adam] == pytest.approx(0.3 / 0.4, rel=1e-4)
  assert moved[settings.KerasAdam] == pytest.approx(0.3 / (0.3 + 0.1 / 0.001**0.5), rel=1e-4)


@pytest.mark.parametrize("eps", [1e-7, 0.1])
def test_adam_of_keras_equals_keras_for_50_steps(eps):
  rng = np.random.default_rng(0)
  shapes = {"a": (), "b": (7,), "c": (3, 5), "kernel": (3, 3, 2, 4)}

  def draw():
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}

  values, grads = draw(), [draw() for _ in range(50)]
  variables = [keras.Variable(values[name]) for name in shapes]
  theirs = keras.optimizers.Adam(0.01, epsilon=eps)
  for each in grads:
    theirs.apply([jnp.asarray(each[name]) for name in shapes], variables)
  optimizer = optim.make(settings.KerasAdam(lr=0.01, eps=eps, **FLAT), 50, 0)
  ours, _ = _updated(optimizer, jax.tree.map(jnp.asarray, values), grads)
  for name, variable in zip(shapes, variables, strict=True):
    moved = np.asarray(variable.value) - values[name]
    np.testing.assert_allclose(ours[name] - values[name], moved, rtol=1e-6, atol=5e-7)
    assert np.max(np.abs(moved)) > 0.01


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_by_hand(nesterov):
  cfg = settings.SGD(lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.3, **FLAT)
  x, trace = _vector(PARAMS), np.zeros(5)
  for grads in GRADS:
    g = _vector(grads) + 0.3 * IS_KERNEL * x
    trace = 0.9 * trace + g
    x = x - 0.1 * (g + 0.9 * trace if nesterov else trace)
  np.testing.assert_allclose(_trained(cfg), x, rtol=1e-12)


def test_lars_by_hand():
  """The rate grows 0, 0.25, 0.5: inside the momentum, where a later rate does not change it."""
  cfg = settings.LARS(lr=0.5, momentum=0.8, weight_decay=0.3, trust=0.02, **FLAT)
  x, trace = _vector(PARAMS), np.zeros(5)
  for lr, grads in zip((0, 0.25, 0.5), GRADS, strict=True):
    g = _vector(grads)
    g[:2] += 0.3 * x[:2]
    g[:2] *= 0.02 * np.linalg.norm(x[:2]) / np.linalg.norm(g[:2])
    trace = 0.8 * trace + lr * g
    x = x - trace
  np.testing.assert_allclose(_trained(cfg, warmup=2), x, rtol=1e-12)


def test_lars_moves_a_kernel_of_zeros_as_sgd_does():
  optimizer = optim.make(settings.LARS(lr=0.5, **FLAT), 10, 0)
  grads = {"kernel": jnp.array([3.0, -4.0])}
  params, _ = _updated(optimizer, {"kernel": jnp.zeros(2)}, [grads])
  np.testing.assert_allclose(params["kernel"], [-1.5, 2.0], rtol=1e-6)


def test_clipping_scales_the_whole_gradient_to_the_norm():
  cfg = settings.SGD(lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.5)
  x = _vector(PARAMS)
  for g in map(_vector, GRADS):
    x = x - g * min(1, 0.5 / np.linalg.norm(g))
  np.testing.assert_allclose(_trained(cfg), x, rtol=1e-12)


def test_weight_decay_is_not_clipped():
  cfg = settings.SGD(lr=1.0, momentum=0.0, weight_decay=100.0, schedule="constant", clip=1e-9)
  with jax.enable_x64(True):
    params, _ = _updated(optim.make(cfg, 10, 0), _arrays(PARAMS), [_arrays(GRADS[0])])
  np.testing.assert_allclose(
    _vector(params), (1 - 100 * IS_KERNEL) * _vector(PARAMS), rtol=0, atol=1e-8
  )


@pytest.mark.parametrize("cls", optim.RULES)
def test_parameters_keep_their_type_under_a_rate_of_another(cls, x64):
  optimizer = optim.make(cls(ema=0.9), 10, 0)
  for dtype in (jnp.float32, jnp.float64):
    params = {"dense": {"kernel": jnp.ones((2, 2), dtype), "bias": jnp.ones(2, dtype)}}
    other = jnp.float64 if dtype == jnp.float32 else jnp.float32
    state = optimizer.init(params)
    moved, state = optimizer.apply(params, state, params, jnp.asarray(0.1, other))
    averaged = optimizer.averaged(params, moved, jnp.int32(1))
    floats = [leaf for leaf in jax.tree.leaves((moved, averaged, state)) if leaf.ndim]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(dtype)}


def test_schedule_drives_the_updates():
  cfg = settings.SGD(lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.0)
  expected = _vector(PARAMS) - 0 * _vector(GRADS[0]) - 0.5 * _vector(GRADS[1]) - _vector(GRADS[2])
  np.testing.assert_allclose(_trained(cfg, total=10, warmup=2), expected, rtol=1e-12)


def test_cosine_after_warmup_in_closed_form():
  schedule = optim.make_schedule(settings.Adam(lr=0.2, schedule="cosine"), 100, 20)
  steps = np.arange(101)
  rising = 0.2 * steps / 20
  falling = 0.2 * (1 + np.cos(np.pi * (steps - 20) / 80)) / 2
  np.testing.assert_allclose(
    [schedule(step) for step in range(101)], np.where(steps < 20, rising, falling), atol=1e-15
  )


def test_cosine_stays_at_zero_after_the_end():
  schedule = optim.make_schedule(settings.Adam(lr=0.2, schedule="cosine"), 100, 20)
  assert [schedule(step) for step in (100, 101, 1000)] == [0.0] * 3


def test_constant_without_warmup_is_constant():
  schedule = optim.make_schedule(settings.Adam(lr=0.2, schedule="constant"), 1, 0)
  assert [schedule(step) for step in (0, 1, 1000)] == [0.2] * 3


def test_warmup_must_fit():
  with pytest.raises(ValueError, match="warm-up of 10 steps does not fit in a training of 10"):
    optim.make(settings.Adam(), 10, 10)


def test_unknown_settings_list_the_known_ones():
  with pytest.raises(KeyError, match="Adam, KerasAdam, AdamW, SGD, LARS"):
    optim.make(settings.Optimizer(name="lion"), 10, 0)


def test_every_named_optimizer_is_in_the_table():
  variants = settings.VARIANTS[settings.Optimizer].values()
  assert {type(variant) for variant in variants} == set(optim.RULES)


@pytest.mark.parametrize("ema", [0.5, 0.999])
def test_moving_average_with_warm_up_by_hand(ema, x64):
  """The decay is 2/11, 3/12, ..., until `ema`: with 0.5 from the 8th update on."""
  rng = np.random.default_rng(0)
  optimizer = optim.make(settings.SGD(ema=ema), 100, 0)
  values = rng.normal(size=(21, 3))
  expected, ours = values[0], {"a": {"b": jnp.asarray(values[0])}}
  for n in range(1, 21):
    decay = min(ema, (1 + n) / (10 + n))
    expected = decay * expected + (1 - decay) * values[n]
    ours = optimizer.averaged(ours, {"a": {"b": jnp.asarray(values[n])}}, jnp.int32(n))
    np.testing.assert_allclose(ours["a"]["b"], expected, rtol=1e-12)


NET = {
  "encoder": {
    "block1": {"conv": {"kernel": [[1.0, 2.0]], "bias": [0.5]}},
    "block10": {"conv": {"kernel": [[3.0]], "bias": [-0.5]}, "bn": {"scale": [1.0]}},
  },
  "head": {"kernel": [[0.1, 0.2]], "bias": [0.3, 0.4]},
}
BLOCK1 = {"encoder/block1/conv/kernel", "encoder/block1/conv/bias"}
BIASES = {"encoder/block1/conv/bias", "encoder/block10/conv/bias", "head/bias"}
FREEZES = {
  (): set(),
  ("encoder/block1",): BLOCK1,  # and not block10
  ("*/bias",): BIASES,
  ("encoder/*/conv/*",): BLOCK1 | {f"encoder/block10/conv/{leaf}" for leaf in ("kernel", "bias")},
  ("head/kernel",): {"head/kernel"},
  ("encoder/block1", "*/bias"): BLOCK1 | BIASES,
}


@pytest.mark.parametrize("freeze", FREEZES, ids=" ".join)
@pytest.mark.parametrize("cls", optim.RULES)
def test_what_is_frozen_keeps_every_bit_and_has_no_state(cls, freeze):
  optimizer = optim.make(cls(freeze=freeze), 10, 0)
  before = _arrays(NET)
  learning, fixed = optimizer.split(before)
  assert set(trees.flatten(fixed)) == FREEZES[freeze]
  grads = jax.tree.map(lambda leaf: 0.1 + leaf, learning)
  after, state = _updated(optimizer, before, [grads] * 3)
  assert jax.tree.structure(after) == jax.tree.structure(before)
  was = trees.flatten(before)
  for path, leaf in trees.flatten(after).items():
    same = np.asarray(leaf).tobytes() == np.asarray(was[path]).tobytes()
    assert same == (path in FREEZES[freeze]), path
  moments = 1 if cls in (settings.SGD, settings.LARS) else 2
  kept = sum(np.size(leaf) for leaf in jax.tree.leaves(state) if np.ndim(leaf))
  assert kept == moments * trees.count(learning)


def test_a_pattern_that_fits_nothing_tells_the_paths():
  optimizer = optim.make(settings.Adam(freeze=("head", "encoder/block2")), 10, 0)
  with pytest.raises(
    ValueError, match=r"'encoder/block2' fits no .*encoder/block1, encoder/block10"
  ):
    optimizer.init(_arrays(NET))


def test_something_must_learn():
  optimizer = optim.make(settings.Adam(freeze=("encoder", "head")), 10, 0)
  with pytest.raises(ValueError, match="leaves no parameter to learn"):
    optimizer.init(_arrays(NET))


def test_what_the_training_asks_for_is_kept():
  cfg = settings.Adam(accumulate=4, ema=0.9, freeze=("head",))
  optimizer = optim.make(cfg, 70, 10)
  kept = optimizer.total, optimizer.accumulate, optimizer.ema, optimizer.freeze
  assert kept == (70, 4, 0.9, ("head",))
