"""Soft attention by loops in NumPy, and modules with random variables to hold against them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from medjax import trees
from medjax.models import net as net_lib

MODE = net_lib.Mode(net_lib.Execution())
KINDS = ("paper", "paper_no_gamma", "keras_quirk")
WIDTH = 21  # of the metadata of HAM10000


def random(shapes, seed=0):
  """Random leaves: variances positive, kernels of a size that keeps maps as large as they are."""
  rng = np.random.default_rng(seed)

  def numbers(path, leaf):
    positive = path.endswith(("var", "scale"))
    width = math.sqrt(2 / math.prod(leaf.shape[:-1])) if path.endswith("kernel") else 0.3
    drawn = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(0, width, leaf.shape)
    return np.asarray(drawn, leaf.dtype)

  return trees.unflatten({path: numbers(path, x) for path, x in trees.flatten(shapes).items()})


def module(layer, *shape, seed=0):
  """Random variables of a layer, and a random input."""
  x = np.random.default_rng(seed + 1).normal(size=shape).astype(jnp.result_type(float))
  shapes = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x, MODE), x)
  return {kind: random(tree, seed) for kind, tree in shapes.items() if kind != "endpoints"}, x


def conv(x, kernel, bias):
  """SAME convolution of [b, h, w, C] with an odd kernel, by shifts."""
  rows, columns = kernel.shape[:2]
  padded = np.pad(x, ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0)))
  taps = [
    padded[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j]
    for i in range(rows)
    for j in range(columns)
  ]
  return np.sum(taps, axis=0) + bias


def quirk_scores(x, kernel, bias):
  """The original layer's scores, number by number; `kernel` is [C, 3, 3, K]."""
  channels = x.shape[-1]
  up, first = (channels - 1) // 2, (channels - 3) // 2
  scores = np.zeros((*x.shape[:3], kernel.shape[-1])) + bias
  for b, i, j, k in np.ndindex(scores.shape):
    for a, column, c in np.ndindex(kernel.shape[:3]):
      row, beside = i + a - up, j + column - 1
      if 0 <= row < x.shape[1] and 0 <= beside < x.shape[2]:
        scores[b, i, j, k] += kernel[a, column, c, k] * x[b, row, beside, first + c]
  return scores


def attention(scores):
  """[b, h, w, K] scores to the sum of the maps, map by map."""
  total = np.zeros((*scores.shape[:3], 1))
  for b in range(scores.shape[0]):
    for k in range(scores.shape[3]):
      powers = np.exp(np.maximum(scores[b, :, :, k], 0))
      total[b, :, :, 0] += powers / powers.sum()
  return total


def attended(params, x, kind):
  scores = (quirk_scores if kind == "keras_quirk" else conv)(
    x, params["scores"]["kernel"], params["scores"]["bias"]
  )
  return params.get("gamma", 1.0) * x * attention(scores)


def pooled(x, side=2):
  """Max-pooling, number by number; squares that end outside end at the border."""
  rows, columns = (-(-n // side) for n in x.shape[1:3])
  out = np.zeros((x.shape[0], rows, columns, x.shape[3]))
  for i, j in np.ndindex(rows, columns):
    square = x[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
    out[:, i, j] = square.max((1, 2))
  return out


def two_paths(params, x, kind):
  paths = [pooled(x), pooled(attended(params["soft"], x, kind))]
  return np.maximum(np.concatenate(paths, -1), 0)


def normed(params, stats, x, epsilon=1e-3):
  deviation = np.sqrt(stats["var"] + epsilon)
  return (x - stats["mean"]) / deviation * params["scale"] + params["bias"]
