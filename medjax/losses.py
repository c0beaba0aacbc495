"""Per-example losses on logits: no reduction, no settings.

Every loss is summed over the classes and left one number an example; the caller masks, sums over
the devices and divides by the number of examples (not by their weights), as Keras does with class
weights. Inputs narrower than float32 are widened first; float64 stays.

Labels are [b] class indices, or [b, K] ones and zeros where an image has any number of classes
(multi-hot). An index out of range (an unlabelled or padded slot) has y = 0 for every class.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

PerClass = jax.Array | np.ndarray | None  # [K] factors; None is 1


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _targets(labels: jax.Array, logits: jax.Array) -> jax.Array:
  """[b, K] y of class indices or multi-hot labels, in the dtype of the logits."""
  if labels.shape == logits.shape:
    return labels.astype(logits.dtype)
  if labels.shape != logits.shape[:-1]:
    raise ValueError(
      f"labels {labels.shape} do not fit logits {logits.shape}: give class indices of shape "
      f"{logits.shape[:-1]}, or ones and zeros of shape {logits.shape}"
    )
  return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def _scaled(terms: jax.Array, factors: PerClass) -> jax.Array:
  """[b, K] class terms times [K] factors, without a change of dtype."""
  return terms if factors is None else terms * jnp.asarray(factors, terms.dtype)


def _weighted_sum(terms: jax.Array, weights: PerClass) -> jax.Array:
  return _scaled(terms, weights).sum(axis=-1)


def softmax_ce(
  logits: jax.Array,
  labels: jax.Array,
  *,
  label_smoothing: float = 0.0,
  weights: PerClass = None,
) -> jax.Array:
  """Softmax cross-entropy, -sum_k w_k y_k log p_k.

  Args:
    logits: [b, K].
    labels: [b] class indices or [b, K] multi-hot.
    label_smoothing: share of the target that is spread evenly over all classes.
    weights: [K] class weights, by default 1.

  Returns:
    [b] losses.
  """
  log_p = jax.nn.log_softmax(_wide(logits))
  target = _targets(labels, log_p)
  target = target * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
  return _weighted_sum(-target * log_p, weights)


def sigmoid_bce(
  logits: jax.Array,
  labels: jax.Array,
  *,
  positive: PerClass = None,
  negative: PerClass = None,
  weights: PerClass = None,
) -> jax.Array:
  """Binary cross-entropy of each class against the rest, q = sigmoid(logits).

  -sum_k w_k {positive_k y_k log q_k + negative_k (1 - y_k) log(1 - q_k)}

  Args:
    logits: [b, K].
    labels: [b] class indices or [b, K] multi-hot.
    positive, negative: [K] weights of presence and of absence, by default 1; those of
      `imbalance.balanced_bce_weights` make this the loss of CheXNet.
    weights: [K] class weights, by default 1.

  Returns:
    [b] losses. An index out of range reads as the absence of every class: mask it.
  """
  logits = _wide(logits)
  target = _targets(labels, logits)
  present = _scaled(target * jax.nn.log_sigmoid(logits), positive)
  absent = _scaled((1 - target) * jax.nn.log_sigmoid(-logits), negative)
  return _weighted_sum(-present - absent, weights)


def focal(
  logits: jax.Array,
  labels: jax.Array,
  *,
  gamma: float = 2.0,
  alpha: PerClass = None,
  weights: PerClass = None,
) -> jax.Array:
  """Focal loss (Lin et al. 2017, equation 5) of a softmax.

  -sum_k w_k alpha_k (1 - p_k)^gamma y_k log p_k

  Args:
    logits: [b, K].
    labels: [b] class indices or [b, K] multi-hot.
    gamma: how much less an example counts the better it is classified; at 0 this is `softmax_ce`.
    alpha: [K] balance of the classes, by default 1.
    weights: [K] class weights, by default 1.

  Returns:
    [b] losses.
  """
  log_p = jax.nn.log_softmax(_wide(logits))
  terms = -_targets(labels, log_p) * jnp.exp(gamma * _log_of_others(log_p)) * log_p
  return _weighted_sum(_scaled(terms, alpha), weights)


def _log_of_others(log_p: jax.Array) -> jax.Array:
  """[b, K] log(1 - p_k) of log p, finite with its gradient where p_k rounds to 1.

  A power of 1 - p_k would have an infinite gradient there for gamma < 1. Only the likeliest class
  can come near, so it alone needs the sum over the others.
  """
  likeliest = jax.nn.one_hot(log_p.argmax(axis=-1), log_p.shape[-1], dtype=bool)
  others = jax.nn.logsumexp(log_p, axis=-1, keepdims=True, where=~likeliest)
  return jnp.where(likeliest, others, jnp.log1p(-jnp.exp(jnp.where(likeliest, -jnp.inf, log_p))))


def sigmoid_focal(
  logits: jax.Array,
  labels: jax.Array,
  *,
  gamma: float = 2.0,
  alpha: float = 0.25,
  weights: PerClass = None,
) -> jax.Array:
  """Focal loss (Lin et al. 2017, equation 5) of each class against the rest, q = sigmoid(logits).

  -sum_k w_k {alpha y_k (1 - q_k)^gamma log q_k + (1 - alpha) (1 - y_k) q_k^gamma log(1 - q_k)}

  Args:
    logits: [b, K].
    labels: [b] class indices or [b, K] multi-hot.
    gamma: how much less a decision counts the better it is; at 0 this is a `sigmoid_bce`.
    alpha: weight of presence; that of absence is 1 - alpha.
    weights: [K] class weights, by default 1.

  Returns:
    [b] losses. An index out of range reads as the absence of every class: mask it.
  """
  logits = _wide(logits)
  target = _targets(labels, logits)
  log_q, log_not_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
  present = alpha * target * jnp.exp(gamma * log_not_q) * log_q
  absent = (1 - alpha) * (1 - target) * jnp.exp(gamma * log_q) * log_not_q
  return _weighted_sum(-present - absent, weights)


def ldam(
  logits: jax.Array,
  labels: jax.Array,
  *,
  margins: jax.Array | np.ndarray,
  scale: float = 30.0,
  weights: PerClass = None,
) -> jax.Array:
  """Label-distribution-aware margin loss (Cao et al. 2019, equation 13).

  `softmax_ce` of scale (z_k - margin_k y_k): a class must win by its margin.

  Args:
    logits: [b, K] cosines, of a classifier with normalised features and weights.
    labels: [b] class indices or [b, K] multi-hot.
    margins: [K], those of `imbalance.ldam_margins`.
    scale: of the cosines, whose softmax alone could not come near 1.
    weights: [K] class weights, by default 1.

  Returns:
    [b] losses.
  """
  logits = _wide(logits)
  lowered = logits - _scaled(_targets(labels, logits), margins)
  return softmax_ce(scale * lowered, labels, weights=weights)


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
  weights: PerClass = None,
) -> jax.Array:
  """QuadSNet's weighted margin loss (Ali et al. 2021), after Sabour et al. 2017, equation 4.

  sum_k w_k {y_k max(0, m+ - s_k)^a + down_weight (1 - y_k) max(0, s_k - m-)^a}

  Args:
    logits: [b, K].
    labels: [b] class indices or [b, K] multi-hot.
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
  target = _targets(labels, scores)
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


_LEAST = -1e4  # log-odds below which a probability is 0 in any float


def real(log_odds: jax.Array) -> jax.Array:
  """-log D of [b] log-odds of being real: of real images, and of generated ones for their maker."""
  return jax.nn.softplus(-_wide(log_odds))


def generated(log_odds: jax.Array) -> jax.Array:
  """-log(1 - D) of [b] log-odds of being real: the discriminator's loss of generated images."""
  return jax.nn.softplus(_wide(log_odds))


def hinge_real(verdicts: jax.Array) -> jax.Array:
  """max(0, 1 - D) of [b] verdicts on real images (Miyato et al. 2018, equation 16)."""
  return jnp.maximum(0, 1 - _wide(verdicts))


def hinge_generated(verdicts: jax.Array) -> jax.Array:
  """max(0, 1 + D) of [b] verdicts on generated images; their maker minimises -D itself."""
  return jnp.maximum(0, 1 + _wide(verdicts))


def log_odds(logits: jax.Array) -> jax.Array:
  """Log-odds of being any of K classes, beside a class more whose logit is 0.

  D = Z / (Z + 1) with Z = sum_k exp l_k (Salimans et al. 2016, section 5): the probability that an
  image is real, told by a classifier whose class K + 1 is "generated".

  Args:
    logits: [b, K], each read as no less than -1e4, where D is 0 and the losses are still finite.

  Returns:
    [b] log Z; D is their sigmoid.
  """
  return jax.nn.logsumexp(jnp.maximum(_wide(logits), _LEAST), axis=-1)
