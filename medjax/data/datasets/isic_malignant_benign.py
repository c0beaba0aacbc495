"""Skin lesions of the ISIC archive, benign or malignant, as Kaggle has them."""

from __future__ import annotations

from collections.abc import Iterator

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files, paper

CLASSES = ("benign", "malignant")
CITATION = """@misc{fanconi2019skin,
  title={Skin Cancer: Malignant vs. Benign, processed skin cancer pictures of the ISIC archive},
  author={Fanconi, Claudio}, howpublished={Kaggle}, year={2019}}"""
LICENCE = "that of the ISIC archive, which differs from image to image; research only"
DOWNLOAD = """\
Get "Skin Cancer: Malignant vs. Benign" by Claudio Fanconi from Kaggle, unpack it, and name the
folder that holds train and test with --config.data.root=FOLDER:
  FOLDER/{train,test}/{benign,malignant}/*.jpg"""
TRAPS = """\
No patient and no lesion is published, so that every image is its own group: look for near-
duplicates with `python -m medjax.data audit`. The images overlap those of HAM10000 and of other
sets of the ISIC archive: audit a pretraining collection against these parts. Numbers of files
begin anew in every folder."""


def examples(cfg: settings.IsicMalignantBenign) -> Iterator[catalogue_lib.Example]:
  """Lists the folders.

  Raises:
    FileNotFoundError: a folder is missing.
  """
  root = files.downloaded(cfg.root, "the malignant and benign lesions", DOWNLOAD)
  for part in ("train", "test"):
    for label in CLASSES:
      for file in files.images(files.need(root, DOWNLOAD, f"{part}/{label}")):
        name = file.relative_to(root).as_posix()
        yield catalogue_lib.Example(name, file, label, part=part)


PAPER = paper.Paper(examples, lambda _: CLASSES, CITATION, LICENCE, DOWNLOAD, TRAPS)
