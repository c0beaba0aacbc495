"""PPV and NPV at a stated prevalence: against Bayes' rule and images counted by hand."""

import dataclasses

import noisy
import numpy as np
import pytest

from medjax import metrics, settings
from medjax.chapters import appendix
from medjax.metrics import prevalence


def test_predictive_values_at_another_prevalence_follow_from_bayes():
  table = noisy.table(n=400, k=2, decimals=6, groups=400)
  sens, spec = (metrics.summary(table)[name] for name in ("sensitivity", "specificity"))
  for share in (0.01, 0.1, 0.6):
    found = prevalence.intervals(table, (1 - share, share), 60, seed=1)
    ppv = sens * share / (sens * share + (1 - spec) * (1 - share))
    npv = spec * (1 - share) / (spec * (1 - share) + (1 - sens) * share)
    assert found["ppv"][1].value == pytest.approx(ppv)
    assert found["npv"][1].value == pytest.approx(npv)
    assert found["ppv"][1].low < ppv < found["ppv"][1].high
  here = np.bincount(table.labels) / 400
  own = prevalence.intervals(table, here, 5, seed=1)["ppv"][1].value
  assert own == pytest.approx(metrics.summary(table)["ppv"])


def test_prevalences_of_several_classes_an_image_are_one_by_one():
  table = noisy.table(n=200, k=3, decimals=6)
  table = dataclasses.replace(table, labels=np.eye(3, dtype=np.float32)[table.labels])
  found = prevalence.intervals(table, (0.2, 0.5, 0.9), 5, seed=1)
  each = metrics.by_class(table, 5, seed=1)
  for c, share in enumerate((0.2, 0.5, 0.9)):
    sens, spec = each["sensitivity"][c].value, each["specificity"][c].value
    expected = sens * share / (sens * share + (1 - spec) * (1 - share))
    assert found["ppv"][c].value == pytest.approx(expected)


def test_shares_that_are_none_are_refused():
  table = noisy.table(k=2)
  for shares in ((0.5, 0.6), (1.5, -0.5), (0.2, 0.3, 0.5), (1.0,)):
    with pytest.raises(ValueError, match=r"of 2 classes: give each one .* which add up to 1"):
      prevalence.intervals(table, shares, 5, seed=0)
  several = dataclasses.replace(table, labels=np.eye(2, dtype=np.float32)[table.labels])
  prevalence.intervals(several, (0.5, 0.6), 5, seed=0)
  with pytest.raises(ValueError, match=r"from 0 to 1$"):
    prevalence.intervals(several, (0.5, 1.1), 5, seed=0)


def test_of_many_classes_each_image_counts_by_the_share_of_its_class():
  table, shares = noisy.table(n=300, k=3, decimals=6), np.array((0.7, 0.25, 0.05))
  counted = (shares / np.bincount(table.labels))[table.labels]
  found = prevalence.intervals(table, shares, 5, seed=0)
  for c in range(3):
    own, given = table.labels == c, table.predicted == c
    assert found["ppv"][c].value == pytest.approx(counted[own & given].sum() / counted[given].sum())
    expected = counted[~own & ~given].sum() / counted[~given].sum()
    assert found["npv"][c].value == pytest.approx(expected)


def test_a_stated_prevalence_is_a_table_of_the_report(tmp_path):
  table = noisy.table(n=200, k=2, decimals=6)
  stated = settings.Eval(prevalence=(0.9, 0.1), bootstrap=50)
  (shown,) = appendix.tables(stated, {"test": table, "val": table}, tmp_path, seed=0)
  expected = prevalence.intervals(table, (0.9, 0.1), 50, seed=0)
  assert list(shown.head) == ["class", "prevalence here", "stated", "PPV", "NPV"]
  assert shown.rows[1][0] == "class1" and shown.rows[1][2] == "0.100"
  assert shown.rows[1][3:] == [expected["ppv"][1], expected["npv"][1]]
  assert not appendix.tables(settings.Eval(), {"test": table}, tmp_path, seed=0)
