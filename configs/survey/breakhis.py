"""Breast tumours under the microscope, benign or malignant, on a published fold of BreakHis.

  python -m medjax.main --config=configs/survey/breakhis.py \
    --config.data.root=FOLDER --workdir=runs/breakhis

The set is that of tables 2 and 3 of Ning's survey ("Medical Image Classification based on Deep
Learning"), which trains nothing on it; the network is its plain one. The first of the set's five
folds, which no patient crosses; `:folds` runs all five, a stage each. `:types` has the eight
tumours for classes, `:x40`, `:x100`, `:x200` and `:x400` one magnification. Not run on the real
files.
"""

from ml_collections import ConfigDict

from configs import common

STAIN = dict(name="ham_aug")  # a slide has no right way up
FOLDS = tuple(dict(name=f"fold{fold}", data=dict(fold=fold)) for fold in range(1, 6))


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; variants `:folds`, `:types`, `:x40` to `:x400` and `:smoke`."""
  config = dict(
    title="BreakHis",
    data=dict(name="breakhis", root=f"{common.DATA}/breakhis", image_size=128, fold=1),
    augment=STAIN,
    model=dict(name="survey_cnn"),
    objective=dict(name="supervised", loss="softmax_ce", class_weights="balanced"),
    optimizer=dict(name="adamw", lr=1e-3),
    train=dict(batch_size=32, length="20 epochs"),
  )
  scales = {f"x{scale}": dict(data=dict(magnification=scale)) for scale in (40, 100, 200, 400)}
  types = dict(data=dict(task="types"))
  return common.vary(arg, config, types=types, **scales, folds=dict(stages=FOLDS))
