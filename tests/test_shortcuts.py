"""Probes take from images what they say; a network that goes by a marker is told, a sound one not.

The networks here are no networks: they score by a rule, so that what is found is known beforehand.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import contract, evaluate, main, probing, settings, views
from medjax.chapters import breakdown
from medjax.data import catalogue, feed

SIDE, N = 16, 200
INNER = views.centre((SIDE, SIDE, 1))


def ticket(images: np.ndarray) -> dict[str, jax.Array]:
  numbers = np.arange(len(images), dtype=np.int32)
  return {contract.IMAGE: jnp.asarray(images)[None], contract.INDEX: jnp.asarray(numbers)[None]}


def seen(change, images: np.ndarray, mesh) -> np.ndarray:
  view = views.of(change, mesh)
  return np.asarray(view(jax.random.key(0), ticket(images))[contract.IMAGE][0])


def pixels(shape=(SIDE, SIDE), channels: int = 1) -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (5, *shape, channels), np.uint8)


def test_centre_and_borders_are_about_half_of_an_image_each_and_together_all_of_it():
  for shape in ((64, 64, 1), (65, 65, 3), (32, 64, 1)):
    inner = views.centre(shape)
    assert inner.mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(inner, inner[::-1, ::-1])
    assert inner[shape[0] // 2, shape[1] // 2] and not inner[0].any() and not inner[:, 0].any()


def test_hidden_pixels_have_the_mean_and_all_others_are_as_they_were(mesh1):
  before = pixels(channels=3)
  after = seen(views.hidden(INNER, (0.2, 0.4, 1.0)), before, mesh1)
  assert np.unique(after[:, INNER], axis=1).tolist() == [[[51, 102, 255]]] * 5
  np.testing.assert_array_equal(after[:, ~INNER], before[:, ~INNER])


@pytest.mark.parametrize("shape", [(16, 16), (17, 22)])
def test_blocks_change_places_and_nothing_else(mesh1, shape):
  before = pixels(shape)
  after = seen(views.shuffled, before, mesh1)
  high, wide = shape[0] // views.BLOCKS, shape[1] // views.BLOCKS

  def blocks(image):
    return sorted(
      image[y * high : (y + 1) * high, x * wide : (x + 1) * wide].tobytes()
      for y in range(views.BLOCKS)
      for x in range(views.BLOCKS)
    )

  for one, other in zip(before, after, strict=True):
    assert blocks(one) == blocks(other) and (one != other).any()
    np.testing.assert_array_equal(one[views.BLOCKS * high :], other[views.BLOCKS * high :])
    np.testing.assert_array_equal(one[:, views.BLOCKS * wide :], other[:, views.BLOCKS * wide :])
  alike = seen(views.shuffled, np.repeat(before[:1], 5, axis=0), mesh1)
  assert len({image.tobytes() for image in alike}) == 5  # an order for each image


def scored(images, labels, rule, change, mesh) -> contract.Predictions:
  """What a rule (images -> p of class 1) says of changed images."""
  ids = np.array([f"{i}.png" for i in range(len(images))])
  part = catalogue.Part("test", ids, ids, labels, images.__getitem__, images)
  batches = feed.sequential(part, 64, mesh)

  def score(_, ticket):
    p = rule(ticket[contract.IMAGE] / 255)
    return jnp.stack([1 - p, p], axis=-1)

  view = views.of(change, mesh) if change else lambda _, ticket: ticket
  look = evaluate.averaged(score, [lambda ticket: view(jax.random.key(0), ticket)])
  return evaluate.predict(look, None, batches, part, ("no", "yes"))


def probe(name, rule, mesh) -> probing.Probe:
  """A bright finding in the middle, and a bright marker in a corner, of most images of class 1."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, N).astype(np.int32)
  images = rng.integers(100, 140, (N, SIDE, SIDE, 1), np.uint8)
  for place in (slice(6, 10), slice(0, 2)):
    shows = (labels == 1) & (rng.random(N) < 0.9)
    images[shows, place, place] = 250
  changes = {"centre": views.hidden(INNER, (0.5,)), "borders": views.hidden(~INNER, (0.5,))}
  plain = scored(images, labels, rule, None, mesh)
  less = scored(images, labels, rule, changes[name], mesh)
  (found,) = probing.of({name: less}, plain, ("auc", "accuracy"), 200, 0)
  return found


def said(found: probing.Probe) -> str:
  return " ".join(probing.said([found]))


def by_finding(images):
  return images[..., 6:10, 6:10, 0].mean((-1, -2))


def by_marker(images):
  return images[..., 0:2, 0:2, 0].mean((-1, -2))


def test_a_network_that_goes_by_a_marker_in_the_corner_is_told(mesh1):
  found = probe("centre", by_marker, mesh1)
  assert found.kept == pytest.approx(1) and found.differences["auc"].value == 0
  assert "100% of the AUC above chance" in said(found) and "shortcut in the borders" in said(found)
  found = probe("borders", by_marker, mesh1)
  assert found.kept == pytest.approx(0, abs=0.01) and "goes by the borders" in said(found)


def test_a_network_that_goes_by_the_finding_is_not_told(mesh1):
  for name, kept in (("centre", 0), ("borders", 1)):
    found = probe(name, by_finding, mesh1)
    assert (
      found.kept == pytest.approx(kept, abs=0.01)
      and said(found) == "No probe speaks of a shortcut."
    )
    assert found.intervals["auc"].value == pytest.approx(0.95 if kept else 0.5, abs=0.05)


def test_nothing_is_said_of_a_network_that_cannot_be_told_from_chance(mesh1):
  found = probe("centre", lambda images: images[..., 1, 15, 0], mesh1)
  assert found.kept is None and "cannot be told from chance" in said(found)


def judged(**p) -> list[probing.Probe]:
  """Probes of hand-made scores of 100 images, the plain ones of an AUC of 0.9 or so."""
  rng = np.random.default_rng(3)
  labels = np.arange(100) % 2
  ids = np.arange(100).astype(str)

  def table(strength: float) -> contract.Predictions:
    score = 1 / (1 + np.exp(-strength * (labels - 0.5) - rng.normal(0, 1, 100)))
    both = np.stack([1 - score, score], axis=1)
    return contract.Predictions(ids, ids, "test", labels, both, ("no", "yes"))

  plain = table(2.0)
  return probing.of({name: table(s) for name, s in p.items()}, plain, ("auc",), 200, 0)


def test_where_metadata_suffice_nothing_else_is_said():
  found = judged(centre=2.0, metadata=2.0)
  (text,) = probing.said(found)
  assert text.startswith("Without the images") and "the other probes say nothing" in text


def test_what_metadata_give_is_not_counted_for_the_image():
  found = {each.name: each for each in judged(metadata=0.8, centre=0.8, shuffled=2.0)}
  auc = {name: each.intervals["auc"].value for name, each in found.items()}
  plain = auc["centre"] - found["centre"].differences["auc"].value
  truth = (auc["centre"] - auc["metadata"]) / (plain - auc["metadata"])
  assert found["centre"].kept == pytest.approx(truth, abs=1e-12)
  assert found["metadata"].kept == pytest.approx((auc["metadata"] - 0.5) / (plain - 0.5), abs=1e-12)
  (text,) = probing.said(list(found.values()))
  assert "blocks shuffled" in text and "above the metadata alone" in text


# Through the command line.

TINY = "tests/tiny.py"


def run(*args) -> int:
  return main.main([str(arg) for arg in args])


ASKED = (
  "--config.eval.probes=('borders', 'shuffled')",
  "--config.eval.augment=2",
  "--config.eval.pool=mean",
)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run") / "workdir"
  assert run(f"--config={TINY}", f"--workdir={folder}", *ASKED) == 0
  return folder


def test_probes_levels_and_views_are_in_the_chapter_and_its_files(workdir):
  stage = workdir / "train"
  plain = evaluate.read(stage / "predictions_test.csv")
  for name in ("borders", "shuffled"):
    less = evaluate.read(stage / "probes" / f"{name}.csv")
    np.testing.assert_array_equal(less.ids, plain.ids)
    assert np.abs(less.scores - plain.scores).max() > 1e-4
  tables = json.loads((stage / "chapter.json").read_text())["tables"]
  titles = [table["title"] for table in tables]
  assert titles == ["Images and each group as one", "What the network goes by"]
  assert tables[0]["head"][1:] == [f"{len(plain)} images", f"{len(set(plain.groups))} pooled"]
  assert [row[0] for row in tables[1]["rows"]] == [
    "the images as they are",
    probing.WHAT["borders"],
    probing.WHAT["shuffled"],
  ]
  page = (workdir / "report.html").read_text()
  assert all(title in page for title in titles)


def test_a_finished_run_is_scored_without_views_by_evaluating_it(workdir, tmp_path):
  with_views = evaluate.read(workdir / "train" / "predictions_test.csv")
  off = ("--config.eval.augment=0", "--config.eval.probes=()", "--config.eval.pool=")
  assert run("--task=evaluate", f"--config={TINY}", f"--workdir={workdir}", *off) == 0
  plain = evaluate.read(workdir / "train" / "predictions_test.csv")
  np.testing.assert_array_equal(plain.ids, with_views.ids)
  assert np.abs(plain.scores - with_views.scores).max() > 1e-4


@pytest.mark.parametrize(
  ("setting", "told"),
  [
    ("eval.probes=metadata", "probes has metadata, and quadsnet sees none"),
    ("eval.subgroups=sex", "no column 'sex' is known of the images of test, only: none"),
    ("eval.pool=median", "eval.pool"),
    ("eval.pool_by=lesion", "set eval.pool"),
    ("eval.augment=-1", "eval.augment=-1"),
  ],
)
def test_what_would_fail_after_the_training_is_refused_before_it(setting, told, tmp_path, capsys):
  assert run(f"--config={TINY}", f"--workdir={tmp_path}/w", f"--config.{setting}") == 1
  assert told in capsys.readouterr().err
  assert not list(tmp_path.glob("w/*/checkpoints/*/*"))


def test_views_of_an_augmentation_that_changes_nothing_are_refused(tmp_path, capsys):
  off = ("--config.augment.name=none", "--config.eval.augment=2")
  assert run(f"--config={TINY}", f"--workdir={tmp_path}/w", *off) == 1
  assert "eval.augment=2 draws views by stage.augment" in capsys.readouterr().err


def test_probes_of_a_stage_without_a_network_are_refused():
  stage = settings.Stage(objective=settings.Classical(), eval=settings.Eval(probes=("borders",)))
  with pytest.raises(ValueError, match="need a network"):
    breakdown.check(stage, catalogue.Splits({}, None, False, "resident", ""))


def test_a_network_that_sees_metadata_is_probed_for_them_too():
  stage = settings.Stage(model=settings.MetadataMLP(), eval=settings.Eval(probes=("centre",)))
  info = contract.DataInfo(("a", "b"), (8, 8, 1), (1, 1), 2, (0.5,), (0.2,), metadata=3)
  with pytest.raises(ValueError, match=r"add metadata to eval\.probes"):
    breakdown.check(stage, catalogue.Splits({}, info, False, "resident", ""))
