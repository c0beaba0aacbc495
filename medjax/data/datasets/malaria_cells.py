"""Red blood cells with and without malaria, cut from thin smears (Rajaraman et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files, paper

CLASSES = ("uninfected", "parasitized")  # the positive class is 1
CITATION = """@article{rajaraman2018pretrained,
  title={Pre-trained convolutional neural networks as feature extractors toward improved malaria
    parasite detection in thin blood smear images},
  author={Rajaraman, Sivaramakrishnan and Antani, Sameer K. and Poostchi, Mahdieh and others},
  journal={PeerJ}, volume={6}, pages={e4568}, year={2018}}"""
LICENCE = "public, of the U.S. National Library of Medicine; no terms are named"
DOWNLOAD = """\
Get cell_images.zip, the malaria screener's data of the U.S. National Library of Medicine (Lister
Hill Center), unpack it, and name the folder that holds the two classes with
--config.data.root=FOLDER:
  FOLDER/{Parasitized,Uninfected}/C33P1thinF_IMG_20150619_114756a_cell_179.png"""
TRAPS = """\
There is no official split. A patient has hundreds of cells: a group is the beginning of the
file's name, `C33P1`. Folders hold a Thumbs.db."""


def examples(cfg: settings.MalariaCells) -> Iterator[catalogue_lib.Example]:
  """Lists the folders; a group is a patient's smear.

  Raises:
    FileNotFoundError: a folder is missing.
    ValueError: a file has another name than the authors gave.
  """
  root = files.downloaded(cfg.root, "the malaria cells", DOWNLOAD)
  for label in CLASSES:
    for file in files.images(files.need(root, DOWNLOAD, label.title())):
      (patient,) = files.key(r"(C\d+(?:P\d+)?)", file.name)
      yield catalogue_lib.Example(file.relative_to(root).as_posix(), file, label, patient)


PAPER = paper.Paper(examples, lambda _: CLASSES, CITATION, LICENCE, DOWNLOAD, TRAPS)
