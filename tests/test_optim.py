"""Optimisers against steps worked by hand in NumPy float64, schedules against closed forms."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medjax import optim, settings

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


def _trained(cfg, total=10, warmup=0):
  """Parameters after the three gradients, in float64."""
  with jax.enable_x64(True):
    tx, _ = optim.make(cfg, total, warmup)
    params = _arrays(PARAMS)
    opt_state = tx.init(params)
    for grads in GRADS:
      updates, opt_state = tx.update(_arrays(grads), opt_state, params)
      params = optax.apply_updates(params, updates)
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


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_by_hand(nesterov):
  cfg = settings.SGD(lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.3, **FLAT)
  x, trace = _vector(PARAMS), np.zeros(5)
  for grads in GRADS:
    g = _vector(grads) + 0.3 * IS_KERNEL * x
    trace = 0.9 * trace + g
    x = x - 0.1 * (g + 0.9 * trace if nesterov else trace)
  np.testing.assert_allclose(_trained(cfg), x, rtol=1e-12)


def test_clipping_scales_the_whole_gradient_to_the_norm():
  cfg = settings.SGD(lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.5)
  x = _vector(PARAMS)
  for g in map(_vector, GRADS):
    x = x - g * min(1, 0.5 / np.linalg.norm(g))
  np.testing.assert_allclose(_trained(cfg), x, rtol=1e-12)


def test_weight_decay_is_not_clipped():
  cfg = settings.SGD(lr=1.0, momentum=0.0, weight_decay=100.0, schedule="constant", clip=1e-9)
  with jax.enable_x64(True):
    tx, _ = optim.make(cfg, 10, 0)
    params = _arrays(PARAMS)
    updates, _ = tx.update(_arrays(GRADS[0]), tx.init(params), params)
    np.testing.assert_allclose(_vector(updates), -100 * IS_KERNEL * _vector(PARAMS), atol=1e-8)


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
    [schedule(step) for step in steps], np.where(steps < 20, rising, falling), atol=1e-7
  )


def test_constant_without_warmup_is_constant():
  schedule = optim.make_schedule(settings.Adam(lr=0.2, schedule="constant"), 1, 0)
  assert [float(schedule(step)) for step in (0, 1, 1000)] == [np.float32(0.2)] * 3


def test_warmup_must_fit():
  with pytest.raises(ValueError, match="warm-up of 10 steps does not fit in a training of 10"):
    optim.make(settings.Adam(), 10, 10)


def test_unknown_settings_list_the_known_ones():
  with pytest.raises(KeyError, match="Adam, AdamW, SGD"):
    optim.make(settings.Optimizer(name="lion"), 10, 0)


def test_every_named_optimizer_is_in_the_table():
  variants = settings.VARIANTS[settings.Optimizer].values()
  assert {type(variant) for variant in variants} == set(optim.OPTIMIZERS)


def _tracked(values, patience, min_delta=0.0):
  """(best, evaluations until the stop)."""
  best = optim.Best()
  for count, value in enumerate(values, 1):
    best = best.track(value, 10 * count, min_delta)
    if best.exhausts(patience):
      return best, count
  return best, None


def test_first_evaluation_is_the_best_whatever_it_is():
  assert _tracked([-5.0], 1) == (optim.Best(-5.0, 10, 0), None)


def test_stops_when_wait_reaches_patience():
  best, stopped = _tracked([0.1, 0.3, 0.2, 0.3, 0.29, 0.9], 3)
  assert best == optim.Best(0.3, 20, 3)
  assert stopped == 5


def test_min_delta_must_be_beaten_not_reached():
  assert _tracked([0.25, 0.5], 9, min_delta=0.25)[0] == optim.Best(0.25, 10, 1)
  assert _tracked([0.25, 0.5, 0.625], 9, min_delta=0.25)[0] == optim.Best(0.625, 30, 0)


def test_nan_never_improves_not_even_at_first():
  assert _tracked([float("nan"), float("nan")], 2) == (optim.Best(None, 0, 2), 2)


def test_no_patience_never_stops():
  assert not optim.Best(0.5, 1, wait=1000).exhausts(0)


def test_best_survives_strict_json():
  for best in (optim.Best(), optim.Best(0.25, 30, 2)):
    text = json.dumps(dataclasses.asdict(best), allow_nan=False)
    assert optim.Best(**json.loads(text)) == best
