"""Times a depthwise convolution with both gradients: medjax, lax.conv and PyTorch.

medjax's, and the plain form beside it, work on both devices of a CPU, as in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib

import numpy as np
import results
import rounds

from medjax.bench import options as options_lib

SIDES = (
  ("medjax", "cpu form"),
  ("lax", "plain form"),
  ("torch", "contiguous"),
  ("torch", "channels_last"),
)
WANTED = {"lax": ">= 5", "torch": ">= 1"}
SIZES = (3, 5, 7)
MAPS = ((32, 128), (64, 32))  # side, channels
BATCH, STEPS = 16, 8


def measure(asked: options_lib.Asked) -> Iterator[list[results.Measured]]:
  """Every kernel size on every map."""
  for side, channels in MAPS[:1] if asked.quick else MAPS:
    for size in SIZES:
      side, steps = asked.size or side, asked.steps or STEPS
      options = dict(kernel=size, side=side, channels=channels, batch=asked.batch or BATCH)
      with contextlib.ExitStack() as stack:
        options |= dict(steps=steps, device=asked.device)
        sides = [rounds.start(stack, "depthwise", *pair, options) for pair in SIDES]
        _check_alike(sides)
        rounds.alternate(sides, asked.rounds, steps)
      model = f"depthwise_{size}x{size}_{side}px_{channels}"
      yield results.of_sides("depthwise", model, sides, WANTED, "seconds for all three")


def _check_alike(sides: list[rounds.Side]) -> None:
  first = np.asarray(sides[0].about["norms"])
  for side in sides[1:]:
    if not np.allclose(side.about["norms"], first, rtol=1e-3):
      raise rounds.Failed(f"{side.name} finds {side.about['norms']}, {sides[0].name} {first}")


def side(library: str, variant: str, options: dict) -> rounds.Work:
  """What a process of `measure` does."""
  shape = options["batch"], options["side"], options["side"], options["channels"]
  rng = np.random.default_rng(0)
  x, g = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
  kernel = rng.normal(size=(options["kernel"],) * 2 + (1, shape[-1])).astype(np.float32)
  make = _of_torch if library == "torch" else _of_jax
  once, versions = make(variant, x, kernel, g)

  def run() -> None:
    for _ in range(options["steps"]):
      once()

  norms = [float(np.linalg.norm(np.asarray(found))) for found in once()]
  return rounds.Work(run, {"norms": norms, "versions": versions})


def _of_jax(variant: str, *arrays: np.ndarray) -> tuple[Callable, dict[str, str]]:
  import jax

  from medjax import contract, ops
  from medjax import mesh as mesh_lib

  mesh_lib.divide_cpu()
  mesh, form = mesh_lib.make(), variant.split()[0]
  whole, examples = mesh_lib.REPLICATED, mesh_lib.cut()

  def all_three(x, kernel, g):
    conv = lambda x, kernel: ops.conv(x, kernel, groups=x.shape[-1], form=form)  # noqa: E731
    y, pull = jax.vjp(conv, x, kernel)
    to_x, to_kernel = pull(g)
    return y, to_x, jax.lax.psum(to_kernel, contract.AXIS)

  specs = examples, whole, examples
  mapped = mesh_lib.mapped(all_three, mesh, specs, (examples, examples, whole))
  arrays = [mesh_lib.put(mesh, array, spec) for array, spec in zip(arrays, specs, strict=True)]
  return lambda: jax.block_until_ready(mapped(*arrays)), {"jax": jax.__version__}


def _of_torch(variant: str, *arrays: np.ndarray) -> tuple[Callable, dict[str, str]]:
  import torch

  layout = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}[variant]
  x, kernel, g = map(torch.from_numpy, arrays)
  x, g = (t.permute(0, 3, 1, 2).contiguous(memory_format=layout) for t in (x, g))
  kernel = kernel.permute(3, 2, 0, 1).contiguous(memory_format=layout)
  x.requires_grad_()
  kernel.requires_grad_()

  def once():
    y = torch.nn.functional.conv2d(x, kernel, padding="same", groups=x.shape[1])
    return y.detach(), *torch.autograd.grad(y, (x, kernel), g)

  return once, {"torch": torch.__version__}
