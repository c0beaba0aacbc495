"""`python -m medjax.export.converting HANDED WEIGHTS OUT`: writes ONNX; see `handing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import importlib
import json
import pathlib
import sys
from typing import Any

import jax
from jax import export
import numpy as np

from medjax.export import handing, program

OPSET, IR = 13, 7  # older than what the importers of other tools have learnt to read since
BATCHES = (1, 7)  # at which the file is compared with the function


def main(argv: list[str]) -> int:
  """Converts what was handed over, tries the file, and prints what is known of it."""
  handed, weights, out = map(pathlib.Path, argv)
  source, fold = handing.received(handed, weights)
  function = program.scores(source, fold=fold)
  out.write_bytes(_converted(function, source).SerializeToString())
  _tidy(out)
  off = _difference(out, function, source)
  if not off <= program.TOLERANCE:
    told = f"error: onnxruntime's logits differ from JAX's by {off:.1e} of the largest"
    print(told, file=sys.stderr)
    return 1
  kinds = ("onnx", "onnxruntime", "jax2onnx")
  versions = {name: importlib.import_module("importlib.metadata").version(name) for name in kinds}
  print(json.dumps({"opset": OPSET, "ir": IR, "difference": off, **versions}))
  return 0


def _converted(function: Callable[..., jax.Array], source: program.Source) -> Any:
  """The function as a model of ONNX. Its images are floats, whole numbers as the pixels are."""
  jax2onnx, onnx = (importlib.import_module(name) for name in ("jax2onnx", "onnx"))
  shapes = [
    jax.ShapeDtypeStruct((program.BATCH, *each.shape[1:]), each.dtype)
    for each in source.inputs.values()
  ]
  with _symbolic_shapes(), _untidied():
    model = jax2onnx.to_onnx(
      function,
      shapes,
      model_name="medjax",
      opset=OPSET,
      input_names=[*source.inputs],
      output_names=["scores"],
    )
  # The first step turns pixels into floats. It takes floats as well, and MATLAB has no others.
  model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
  model.ir_version = IR
  return model


def _tidy(path: pathlib.Path) -> None:
  """Lets onnxruntime leave out steps that change nothing, such as transpositions there and back.

  At this level it only uses steps of the standard, the same on every machine; it names all the sets
  of steps that it knows beside those that it used.
  """
  onnx, runtime = (importlib.import_module(name) for name in ("onnx", "onnxruntime"))
  options = runtime.SessionOptions()
  options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
  options.optimized_model_filepath = str(path.with_suffix(".tidy"))
  runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
  path.with_suffix(".tidy").replace(path)
  model = onnx.load(path)
  del model.opset_import[:]
  model.opset_import.append(onnx.helper.make_opsetid("", OPSET))
  onnx.checker.check_model(model)
  path.write_bytes(model.SerializeToString())


def _symbolic_shapes() -> contextlib.AbstractContextManager[None]:
  """Makes onnx_ir take an open size of JAX by its name; it would ask it for a number."""
  core: Any = importlib.import_module("onnx_ir._core")
  kept = core._maybe_convert_to_symbolic_dim

  def converted(size: Any) -> Any:
    return kept(str(size) if export.is_symbolic_dim(size) else size)

  return _replaced(core, "_maybe_convert_to_symbolic_dim", converted)


def _untidied() -> contextlib.AbstractContextManager[None]:
  """Spares jax2onnx its search for steps that change nothing: `_tidy` comes to the same graph.

  The search goes through the whole graph for every step, for minutes where there are thousands.
  """
  api = importlib.import_module("jax2onnx.converter.conversion_api")
  return _replaced(api, "optimize_graph", lambda model: model)


@contextlib.contextmanager
def _replaced(module: Any, name: str, other: Any) -> Iterator[None]:
  """Has a module of another library use `other` by that name."""
  kept = getattr(module, name)
  setattr(module, name, other)
  try:
    yield
  finally:
    setattr(module, name, kept)


def _difference(
  path: pathlib.Path, function: Callable[..., jax.Array], source: program.Source
) -> float:
  """By how much logits of random images differ at most, see `program.difference`."""
  runtime: Any = importlib.import_module("onnxruntime")
  session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
  given = program.random_inputs(source, max(BATCHES))
  want, off = np.asarray(jax.jit(function)(*given.values())), []
  for size in BATCHES:
    feeds = {name: each[:size].astype(np.float32) for name, each in given.items()}
    (got,) = session.run(None, feeds)
    off.append(program.difference(got, want[:size], source.info.multi_label))
  return float(np.max(off))  # of NumPy, which does not pass over what is no number


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
