"""Medical image classification in JAX: pretrain, fine-tune, evaluate, with intervals."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from medjax import predict


def load(
  model: str | os.PathLike[str], *others: str | os.PathLike[str], stage: str = ""
) -> predict.Predictor:
  """Opens a trained classifier for images in memory.

      scores = medjax.load("runs/quickstart")(images)  # [n, K]

  Args:
    model: a workdir, the folder of a stage in one, of a checkpoint, or an exported one.
    others: further ones; the scores are then the mean of all.
    stage: of a workdir, where it is not the last classifier.

  Returns:
    A function of images [n, H, W, C], or of a list of images of any sizes; see
    `medjax.predict.Predictor`.

  Raises:
    FileNotFoundError: no trained network is there.
    ValueError: the stage gives no scores, or models know different classes.
  """
  from medjax import predict  # JAX and all that it needs: `import medjax` itself costs nothing

  return predict.opened([pathlib.Path(each) for each in (model, *others)], stage)
