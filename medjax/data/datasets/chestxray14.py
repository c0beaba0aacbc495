"""ChestX-ray14: 112,120 chest films of 30,805 patients, up to 14 findings (Wang et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import pathlib

import numpy as np

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data import metadata
from medjax.data.datasets import files, paper

CLASSES = (
  "Atelectasis",
  "Cardiomegaly",
  "Consolidation",
  "Edema",
  "Effusion",
  "Emphysema",
  "Fibrosis",
  "Hernia",
  "Infiltration",
  "Mass",
  "Nodule",
  "Pleural_Thickening",
  "Pneumonia",
  "Pneumothorax",
)
# Those that are most often a film's only one, the most frequent first.
SIX = ("Infiltration", "Atelectasis", "Effusion", "Nodule", "Pneumothorax", "Mass")
EACH = 1000  # films of each of the six
FIELDS = (
  metadata.Number("age"),
  metadata.Category("sex", ("F", "M")),
  metadata.Category("view", ("AP", "PA")),
)
OLDEST = 120  # years; the table has ages up to 414
CITATION = """@inproceedings{wang2017chestx,
  title={ChestX-ray8: hospital-scale chest X-ray database and benchmarks on weakly-supervised
    classification and localization of common thorax diseases},
  author={Wang, Xiaosong and Peng, Yifan and Lu, Le and Lu, Zhiyong and Bagheri, Mohammadhadi and
    Summers, Ronald M.},
  booktitle={CVPR}, year={2017}}"""
LICENCE = "free use, with the citation and a link to the NIH Clinical Center as the source"
DOWNLOAD = """\
Get "ChestX-ray8" from the NIH Clinical Center (its box, or the set "NIH Chest X-rays" on
Kaggle): images_001 to images_012, Data_Entry_2017 as CSV, train_val_list.txt and test_list.txt.
Unpack them into one folder, with any folders in it, and name it with --config.data.root=FOLDER:
  FOLDER/Data_Entry_2017.csv  FOLDER/train_val_list.txt  FOLDER/test_list.txt
  FOLDER/**/00000001_000.png"""
TRAPS = """\
Labels were read out of reports by a program, and `No Finding` is no class but none of the 14. A
patient has up to 184 films: a group is the number that the file's name begins with. Some ages
are impossible (up to 414): above 120 they count as not known. The view tells the ill: AP films
are made in bed. CheXNet used a split of its own (98,637, 6,351 and 420 images)."""


def examples(cfg: settings.ChestXray14) -> Iterator[catalogue_lib.Example]:
  """Reads the table and the official lists; a group is a patient.

  Raises:
    FileNotFoundError: the table, a list, or an image that they name.
  """
  root = files.downloaded(cfg.root, "ChestX-ray14", DOWNLOAD)
  table = files.need(root, DOWNLOAD, "Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
  rows = files.rows(table)
  rows = _six(rows, cfg.split.seed) if cfg.task == "six" else rows
  paths = files.listed(table, [row["Image Index"] for row in rows], files.by_name(root), DOWNLOAD)
  tests = _listed(root, "test_list.txt")
  lost = {path.name for path in paths} - tests - _listed(root, "train_val_list.txt")
  if lost:
    shown = files.some(sorted(lost))
    raise FileNotFoundError(f"{len(lost)} images are in no official list: {shown}.\n{DOWNLOAD}")
  for row, path in zip(rows, paths, strict=True):
    findings = tuple(name for name in row["Finding Labels"].split("|") if name != "No Finding")
    official = "test" if path.name in tests else "train"
    name, patient = path.relative_to(root).as_posix(), path.name.split("_")[0]
    if cfg.task == "six":
      yield catalogue_lib.Example(name, path, findings[0], patient, "", _known(row))
    else:
      yield catalogue_lib.Example(name, path, findings, patient, official, _known(row))


def _six(rows: Sequence[dict[str, str]], seed: int) -> list[dict[str, str]]:
  """Films with one of the six findings alone, at most `EACH` of each, in the table's order."""
  findings = np.array([row["Finding Labels"] for row in rows])
  rng = np.random.default_rng(seed)
  chosen = [rng.permutation(np.flatnonzero(findings == name))[:EACH] for name in SIX]
  return [rows[row] for row in np.sort(np.concatenate(chosen))]


def _listed(root: pathlib.Path, name: str) -> set[str]:
  return set(files.need(root, DOWNLOAD, name).read_text().split())


def _known(row: dict[str, str]) -> metadata.Record:
  age = int(row["Patient Age"].rstrip("YMD"))  # older tables write 058Y
  return {
    "age": float(age) if age <= OLDEST else None,
    "sex": row["Patient Gender"],
    "view": row["View Position"],
  }


def classes(cfg: settings.ChestXray14) -> tuple[str, ...]:
  """The 14 findings, or six."""
  return SIX if cfg.task == "six" else CLASSES


PAPER = paper.Paper(
  examples,
  classes,
  CITATION,
  LICENCE,
  DOWNLOAD,
  TRAPS,
  FIELDS,
  lambda cfg: cfg.task == "findings",
)
