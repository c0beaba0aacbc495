"""COVID-CT as its authors give it: the official split, and the groups behind its figures."""

import collections
import csv
import itertools
import re

import numpy as np
import pytest

from medjax import settings
from medjax.data import splits
from medjax.data.datasets import covid_ct


class TestCovidCT:
  @pytest.fixture
  def rows(self, shared_data):
    return covid_ct.PAPER.catalogue(settings.CovidCT(root=str(shared_data / "covid_ct")))

  def test_official_counts(self, rows):
    assert rows.classes == ("non_covid", "covid")
    counts = collections.Counter(zip(rows.parts.tolist(), rows.labels.tolist(), strict=True))
    official = {"train": (234, 191), "val": (58, 60), "test": (105, 98)}
    assert counts == {(part, k): n for part, pair in official.items() for k, n in enumerate(pair)}
    assert len(set(rows.ids)) == 746
    assert all(
      ("NonCOVID" in name) == (k == 0) for name, k in zip(rows.ids, rows.labels, strict=True)
    )

  def test_every_file_is_listed(self, rows, shared_data):
    on_disk = {
      f.relative_to(shared_data / "covid_ct").as_posix()
      for f in shared_data.glob("covid_ct/CT_*/*")
    }
    assert set(rows.ids) == on_disk

  def test_panels_of_a_figure_share_a_group(self, rows):
    figures = collections.defaultdict(set)
    for name, group in zip(rows.ids, rows.groups, strict=True):
      figures[re.sub(r"(%\d+)?\.\w+$", "", name) + name[-4:]].add(group)
    assert all(len(groups) == 1 for groups in figures.values())
    panels = [
      g for name, g in zip(rows.ids, rows.groups, strict=True) if "20034686-p17-91-" in name
    ]
    assert len(panels) == 6
    assert len(set(panels)) == 1

  def test_images_of_a_patient_share_a_group(self, rows, shared_data):
    with (shared_data / "covid_ct/Meta/NonCOVID-CT-MetaInfo.csv").open() as stream:
      patient = {row["image name"]: row["patient id"] for row in csv.DictReader(stream)}
    groups = collections.defaultdict(set)
    for name, group in zip(rows.ids, rows.groups, strict=True):
      if name.startswith("CT_NonCOVID"):
        groups[patient[name.split("/")[1]]].add(group)
    assert len(groups) > 100
    assert all(len(joined) == 1 for joined in groups.values())

  def test_a_patient_over_two_figures_joins_them(self, rows):
    # Patient 150 of the COVID table: figures 6 and 67 on page 18.
    own = {g for name, g in zip(rows.ids, rows.groups, strict=True) if "20040691-p18-6" in name}
    assert len(own) == 1

  def test_classes_share_no_group(self, rows):
    sides = [
      {g for g, k in zip(rows.groups, rows.labels, strict=True) if k == label} for label in (0, 1)
    ]
    assert not sides[0] & sides[1]

  def test_the_official_split_cuts_figures(self, rows):
    cut = splits.crossing(rows.groups, rows.parts)
    assert cut["covid/2020.03.12.20034686-p17"] == ["train", "test"]
    assert len(cut) == 3

  def test_missing_list(self, tmp_path):
    with pytest.raises(FileNotFoundError):
      covid_ct.PAPER.catalogue(settings.CovidCT(root=str(tmp_path)))


@pytest.mark.parametrize(
  ("name", "source"),
  [
    ("2020.03.12.20034686-p17-91-1.png", "2020.03.12.20034686-p17"),
    ("2020.03.01.20029769-p21-73_1%2.png", "2020.03.01.20029769-p21"),
    ("2020.03.08.20031658-p15-103.png", "2020.03.08.20031658-p15"),
    ("PIIS0140673620301549_0%1.png", "PIIS0140673620301549.png"),
    ("PIIS0140673620302117_2.png", "PIIS0140673620302117.png"),
    ("PIIS0140673620303603%8.png", "PIIS0140673620303603.png"),
    ("10%2.jpg", "10.jpg"),
    ("10.png", "10.png"),
  ],
)
def test_figure(name, source):
  assert covid_ct.figure(name) == source


def test_joined_against_brute_force():
  rng = np.random.default_rng(0)
  for _ in range(50):
    figures = [f"f{k}" for k in rng.integers(0, 12, 20)]
    patients = [f"p{k}" for k in rng.integers(0, 25, 20)]
    linked = np.array(
      [
        [f == g or p == q for g, q in zip(figures, patients, strict=True)]
        for f, p in zip(figures, patients, strict=True)
      ]
    )
    reach = np.linalg.matrix_power(linked.astype(float), 20) > 0
    groups = covid_ct.joined(figures, patients)
    for i, j in itertools.product(range(20), repeat=2):
      assert (groups[i] == groups[j]) == reach[i, j]
    assert set(groups) <= set(figures)
