"""What helps against imbalance? Twelve ways, over three grouped folds, each against plain training.

  python -m medjax.main --config=configs/imbalance_bench.py --workdir=runs/imbalance_bench

HAM10000, seven classes, of which the rarest has 115 of 10,015 images: Color-MedNet of width 8 on
64 px, 15 epochs, one seed. Every lesion is tested once; the predictions of the three folds are put
together, and the balanced accuracy of each way is told with its paired difference to cross-entropy
without weights, in `study_summary.csv`, `study.png` and the report.

  :phantom   drawn films, of whose patients one of 51 has the rarest class
  :smoke     a few steps of three ways on those
  +few       seven of the twelve: weights, focal loss, margins, sampling, mixup and a forest

`:+few` and `:phantom+few` were run; their tables are in README, "Studies". Balanced accuracy on
HAM10000: 0.481 without anything, 0.602 with sampling by class, difference +0.121
(+0.099 to +0.143).
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from configs import common

FOLDS = 3
EVAL = dict(select="balanced_accuracy", every="3 epochs")


def _supervised(**changes) -> dict:
  return dict(objective=dict(name="supervised", class_weights="none") | changes)


# `softmax` is the baseline; weights and sampling are never both on.
ARMS = dict(
  softmax=_supervised(),
  balanced=_supervised(class_weights="balanced"),
  inv_norm=_supervised(class_weights="inv_norm"),
  class_balanced=_supervised(class_weights="class_balanced"),
  focal=_supervised(loss="focal"),
  margin=_supervised(loss=dict(name="margin", mix=0.5), class_weights="balanced"),
  ldam_deferred=_supervised(loss="ldam", class_weights="class_balanced", defer_weights=0.8),
  sampled=_supervised() | dict(data=dict(feeding=dict(sampling="class_balanced"))),
  sampled_root=_supervised() | dict(data=dict(feeding=dict(sampling="square_root"))),
  mixup=_supervised(mixup=0.2),
  cutmix=_supervised(cutmix=1.0),
  random_forest=dict(objective=dict(name="classical", classifier="random_forest")),
)
FEW = ("softmax", "balanced", "focal", "ldam_deferred", "sampled", "mixup", "random_forest")


def get_config(arg: str = "") -> ConfigDict:
  """The experiment; `:phantom` is that on drawn films, `:smoke` a few steps of it."""
  few = {name: ARMS[name] for name in FEW}
  least = {name: ARMS[name] for name in ("softmax", "mixup", "random_forest")}
  ham = dict(name="ham10000", root=f"{common.DATA}/ham10000", image_size=64, channels=3)
  films = dict(name="phantom", patients=1020, shares=(30, 20, 1), image_size=64)
  small = films | dict(patients=306, image_size=16)
  variants = {
    "": _bench(ham, "ham_aug", ARMS, 8),
    "+few": _bench(ham, "ham_aug", few, 8),
    "phantom": _bench(films, "cxr_safe", ARMS, 8),
    "phantom+few": _bench(films, "cxr_safe", few, 8),
    "smoke": _bench(small, "cxr_safe", least, 4)
    | dict(train=common.SMOKE_TRAIN, eval=EVAL | common.SMOKE_EVAL),
  }
  return ConfigDict(common.choose(arg, **variants))


def _bench(data: dict, augment: str, arms: dict, width: int) -> dict:
  return dict(
    title=f"What helps against imbalance? {data['name']}",
    data=data,
    augment=augment,
    model=dict(name="mednet", width=width),
    train=dict(batch_size=64, length="15 epochs"),
    eval=EVAL,
    study=dict(columns=("arm", "fold"), pooled="fold", baseline="softmax"),
    stages=tuple(_stages(arms)),
  )


def _stages(arms: dict) -> Iterator[dict]:
  """Fold by fold, every arm."""
  each = (common.folds(FOLDS, change | dict(name=arm, cell=(arm,))) for arm, change in arms.items())
  for fold in zip(*each, strict=True):
    yield from fold
