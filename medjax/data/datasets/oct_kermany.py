"""Optical coherence tomography of the retina in four classes (Kermany et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import chest_xray_kermany, files, paper

CLASSES = ("CNV", "DME", "DRUSEN", "NORMAL")
DOWNLOAD = """\
Get OCT2017 of "Large Dataset of Labeled OCT and Chest X-Ray Images" from Mendeley Data, or
"Retinal OCT Images" by Paul Mooney from Kaggle, unpack it, and name the folder that holds train
and test with --config.data.root=FOLDER:
  FOLDER/{train,test}/{CNV,DME,DRUSEN,NORMAL}/CLASS-PATIENT-NUMBER.jpeg  (Kaggle's val of 32 images
  may lie beside them)"""
TRAPS = """\
Kaggle's val of 32 images was taken from the authors' 1,000 test images: it goes back to test,
and val is dealt from train by patient. Patients may stand in train and in test, and under more
than one class: a group is the patient's number, whatever the class, and a cut group is told as a
leak."""


def examples(cfg: settings.OctKermany) -> Iterator[catalogue_lib.Example]:
  """Lists the folders; a group is one patient's slices.

  Raises:
    FileNotFoundError: a folder is missing.
    ValueError: a file has another name than the authors gave.
  """
  root = files.downloaded(cfg.root, "Kermany's OCT images", DOWNLOAD)
  seen = set()
  for folder in ("train", "test", "val") if (root / "val").is_dir() else ("train", "test"):
    part = "train" if folder == "train" else "test"
    for label in CLASSES:
      for file in files.images(files.need(root, DOWNLOAD, f"{folder}/{label}")):
        _, patient = files.key(r"(CNV|DME|DRUSEN|NORMAL)-(\d+)-\d+", file.name)
        if (part, file.name) not in seen:  # val may be a copy of what test holds
          name = file.relative_to(root).as_posix()
          yield catalogue_lib.Example(name, file, label, patient, part)
        seen.add((part, file.name))


PAPER = paper.Paper(
  examples,
  lambda _: CLASSES,
  chest_xray_kermany.CITATION,
  chest_xray_kermany.LICENCE,
  DOWNLOAD,
  TRAPS,
)
