import csv
import dataclasses

import jax
import numpy as np
from PIL import Image
import pytest
from sklearn import preprocessing

from medjax import contract, data, settings
from medjax.data import feed, metadata
from medjax.data.datasets import ham10000

RECORDS = [
  {"age": 40.0, "sex": "male", "place": "back"},
  {"age": "", "sex": "female", "place": "ear"},
  {"age": "60", "sex": "", "place": "back"},
  {"age": None, "sex": None},
]
FIELDS = (metadata.Number("age"), metadata.Category("sex"), metadata.Category("place", ("back",)))


def test_encoding_worked_by_hand():
  encoded = metadata.fit(RECORDS, FIELDS)(RECORDS)
  assert encoded.dtype == np.float32
  assert encoded.tolist() == [
    # age | strange, female, male | strange, back
    [-1, 0, 0, 1, 0, 1],  # ages 40 and 60: mean 50, deviation 10
    [0, 0, 1, 0, 1, 0],  # an ear is not in the list that was given
    [1, 0, 0, 0, 0, 1],
    [0, 0, 0, 0, 0, 0],
  ]


def test_only_what_was_fitted_counts():
  encoder = metadata.fit(RECORDS[:1], FIELDS)
  strange = encoder([{"age": 41.0, "sex": "female", "place": "back"}])
  assert strange.tolist() == [[1, 1, 0, 0, 1]]  # one age has no deviation; female was not seen


def test_numbers_against_scikit_learn():
  ages = np.random.default_rng(0).uniform(0, 90, (50, 1))
  records = [{"age": age} for (age,) in ages]
  want = preprocessing.StandardScaler().fit(ages[:30]).transform(ages)
  encoder = metadata.fit(records[:30], [metadata.Number("age")])
  np.testing.assert_allclose(encoder(records), want, rtol=1e-6, atol=1e-6)


def test_a_number_that_is_none_is_told():
  with pytest.raises(ValueError, match=r"'age' is to be a number: .*'old'.*data\.categories"):
    metadata.fit([{"age": "old"}], [metadata.Number("age")])


@pytest.mark.parametrize("value", ["inf", "-1e999", float("inf")])
def test_an_infinite_number_is_told_before_it_spoils_its_column(value):
  fields, ages = [metadata.Number("age")], [{"age": 40}, {"age": "50"}]
  with pytest.raises(ValueError, match=r"'age' is to be a number: .*(inf|1e999).* is infinite"):
    metadata.fit([*ages, {"age": value}], fields)
  with pytest.raises(ValueError, match="is infinite"):
    metadata.fit(ages, fields)([{"age": value}])


def test_a_number_that_training_never_has_is_zero():
  encoder = metadata.fit([{"age": None}], [metadata.Number("age")])
  assert encoder([{"age": None}]).tolist() == [[0]]


@pytest.fixture
def table(tmp_path):
  """40 images with age and sex; ages of test are 100 years higher."""
  rng = np.random.default_rng(0)
  lines = [("path", "label", "split", "age", "sex")]
  for i in range(40):
    part = "test" if i % 4 == 3 else "train"
    age = "" if i == 5 else str(30 + i + 100 * (part == "test"))
    lines.append((f"{i}.png", "ab"[i // 4 % 2], part, age, ("f", "m", "")[i % 3]))
    Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8)).save(tmp_path / f"{i}.png")
  with (tmp_path / "table.csv").open("w", newline="") as stream:
    csv.writer(stream).writerows(lines)
  return settings.Table(
    root=str(tmp_path / "table.csv"),
    cache=str(tmp_path / "cache"),
    image_size=6,
    channels=1,
    numbers=("age",),
    categories=("sex",),
    split=settings.Split(val=0.0),
  )


def test_columns_of_a_table_reach_the_parts_by_statistics_of_train(table):
  made = data.make(table)
  assert made.info.metadata == 4
  train, test = made.parts["train"], made.parts["test"]
  assert train.metadata.shape == (30, 4) and test.metadata.shape == (10, 4)
  known = train.ids != "5.png"
  ages = train.metadata[:, 0]
  assert ages[~known].tolist() == [0]
  np.testing.assert_allclose([ages[known].mean(), ages[known].std()], [0, 1], atol=1e-6)
  assert test.metadata[:, 0].min() > 5  # far from train, by train's deviation


def test_a_column_of_metadata_that_is_not_there(table):
  with pytest.raises(KeyError, match=r"no column 'agee'.*Did you mean 'age'\?"):
    data.make(dataclasses.replace(table, numbers=("agee",)))


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_metadata_reach_the_batch(table, mesh1, kind):
  part = data.make(table).parts["train"]
  batches = feed.training(part, 8, 0, mesh1, kind)
  ticket = batches.next(2)
  for step in range(2):
    batch = batches.take(batches.resident, jax.tree.map(lambda a, s=step: a[s], ticket))
    rows = np.asarray(batch[contract.INDEX])
    np.testing.assert_array_equal(batch[contract.METADATA], part.metadata[rows])
  batches.close()


def test_a_set_without_metadata_has_none(table):
  made = data.make(dataclasses.replace(table, numbers=(), categories=()))
  assert made.info.metadata == 0
  assert made.parts["train"].metadata is None


def test_ham10000_has_the_21_columns_of_the_paper(shared_data):
  rows = ham10000.PAPER.catalogue(settings.HAM10000(root=str(shared_data / "ham10000")))
  encoded = metadata.fit(rows.metadata, rows.fields)(rows.metadata)
  assert encoded.shape == (10_015, 21)
  ages = np.array([float(record["age"] or "nan") for record in rows.metadata])
  unknown = np.isnan(ages)
  assert unknown.sum() == 57
  want = (ages - np.nanmean(ages)) / np.nanstd(ages)
  np.testing.assert_allclose(encoded[~unknown, 0], want[~unknown], rtol=1e-5, atol=1e-6)
  assert not encoded[unknown, 0].any()
  assert encoded[:, [1, 5]].sum() == 0  # nothing out of vocabulary
  assert encoded[:, 2:5].sum(0).tolist() == [4552, 5406, 57]  # female, male, unknown
  assert encoded[:, 6:].sum(0).astype(int).tolist() == [
    *(1022, 7, 2192, 407, 56, 745, 319, 48, 90, 2077, 168, 128, 1404, 234, 1118)
  ]
