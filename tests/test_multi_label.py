"""Training on images with several classes, from the step to the report; LDAM with its weights."""

import csv
import dataclasses
import json

import jax
import numpy as np
from PIL import Image
import pytest
from scipy import special

from medjax import augment, contract, evaluate, main, objectives, optim, settings
from medjax import mesh as mesh_lib
from medjax.models import net as net_lib

N, FEATURES, CLASSES = 24, 16, ("mass", "nodule", "effusion")
INFO = contract.DataInfo(CLASSES, (4, 4, 1), (10, 4, 12), 40, (0.5,), (0.2,), multi_label=True)
SGD = settings.SGD(lr=0.5, momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.0)


@pytest.fixture(autouse=True)
def _double_precision():
  with jax.enable_x64(True):
    yield


def _linear_net():
  def init(key, images):
    return {"head": {"kernel": jax.random.normal(key, (FEATURES, 3), images.dtype)}}, {}

  def apply(params, stats, batch, **_):
    flat = batch[contract.IMAGE].reshape(len(batch[contract.IMAGE]), -1)
    return net_lib.Result(flat @ params["head"]["kernel"], flat), stats

  return net_lib.Net(init, apply)


def _batch(labels):
  rng = np.random.default_rng(0)
  return {
    contract.IMAGE: rng.integers(0, 256, (N, 4, 4, 1), np.uint8),
    contract.LABEL: labels,
    contract.MASK: np.ones(N),
    contract.SLOT: np.arange(N, dtype=np.int32),
  }


def _several():
  return (np.random.default_rng(1).random((N, 3)) < 0.4).astype(np.float32)


def _objective(cfg, info=INFO, steps=10):
  change = augment.make(settings.Augment())
  return objectives.make(cfg, _linear_net(), optim.make(SGD, steps, 0), change, info)


def _stepped(objective, labels, step=0):
  """(logits before, metrics) of one step on 8 devices."""
  mesh, whole = mesh_lib.make(jax.devices()[:8]), mesh_lib.REPLICATED
  mapped = mesh_lib.mapped(
    objective.step, mesh, (whole, mesh_lib.cut(), whole, whole), (whole, whole)
  )
  state = objective.init(jax.random.key(0)).replace(step=np.int32(step))
  batch = _batch(labels)
  _, metrics = mapped(state, batch, jax.random.key(1), np.float64(0.5))
  flat = batch[contract.IMAGE].reshape(N, -1) / 255
  return flat @ np.asarray(state.params["head"]["kernel"]), metrics


@pytest.mark.parametrize("name", ["sigmoid_bce", "weighted_bce"])
def test_the_loss_is_the_sum_over_decisions(name):
  loss = settings.VARIANTS[settings.Loss][name]
  objective = _objective(settings.Supervised(loss=loss, class_weights="mass=3"))
  labels = _several()
  logits, metrics = _stepped(objective, labels)
  q, weights = special.expit(logits), np.array([3, 1, 1])
  there = np.array([10, 4, 12]) / 40
  present, absent = (1 - there, there) if name == "weighted_bce" else (1, 1)
  terms = -weights * (present * labels * np.log(q) + absent * (1 - labels) * np.log(1 - q))
  assert float(metrics["loss"]) == pytest.approx(terms.sum(1).mean(), rel=1e-9)
  assert float(metrics["accuracy"]) == pytest.approx(((q >= 0.5) == labels).mean(), abs=1e-12)


def test_scores_are_a_probability_a_class():
  objective = _objective(settings.Supervised(loss=settings.SigmoidFocal(), class_weights="none"))
  scores = objective.scores(np.array([[0.0, np.log(3), -np.log(3)]]))
  np.testing.assert_allclose(scores, [[0.5, 0.75, 0.25]], atol=1e-12)


@pytest.mark.parametrize("loss", [settings.SoftmaxCE(), settings.Margin(), settings.Focal()])
def test_losses_of_one_class_an_image_are_refused(loss):
  cfg = settings.Supervised(loss=loss, class_weights="none")
  with pytest.raises(ValueError, match=r"set objective\.loss to sigmoid_bce, weighted_bce"):
    _objective(cfg)


@pytest.mark.parametrize("weights", settings.BY_COUNTS)
def test_weights_by_shares_of_the_images_are_refused(weights):
  cfg = settings.Supervised(loss=settings.SigmoidBCE(), class_weights=weights)
  with pytest.raises(ValueError, match=r"class_weights=\w+ shares out .* set it to none"):
    _objective(cfg)


def test_a_class_that_would_split_a_cell_of_the_table_is_refused():
  info = dataclasses.replace(INFO, classes=("mass", "a|b", "effusion"))
  cfg = settings.Supervised(loss=settings.SigmoidBCE(), class_weights="none")
  with pytest.raises(ValueError, match=r"'a\|b' holds '\|'"):
    _objective(cfg, info)


@pytest.mark.parametrize(("step", "weighted"), [(7, False), (8, True)])
def test_ldam_is_weighted_for_the_last_fifth_of_the_training(step, weighted):
  """Cao et al. 2019: margins n^(-1/4) all along, class-balanced weights from 80 % on."""
  counts, labels = np.array([40, 10, 5]), np.random.default_rng(2).integers(0, 3, N)
  info = dataclasses.replace(INFO, class_counts=tuple(counts.tolist()), multi_label=False)
  cfg = settings.Supervised(loss=settings.LDAM(), class_weights="class_balanced", defer_weights=0.8)
  logits, metrics = _stepped(_objective(cfg, info), labels.astype(np.int32), step)
  inverse = 1 / (1 - 0.999**counts)
  weights = 3 * inverse / inverse.sum() if weighted else np.ones(3)
  lowered = logits - np.eye(3)[labels] * 0.5 * (5 / counts) ** 0.25
  each = -special.log_softmax(30 * lowered, axis=1)[np.arange(N), labels]
  assert float(metrics["loss"]) == pytest.approx((weights[labels] * each).mean(), rel=1e-9)


CONFIG = """
from ml_collections import ConfigDict

def get_config(arg):
  return ConfigDict(dict(
    data=dict(
      name="table", root={root!r}, cache={cache!r}, separator="|", numbers=("age",),
      image_size=16, channels=1, split=dict(mode="grouped", val=0.2, test=0.3),
    ),
    model=dict(
      name="quadsnet", widths=(4,), streams=("cs3",), convs_per_block=1, hidden=0, bn_momentum=0.9,
      metadata="two_layer",
    ),
    objective=dict(name="supervised", loss="sigmoid_bce", class_weights="none"),
    optimizer=dict(name="adam", lr=0.01),
    train=dict(batch_size=16, length="60 steps"),
    eval=dict(bootstrap=50, every="20 steps"),
  ))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The stage's folder of a run on a table of images with either, both or none of two marks."""
  folder = tmp_path_factory.mktemp("several")
  rng = np.random.default_rng(0)
  with (folder / "images.csv").open("w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(["path", "label", "group", "age"])
    for i in range(120):
      top, left = rng.integers(0, 2, 2)
      pixels = rng.integers(0, 90, (16, 16), np.uint8)
      pixels[:5] += np.uint8(80 * top)
      pixels[:, :5] += np.uint8(80 * left)
      Image.fromarray(pixels).save(folder / f"{i}.png")
      names = "|".join(name for name, there in (("top", top), ("left", left)) if there)
      rows.writerow([f"{i}.png", names, f"patient{i // 2}", 40 + i % 30])
  config = folder / "several.py"
  config.write_text(CONFIG.format(root=str(folder / "images.csv"), cache=str(folder)))
  with jax.enable_x64(False):
    assert main.main([f"--config={config}", f"--workdir={folder / 'run'}"]) == 0
  return folder / "run" / "train"


def test_a_run_on_images_of_several_classes_ends_in_a_report(trained):
  table = evaluate.read(trained / "predictions_test.csv")
  assert table.classes == ("left", "top") and table.multi_label
  assert {int(n) for n in table.labels.sum(1)} == {0, 1, 2}
  rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
  assert rows[-1]["val/auc"] > 0.8 and rows[-1]["loss"] < rows[0]["loss"]
  page = (trained.parent / "report.html").read_text()
  assert "An image may have several classes" in page and "exact match" in page
