"""Losses against values worked by hand, NumPy loops, Optax, Keras and scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from sklearn.metrics import log_loss

from medjax import losses

MARGINS = np.array([0.1, 0.2, 0.4, 0.5])
WEIGHTS = np.array([0.5, 1.0, 2.0, 4.0])

SMOOTH = {  # name -> loss, differentiable everywhere
  "softmax_ce": losses.softmax_ce,
  "focal": losses.focal,
  "focal, gamma 0.5": functools.partial(losses.focal, gamma=0.5, alpha=WEIGHTS),
  "ldam": functools.partial(losses.ldam, margins=MARGINS, scale=4.0),
  "sigmoid_bce": losses.sigmoid_bce,
  "sigmoid_bce, weighted": functools.partial(
    losses.sigmoid_bce, positive=WEIGHTS, negative=MARGINS
  ),
  "sigmoid_focal": losses.sigmoid_focal,
  "sigmoid_focal, gamma 0.5": functools.partial(losses.sigmoid_focal, gamma=0.5, alpha=0.7),
}
ALL = {**SMOOTH, "margin": losses.margin}


def _logits(count=16, classes=4, seed=0):
  return jnp.asarray(3 * np.random.default_rng(seed).standard_normal((count, classes)), jnp.float32)


def _labels(count=16, classes=4, seed=1):
  return jnp.asarray(np.random.default_rng(seed).integers(0, classes, count), jnp.int32)


def _multi_hot(count=16, classes=4, seed=2):
  return jnp.asarray(np.random.default_rng(seed).integers(0, 2, (count, classes)), jnp.int32)


def _of(*probabilities):
  """Logits whose softmax is `probabilities`."""
  return jnp.log(jnp.asarray([probabilities], jnp.float32))


def _of_each(*probabilities):
  """Logits whose sigmoids are `probabilities`."""
  q = np.asarray([probabilities])
  return jnp.asarray(np.log(q / (1 - q)), jnp.float32)


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


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_an_index_and_its_one_hot_row_are_the_same_label(loss):
  logits, labels = _logits(), _labels()
  rows = np.eye(4, dtype=np.int32)[np.asarray(labels)]
  np.testing.assert_array_equal(loss(logits, labels), loss(logits, jnp.asarray(rows)))
  np.testing.assert_array_equal(loss(logits, labels), loss(logits, jnp.asarray(rows, bool)))


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_an_index_out_of_range_is_no_class_at_all(loss):
  logits = _logits(3)
  nothing = loss(logits, jnp.zeros((3, 4), jnp.int32))
  np.testing.assert_array_equal(loss(logits, jnp.array([-1, 4, 255])), nothing)
  np.testing.assert_array_equal(loss(logits, jnp.array([0, 1, -1]))[2], nothing[2])


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_labels_of_another_shape_are_refused(loss):
  with pytest.raises(ValueError, match=r"labels \(16, 1\) .* class indices of shape \(16,\)"):
    loss(_logits(), _labels()[:, None])


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_class_weights_multiply_the_class_terms_of_every_loss(loss):
  """A weight of one class alone leaves that class's term: the terms together are the loss."""
  logits, labels = _logits(), _multi_hot()
  terms = [loss(logits, labels, weights=row) for row in np.eye(4)]
  np.testing.assert_allclose(sum(terms), loss(logits, labels), rtol=1e-5, atol=1e-6)
  weighted = sum(w * term for w, term in zip(WEIGHTS, terms, strict=True))
  np.testing.assert_allclose(loss(logits, labels, weights=WEIGHTS), weighted, rtol=1e-5, atol=1e-6)


def test_softmax_losses_of_several_classes_by_hand():
  """p = (0.5, 0.3, 0.2) and the first two classes present."""
  logits, labels = _of(0.5, 0.3, 0.2), jnp.array([[1, 1, 0]])
  assert float(losses.softmax_ce(logits, labels)[0]) == pytest.approx(
    -np.log(0.5) - np.log(0.3), rel=1e-5
  )
  assert float(losses.focal(logits, labels)[0]) == pytest.approx(
    -(0.5**2) * np.log(0.5) - 0.7**2 * np.log(0.3), rel=1e-5
  )
  assert float(losses.margin(logits, labels, score="prob")[0]) == pytest.approx(
    (0.9 - 0.5) + (0.9 - 0.3) + 0.5 * (0.2 - 0.1), rel=1e-5
  )


def test_binary_cross_entropy_by_hand():
  """q = (0.8, 0.3), the first class present and the second absent."""
  logits, labels = _of_each(0.8, 0.3), jnp.array([[1, 0]])
  plain = losses.sigmoid_bce(logits, labels)
  assert float(plain[0]) == pytest.approx(-np.log(0.8) - np.log(0.7), rel=1e-5)
  weighted = losses.sigmoid_bce(
    logits,
    labels,
    positive=np.array([2.0, 3.0]),
    negative=np.array([5.0, 7.0]),
    weights=np.array([10.0, 100.0]),
  )
  expected = -10 * 2 * np.log(0.8) - 100 * 7 * np.log(0.7)
  assert float(weighted[0]) == pytest.approx(expected, rel=1e-5)


def test_binary_cross_entropy_equals_keras():
  logits, labels = _logits(), _multi_hot()
  theirs = keras.losses.BinaryCrossentropy(from_logits=True, reduction=None)
  np.testing.assert_allclose(
    losses.sigmoid_bce(logits, labels),
    4 * theirs(labels, logits),  # theirs is the mean over the classes
    rtol=1e-5,
  )


def test_focal_loss_by_hand():
  """p = (0.6, 0.3, 0.1) and the second class: (1 - 0.3)^3 of its cross-entropy, times alpha."""
  alpha = np.array([1.0, 5.0, 1.0])
  loss = losses.focal(_of(0.6, 0.3, 0.1), jnp.array([1]), gamma=3.0, alpha=alpha)
  assert float(loss[0]) == pytest.approx(-5 * 0.7**3 * np.log(0.3), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_loss_equals_keras(gamma):
  logits, labels = _logits(), _labels()
  theirs = keras.losses.CategoricalFocalCrossentropy(
    alpha=WEIGHTS.tolist(), gamma=gamma, from_logits=True, reduction=None
  )
  np.testing.assert_allclose(
    losses.focal(logits, labels, gamma=gamma, alpha=WEIGHTS),
    theirs(jax.nn.one_hot(labels, 4), logits),
    rtol=1e-4,
    atol=1e-6,
  )


def test_sigmoid_focal_loss_by_hand():
  """q = (0.8, 0.3), the first present: p_t = (0.8, 0.7), alpha_t = (0.25, 0.75)."""
  loss = losses.sigmoid_focal(_of_each(0.8, 0.3), jnp.array([[1, 0]]))
  expected = -0.25 * 0.2**2 * np.log(0.8) - 0.75 * 0.3**2 * np.log(0.7)
  assert float(loss[0]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_sigmoid_focal_loss_equals_keras(gamma):
  logits, labels = _logits(), _multi_hot()
  theirs = keras.losses.BinaryFocalCrossentropy(
    apply_class_balancing=True, alpha=0.3, gamma=gamma, from_logits=True, reduction=None
  )
  np.testing.assert_allclose(
    losses.sigmoid_focal(logits, labels, gamma=gamma, alpha=0.3),
    4 * theirs(labels, logits),  # theirs is the mean over the classes
    rtol=1e-4,
    atol=1e-6,
  )


def test_focal_losses_without_focus_are_cross_entropies():
  logits, labels = _logits(), _multi_hot()
  np.testing.assert_allclose(
    losses.focal(logits, labels, gamma=0.0), losses.softmax_ce(logits, labels), rtol=1e-6
  )
  np.testing.assert_allclose(
    2 * losses.sigmoid_focal(logits, labels, gamma=0.0, alpha=0.5),
    losses.sigmoid_bce(logits, labels),
    rtol=1e-6,
  )


@pytest.mark.parametrize(("label", "other_leads_by"), [(0, -0.4), (1, 1.4)])
def test_ldam_by_hand(label, other_leads_by):
  """Cosines (0.5, 0.2), margins (0.1, 0.4), scale 2.

  Class 0 is lowered to 0.4, so 2 (0.2 - 0.4) = -0.4; class 1 to -0.2, so 2 (0.5 + 0.2) = 1.4.
  """
  loss = losses.ldam(
    jnp.array([[0.5, 0.2]]), jnp.array([label]), margins=np.array([0.1, 0.4]), scale=2.0
  )
  assert float(loss[0]) == pytest.approx(np.log(1 + np.exp(other_leads_by)), rel=1e-5)


def test_ldam_scales_by_thirty_and_without_margins_is_cross_entropy():
  cosines = jnp.tanh(_logits())
  np.testing.assert_allclose(
    losses.ldam(cosines, _labels(), margins=np.zeros(4)),
    optax.softmax_cross_entropy_with_integer_labels(30 * cosines, _labels()),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("loss", SMOOTH.values(), ids=SMOOTH)
@pytest.mark.parametrize("labels", [_labels, _multi_hot])
def test_gradients_equal_finite_differences(loss, labels, x64):
  logits = _logits().astype("float64")
  loss = functools.partial(loss, labels=labels(), weights=WEIGHTS)
  # Examples know nothing of each other, so one step moves a class of all of them.
  steps = 1e-5 * np.eye(4)
  differences = [(loss(logits + h) - loss(logits - h)) / 2e-5 for h in steps]
  gradient = jax.grad(lambda z: loss(z).sum())(logits)
  np.testing.assert_allclose(gradient, np.stack(differences, axis=1), rtol=1e-7, atol=1e-8)


# Softmax and sigmoid of these round to 0 and 1 in float32; 30 does so without an underflow.
SATURATED = [[1e4, -1e4, 0.0, 0.0], [-1e4, -1e4, 1e4, 1e4], [30.0, -30.0, 0.0, 0.0]]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("loss", [losses.focal, losses.sigmoid_focal])
def test_focal_losses_and_their_gradients_are_finite_where_logits_saturate(loss, gamma):
  labels = [*np.eye(4), np.zeros(4), np.ones(4)]
  rows = jnp.array([(z, y) for z in SATURATED for y in labels])  # [18, 2, 4]
  loss = functools.partial(loss, labels=rows[:, 1], gamma=gamma)
  assert np.isfinite(loss(rows[:, 0])).all()
  gradient = jax.jit(jax.grad(lambda z: loss(z).sum()))(rows[:, 0])
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_saturated_focal_losses_reach_their_limits(gamma):
  """Certain and right: nothing to learn. Certain and wrong: cross-entropy, the focus being 1."""
  certain = jnp.array([[1e4, -1e4]])

  def softmax(z, label):
    return losses.focal(z, jnp.array([label]), gamma=gamma)[0]

  def sigmoid(z, labels):
    return losses.sigmoid_focal(z, jnp.array([labels]), gamma=gamma, alpha=0.25)[0]

  for loss, right, wrong, value, slope in [
    (softmax, 0, 1, 2e4, [1, -1]),
    (sigmoid, [1, 0], [0, 1], 0.75 * 1e4 + 0.25 * 1e4, [0.75, -0.25]),
  ]:
    assert loss(certain, right) == 0
    np.testing.assert_array_equal(jax.grad(loss)(certain, right), [[0, 0]])
    assert float(loss(certain, wrong)) == pytest.approx(value)
    np.testing.assert_allclose(jax.grad(loss)(certain, wrong), [slope])


@pytest.mark.parametrize("name", ["sigmoid_bce", "softmax_ce", "ldam"])
def test_other_losses_and_their_gradients_are_finite_where_logits_saturate(name):
  for label in (0, 1, 2, -1):
    loss = functools.partial(SMOOTH[name], labels=jnp.full(3, label))
    assert np.isfinite(loss(jnp.array(SATURATED))).all()
    assert np.isfinite(jax.grad(lambda z, loss=loss: loss(z).sum())(jnp.array(SATURATED))).all()


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


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
@pytest.mark.parametrize(
  ("given", "computed"), [("bfloat16", "float32"), ("float32", "float32"), ("float64", "float64")]
)
def test_inputs_are_widened_before_anything_else_and_factors_widen_nothing(
  loss, given, computed, x64
):
  logits = _logits().astype(given)
  for labels in (_labels(), _multi_hot()):
    found = loss(logits, labels, weights=WEIGHTS)
    assert found.dtype == computed
    np.testing.assert_array_equal(found, loss(logits.astype(computed), labels, weights=WEIGHTS))
