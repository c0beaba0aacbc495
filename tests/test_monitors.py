"""Monitors: what is logged equals scikit-learn on the very embeddings; what cannot be is told."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest
from sklearn import linear_model, metrics, neighbors, preprocessing

from medjax import config, contract, data, figures, monitors, settings, wiring
from medjax import mesh as mesh_lib

TINY = pathlib.Path(__file__).with_name("tiny.py")
TARGET = settings.Phantom(patients=60, image_size=16, seed=2)


def wired(folder: pathlib.Path, *sets: settings.Data) -> wiring.Bench:
  """A stage of SimCLR on three devices; one patient's batch fits neither them nor the parts."""
  tree = config.load(f"{TINY}:simclr")
  small = ["eval.batch_size=22", "model.streams=cs3", "model.widths=(8,)"]
  stage = config.parse(tree, small).stages[0]
  stage = dataclasses.replace(stage, eval=dataclasses.replace(stage.eval, monitors=sets))
  mesh = mesh_lib.make(jax.devices()[:3])
  return wiring.wire(0, stage, data.make(stage.data), folder, mesh)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> wiring.Bench:
  return wired(tmp_path_factory.mktemp("bench"), TARGET, TARGET)


@pytest.fixture(scope="module")
def state(bench):
  return mesh_lib.put(bench.mesh, jax.jit(bench.objective.init)(jax.random.key(0)))


@pytest.fixture(scope="module")
def watch(bench) -> monitors.Monitors:
  return monitors.make(bench)


@pytest.fixture(scope="module")
def looks(watch, state) -> list[monitors.Look]:
  return watch(state)


def embedded(bench, watch, state, part: str) -> tuple[np.ndarray, np.ndarray]:
  """Embeddings of a part and their labels, image after image, by another way than the feeds'."""
  images = watch.splits["phantom"].parts[part]
  pixels = np.stack([images.fetch(row) for row in range(len(images))])
  found = jax.jit(bench.objective.forward)(jax.device_get(state), {contract.IMAGE: pixels})
  return np.asarray(found.embedding), images.labels


def test_what_is_logged_equals_scikit_learn_on_the_embeddings(bench, watch, state, looks):
  (train, known), (val, truth) = (embedded(bench, watch, state, p) for p in ("train", "val"))
  np.testing.assert_allclose(looks[0].embeddings, val, atol=1e-5)
  np.testing.assert_array_equal(looks[0].labels, truth)
  scale = preprocessing.StandardScaler().fit(train)
  logistic = linear_model.LogisticRegression(max_iter=10_000, tol=1e-8)
  predicted = {
    "knn": neighbors.KNeighborsClassifier(20, metric="cosine").fit(train, known).predict(val),
    "probe": logistic.fit(scale.transform(train), known).predict(scale.transform(val)),
  }
  expected = {}
  for name, found in predicted.items():
    expected[f"{name}/phantom"] = metrics.accuracy_score(truth, found)
    expected[f"{name}_balanced/phantom"] = metrics.balanced_accuracy_score(truth, found)
  assert looks[0].scalars == pytest.approx(expected, abs=1e-12)
  assert len(set(expected.values())) > 1


def test_two_sets_of_one_name_are_told_apart(looks):
  assert [look.name for look in looks] == ["phantom", "phantom-2"]
  assert list(looks[1].scalars.values()) == list(looks[0].scalars.values())
  assert all(name.endswith("/phantom-2") for name in looks[1].scalars)


def test_a_second_look_compiles_nothing_and_copies_nothing_unasked(watch, state, looks):
  compiled = []

  def listen(event, seconds, **rest):
    if event.endswith("backend_compile_duration"):
      compiled.append(rest)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    with jax.transfer_guard("disallow"):
      again = watch(state)
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert compiled == [] and [look.scalars for look in again] == [look.scalars for look in looks]


def test_a_picture_shows_every_image_of_the_val_part_under_its_class(looks):
  axes = looks[0].figure(last=False).axes[0]
  shown = {c.get_label(): len(c.get_offsets()) for c in axes.collections}
  counts = np.bincount(looks[0].labels, minlength=3)
  names = ("clear", "nodular", "spiculated")
  assert shown == {f"{name} ({n})": n for name, n in zip(names, counts, strict=True)}
  assert axes.get_title(loc="left") == "phantom, val part, principal components"


def test_a_report_draws_the_accuracies():
  rows = [{"step": n, "loss": 1.0, "probe/x": 0.1 * n, "knn_balanced/x": 0.2} for n in (1, 2)]
  drawn = figures.training_curves([*rows, {"step": 2, "knn/x": 0.5}], [])
  assert list(drawn) == ["loss", "monitors"]
  lines = {line.get_label(): list(line.get_ydata()) for line in drawn["monitors"].axes[0].lines}
  assert lines == {"knn/x": [0.5], "probe/x": [0.1, 0.2]}


@pytest.mark.parametrize(
  ("change", "text"),
  [
    (dict(image_size=20), r"images of \(20, 20, 1\) and stage 'pretrain' of \(16, 16, 1\)"),
    (dict(channels=3), "give both the same image_size and channels"),
    (dict(labelled=False), "phantom has no labels"),
    (dict(split=settings.Split(val=0.0)), "no val part to score"),
  ],
  ids=["size", "channels", "labels", "val"],
)
def test_what_cannot_be_a_monitor_is_told(bench, change, text):
  wrong = dataclasses.replace(TARGET, **change)
  stage = dataclasses.replace(
    bench.stage, eval=dataclasses.replace(bench.stage.eval, monitors=(wrong,))
  )
  with pytest.raises(ValueError, match=text):
    monitors.make(dataclasses.replace(bench, stage=stage))


def test_monitors_have_the_pixels_of_the_stage_unless_they_say_otherwise():
  tree = {
    "data": {"name": "phantom", "image_size": 24, "cache": "here"},
    "eval": {"monitors": ("covid_ct", {"name": "medmnist:bloodmnist", "image_size": 28})},
  }
  parsed = config.parse(tree, ["data.channels=3"])
  first, second = parsed.stages[0].eval.monitors
  assert isinstance(first, settings.CovidCT) and isinstance(second, settings.MedMNIST)
  assert (first.image_size, first.channels, first.cache) == (24, 3, "here")
  assert (second.set, second.image_size) == ("bloodmnist", 28)
  assert config.parse(config.to_dict(parsed)) == parsed


@pytest.mark.parametrize(
  ("value", "text"),
  [
    ("covid", r"eval.monitors\[0\].name = 'covid' is unknown; did you mean 'covid_ct'"),
    ("({'name':'phantom','patient':3},)", r"unknown key eval.monitors\[0\].patient; did you mean"),
    ("3", "3 stands where settings belong"),
  ],
)
def test_a_mistake_in_a_monitor_is_told(value, text):
  with pytest.raises(ValueError, match=text):
    config.parse({}, [f"eval.monitors={value}"])
