"""Images from found to tested, on a folder that has one of everything that can go wrong."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from medjax import contract, data, report, settings
from medjax.chapters import provenance
from medjax.report import flow

CLASSES = ("healthy", "ill")
PATIENTS, EACH = 20, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """60 images of 20 patients a class: patient 1 shows a picture of patient 0; a file is broken."""
  folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
  for name in CLASSES:
    (folder / name).mkdir()
    for patient in range(PATIENTS):
      for i in range(EACH):
        pixels = rng.integers(256, size=(16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name / f"{name}{patient:02}_{i}.png")
    first = folder / name / f"{name}00_0.png"
    (folder / name / f"{name}01_0.png").write_bytes(first.read_bytes())
  (folder / "ill" / "ill19_2.png").write_bytes(b"no image")
  return folder


def _made(root, tmp_path, **split) -> data.catalogue_lib.Splits:
  return data.make(
    settings.ImageFolder(
      root=str(root),
      image_size=16,
      channels=1,
      group_pattern=r"([a-z]+\d+)_",
      cache=str(tmp_path / "cache"),
      max_unreadable=0.02,
      split=settings.Split(**split),
    )
  )


def _counts(rows) -> dict[str, tuple[int, int]]:
  return {count.what: (count.images, count.groups) for count in rows}


def test_what_is_left_out_is_counted_once(root, tmp_path):
  splits = _made(root, tmp_path)
  found = provenance.flow(splits, {})
  assert _counts(found.main) == {"found": (120, 40), "read": (119, 40), "dealt to parts": (119, 38)}
  assert list(_counts(found.gone).values()) == [(1, 0), (0, 2)]
  parts = _counts(found.parts)
  assert list(parts) == ["train", "val", "test"]
  assert np.sum(list(parts.values()), axis=0).tolist() == [119, 38]


def test_a_fraction_of_the_training_part_is_a_step_of_its_own(root, tmp_path):
  splits = _made(root, tmp_path, fraction=0.5)
  found = provenance.flow(splits, {})
  assert [count.what for count in found.main] == ["found", "read", "kept", "dealt to parts"]
  images, groups = np.sum(list(_counts(found.parts).values()), axis=0)
  assert _counts(found.main)["dealt to parts"] == (images, groups)
  assert _counts(found.gone)["left out by data.split.fraction"] == (119 - images, 38 - groups)


def test_checks_say_what_was_looked_for_and_found(root, tmp_path):
  checks = _made(root, tmp_path).census.checks
  assert checks["equal pictures in different groups"] == "2 groups are joined to another"
  assert checks["groups in two parts"] == "none" == checks["pictures under two labels"]
  assert "medjax.data audit" in checks["near-duplicates in two parts"]
  leaky = _made(root, tmp_path, mode="image_random").census.checks
  assert leaky["groups in two parts"].startswith("LEAKY: dealt by image")


def test_what_was_scored_is_counted_from_the_predictions(root, tmp_path):
  splits = _made(root, tmp_path)
  test = splits.parts["test"]
  n = len(test)
  scores = np.full((n, 2), 0.5)
  table = contract.Predictions(test.ids, test.groups, "test", test.labels, scores, CLASSES)
  splits = dataclasses.replace(splits, parts={**splits.parts, "elsewhere": test})
  found = provenance.flow(splits, {"test": table, "elsewhere": table})
  assert list(_counts(found.parts)) == ["train", "val", "test"]
  assert _counts(found.scored) == {"scored: test": (n, len(set(test.groups)))}


def test_the_drawing_holds_every_count():
  count = report.Count
  told = report.Flow(
    [count("found", 1200, 31), count("read", 1199, 31), count("dealt to parts", 1199, 30)],
    [count("could not be read", 1, 0), count("joined to another group", 0, 1)],
    [count("train", 900, 20), count("test", 299, 10)],
    [count("scored: test", 299, 10)],
  )
  texts = [text.get_text() for text in flow.draw(told).axes[0].texts]
  assert "found\n1,200 images, 31 groups" in texts
  assert "could not be read\n1 image" in texts
  assert "joined to another group\n1 group" in texts
  assert "train\n900 images\n20 groups" in texts and "scored: test\n299 images\n10 groups" in texts
  assert flow.told(told).startswith("found 1,200 images, 31 groups; read 1,199 images")
  assert flow.size(count("nothing", 0, 0)) == "none"
