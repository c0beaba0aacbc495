"""Losses against values worked by hand, NumPy loops, Optax and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight

from medjax import losses

HAM = (327, 514, 1099, 115, 1113, 6705, 142)


def _logits(count=16, classes=4, seed=0):
  return jnp.asarray(3 * np.random.default_rng(seed).standard_normal((count, classes)), jnp.float32)


def _labels(count=16, classes=4, seed=1):
  return jnp.asarray(np.random.default_rng(seed).integers(0, classes, count), jnp.int32)


def _of(*probabilities):
  """Logits whose softmax is `probabilities`."""
  return jnp.log(jnp.asarray([probabilities], jnp.float32))


def test_cross_entropy_equals_optax_and_scikit_learn():
  logits, labels = _logits(), _labels()
  ours = losses.softmax_ce(logits, labels)
  theirs = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  p = np.asarray(jax.nn.softmax(logits), np.float64)
  p /= p.sum(1, keepdims=True)
  assert float(ours.mean()) == pytest.approx(log_loss(labels, p, labels=range(4)), rel=1e-5)


def test_smoothed_cross_entropy_equals_optax():
  logits, labels = _logits(), _labels()
  target = optax.smooth_labels(jax.nn.one_hot(labels, 4), 0.1)
  np.testing.assert_allclose(
    losses.softmax_ce(logits, labels, label_smoothing=0.1),
    optax.softmax_cross_entropy(logits, target),
    rtol=1e-5,
  )


def test_class_weights_multiply_inside_the_sum():
  """Smoothing gives every class a term, so each must carry its own weight, not the label's."""
  weights = np.array([1.0, 3.0])
  loss = losses.softmax_ce(_of(0.8, 0.2), jnp.array([0]), label_smoothing=0.5, weights=weights)
  expected = -(1 * 0.75 * np.log(0.8) + 3 * 0.25 * np.log(0.2))
  assert float(loss[0]) == pytest.approx(expected, rel=1e-5)


def test_no_reduction_and_an_unlabelled_slot_is_zero():
  loss = losses.softmax_ce(_logits(3), jnp.array([0, -1, 2]))
  assert loss.shape == (3,)
  assert loss[1] == 0 and loss[0] > 0


@pytest.mark.parametrize(
  ("probabilities", "expected"),
  [((0.95, 0.05), 0.0), ((0.5, 0.5), (0.9 - 0.25) + 0.5 * (0.25 - 0.1))],
)
def test_margin_of_the_paper_by_hand(probabilities, expected):
  loss = losses.margin(_of(*probabilities), jnp.array([0]))
  assert float(loss[0]) == pytest.approx(expected, abs=1e-6)


def test_margin_in_capsule_form_by_hand():
  loss = losses.margin(_of(0.6, 0.4), jnp.array([0]), score="prob", exponent=2)
  assert float(loss[0]) == pytest.approx(0.3**2 + 0.5 * 0.3**2, rel=1e-5)


def test_margin_of_capsules_by_hand():
  """u = (2, -1): lengths 4/5 and 1/2, so scores 0.64 and 0.25."""
  loss = losses.margin(jnp.array([[2.0, -1.0]]), jnp.array([0]), score="capsule")
  assert float(loss[0]) == pytest.approx((0.9 - 0.64) + 0.5 * (0.25 - 0.1), rel=1e-5)


@pytest.mark.parametrize("score", ["prob_sq", "prob", "capsule"])
@pytest.mark.parametrize("exponent", [1, 2])
def test_margin_equals_a_loop(score, exponent):
  logits, labels = np.asarray(_logits(), np.float64), np.asarray(_labels())
  weights = np.array([0.5, 1.0, 2.0, 4.0])
  expected = np.zeros(len(logits))
  for i, z in enumerate(logits):
    p = np.exp(z) / np.exp(z).sum()
    s = {"prob_sq": p**2, "prob": p, "capsule": (z**2 / (1 + z**2)) ** 2}[score]
    for k in range(4):
      if k == labels[i]:
        expected[i] += weights[k] * max(0, 0.8 - s[k]) ** exponent
      else:
        expected[i] += weights[k] * 0.3 * max(0, s[k] - 0.2) ** exponent
  loss = losses.margin(
    jnp.asarray(logits),
    jnp.asarray(labels),
    score=score,
    exponent=exponent,
    positive=0.8,
    negative=0.2,
    down_weight=0.3,
    weights=weights,
  )
  np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)


def test_capsule_gradient_is_finite_at_zero():
  grad = jax.grad(lambda z: losses.margin(z, jnp.array([0]), score="capsule").sum())
  assert np.isfinite(grad(jnp.zeros((1, 3)))).all()


def test_unknown_score_lists_the_known_ones():
  with pytest.raises(KeyError, match="prob_sq, prob, capsule"):
    losses.margin(_logits(), _labels(), score="length")


def _pairs(count, dim=8, seed=0):
  """Rows 2i and 2i + 1 are one image's views."""
  z = jnp.asarray(np.random.default_rng(seed).standard_normal((2 * count, dim)), jnp.float32)
  own = jnp.arange(2 * count)
  return z, own, own ^ 1


def test_nt_xent_of_identical_embeddings_is_log_of_the_others():
  z, own, positive = _pairs(5)
  same = jnp.broadcast_to(z[0], z.shape)
  loss = losses.nt_xent(same, same, own=own, positive=positive, mask=jnp.ones(10))
  np.testing.assert_allclose(loss, np.log(2 * 5 - 1), rtol=1e-5)


def test_nt_xent_equals_a_loop():
  z, own, positive = _pairs(6)
  unit = np.asarray(z, np.float64)
  unit /= np.linalg.norm(unit, axis=1, keepdims=True)
  expected = []
  for i in range(12):
    others = [np.exp(unit[i] @ unit[k] / 0.2) for k in range(12) if k != i]
    expected.append(-np.log(np.exp(unit[i] @ unit[i ^ 1] / 0.2) / sum(others)))
  loss = losses.nt_xent(z, z, own=own, positive=positive, mask=jnp.ones(12), temperature=0.2)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_nt_xent_never_counts_a_positive_as_a_negative():
  """One image alone has its other view and no negative: the loss is 0 whatever the views are."""
  z, own, positive = _pairs(1)
  loss = losses.nt_xent(z, z, own=own, positive=positive, mask=jnp.ones(2))
  np.testing.assert_allclose(loss, 0, atol=1e-6)


def test_nt_xent_falls_to_zero_where_views_agree_and_images_do_not():
  z = jnp.repeat(jnp.eye(4), 2, axis=0)
  own = jnp.arange(8)
  loss = losses.nt_xent(z, z, own=own, positive=own ^ 1, mask=jnp.ones(8), temperature=0.05)
  assert float(loss.max()) < 1e-6


def test_nt_xent_ignores_padding_in_values_and_gradients():
  z, own, positive = _pairs(6)
  mask = jnp.asarray([1.0] * 8 + [0.0] * 4)

  def total(z, rows, mask):
    args = {"own": own[:rows], "positive": positive[:rows], "mask": mask}
    return (losses.nt_xent(z[:rows], z[:rows], **args) * mask).sum()

  padded, grad = jax.value_and_grad(total)(z, 12, mask)
  alone, grad_alone = jax.value_and_grad(total)(z, 8, jnp.ones(8))
  assert float(padded) == pytest.approx(float(alone), rel=1e-6)
  np.testing.assert_allclose(grad, grad_alone, atol=1e-6)


def test_nt_xent_takes_any_cut_of_the_anchors():
  z, own, positive = _pairs(6)
  whole = losses.nt_xent(z, z, own=own, positive=positive, mask=jnp.ones(12))
  cut = slice(4, 8)
  part = losses.nt_xent(z[cut], z, own=own[cut], positive=positive[cut], mask=jnp.ones(12))
  np.testing.assert_allclose(part, whole[cut], rtol=1e-6)


def test_unit_length_has_a_bounded_gradient_at_zero():
  z = jnp.zeros((2, 3)).at[1].set(jnp.array([3.0, 0.0, 4.0]))
  np.testing.assert_allclose(losses.unit_length(z), [[0, 0, 0], [0.6, 0, 0.8]], rtol=1e-6)
  gradient = np.asarray(jax.grad(lambda z: losses.unit_length(z).sum())(z))
  assert np.abs(gradient).max() <= 1001


@pytest.mark.parametrize(
  ("given", "computed"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_losses_are_computed_in_at_least_single_precision(given, computed):
  with jax.enable_x64(True):
    logits, labels = _logits(classes=4).astype(given), _labels()
    rows = jnp.arange(16)
    results = [
      losses.softmax_ce(logits, labels, label_smoothing=0.1, weights=np.ones(4)),
      *(losses.margin(logits, labels, score=s) for s in ("prob_sq", "prob", "capsule")),
      losses.nt_xent(logits, logits, own=rows, positive=rows ^ 1, mask=jnp.ones(16)),
    ]
    assert [str(loss.dtype) for loss in results] == [computed] * 5


def test_class_weights_of_ham10000_as_published():
  np.testing.assert_allclose(
    losses.class_weights("balanced", HAM),
    [4.3753, 2.7835, 1.3018, 12.4410, 1.2855, 0.2134, 10.0755],
    atol=6e-5,
  )
  np.testing.assert_allclose(
    losses.class_weights("inv_norm", HAM),
    [0.1347, 0.0857, 0.0401, 0.3831, 0.0396, 0.0066, 0.3102],
    atol=6e-5,
  )


def test_balanced_weights_equal_scikit_learn():
  labels = np.repeat(range(7), HAM)
  theirs = compute_class_weight("balanced", classes=np.arange(7), y=labels)
  np.testing.assert_allclose(losses.class_weights("balanced", HAM), theirs)


def test_no_weights_are_ones_even_for_an_empty_class():
  np.testing.assert_array_equal(losses.class_weights("none", (3, 0)), [1, 1])


@pytest.mark.parametrize("scheme", ["balanced", "inv_norm"])
def test_a_class_without_images_is_named(scheme):
  with pytest.raises(ValueError, match="class 2 has no image"):
    losses.class_weights(scheme, (3, 4, 0))


def test_unknown_scheme_lists_the_known_ones():
  with pytest.raises(KeyError, match="none, balanced, inv_norm"):
    losses.class_weights("mel5", (1, 2))
