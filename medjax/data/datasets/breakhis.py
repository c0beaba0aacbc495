"""BreakHis: 7,909 microscopic images of breast tumours of 82 patients (Spanhol et al. 2016)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import pathlib

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files, paper

BINARY = ("benign", "malignant")
TYPES = {  # letters in the file's name -> tumour
  "a": "adenosis",
  "f": "fibroadenoma",
  "pt": "phyllodes_tumor",
  "ta": "tubular_adenoma",
  "dc": "ductal_carcinoma",
  "lc": "lobular_carcinoma",
  "mc": "mucinous_carcinoma",
  "pc": "papillary_carcinoma",
}
CITATION = """@article{spanhol2016dataset,
  title={A dataset for breast cancer histopathological image classification},
  author={Spanhol, Fabio A. and Oliveira, Luiz S. and Petitjean, Caroline and Heutte, Laurent},
  journal={IEEE Transactions on Biomedical Engineering}, volume={63}, number={7},
  pages={1455--1462}, year={2016}}"""
LICENCE = "CC BY 4.0 by its page; for research, on request"
DOWNLOAD = """\
Get BreaKHis_v1.tar.gz and the fold lists dsfold1.txt to dsfold5.txt (in mkfold.tar.gz) from the
Laboratory of Vision, Robotics and Imaging of the Federal University of Parana, unpack both into
one folder, and name it with --config.data.root=FOLDER:
  FOLDER/BreaKHis_v1/histology_slides/breast/{benign,malignant}/SOB/TYPE/SLIDE/{40,100,200,400}X/*.png
  FOLDER/dsfold1.txt ... FOLDER/dsfold5.txt  (data.fold=0 needs none)"""
TRAPS = """\
Magnifications of one patient must stay together, and one patient stands under two tumours
(ductal and lobular): a group is year and number, without the tumour. Letters behind the number
tell slides, which the authors count as patients. The set's page has 652 for the benign at 40x:
there are 625."""

_NAME = r"SOB_([BM])_([A-Z]+)-(\d+-\w+)-(\d+)-\d+"  # SOB_B_TA-14-16184-100-001.png


def examples(cfg: settings.BreakHis) -> Iterator[catalogue_lib.Example]:
  """Lists the images; a group is a patient.

  Raises:
    FileNotFoundError: no images, no list of the fold, or an image that it names.
    ValueError: a file has another name than the authors gave.
  """
  root = files.downloaded(cfg.root, "BreakHis", DOWNLOAD)
  files.need(root, DOWNLOAD, "BreaKHis_v1", "histology_slides")
  found = files.by_name(root)
  names = sorted(name for name in found if name.startswith("SOB_"))
  parts = _fold(found, names, cfg.fold) if cfg.fold else {}
  for name in names:
    kind, tumour, patient, zoom = files.key(_NAME, name)
    if cfg.magnification in (0, int(zoom)):
      label = TYPES[tumour] if cfg.task == "types" else BINARY[kind == "m"]
      path = found[name]
      own = path.relative_to(root).as_posix()
      yield catalogue_lib.Example(own, path, label, patient, parts.get(name, ""))


def _fold(found: dict[str, pathlib.Path], names: Sequence[str], fold: int) -> dict[str, str]:
  """The part of each image by the published list, lines of `image|magnification|fold|part`."""
  table = f"dsfold{fold}.txt"
  if table not in found:
    raise FileNotFoundError(f"no {table} beside the images.\n{DOWNLOAD}")
  lines = [line.split("|") for line in found[table].read_text().split()]
  parts = {cells[0]: cells[3] for cells in lines}
  files.listed(found[table], parts, found, DOWNLOAD)
  files.listed(pathlib.Path("BreaKHis_v1"), names, dict.fromkeys(parts, found[table]), DOWNLOAD)
  return parts


def classes(cfg: settings.BreakHis) -> tuple[str, ...]:
  """Benign and malignant, or the eight tumours."""
  return tuple(TYPES.values()) if cfg.task == "types" else BINARY


PAPER = paper.Paper(examples, classes, CITATION, LICENCE, DOWNLOAD, TRAPS)
