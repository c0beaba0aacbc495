"""Class weights and margins against published and hand-worked numbers, and scikit-learn."""

from fractions import Fraction

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from medjax import config, imbalance, settings

HAM = (327, 514, 1099, 115, 1113, 6705, 142)
HAM_CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")


def test_class_weights_of_ham10000_as_published():
  np.testing.assert_allclose(
    imbalance.class_weights("balanced", HAM),
    [4.3753, 2.7835, 1.3018, 12.4410, 1.2855, 0.2134, 10.0755],
    atol=6e-5,
  )
  np.testing.assert_allclose(
    imbalance.class_weights("inv_norm", HAM),
    [0.1347, 0.0857, 0.0401, 0.3831, 0.0396, 0.0066, 0.3102],
    atol=6e-5,
  )


def test_balanced_weights_equal_scikit_learn():
  labels = np.repeat(range(7), HAM)
  theirs = compute_class_weight("balanced", classes=np.arange(7), y=labels)
  np.testing.assert_allclose(imbalance.class_weights("balanced", HAM), theirs)


def test_no_weights_are_ones_even_for_an_empty_class():
  np.testing.assert_array_equal(imbalance.class_weights("none", (3, 0)), [1, 1])


@pytest.mark.parametrize("scheme", ["balanced", "inv_norm", "class_balanced"])
def test_a_class_without_images_is_named(scheme):
  with pytest.raises(ValueError, match="class 2 has no image"):
    imbalance.class_weights(scheme, (3, 4, 0))


def test_unknown_scheme_lists_the_known_ones():
  with pytest.raises(KeyError, match="none, balanced, inv_norm, class_balanced, mel5, or name=wei"):
    imbalance.class_weights("mel6", (1, 2))


def test_every_scheme_of_the_settings_has_weights():
  for scheme in settings.WEIGHTS:
    assert imbalance.class_weights(scheme, HAM, HAM_CLASSES).shape == (7,)
    assert settings.Supervised(class_weights=scheme).class_weights == scheme


@pytest.mark.parametrize(
  ("scheme", "expected"),
  [
    ("mel5", [1, 1, 1, 1, 5, 1, 1]),
    ("mel=5", [1, 1, 1, 1, 5, 1, 1]),
    ("mel=2.5, nv=0.1", [1, 1, 1, 1, 2.5, 0.1, 1]),
  ],
)
def test_named_classes_have_the_weights_that_are_given(scheme, expected):
  np.testing.assert_array_equal(imbalance.class_weights(scheme, HAM, HAM_CLASSES), expected)


def test_the_name_of_a_class_may_hold_an_equals_sign():
  found = imbalance.class_weights("grade=2=4", (1, 2), ("grade=1", "grade=2"))
  np.testing.assert_array_equal(found, [1, 4])


def test_a_weight_of_no_class_lists_the_classes():
  with pytest.raises(KeyError, match=r"'melanoma', which is no class .* akiec, bcc"):
    imbalance.class_weights("melanoma=5", HAM, HAM_CLASSES)


@pytest.mark.parametrize("weight", ["", "five", "0", "-1", "inf", "nan"])
def test_a_weight_that_is_no_number_above_zero_is_told(weight):
  with pytest.raises(ValueError, match=f"'mel={weight}' is no name=weight above 0"):
    imbalance.class_weights(f"mel={weight}", HAM, HAM_CLASSES)


def test_settings_refuse_an_unknown_scheme_before_anything_runs():
  with pytest.raises(ValueError, match=r"class_weights='balance': choose one of none, balanced"):
    settings.Supervised(class_weights="balance")


def test_rare_classes_are_not_both_drawn_and_weighted():
  tree = dict(data=dict(name="phantom", feeding=dict(sampling="class_balanced")))
  with pytest.raises(ValueError, match=r"set objective\.class_weights to none, or data\.feeding"):
    config.parse(tree)
  for weights in ("none", "nodular=2"):
    stage = config.parse(tree, [f"objective.class_weights={weights}"]).stages[0]
    assert stage.objective.class_weights == weights


@pytest.mark.parametrize(("most", "beta"), [(4999, 0.999), (5000, 0.9999)])
def test_beta_follows_the_largest_class(most, beta):
  counts = np.array([100, most, 2000])
  inverse = (1 - beta) / (1 - beta**counts)
  found = imbalance.class_weights("class_balanced", counts)
  np.testing.assert_allclose(found, 3 * inverse / inverse.sum(), rtol=1e-10)
  assert found.sum() == pytest.approx(3, rel=1e-14)


def test_class_balanced_weights_are_exact_for_a_few_images():
  counts, beta = (1, 2, 3, 40, 5000), Fraction(0.9999)
  inverse = [1 / (1 - beta**n) for n in counts]
  expected = [float(len(counts) * each / sum(inverse)) for each in inverse]
  found = imbalance.class_weights("class_balanced", counts)
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_balanced_bce_weights_by_hand():
  """Of 10 images 1 has the first class and 4 have the second."""
  positive, negative = imbalance.balanced_bce_weights((1, 4), 10)
  np.testing.assert_allclose(positive, [9 / 10, 6 / 10])
  np.testing.assert_allclose(negative, [1 / 10, 4 / 10])
  assert positive.dtype == negative.dtype == np.float64


@pytest.mark.parametrize(
  ("counts", "what"), [((3, 0), "class 1 has no positive"), ((10, 3), "class 0 has no negative")]
)
def test_a_class_of_no_image_or_of_every_image_is_named(counts, what):
  with pytest.raises(ValueError, match=what):
    imbalance.balanced_bce_weights(counts, 10)


def test_ldam_margins_by_hand():
  """Fourth roots of 16, 81, 10000 are 2, 3, 10: margins as 1/2 to 1/3 to 1/10."""
  found = imbalance.ldam_margins((10000, 16, 81))
  np.testing.assert_allclose(found, [0.1, 0.5, 1 / 3], rtol=1e-14)
  np.testing.assert_allclose(imbalance.ldam_margins((10000, 16, 81), largest=1.0), 2 * found)
  assert found.dtype == np.float64


def test_a_class_without_images_has_no_ldam_margin():
  with pytest.raises(ValueError, match="class 0 has no image"):
    imbalance.ldam_margins((0, 5))
