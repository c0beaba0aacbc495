"""EyePACS: fundus photographs of Kaggle's "Diabetic Retinopathy Detection" (2015)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import pathlib

import numpy as np

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files, paper

GRADES = ("none", "mild", "moderate", "severe", "proliferative")  # 0 to 4
BINARY = ("none", "retinopathy")
CITATION = """@misc{eyepacs2015,
  title={Diabetic Retinopathy Detection}, author={{EyePACS} and {California Healthcare Foundation}},
  howpublished={Kaggle}, year={2015}}"""
LICENCE = "the rules of the competition; research only"
DOWNLOAD = """\
Get the competition "Diabetic Retinopathy Detection" from Kaggle: join and unpack train.zip.001
to .005 and trainLabels.csv.zip; for data.official_test also test.zip.001 to .007 and
retinopathy_solution.csv, which was published in the competition's forum. Name the folder with
--config.data.root=FOLDER:
  FOLDER/trainLabels.csv  FOLDER/train/10_left.jpeg
  FOLDER/retinopathy_solution.csv  FOLDER/test/1_left.jpeg"""
TRAPS = """\
Two eyes of a patient have two files: a group is the number before `_left` and `_right`. Grades
were given by one reader each, some photographs show nothing. 25,810 of 35,126 are of grade 0."""


def examples(cfg: settings.EyePACS) -> Iterator[catalogue_lib.Example]:
  """Reads the tables of grades; a group is a patient.

  Raises:
    FileNotFoundError: a table, or an image that it names.
  """
  root = files.downloaded(cfg.root, "EyePACS", DOWNLOAD)
  part = "train" if cfg.official_test else ""
  rows = files.rows(files.need(root, DOWNLOAD, "trainLabels.csv"))
  rows = _balanced(rows, cfg.split.seed) if cfg.task == "balanced" else rows
  yield from _listed(root, "train", part, rows, cfg.task)
  if cfg.official_test:
    rows = files.rows(files.need(root, DOWNLOAD, "retinopathy_solution.csv"))
    yield from _listed(root, "test", "test", rows, cfg.task)


def _listed(
  root: pathlib.Path, folder: str, part: str, rows: Sequence[dict[str, str]], task: str
) -> Iterator[catalogue_lib.Example]:
  place = files.need(root, DOWNLOAD, folder)
  found = {path.stem: path for path in files.images(place)}
  paths = files.listed(place, [row["image"] for row in rows], found, DOWNLOAD)
  for row, path in zip(rows, paths, strict=True):
    (patient,) = files.key(r"(\d+)_(?:left|right)", path.name)
    grade = int(row["level"])
    label = GRADES[grade] if task == "grades" else BINARY[min(grade, 1)]
    # Kaggle numbers the patients of train and test in one row, none in both.
    name = path.relative_to(root).as_posix()
    yield catalogue_lib.Example(name, path, label, patient, part)


def _balanced(rows: Sequence[dict[str, str]], seed: int) -> list[dict[str, str]]:
  """All rows with retinopathy and as many of those without, in the table's order."""
  ill = np.array([row["level"] != "0" for row in rows])
  well = np.random.default_rng(seed).permutation(np.flatnonzero(~ill))[: ill.sum()]
  return [rows[row] for row in np.sort(np.concatenate([np.flatnonzero(ill), well]))]


def classes(cfg: settings.EyePACS) -> tuple[str, ...]:
  """Five grades, or none and any."""
  return GRADES if cfg.task == "grades" else BINARY


PAPER = paper.Paper(examples, classes, CITATION, LICENCE, DOWNLOAD, TRAPS)
