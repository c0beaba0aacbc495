"""What embeddings are worth for a labelled set: two classifiers on them, and a picture of them.

The classifiers run on one device, whatever the number of devices that made the embeddings.
"""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from medjax import losses

NEIGHBOURS = 20
ITERATIONS = 200  # of L-BFGS, at most
_BLOCK = 256  # rows that are compared with all training rows at a time
_TOLERANCE = 1e-6  # L-BFGS ends where no entry of the gradient is larger
_EXACT = "float32"  # products of matrices, which GPUs round to fewer digits unless told


def nearest(
  train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, k: int = NEIGHBOURS
) -> np.ndarray:
  """The commonest class among the k training rows of the largest cosine; of equal ones the first.

  Args:
    train: [n, D] embeddings. labels: [n] int of theirs, below `classes`. test: [m, D] embeddings.
    k: neighbours; all training rows where there are fewer.

  Returns:
    [m] int.
  """
  rows = -(-len(test) // _BLOCK) * _BLOCK
  padded = np.zeros((rows, test.shape[1]), test.dtype)
  padded[: len(test)] = test
  found = _vote(*jax.device_put((train, labels, padded)), classes, min(k, len(train)))
  return jax.device_get(found)[: len(test)]


@functools.partial(jax.jit, static_argnums=(3, 4))
def _vote(train: jax.Array, labels: jax.Array, test: jax.Array, classes: int, k: int) -> jax.Array:
  train, votes = losses.unit_length(train), jax.nn.one_hot(labels, classes)

  def block(rows: jax.Array) -> jax.Array:  # [_BLOCK, D] to [_BLOCK]
    cosines = jnp.matmul(rows, train.T, precision=_EXACT)  # times the row's length
    return votes[lax.top_k(cosines, k)[1]].sum(1).argmax(1)

  return lax.map(block, test.reshape(-1, _BLOCK, test.shape[1])).ravel()


class _Weights(NamedTuple):
  kernel: jax.Array  # [D, K]
  bias: jax.Array  # [K]


def linear(
  train: np.ndarray, labels: np.ndarray, test: np.ndarray, classes: int, c: float = 1.0
) -> np.ndarray:
  """Class probabilities by multinomial logistic regression on standardised embeddings.

  The mean cross-entropy over n rows plus |W|^2 / (2 c n) is minimised by L-BFGS over all rows; the
  bias is not penalised. That is scikit-learn's LogisticRegression(C=c) after its StandardScaler;
  with two classes C=2c, since it then penalises the difference of their weights.

  Args:
    train: [n, D] embeddings. labels: [n] int of theirs, below `classes`. test: [m, D] embeddings.
    c: inverse of the penalty's strength.

  Returns:
    [m, K] float.
  """
  given = jax.device_put((train, labels, test, np.asarray(c, train.dtype)))
  return jax.device_get(_regression(*given, classes))


@functools.partial(jax.jit, static_argnums=4)
def _regression(
  train: jax.Array, labels: jax.Array, test: jax.Array, c: jax.Array, classes: int
) -> jax.Array:
  mean, deviation = train.mean(0), train.std(0)
  scale = jnp.where(deviation > 0, 1 / deviation, 0)  # a column that never changes says nothing
  standard = (train - mean) * scale

  def loss(weights: _Weights) -> jax.Array:
    entropy = optax.softmax_cross_entropy_with_integer_labels(_logits(weights, standard), labels)
    return entropy.mean() + (weights.kernel**2).sum() / (2 * c * len(train))

  start = _Weights(
    jnp.zeros((train.shape[1], classes), train.dtype), jnp.zeros(classes, train.dtype)
  )
  weights = _minimised(loss, start)
  return jax.nn.softmax(_logits(weights, (test - mean) * scale))


def _logits(weights: _Weights, rows: jax.Array) -> jax.Array:
  return jnp.matmul(rows, weights.kernel, precision=_EXACT) + weights.bias


def _minimised(loss, weights: _Weights) -> _Weights:
  """Where L-BFGS, from `weights`, finds the gradient of `loss` to vanish."""
  rule = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def unfinished(carry) -> jax.Array:
    number, _, _, steepest = carry
    return (number < ITERATIONS) & (steepest > _TOLERANCE)

  def step(carry):
    number, weights, state, _ = carry
    value, grad = value_and_grad(weights, state=state)
    updates, state = rule.update(grad, state, weights, value=value, grad=grad, value_fn=loss)
    steepest = jnp.max(jnp.array([jnp.abs(leaf).max() for leaf in grad]))
    return number + 1, optax.apply_updates(weights, updates), state, steepest

  carry = (
    jnp.zeros((), jnp.int32),
    weights,
    rule.init(weights),
    jnp.full((), jnp.inf, weights.bias.dtype),
  )
  return lax.while_loop(unfinished, step, carry)[1]


Method = Literal["pca", "tsne"]
METHODS: dict[Method, str] = {"pca": "principal components", "tsne": "t-SNE"}


def plane(embeddings: np.ndarray, method: Method) -> np.ndarray:
  """Embeddings [n, D] as points [n, 2]: their two largest principal components, or t-SNE's map.

  The map of t-SNE begins at the components, so it is the same at every start.
  """
  from sklearn import decomposition, manifold  # takes a second to import

  values = embeddings.astype(np.float64)
  if method == "pca":
    return decomposition.PCA(2, svd_solver="full").fit_transform(values)
  near = min(30.0, (len(values) - 1) / 3)  # t-SNE's own bound for few points
  return manifold.TSNE(perplexity=near, init="pca", random_state=0).fit_transform(values)
