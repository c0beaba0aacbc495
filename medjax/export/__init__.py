"""Trained classifiers as files that run without medjax: JAX's own form, ONNX, and the weights.

    export.write(source, pathlib.Path("exported"), onnx=True)

The folder is opened again by `medjax.artifact`, which checks it against its manifest.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from medjax import artifact, command, config, contract, trees
from medjax.export import handing, program
from medjax.metrics import operating

_PROBES = 4  # random images that folding is tried on


def write(
  out: pathlib.Path,
  source: program.Source,
  origin: dict[str, Any] | None = None,
  fold: bool = False,
  onnx: bool = False,
) -> dict[str, Any]:
  """Writes a classifier into a new folder, see `medjax.artifact`.

  Args:
    out: the folder; must be empty or missing.
    source: the classifier.
    origin: where it came from, JSON types without a machine's paths.
    fold: takes batch norms up into the convolutions before them, in both programs; the weights stay
      as they were learnt.
    onnx: writes `model.onnx` too, by an environment of its own.

  Returns:
    The manifest.

  Raises:
    FileExistsError: something is in the folder.
    ValueError: the network gives no scores, or has nothing to fold.
    RuntimeError: the conversion to ONNX failed.
  """
  command.check_empty(out)
  out.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=out.parent) as made:
    partial = pathlib.Path(made) / out.name
    partial.mkdir()
    _fill(partial, source, origin or {}, fold, onnx)
    partial.replace(out)
  return artifact.verified(out)


def _fill(
  folder: pathlib.Path, source: program.Source, origin: dict[str, Any], fold: bool, onnx: bool
) -> None:
  """Writes the files, and the manifest that vouches for them last."""
  about = _described(source) | {"origin": {**origin, **_versions()}}
  about["batch_norms"] = _write_program(folder / artifact.PROGRAM, source, fold)
  _write_weights(folder / artifact.WEIGHTS, source)
  names = [artifact.PROGRAM, artifact.WEIGHTS]
  if onnx:
    about["onnx"] = handing.converted(source, folder, fold)
    names.append(artifact.ONNX)
  artifact.write(folder, about, names)


def _write_program(path: pathlib.Path, source: program.Source, fold: bool) -> dict[str, int]:
  """Writes the program; how many batch norms there are, and went into convolutions."""
  function = program.scores(source, source.stage.train.precision, fold)
  path.write_bytes(program.serialised(function, source))
  norms = sum(path.endswith("/var") for path in trees.flatten(source.state.stats))
  if fold and not function.folded:
    raise ValueError(
      f"there is nothing to fold: of the {norms} batch norms of {source.stage.model.name} none"
      " follows a convolution directly, with nothing else that reads its result and in float32:"
      " export without --fold"
    )
  if fold:
    _check_folded(function, source)
  return {"found": norms, "folded": function.folded}


def _check_folded(function: Any, source: program.Source) -> None:
  given = program.random_inputs(source, _PROBES).values()
  plain = program.scores(source, source.stage.train.precision)
  want, got = (np.asarray(jax.jit(each)(*given)) for each in (plain, function))
  off = program.difference(got, want, source.info.multi_label)
  if not off <= program.TOLERANCE:
    raise ValueError(
      f"folded batch norms change logits by {off:.1e} of the largest: export without --fold"
    )


def _write_weights(path: pathlib.Path, source: program.Source) -> None:
  """Writes parameters and statistics under the names that `init_from` knows."""
  tree = {"params": source.state.params, "stats": source.state.stats}
  flat = {name: np.array(value, order="C") for name, value in trees.flatten(tree).items()}
  safetensors.numpy.save_file(flat, path)


def _described(source: program.Source) -> dict[str, Any]:
  """What the manifest says of the classifier itself."""
  stage, info = source.stage, source.info
  return {
    "classes": list(info.classes),
    "multi_label": info.multi_label,
    "inputs": {
      name: {"shape": ["batch", *each.shape[1:]], "type": each.dtype.name}
      for name, each in source.inputs.items()
    },
    "channels": {1: "grey", 3: "RGB"}.get(info.image_shape[2], "as in the files"),
    "output": {"shape": ["batch", len(info.classes)], "type": "float32", "what": "scores"},
    "preprocessing": "inside: give the pixels as they are, of the size above",
    "reading": config.to_dict(stage.data.reading),
    "encoding": [dict(each) for each in info.encoding if contract.METADATA in source.inputs],
    "operating": operating.to_dict(source.operating),
    "synthetic": info.synthetic,
    "mean": list(info.mean),
    "std": list(info.std),
    "precision": stage.train.precision,
    "platforms": list(program.PLATFORMS),
    "model": config.to_dict(stage.model),
    "objective": config.to_dict(stage.objective),
  }


def _versions() -> dict[str, str]:
  found = {"jax": jax.__version__}
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # started without installing
    found["medjax"] = importlib.metadata.version("medjax")
  return found
