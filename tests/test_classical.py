"""Features against scikit-image called by itself and against images whose values are known."""

import numpy as np
import pytest
from skimage import feature
from sklearn import decomposition, preprocessing, svm

from medjax import classical, contract, settings
from medjax.data import catalogue

SIZE = 32


def noise(n: int, channels: int = 1, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (n, SIZE, SIZE, channels), np.uint8)


def stripes(low: int = 0, high: int = 255) -> np.ndarray:
  """Columns that alternate, [H, W, 1]."""
  return np.tile(np.array([low, high], np.uint8), (SIZE, SIZE // 2))[..., None]


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_those_of_scikit_image(channels):
  (image,) = noise(1, channels)
  found = classical.features(image[None], ["hog", "glcm", "lbp"])[0]
  gradients = feature.hog(
    image, orientations=9, pixels_per_cell=(4, 4), cells_per_block=(2, 2), channel_axis=2
  )
  texture, patterns = [], []
  for c in range(channels):
    levels = image[..., c] // 8
    matrix = feature.graycomatrix(
      levels, [1, 2, 4], np.deg2rad([0, 45, 90, 135]), 32, symmetric=True, normed=True
    )
    names = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
    every = [feature.graycoprops(matrix, name) for name in names]
    texture += [value for each in every for value in each.mean(axis=1)]
    texture += [value for each in every for value in each.max(axis=1) - each.min(axis=1)]
    for points, radius in ((8, 1), (16, 2)):
      codes = feature.local_binary_pattern(image[..., c], points, radius, method="uniform")
      patterns += [(codes == code).mean() for code in range(points + 2)]
  np.testing.assert_allclose(found, [*gradients, *texture, *patterns], rtol=1e-5, atol=1e-7)


def test_co_occurrence_of_stripes_is_what_a_hand_counts():
  """An odd number of columns away is the other grey level, an even one the same.

  At distances of 1, 2 and 4 that are as many columns across, 1, 1 and 3 along both diagonals, and
  none up and down.
  """
  found = classical.glcm(stripes()).reshape(2, len(classical._STATISTICS), 3)
  np.testing.assert_allclose(found[0, 0], 31**2 * np.array([3, 2, 2]) / 4)
  np.testing.assert_allclose(found[1, 0], 31**2)
  flat = classical.glcm(np.full((SIZE, SIZE, 1), 77, np.uint8)).reshape(2, -1, 3)
  np.testing.assert_allclose(flat[0, :, 0], [0, 0, 1, 1, 1, 0])
  assert (flat[1] == 0).all()


def test_binary_patterns_of_a_dot_and_of_nothing_are_known():
  """Where no neighbour is darker, all points of a ring are set; about a single dot, none is."""
  flat, dot = np.zeros((2, SIZE, SIZE, 1), np.uint8)
  dot[9, 9] = 200
  rings = np.split(classical.lbp(flat), [10])
  for share, points in zip(rings, (8, 16), strict=True):
    assert share.tolist() == [float(code == points) for code in range(points + 2)]
  ones = np.split(classical.lbp(dot), [10])
  assert [share[0] for share in ones] == [1 / SIZE**2] * 2
  assert [share.sum() for share in ones] == pytest.approx([1, 1])


def test_the_upper_half_of_16_bits_counts():
  image = noise(1)
  deep = image.astype(np.uint16) * 256 + 77
  np.testing.assert_array_equal(
    classical.features(deep, ["glcm", "lbp"]), classical.features(image, ["glcm", "lbp"])
  )


def part(name: str, n: int, classes: int, seed: int) -> catalogue.Part:
  """Noise of another contrast for each class."""
  labels = np.arange(n, dtype=np.int32) % classes
  images = 128 + (noise(n, seed=seed) - 128.0) * (1 + labels)[:, None, None, None] / classes
  images = images.astype(np.uint8)
  ids = np.array([f"{name}{i}" for i in range(n)])
  return catalogue.Part(name, ids, ids, labels, images.__getitem__, None)


def info(classes: int, **changes) -> contract.DataInfo:
  names = tuple("abc"[:classes])
  return contract.DataInfo(names, (SIZE, SIZE, 1), (8,) * classes, 24, (0.5,), (0.2,), **changes)


@pytest.mark.parametrize("kind", ["svm", "random_forest"])
@pytest.mark.parametrize("classes", [2, 3])
def test_both_learn_what_texture_tells(kind, classes, tmp_path):
  parts = {"train": part("train", 24, classes, 0), "test": part("test", 12, classes, 1)}
  cfg = settings.Classical(classifier=kind, trees=30, features=("glcm", "lbp"))
  found = classical.predict(cfg, parts, info(classes), tmp_path, seed=0)
  assert list(found) == ["test"]
  table = found["test"]
  assert (table.predicted == table.labels).all() and table.classes == info(classes).classes
  np.testing.assert_allclose(table.scores.sum(1), 1)
  again = classical.predict(cfg, parts, info(classes), tmp_path, seed=0)["test"]
  np.testing.assert_array_equal(again.scores, table.scores)


@pytest.mark.parametrize("classes", [2, 3])
def test_the_machine_decides_as_scikit_learn_does(classes):
  rng = np.random.default_rng(0)
  labels = rng.permutation(np.repeat(np.arange(classes), (30, 20, 4)[:classes]))
  found = (rng.normal(size=(len(labels), 6)) + labels[:, None]).astype(np.float32)
  others = rng.normal(size=(40, 6)).astype(np.float32) + 1
  cfg = settings.Classical(class_weights="balanced")
  scores = classical.fitted(cfg, found, labels, 0)(others)
  scaler = preprocessing.StandardScaler().fit(found)
  turned = decomposition.PCA(6, random_state=0).fit(scaler.transform(found))
  machine = svm.SVC(class_weight="balanced", break_ties=True)
  machine.fit(turned.transform(scaler.transform(found)), labels)
  decided = machine.predict(turned.transform(scaler.transform(others)))
  np.testing.assert_array_equal(scores.argmax(1), decided)
  assert len(set(decided)) == classes


def test_features_are_kept_by_what_the_images_show(tmp_path):
  cfg = settings.Classical(features=("lbp",), trees=5, classifier="random_forest")
  parts = {"train": part("train", 12, 2, 0), "test": part("test", 6, 2, 1)}
  classical.predict(cfg, parts, info(2), tmp_path, seed=0)
  kept = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
  assert len(kept) == 2
  classical.predict(cfg, parts, info(2), tmp_path, seed=1)
  assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == kept
  parts["test"] = part("test", 6, 2, 2)
  classical.predict(cfg, parts, info(2), tmp_path, seed=0)
  assert len(list(tmp_path.iterdir())) == 3


def test_what_it_cannot_learn_is_told(tmp_path):
  parts = {"train": part("train", 12, 2, 0)}
  with pytest.raises(ValueError, match="one class an image"):
    classical.predict(settings.Classical(), parts, info(2, multi_label=True), tmp_path, 0)
  with pytest.raises(ValueError, match="choose any of hog, glcm, lbp"):
    classical.predict(settings.Classical(features=("sift",)), parts, info(2), tmp_path, 0)
