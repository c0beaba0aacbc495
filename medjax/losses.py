"""Per-example losses on logits: no reduction, no settings.

Every loss is summed over the classes and left one number an example; the caller masks, sums over
the devices and divides by the number of examples (not by their weights), as Keras does with class
weights. Inputs narrower than float32 are widened first; float64 stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _weighted_sum(terms: jax.Array, weights: jax.Array | np.ndarray | None) -> jax.Array:
  """[b, K] class terms times [K] class weights, summed over the classes."""
  if weights is None:
    return terms.sum(axis=-1)
  return (terms * jnp.asarray(weights, terms.dtype)).sum(axis=-1)


def softmax_ce(
  logits: jax.Array,
  labels: jax.Array,
  *,
  label_smoothing: float = 0.0,
  weights: jax.Array | np.ndarray | None = None,
) -> jax.Array:
  """Softmax cross-entropy, -sum_k w_k y_k log p_k.

  Args:
    logits: [b, K].
    labels: [b] class indices; one out of range (an unlabelled or padded slot) has y = 0.
    label_smoothing: share of the target that is spread evenly over all classes.
    weights: [K] class weights, by default 1.

  Returns:
    [b] losses.
  """
  log_p = jax.nn.log_softmax(_wide(logits))
  classes = logits.shape[-1]
  target = jax.nn.one_hot(labels, classes, dtype=log_p.dtype)
  target = target * (1 - label_smoothing) + label_smoothing / classes
  return _weighted_sum(-target * log_p, weights)


def _capsule(logits: jax.Array) -> jax.Array:
  return capsule_lengths(logits) ** 2


_SCORES: dict[str, Callable[[jax.Array], jax.Array]] = {
  "prob_sq": lambda logits: jax.nn.softmax(logits) ** 2,
  "prob": jax.nn.softmax,
  "capsule": _capsule,
}


def capsule_lengths(logits: jax.Array) -> jax.Array:
  """Lengths in [0, 1) of squashed capsules, each logit read as a class's one-dimensional vector.

  squash(u) = |u|^2 / (1 + |u|^2) u / |u| (Sabour et al. 2017, equation 1), so a length forgets the
  logit's sign: nets trained on it are read by these lengths, not by a softmax.
  """
  squared = _wide(logits) ** 2
  return squared / (1 + squared)


def margin(
  logits: jax.Array,
  labels: jax.Array,
  *,
  score: str = "prob_sq",
  exponent: int = 1,
  positive: float = 0.9,
  negative: float = 0.1,
  down_weight: float = 0.5,
  weights: jax.Array | np.ndarray | None = None,
) -> jax.Array:
  """QuadSNet's weighted margin loss (Ali et al. 2021), after Sabour et al. 2017, equation 4.

  sum_k w_k {y_k max(0, m+ - s_k)^a + down_weight (1 - y_k) max(0, s_k - m-)^a}

  Args:
    logits: [b, K].
    labels: [b] class indices.
    score: s_k is the squared softmax probability (`prob_sq`: what the paper prints), the
      probability (`prob`), or the squared length of `capsule_lengths` (`capsule`).
    exponent: a; the capsule original has 2. With `prob_sq` and 1 a confident wrong example has
      hardly any gradient, since that of p^2 vanishes with p.
    positive, negative: the margins m+ and m-.
    down_weight: of the absent classes.
    weights: [K] class weights, by default 1.

  Returns:
    [b] losses.

  Raises:
    KeyError: for an unknown score.
  """
  if score not in _SCORES:
    raise KeyError(f"unknown margin score {score!r}: choose one of {', '.join(_SCORES)}")
  scores = _SCORES[score](_wide(logits))
  target = jax.nn.one_hot(labels, logits.shape[-1], dtype=scores.dtype)
  present = jnp.maximum(0, positive - scores) ** exponent
  absent = jnp.maximum(0, scores - negative) ** exponent
  return _weighted_sum(target * present + down_weight * (1 - target) * absent, weights)


def nt_xent(
  anchors: jax.Array,
  candidates: jax.Array,
  *,
  own: jax.Array,
  positive: jax.Array,
  mask: jax.Array,
  temperature: float = 0.1,
) -> jax.Array:
  """Normalised-temperature cross-entropy (Chen et al. 2020, SimCLR, equation 1).

  -log(exp(s_ip / t) / sum_{k != i} exp(s_ik / t)) with cosine similarities s: each anchor must find
  its positive, the same image's other view, among all other candidates of the global batch.

  Args:
    anchors: [n, D] embeddings, of any length: they are normalised here.
    candidates: [m, D] embeddings of the whole batch, the anchors' own among them.
    own: [n] row of each anchor among the candidates: never compared with itself.
    positive: [n] row of each anchor's positive.
    mask: [m] 0 for candidates that only pad the batch: no anchor sees them.
    temperature: t.

  Returns:
    [n] losses, log(m - 1) if all embeddings are equal. A padded anchor's loss is finite and means
    nothing: mask it.
  """
  rows = jnp.arange(len(candidates))
  # TensorFloat-32 would put errors of 1e-3 into similarities that are then divided by t.
  similarity = jnp.matmul(
    unit_length(anchors), unit_length(candidates).T, precision=jax.lax.Precision.HIGHEST
  )
  logits = similarity / temperature  # [n, m]
  seen = (rows != own[:, None]) & (mask > 0)
  everything = jax.nn.logsumexp(jnp.where(seen, logits, -jnp.inf), axis=1)
  return everything - jnp.take_along_axis(logits, positive[:, None], axis=1)[:, 0]


def unit_length(embeddings: jax.Array) -> jax.Array:
  """[n, D] scaled to length 1; rows shorter than 1e-3 are multiplied by 1e3, for the gradient."""
  embeddings = _wide(embeddings)
  squared = (embeddings**2).sum(axis=-1, keepdims=True)
  return embeddings * jax.lax.rsqrt(jnp.maximum(squared, 1e-6))


def _ones(counts: np.ndarray) -> np.ndarray:
  return np.ones(len(counts))


def _balanced(counts: np.ndarray) -> np.ndarray:
  return counts.sum() / (len(counts) * counts)


def _inverse_normalised(counts: np.ndarray) -> np.ndarray:
  return (1 / counts) / (1 / counts).sum()


_CLASS_WEIGHTS = {"none": _ones, "balanced": _balanced, "inv_norm": _inverse_normalised}


def class_weights(scheme: str, counts: Sequence[int]) -> np.ndarray:
  """Class weights from the number of images of each class in the training part.

  Args:
    scheme: `none` (1), `balanced` (N / (K n_k)) or `inv_norm` ((1 / n_k) / sum_j 1 / n_j).
    counts: n_k.

  Returns:
    [K] float64.

  Raises:
    KeyError: for an unknown scheme.
    ValueError: for a class without images, whose weight would be infinite.
  """
  if scheme not in _CLASS_WEIGHTS:
    raise KeyError(f"unknown class weights {scheme!r}: choose one of {', '.join(_CLASS_WEIGHTS)}")
  empty = [index for index, count in enumerate(counts) if count == 0]
  if empty and scheme != "none":
    raise ValueError(
      f"class {empty[0]} has no image in the training part, so {scheme!r} weights do not exist: "
      "give it images, drop the class, or set objective.class_weights=none"
    )
  return _CLASS_WEIGHTS[scheme](np.asarray(counts, np.float64))
