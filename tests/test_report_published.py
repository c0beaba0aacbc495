"""Benchmark cards: which figures stand beside a run, and when they may be compared."""

import dataclasses

import numpy as np
import pytest

from medjax import config, contract, metrics, phrases, settings
from medjax.chapters import benchmarks, provenance


def _data(text: str, **changes) -> settings.Data:
  return config.parse({"data": {"name": text, **changes}}).stages[0].data


def _interval(value: float, half: float) -> metrics.Interval:
  return metrics.Interval(value, value - half, value + half, 1.0)


def test_every_card_is_of_a_set_and_of_metrics_that_exist():
  for card in benchmarks.CARDS:
    assert card.data in settings.VARIANTS[settings.Data]
    assert set(card.figures) <= set(metrics.names(2))
    assert all(0.5 < value < 1 for value in card.figures.values())
    assert card.mode in ("official", "grouped", "image_random")


@pytest.mark.parametrize(
  ("name", "half"), [("medmnist:pneumoniamnist", 0.028), ("medmnist:breastmnist", 0.054)]
)
def test_half_widths_are_those_of_the_number_of_test_images(name, half):
  card = benchmarks.of(_data(name))[0]
  assert card.half_width("accuracy") == pytest.approx(half, abs=5e-4)
  assert card.half_width("auc") is None


def test_a_card_is_of_its_set_alone():
  assert len(benchmarks.of(_data("medmnist:pneumoniamnist"))) == 2
  assert benchmarks.of(_data("medmnist:pathmnist")) == []
  assert benchmarks.of(_data("phantom")) == []
  assert benchmarks.of(dataclasses.replace(_data("ham10000"), target="source")) == []


def test_the_same_protocol_may_be_compared():
  data = _data("medmnist:pneumoniamnist")
  card = benchmarks.of(data)[0]
  assert benchmarks.differences(card, data, 624) == []


@pytest.mark.parametrize(
  ("changes", "tested", "reason"),
  [
    ({"split": {"mode": "grouped"}}, 624, "dealt official there, grouped here"),
    ({"image_size": 64}, 624, "28 pixels there, 64 here"),
    ({}, 300, "624 test images there, 300 here"),
    ({"split": {"fraction": 0.1}}, 624, "all of train there, 0.1 of it here"),
    ({"split": {"folds": 5, "folded": "test"}}, 624, "one test part there, one of 5 folds here"),
  ],
)
def test_another_protocol_is_not_comparable_for_a_reason(changes, tested, reason):
  data = _data("medmnist:pneumoniamnist", **changes)
  card = benchmarks.of(data)[0]
  assert benchmarks.differences(card, data, tested) == [reason]


def test_leaky_figures_are_not_compared_with_an_honest_split():
  data = _data("ham10000", image_size=224, official_test=True)
  found = [benchmarks.differences(card, data, 1512) for card in benchmarks.of(data)]
  assert [not reasons for reasons in found] == [False, False, True]
  assert all("dealt image_random there, official here" in reasons[0] for reasons in found[:2])


@pytest.mark.parametrize(
  ("ours", "half", "words"),
  [
    (0.854, 0.01, "cannot be told apart"),
    (0.884, 0.02, "cannot be told apart"),  # .030 apart, sqrt(.0277 ** 2 + .02 ** 2) = .034
    (0.884, 0.005, "ours is higher"),  # sqrt(.0277 ** 2 + .005 ** 2) = .028
    (0.800, 0.02, "ours is lower"),
  ],
)
def test_verdicts_take_both_widths_into_account(ours, half, words):
  card = benchmarks.of(_data("medmnist:pneumoniamnist"))[0]
  assert benchmarks.verdict(card, "accuracy", _interval(ours, half)) == words


def test_the_table_holds_a_row_for_each_figure():
  data, n = _data("medmnist:pneumoniamnist"), 624
  labels = np.arange(n) % 2
  scores = np.stack([1.0 - labels, labels], 1).astype(float)
  ids = np.arange(n).astype(str)
  table = contract.Predictions(ids, ids, "test", labels, scores, ("normal", "pneumonia"))
  ours = {"auc": _interval(0.9, 0.02), "accuracy": _interval(0.85, 0.02)}
  (found,) = provenance.published(data, table, ours)
  assert [len(row) for row in found.rows] == [len(found.head)] * 4
  assert ["AUC", "0.944", ours["auc"], "ours is lower"] == found.rows[0][1:5]
  assert found.rows[1][1:3] == ["accuracy", "0.854 \N{PLUS-MINUS SIGN} 0.028"]
  assert provenance.published(_data("phantom"), table, ours) == []
  assert phrases.plus_minus(0.5, None) == "0.500"
