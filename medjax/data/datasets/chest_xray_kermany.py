"""Chest films of children with and without pneumonia (Kermany et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files, paper

CLASSES = ("normal", "pneumonia")
CITATION = """@article{kermany2018identifying,
  title={Identifying medical diagnoses and treatable diseases by image-based deep learning},
  author={Kermany, Daniel S. and Goldbaum, Michael and Cai, Wenjia and others},
  journal={Cell}, volume={172}, number={5}, pages={1122--1131}, year={2018}}"""
LICENCE = "CC BY 4.0"
DOWNLOAD = """\
Get ChestXRay2017.zip of "Large Dataset of Labeled OCT and Chest X-Ray Images" from Mendeley
Data, or "Chest X-Ray Images (Pneumonia)" by Paul Mooney from Kaggle, unpack it, and name the
folder that holds train and test with --config.data.root=FOLDER:
  FOLDER/{train,test}/{NORMAL,PNEUMONIA}/*.jpeg  (Kaggle's val of 16 images may lie beside them)"""
TRAPS = """\
Numbers of patients begin anew in every folder and kind: `person1` of the bacteria is not
`person1` of the viruses. Kaggle's val of 16 images was taken from train and is too small to
choose a network by: it goes back to train, and val is dealt by patient. 30 groups of files are
equal, each inside one class and one official part; one of them stands under two patients.
PneumoniaMNIST's images are crops of these, which no hash sees: never pretrain on one and test on
the other."""

_PATIENT = r"(?:person(\d+)_(bacteria|virus)|((?:NORMAL2-)?IM)-(\d+))"


def examples(cfg: settings.ChestXrayKermany) -> Iterator[catalogue_lib.Example]:
  """Lists the folders; a group is one patient's films: (folder, kind, number).

  Raises:
    FileNotFoundError: a folder is missing.
    ValueError: a file has another name than the authors gave.
  """
  root = files.downloaded(cfg.root, "Kermany's chest films", DOWNLOAD)
  folders = ("train", "val", "test") if (root / "val").is_dir() else ("train", "test")
  for folder in folders:
    part = "test" if folder == "test" else "train"
    for label in CLASSES:
      for file in files.images(files.need(root, DOWNLOAD, f"{folder}/{label.upper()}")):
        patient = "-".join(filter(None, files.key(_PATIENT, file.name)))
        name = file.relative_to(root).as_posix()
        yield catalogue_lib.Example(name, file, label, f"{part}/{patient}", part)


PAPER = paper.Paper(examples, lambda _: CLASSES, CITATION, LICENCE, DOWNLOAD, TRAPS)
