"""The floor of a comparison: features by formula, and a classifier without a network.

Of every image: histograms of oriented gradients (HOG, Dalal and Triggs 2005), statistics of grey
level co-occurrence (GLCM, Haralick et al. 1973) and histograms of uniform local binary patterns
(LBP, Ojala et al. 2002), by scikit-image; the last two of each channel. A support vector machine
with a Gaussian kernel or a random forest learns from them, by scikit-learn. Nothing is tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import hashlib
import pathlib
from typing import Any
import uuid

import numpy as np

from medjax import contract, settings

VERSION = 1  # of the features: a cache of others must not be taken for these
LEVELS = 32  # grey levels of GLCM
DISTANCES = (1, 2, 4)  # pixels, of GLCM
COMPONENTS = 128  # principal ones that the machine sees
RINGS = ((8, 1), (16, 2))  # points and radius of LBP
_STATISTICS = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation", "entropy")
_CHUNK = 256  # images that are read at once

Scores = Callable[[np.ndarray], np.ndarray]  # features [n, F] -> [n, K]


def hog(image: np.ndarray) -> np.ndarray:
  """Of uint8 [H, W, C]: 9 orientations in cells of an eighth of the side, blocks of 2x2 cells.

  In colour, each pixel's gradient is that of the channel where it is largest.
  """
  from skimage import feature

  cell = tuple(max(1, side // 8) for side in image.shape[:2])
  return feature.hog(image, 9, cell, (2, 2), block_norm="L2-Hys", channel_axis=-1)


def glcm(image: np.ndarray) -> np.ndarray:
  """Of uint8 [H, W, C]: mean and range over four directions of six statistics a distance."""
  from skimage import feature

  angles = np.arange(4) * np.pi / 4
  found = []
  for channel in np.moveaxis(image // (256 // LEVELS), -1, 0):
    matrix = feature.graycomatrix(channel, DISTANCES, angles, LEVELS, symmetric=True, normed=True)
    each = np.stack([feature.graycoprops(matrix, name) for name in _STATISTICS])  # [s, d, a]
    found += [each.mean(-1).ravel(), np.ptp(each, axis=-1).ravel()]
  return np.concatenate(found)


def lbp(image: np.ndarray) -> np.ndarray:
  """Of uint8 [H, W, C]: shares of the uniform patterns of each ring, whichever way they are turned.

  All that are not uniform are one pattern.
  """
  from skimage import feature

  found = []
  for channel in np.moveaxis(image, -1, 0):
    for points, radius in RINGS:
      codes = feature.local_binary_pattern(channel, points, radius, "uniform").astype(int)
      found.append(np.bincount(codes.ravel(), minlength=points + 2) / codes.size)
  return np.concatenate(found)


FEATURES: dict[str, Callable[[np.ndarray], np.ndarray]] = {"hog": hog, "glcm": glcm, "lbp": lbp}


def features(images: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Features of images, one after the other.

  Args:
    images: uint8 or uint16 [n, H, W, C]; of 16 bits the upper 8 count.
    names: out of `FEATURES`.

  Returns:
    [n, F] float32.

  Raises:
    ValueError: no such features.
  """
  if not names or set(names) - set(FEATURES):
    raise ValueError(f"objective.features={tuple(names)}: choose any of {', '.join(FEATURES)}")
  images = images if images.dtype == np.uint8 else (images >> 8).astype(np.uint8)
  each = (np.concatenate([FEATURES[name](image) for name in names]) for image in images)
  return np.stack(list(each)).astype(np.float32)


def fitted(cfg: settings.Classical, found: np.ndarray, labels: np.ndarray, seed: int) -> Scores:
  """Fits a classifier of scikit-learn.

  Args:
    cfg: which. found: [n, F] features. labels: [n]. seed: of chance.

  Returns:
    Features -> scores that add up to 1: shares of the forest's trees; of the machine, which sees
    principal components, a softmax of its decision values, which ranks but is no probability.
  """
  from sklearn import ensemble, pipeline, svm

  weight = None if cfg.class_weights == "none" else cfg.class_weights
  if cfg.classifier == "random_forest":
    forest = ensemble.RandomForestClassifier(
      cfg.trees, class_weight=weight, random_state=seed, n_jobs=-1
    )
    return forest.fit(found, labels).predict_proba
  machine = svm.SVC(class_weight=weight)
  steps = pipeline.Pipeline([*_components(found.shape, seed), ("machine", machine)])
  decide = steps.fit(found, labels).decision_function
  return lambda found: _softmax(decide(found))


def _components(shape: tuple[int, ...], seed: int) -> list[tuple[str, Any]]:
  """Each feature of one scale, then the principal components."""
  from sklearn import decomposition, preprocessing

  kept = decomposition.PCA(min(COMPONENTS, *shape), random_state=seed)
  return [("scale", preprocessing.StandardScaler()), ("components", kept)]


def _softmax(decisions: np.ndarray) -> np.ndarray:
  """Of [n, K], or of [n] for class 1 against class 0: [n, K]."""
  if decisions.ndim == 1:
    decisions = np.stack([np.zeros_like(decisions), decisions], axis=1)
  raised = np.exp(decisions - decisions.max(1, keepdims=True))
  return raised / raised.sum(1, keepdims=True)


def predict(
  cfg: settings.Classical,
  parts: dict[str, Any],
  info: contract.DataInfo,
  cache: pathlib.Path,
  seed: int,
) -> dict[str, contract.Predictions]:
  """Learns from the train part and scores the others.

  Args:
    cfg: what to learn. parts: name -> table of images, see `data.catalogue.Part`.
    info: of the data. cache: folder in which features are kept. seed: of chance.

  Returns:
    Part -> predictions, of all parts but train.

  Raises:
    ValueError: images may have several classes, or features are unknown.
  """
  if info.multi_label or not info.classes:
    raise ValueError(
      "objective=classical takes one class an image; choose a network for images of several"
      " classes, and a labelled set for either"
    )
  train = parts["train"]
  scores = fitted(cfg, _kept(cfg, train, cache), train.labels, seed)
  return {
    name: contract.Predictions(
      ids=part.ids,
      groups=part.groups,
      split=name,
      labels=part.labels,
      scores=np.asarray(scores(_kept(cfg, part, cache)), np.float64),
      classes=info.classes,
      metadata=part.facts,
    )
    for name, part in parts.items()
    if name != "train"
  }


def _kept(cfg: settings.Classical, part: Any, cache: pathlib.Path) -> np.ndarray:
  """Features of a part, out of the cache or into it; found by the pixels."""
  digest = hashlib.sha256(f"{VERSION} {cfg.features}".encode())
  for images in _images(part):
    digest.update(f"{images.shape} {images.dtype}".encode() + images.tobytes())
  file = cache / f"features-{digest.hexdigest()[:32]}.npy"
  if not file.is_file():
    found = np.concatenate([features(images, cfg.features) for images in _images(part)])
    cache.mkdir(0o700, parents=True, exist_ok=True)
    partial = file.with_suffix(f".{uuid.uuid4().hex}.partial")
    with partial.open("wb") as stream:
      np.save(stream, found)
    partial.replace(file)
  return np.load(file, allow_pickle=False)


def _images(part: Any) -> Iterator[np.ndarray]:
  """The pixels [n, H, W, C] of a part, some at a time."""
  for start in range(0, len(part), _CHUNK):
    rows = np.arange(start, min(start + _CHUNK, len(part)))
    yield part.fetch_many(rows) if part.fetch_many else np.stack([part.fetch(r) for r in rows])
