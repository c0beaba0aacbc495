"""HAM10000: 10,015 images of seven kinds of pigmented skin lesions (Tschandl et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import pathlib

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data import metadata
from medjax.data.datasets import files, paper

CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
SEXES = ("female", "male", "unknown")
PLACES = (
  "abdomen",
  "acral",
  "back",
  "chest",
  "ear",
  "face",
  "foot",
  "genital",
  "hand",
  "lower extremity",
  "neck",
  "scalp",
  "trunk",
  "unknown",
  "upper extremity",
)
FIELDS = (
  metadata.Number("age"),
  metadata.Category("sex", SEXES),
  metadata.Category("localization", PLACES),
)
CITATION = """@article{tschandl2018ham10000,
  title={The HAM10000 dataset, a large collection of multi-source dermatoscopic images of common
    pigmented skin lesions},
  author={Tschandl, Philipp and Rosendahl, Cliff and Kittler, Harald},
  journal={Scientific Data}, volume={5}, pages={180161}, year={2018}}"""
LICENCE = "CC BY-NC 4.0"
DOWNLOAD = """\
Get "The HAM10000 dataset" from the Harvard Dataverse: HAM10000_images_part_1.zip and
_part_2.zip, HAM10000_metadata as CSV, and for data.official_test also
ISIC2018_Task3_Test_Images.zip and ISIC2018_Task3_Test_GroundTruth as CSV (the ISIC challenge's
own site has both, too). Unpack the zips into one folder, with any folders in it, and name it
with --config.data.root=FOLDER:
  FOLDER/HAM10000_metadata.csv  FOLDER/**/ISIC_0024306.jpg
  FOLDER/**/ISIC2018_Task3_Test_GroundTruth.csv  FOLDER/**/ISIC_0034524.jpg"""
TRAPS = """\
A lesion has up to six photographs: deal by lesion (7,470 of them), not by image. Age is not
known of 57 images (10 bkl, 2 mel, 45 nv). The test of ISIC 2018 comes in one of two tables: the
challenge's without metadata and lesions, the Dataverse's with them."""

_TEST = "ISIC2018_Task3_Test_GroundTruth.csv"


def examples(cfg: settings.HAM10000) -> Iterator[catalogue_lib.Example]:
  """Reads the patient table; a group is a lesion.

  Raises:
    FileNotFoundError: a table, or an image that it names.
  """
  root = files.downloaded(cfg.root, "HAM10000", DOWNLOAD)
  found = files.by_name(root)
  table = files.need(root, DOWNLOAD, "HAM10000_metadata.csv", "HAM10000_metadata")
  yield from _listed(root, table, found, "train" if cfg.official_test else "", cfg.drop_missing)
  if cfg.official_test:
    if _TEST not in found:
      raise FileNotFoundError(f"no {_TEST} below {root}.\n{DOWNLOAD}")
    yield from _listed(root, found[_TEST], found, "test", cfg.drop_missing)


def _listed(
  root: pathlib.Path,
  table: pathlib.Path,
  found: Mapping[str, pathlib.Path],
  part: str,
  drop_missing: bool,
) -> Iterator[catalogue_lib.Example]:
  rows = [row for row in files.rows(table) if row.get("age") != "" or not drop_missing]
  names = [f"{row.get('image_id') or row['image']}.jpg" for row in rows]
  paths = files.listed(table, names, found, DOWNLOAD)
  for row, path in zip(rows, paths, strict=True):
    known = {field.name: row.get(field.name) for field in FIELDS}
    name = path.relative_to(root).as_posix()
    yield catalogue_lib.Example(name, path, _label(row), row.get("lesion_id", ""), part, known)


def _label(row: Mapping[str, str]) -> str:
  """The diagnosis: a word in the patient table, a column of ones and zeros in the challenge's."""
  return row.get("dx") or next(name for name in CLASSES if float(row[name.upper()]) == 1)


PAPER = paper.Paper(examples, lambda _: CLASSES, CITATION, LICENCE, DOWNLOAD, TRAPS, FIELDS)
