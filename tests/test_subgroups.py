"""Parts of the patients are scored for themselves, and what is known of them survives the disk."""

import collections
import csv
import json
import pathlib

import numpy as np
from PIL import Image
import pytest
from sklearn import metrics as sklearn_metrics

from medjax import contract, data, evaluate, main, metrics, settings
from medjax.data import catalogue
from medjax.metrics import subgroups


def table(n: int = 300, **known: np.ndarray) -> contract.Predictions:
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, n)
  p = np.clip(0.3 * labels + rng.uniform(0, 0.7, n), 0, 1)
  ids, groups = (np.array([f"{i // size}" for i in range(n)]) for size in (1, 3))
  scores = np.stack([1 - p, p], axis=1)
  return contract.Predictions(ids, groups, "test", labels, scores, ("no", "yes"), known)


def test_each_value_is_scored_by_its_own_images():
  sex = np.random.default_rng(1).choice(["female", "male", ""], 300)
  whole = table(sex=sex)
  found = subgroups.of(whole, "sex", ("auc", "accuracy"), 200, 0)
  assert [each.value for each in found] == ["female", "male", subgroups.UNKNOWN]
  assert sum(each.images for each in found) == 300
  for each, cell in zip(found, ("female", "male", ""), strict=True):
    own = sex == cell
    truth = sklearn_metrics.roc_auc_score(whole.labels[own], whole.scores[own, 1])
    assert each.intervals["auc"].value == pytest.approx(truth, abs=1e-12)
    assert each.groups == len(set(whole.groups[own]))
    np.testing.assert_array_equal(each.counts, np.bincount(whole.labels[own]))
    assert each.intervals == metrics.intervals(whole.rows(own), ("auc", "accuracy"), 200, 0)


def test_too_few_images_are_told_and_not_scored():
  site = np.array(["a"] * 291 + ["b"] * 9)
  large, small = subgroups.of(table(site=site), "site", ("auc",), 50, 0)
  assert (small.value, small.images, small.intervals) == ("b", 9, {})
  assert large.intervals


def test_ages_fall_into_bands_of_years():
  cells = np.array(["0", "39", "39.5", "40", "59", "60.0", "85", ""])
  names, order = subgroups.banded("age", cells)
  assert order == ["below 40", "40 to below 60", "60 to below 80", "80 and above", "not known"]
  assert names.tolist() == [order[i] for i in (0, 0, 0, 1, 1, 2, 3, 4)]
  names, order = subgroups.banded("patient_age_years", np.array(["41", "80"]))
  assert order == ["40-59", "80 and above"] == names.tolist()


def test_other_numbers_fall_into_quartiles_and_few_of_them_stand_for_themselves():
  names, order = subgroups.banded("dose", np.arange(1, 101).astype(str))
  assert order == ["below 25.75", "25.75 to below 50.5", "50.5 to below 75.25", "75.25 and above"]
  assert [np.sum(names == each) for each in order] == [25] * 4
  names, order = subgroups.banded("grade", np.array(["10", "2", "2.0", ""]))
  assert order == ["2", "10", "not known"] and names.tolist() == ["10", "2", "2", "not known"]
  assert subgroups.banded("scanner", np.array(["10", "B"]))[1] == ["10", "B"]
  assert subgroups.banded("scanner", np.array(["", ""]))[1] == ["not known"]
  assert subgroups.banded("dose", np.array(["0"] * 90 + [str(i) for i in range(1, 11)]))[1] == [
    "0 and above"
  ]


def test_an_unknown_column_is_refused_with_those_there_are():
  with pytest.raises(KeyError, match=r"no column 'age'.*only: sex, site"):
    subgroups.of(table(sex=np.array([""] * 300), site=np.array([""] * 300)), "age", ("auc",), 9, 0)


def test_what_is_known_of_patients_survives_the_disk(tmp_path):
  before = table(sex=np.array(["m", "", "f, x"] * 100), age=np.array(["7", "80", ""] * 100))
  evaluate.write(tmp_path / "t.csv", before)
  after = evaluate.read(tmp_path / "t.csv")
  assert after.classes == before.classes
  assert list(after.metadata) == ["sex", "age"]
  for name, column in before.metadata.items():
    np.testing.assert_array_equal(after.metadata[name], column)
  np.testing.assert_array_equal(after.scores, before.scores)


def test_a_file_that_is_no_table_of_predictions_is_told(tmp_path):
  for text in ("", "a,b\n1,2\n", "id,group,split,label,predicted,score_a\n"):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=r"t\.csv is no table of predictions: it needs"):
      evaluate.read(tmp_path / "t.csv")


def test_columns_of_a_users_table_reach_the_parts_and_no_network(tmp_path):
  lines = ["path,label,split,sex,site"]
  for i in range(12):
    Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    part = "train" if i < 8 else "test"
    lines.append(f"{i}.png,{'ab'[i % 2]},{part},{'mf'[i % 2]},{i or ''}")
  (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
  cfg = settings.Table(
    root=str(tmp_path / "t.csv"),
    image_size=8,
    categories=("sex",),
    kept=("site",),
    split=settings.Split(val=0.0),
    cache=str(tmp_path / "cache"),
  )
  splits = data.make(cfg)
  facts = splits.parts["test"].facts
  assert {name: column.tolist() for name, column in facts.items()} == {
    "sex": ["m", "f", "m", "f"],
    "site": ["8", "9", "10", "11"],
  }
  assert splits.info.metadata == 3  # of the sex alone: strange, f, m


def test_the_source_of_images_is_known_unless_it_is_but_their_label():
  def rows(labels, sources):
    labels = np.array(labels, np.int32)
    n = len(labels)
    ids = tuple(map(str, range(n)))
    parts = np.full(n, "")
    return catalogue.Catalogue(
      ids, ids, labels, parts, ("a", "b"), lambda _: b"", "", sources=tuple(sources)
    )

  own = np.array([2, 0])
  assert catalogue.facts(rows([0, 1, 0], "xyx"), own) == {}
  assert catalogue.facts(rows([0, 1, 0], "xxx"), own) == {}
  assert catalogue.facts(rows([0, 1, 0], ""), own) == {}
  assert catalogue.facts(rows([0, 1, 0], "xxy"), own)["source"].tolist() == ["y", "x"]


@pytest.mark.slow
def test_skin_lesions_by_sex_age_and_place_through_the_command_line(shared_data, tmp_path):
  """A network of the metadata alone: a probe that takes the image away changes nothing at all."""
  root = shared_data / "ham10000"
  command = ["--config=tests/tiny.py", f"--workdir={tmp_path}/w", f"--config.data.root={root}"]
  command += ["--config.data.name=ham10000", "--config.model.name=metadata_mlp"]
  command += ["--config.data.image_size=64", "--config.eval.pool=mean", "--config.augment=none"]
  command += ["--config.eval.subgroups=('sex', 'age', 'localization')"]
  command += ["--config.eval.probes=('centre', 'metadata')"]
  assert main.main(command) == 0
  stage = tmp_path / "w" / "train"
  found = evaluate.read(stage / "predictions_test.csv")
  with (root / "HAM10000_metadata.csv").open() as file:
    rows = {row["image_id"]: row for row in csv.DictReader(file)}
  for name in ("sex", "age", "localization"):
    truth = [rows[pathlib.Path(each).stem][name] for each in found.ids]
    assert found.metadata[name].tolist() == truth
  tables = {t["title"]: t for t in json.loads((stage / "chapter.json").read_text())["tables"]}
  sexes = {row[0]: row[1] for row in tables["By sex"]["rows"]}
  assert sexes == dict(collections.Counter(found.metadata["sex"].tolist()))
  assert sum(row[1] for row in tables["By age"]["rows"]) == len(found)
  for probe in ("centre", "metadata"):
    less = evaluate.read(stage / "probes" / f"{probe}.csv")
    np.testing.assert_array_equal(less.scores, found.scores)
  heads = [table["head"] for title, table in tables.items() if title.startswith("Images and")]
  assert heads[0][2] == f"{len(set(found.groups)):,} pooled"
