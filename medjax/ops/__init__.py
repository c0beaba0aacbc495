"""Convolution and pooling: the one door through which models reach them.

A convolution comes in two forms with the same values and gradients. `plain` is XLA's own, right for
GPU and for export. `cpu` goes around what XLA's CPU compiler does badly:

* The gradients of a convolution are convolutions with permuted dimensions. Only at the top level of
  a program are they brought back to the layout of the fast kernel; inside a `lax.scan` they fall to
  a naive loop. The `cpu` form writes both gradients as forward convolutions in that layout.
* Towards the input of a strided convolution every product of a pixel and a kernel gets a place in
  memory before it is added up. The `cpu` form computes pixels that meet the same taps together.
* The gradient towards a kernel reads one place of a map in all examples on end, for which those of
  large batches lie too far apart. The `cpu` form adds it up over parts of a batch. Where filters
  are few, it convolves the output's gradient with the map instead of the map with it.
* Under a stride all patches of a map are written out, more than caches hold where a batch is large.
  The `cpu` form takes a few examples at a time.
* A convolution whose kernel has more positions than its map swaps the two, which no fast kernel
  knows. The `cpu` form pads the map beforehand.
* A depthwise convolution runs channel by channel. The `cpu` form shifts, multiplies and adds.
* Rows and columns of a kernel that only ever meet padding are left out: on a map of 2x2 a 7x7
  kernel is one of 3x3.
* A 1x1 convolution is a matrix product and is written as one, its kernel's gradient so that the
  smaller of the two maps is the one that is transposed.

Which form runs is an argument, never a guess from the machine: the same program can be exported.
All arrays are NHWC, all kernels HWIO.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax

from medjax.ops import dense, depthwise, pooling, walk

Pair = walk.Pair
Padding = walk.Padding
max_pool, avg_pool = pooling.max_pool, pooling.avg_pool
adaptive_avg_pool, global_avg_pool = pooling.adaptive_avg_pool, pooling.global_avg_pool
Form = Literal["cpu", "plain"]


def conv(
  x: jax.Array,
  kernel: jax.Array,
  *,
  strides: Pair = (1, 1),
  padding: Padding | Sequence[Pair] = "SAME",
  dilation: Pair = (1, 1),
  groups: int = 1,
  form: Form,
) -> jax.Array:
  """Convolves as `lax.conv_general_dilated` does.

  Args:
    x: [b, H, W, C].
    kernel: [kh, kw, C / groups, F], of the dtype of `x`, which the result has too.
    strides, dilation: (rows, columns).
    padding: `SAME` puts the odd row and column at the bottom and right; or `VALID`; or numbers.
    groups: parts that channels are cut into; C makes it depthwise.
    form: `plain` or `cpu`, see the module. Neither differs where `cpu` has no cure: groups of more
      than one channel, and depthwise kernels with more filters than channels.

  Returns:
    [b, H', W', F]. With `cpu`, only reverse-mode derivatives exist.

  Raises:
    ValueError: for another form.
  """
  if form not in ("cpu", "plain"):
    raise ValueError(f"no form {form!r} of a convolution: take 'cpu' or 'plain'")
  window = [(size - 1) * step + 1 for size, step in zip(kernel.shape[:2], dilation, strict=True)]
  rows, columns = walk.resolved(x.shape[1:3], window, strides, padding)
  geometry = walk.Geometry(strides, (rows, columns), dilation)
  if form == "cpu":
    kernel, geometry = walk.trimmed(x.shape[1:3], kernel, geometry)
  if form == "cpu" and groups == 1:
    return dense.conv(x, kernel, geometry)
  if form == "cpu" and groups == x.shape[-1] == kernel.shape[-1]:
    return depthwise.conv(x, kernel, geometry)
  return dense.plain(x, kernel, geometry, groups=groups)
