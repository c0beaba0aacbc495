"""The phantom: who is drawn, that it never changes, and how little a linear model sees in it."""

import collections
import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from sklearn import decomposition, linear_model, metrics, model_selection, pipeline, preprocessing

from medjax import contract, settings
from medjax.data.datasets import phantom

DIGEST = """
import hashlib
from medjax import settings
from medjax.data.datasets import phantom
rows = phantom.catalogue(settings.Phantom(patients=12, seed=5))
print(hashlib.sha256(b"".join(rows.read(i).tobytes() for i in reversed(range(20)))).hexdigest())
"""


def draw(**fields):
  rows = phantom.catalogue(settings.Phantom(**fields))
  return rows, np.stack([rows.read(i) for i in range(len(rows))])


@pytest.fixture(scope="module")
def target():
  """What a fine-tuning set looks like: 200 patients."""
  return draw(patients=200)


def test_the_same_bytes_in_another_process():
  rows, images = draw(patients=12, seed=5)
  here = hashlib.sha256(b"".join(image.tobytes() for image in images[:20][::-1])).hexdigest()
  there = subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, text=True, check=True)
  assert there.stdout.strip() == here
  np.testing.assert_array_equal(rows.read(3), images[3])  # and at any later time


def test_a_film_is_of_its_seed_patient_and_number_alone(target):
  few, images = draw(patients=7)
  assert few.ids == target[0].ids[: len(few)]
  np.testing.assert_array_equal(images, target[1][: len(few)])
  np.testing.assert_array_equal(few.labels, target[0].labels[: len(few)])
  unlabelled, again = draw(patients=7, labelled=False)
  np.testing.assert_array_equal(again, images)
  assert unlabelled.classes == () and (unlabelled.labels == contract.UNLABELLED).all()


def test_films_are_plain_and_say_that_they_are_synthetic(target):
  rows, images = target
  assert images.dtype == np.uint8 and images.shape[1:] == (64, 64)
  assert rows.synthetic and rows.classes == ("clear", "nodular", "spiculated")
  assert rows.ids[:3] == ("phantom-s0-p00000-i0", "phantom-s0-p00000-i1", "phantom-s0-p00000-i2")
  assert len({image.tobytes() for image in images}) == len(rows) == len(set(rows.ids))
  assert (rows.parts == "").all()
  assert (images.std(axis=(1, 2)) > 25).all()  # nothing is blank


def test_seeds_share_no_patient(target):
  other, images = draw(patients=40, seed=1)
  assert not set(other.groups) & set(target[0].groups)
  assert not {image.tobytes() for image in images} & {image.tobytes() for image in target[1]}
  assert other.content != target[0].content


def test_patients_have_one_class_and_two_to_four_films(target):
  rows, _ = target
  films = collections.Counter(rows.groups)
  assert len(films) == 200 and set(films.values()) == {2, 3, 4}
  classes = dict(zip(rows.groups, rows.labels, strict=True))
  assert all(classes[g] == label for g, label in zip(rows.groups, rows.labels, strict=True))
  assert collections.Counter(classes.values()) == {0: 120, 1: 60, 2: 20}
  tens = np.reshape(list(classes.values()), (20, 10))
  assert len({tuple(ten) for ten in tens}) == 20  # dealt anew in every ten, not in one order


@pytest.mark.parametrize("fields", [{"patients": 0}, {"seed": -1}])
def test_impossible_settings_are_named(fields):
  with pytest.raises(ValueError, match=r"data\.patients=.*data\.seed="):
    phantom.catalogue(settings.Phantom(**fields))


def test_brightness_does_not_tell_the_class():
  rows, images = draw(patients=600)
  labels = rows.labels
  for values in (images.mean(axis=(1, 2)), images.std(axis=(1, 2)), images.max(axis=(1, 2))):
    for label in range(3):
      auc = metrics.roc_auc_score(labels == label, values)
      # A rare class has 60 patients: chance deviates by 1 / sqrt(12 * 60) = 0.037.
      assert abs(auc - 0.5) < 0.11


def test_marks_differ_in_shape_and_add_the_same_light():
  mark = phantom.Mark(*np.float32([0, 0, 0.15, 0.4, 0.25, 0.5, 1.0]))
  y, x = (np.mgrid[:64, :64].astype(np.float32) + 0.5) / 32 - 1
  blots = [phantom._mark(shape, mark, x, y) for shape in phantom.MARKS]
  disc = 0.25 * np.pi * (0.15 * 32) ** 2
  np.testing.assert_allclose([blot.sum() for blot in blots], disc, rtol=1e-4)
  edges = [np.abs(np.gradient(blot)).sum() for blot in blots]  # outline times opacity
  assert edges[0] > 1.3 * edges[1] and edges[2] > 1.3 * edges[1]
  moments = [
    np.linalg.eigvalsh(np.cov(np.stack([x.ravel(), y.ravel()]), aweights=b.ravel())) for b in blots
  ]
  elongation = [large / small for small, large in moments]
  assert elongation[0] > 4 and elongation[1] < 1.5 and elongation[2] < 2


def linear_baseline(rows, images, components):
  """Balanced accuracy, 4 grouped folds, of a balanced logistic regression on standardised pixels.

  With as many components as images a penalised regression on the components is the one on pixels:
  its weights lie in the span of the training images. It is only quicker to fit.
  """
  model = pipeline.make_pipeline(
    preprocessing.StandardScaler(),
    decomposition.PCA(components, random_state=0),
    linear_model.LogisticRegression(C=1e-3, class_weight="balanced", solver="newton-cholesky"),
  )
  folds = model_selection.StratifiedGroupKFold(4, shuffle=True, random_state=0)
  pixels = images.reshape(len(images), -1) / np.float32(255)
  guess = model_selection.cross_val_predict(
    model, pixels, rows.labels, groups=np.asarray(rows.groups), cv=folds
  )
  return metrics.balanced_accuracy_score(rows.labels, guess)


@pytest.mark.parametrize("components", [64, None])
def test_a_linear_model_does_badly(target, components):
  accuracy = linear_baseline(*target, components)
  print(f"\nlinear baseline, {components or 'all'} components: {accuracy:.3f}")
  assert accuracy < 0.42  # chance is 0.333


@pytest.mark.slow
def test_a_linear_model_does_badly_on_many():
  accuracy = linear_baseline(*draw(patients=1000), 64)
  print(f"\nlinear baseline, 1000 patients, 64 components: {accuracy:.3f}")
  assert accuracy < 0.48


def test_marks_are_where_films_of_two_classes_differ():
  """A patient of another class is drawn alike but for the form of the marks."""
  streaked, nodular = (settings.Phantom(patients=20, shares=s) for s in ((1, 0, 0), (0, 1, 0)))
  rows, others = phantom.catalogue(streaked), phantom.catalogue(nodular)
  for row, name in enumerate(rows.ids):
    differs = abs(rows.read(row).astype(int) - others.read(row)) > 2  # edges have long tails
    marks = [phantom.marks(cfg, name) for cfg in (streaked, nodular)]
    near = cv2.dilate(np.any(marks, axis=0).astype(np.uint8), np.ones((5, 5)))  # films are blurred
    assert not (differs & (near == 0)).any(), name
    assert 0.01 < marks[1].mean() < 0.15 and differs[marks[1] & ~marks[0]].mean() > 0.9
  with pytest.raises(KeyError, match="no film 'phantom-s1-p00000-i0'"):
    phantom.marks(streaked, "phantom-s1-p00000-i0")


def test_shares_say_how_many_patients_in_a_row_are_of_each_class():
  cfg = settings.Phantom(patients=102, shares=(30, 20, 1))
  rows = phantom.catalogue(cfg)
  label = dict(zip(rows.groups, rows.labels, strict=True))
  patients = np.array([label[group] for group in sorted(label)])
  assert [np.bincount(some).tolist() for some in np.split(patients, 2)] == [[30, 20, 1]] * 2
  with pytest.raises(ValueError, match=r"data\.shares=\(0, 0, 0\)"):
    phantom.catalogue(settings.Phantom(shares=(0, 0, 0)))
