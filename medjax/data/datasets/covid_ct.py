"""COVID-CT (Zhao et al. 2020, "COVID-CT-Dataset: a CT scan dataset about COVID-19").

349 images of COVID-19 and 397 of other findings, cut from the figures of papers and from web pages.
Colour mode and file format differ between the classes; `readers` leaves no trace of either. The
official lists put panels of one figure into different parts, which is told as a leak.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import csv
import itertools
import pathlib
import re
from xml.etree import ElementTree
import zipfile

from medjax import contract, settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files, paper

CLASSES = ("non_covid", "covid")  # the positive class is 1
CITATION = """@article{zhao2020covid,
  title={COVID-CT-Dataset: a CT scan dataset about COVID-19},
  author={Zhao, Jinyu and Zhang, Yichen and He, Xuehai and Xie, Pengtao},
  journal={arXiv preprint arXiv:2003.13865}, year={2020}}"""
LICENCE = "not established; the images are those of the papers that they were cut from"
DOWNLOAD = """\
COVID-CT is the repository UCSD-AI4H/COVID-CT on GitHub. Unpack its Images-processed/CT_COVID.zip
and CT_NonCOVID.zip, put Data-split and the tables of Meta beside them, and name the folder with
--config.data.root=FOLDER:
  FOLDER/CT_COVID/*.png  FOLDER/CT_NonCOVID/*.{png,jpg}
  FOLDER/Data-split/{COVID,NonCOVID}/{train,val,test}CT_{COVID,NonCOVID}.txt
  FOLDER/Meta/COVID-CT-MetaInfo.xlsx  FOLDER/Meta/NonCOVID-CT-MetaInfo.csv"""
TRAPS = """\
The official lists cut figures across train and test. Of 98 COVID images in test, 83 have no row
in Meta. RGBA occurs in the COVID class only, and some files called .png hold JPEG: read all of
them alike. With 203 test images an accuracy near 0.86 is known to 4.8 points to each side."""
_NAMES = {"non_covid": "NonCOVID", "covid": "COVID"}  # in the set's own file names
_XLSX = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def examples(cfg: settings.CovidCT) -> Iterator[catalogue_lib.Example]:
  """Reads the official lists in `Data-split/` and the patients in `Meta/` below `cfg.root`.

  A group is all images that shared patients and shared figures join, over any number of steps.

  Raises:
    FileNotFoundError: a list, a table of patients or an image is missing.
  """
  root = files.downloaded(cfg.root, "COVID-CT", DOWNLOAD)
  classes, parts, names = zip(*_listed(root), strict=True)
  paths = [root / name for name in names]
  lost = [path for path in paths if not path.is_file()]
  if lost:
    raise FileNotFoundError(f"{len(lost)} images of COVID-CT are missing: {files.some(lost)}")
  figures = [f"{label}/{figure(path.name)}" for label, path in zip(classes, paths, strict=True)]
  known = _patients(files.need(root, DOWNLOAD, "Meta"))
  patients = [
    known.get((c, _stem(p.name)), f) for c, p, f in zip(classes, paths, figures, strict=True)
  ]
  columns = (names, paths, classes, joined(figures, patients), parts)
  yield from itertools.starmap(catalogue_lib.Example, zip(*columns, strict=True))


def figure(name: str) -> str:
  """The source of an image by its file's name: the paper and its page, or the name less its panel.

  `2020.03.12.20034686-p17-91-1.png` and `2020.03.12.20034686-p17-73_1%2.png` are panels of what
  stands on page 17 of one paper; `PIIS0140673620301549_0%1.png` is a panel of
  `PIIS0140673620301549.png`, and `10%2.jpg` one of `10.jpg`, to which `10.png` is no kin. The
  number behind the page is that of the image in the PDF, where panels of one figure are often
  numbered in a row: only the page surely holds a figure together.
  """
  page = re.match(r".+-p\d+(?=-)", name)
  return page[0] if page else re.sub(r"(_\d+)?(%\d+)?(?=\.\w+$)", "", name)


def joined(figures: Sequence[str], patients: Sequence[str]) -> tuple[str, ...]:
  """The group of each image: all that shared figures and patients join, named by one figure."""
  above: dict[str, str] = {}

  def top(node: str) -> str:
    while node in above:
      node = above[node]
    return node

  for source, patient in zip(figures, patients, strict=True):
    one, other = top(source), top(patient)
    if one != other:
      above[other] = one
  return tuple(map(top, figures))


def _listed(root: pathlib.Path) -> Iterator[tuple[str, str, str]]:
  """(class, part, path below the root) of each image in the official lists."""
  for label, own in _NAMES.items():
    for part in contract.PARTS:
      table = files.need(root, DOWNLOAD, f"Data-split/{own}/{part}CT_{own}.txt")
      lines = table.read_text().splitlines()
      yield from ((label, part, f"CT_{own}/{line.strip()}") for line in lines if line.strip())


def _stem(name: str) -> str:
  """Without the ending of an image file; what follows the last dot may as well be a part of it."""
  return re.sub(r"\.(png|jpg)$", "", name.strip())


def _patients(meta: pathlib.Path) -> dict[tuple[str, str], str]:
  """(class, file name without its ending) -> patient, where the tables know it."""
  with (meta / "NonCOVID-CT-MetaInfo.csv").open(encoding="utf-8", newline="") as stream:
    other = [(row["image name"], row["patient id"]) for row in csv.DictReader(stream)]
  covid = [(row.get("A"), row.get("B")) for row in _xlsx(meta / "COVID-CT-MetaInfo.xlsx")]
  pairs = [("non_covid", *pair) for pair in other] + [("covid", *pair) for pair in covid]
  return {(c, _stem(name)): f"{c}/{patient}" for c, name, patient in pairs if name and patient}


def _xlsx(file: pathlib.Path) -> Iterator[dict[str, str]]:
  """Texts of each row of the first sheet, by the letter of their column."""
  with zipfile.ZipFile(file) as archive:
    shared = ElementTree.fromstring(archive.read("xl/sharedStrings.xml"))
    sheet = ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml"))
  texts = ["".join(item.itertext()) for item in shared]
  for row in sheet.iter(f"{_XLSX}row"):
    cells = [(c.get("r", ""), c.find(f"{_XLSX}v")) for c in row if c.get("t") == "s"]
    yield {
      at.rstrip("0123456789"): texts[int(v.text)] for at, v in cells if v is not None and v.text
    }


PAPER = paper.Paper(examples, lambda _: CLASSES, CITATION, LICENCE, DOWNLOAD, TRAPS)
