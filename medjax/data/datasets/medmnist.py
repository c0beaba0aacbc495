"""MedMNIST: the twelve 2-D sets of small images (Yang et al. 2023), each one .npz file."""

from __future__ import annotations

from collections.abc import Iterator
import functools
import pathlib

import numpy as np

from medjax import settings
from medjax.data import catalogue as catalogue_lib
from medjax.data.datasets import files, npz, paper

_ORGANS = (
  "bladder",
  "femur-left",
  "femur-right",
  "heart",
  "kidney-left",
  "kidney-right",
  "liver",
  "lung-left",
  "lung-right",
  "pancreas",
  "spleen",
)
CLASSES = {  # set -> names in label order, as the authors give them
  "pathmnist": (
    "adipose",
    "background",
    "debris",
    "lymphocytes",
    "mucus",
    "smooth muscle",
    "normal colon mucosa",
    "cancer-associated stroma",
    "colorectal adenocarcinoma epithelium",
  ),
  "chestmnist": (
    "atelectasis",
    "cardiomegaly",
    "effusion",
    "infiltration",
    "mass",
    "nodule",
    "pneumonia",
    "pneumothorax",
    "consolidation",
    "edema",
    "emphysema",
    "fibrosis",
    "pleural",
    "hernia",
  ),
  "dermamnist": (
    "actinic keratoses and intraepithelial carcinoma",
    "basal cell carcinoma",
    "benign keratosis-like lesions",
    "dermatofibroma",
    "melanoma",
    "melanocytic nevi",
    "vascular lesions",
  ),
  "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
  "pneumoniamnist": ("normal", "pneumonia"),
  "retinamnist": ("0", "1", "2", "3", "4"),
  "breastmnist": ("malignant", "normal, benign"),
  "bloodmnist": (
    "basophil",
    "eosinophil",
    "erythroblast",
    "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
  ),
  "tissuemnist": (
    "Collecting Duct, Connecting Tubule",
    "Distal Convoluted Tubule",
    "Glomerular endothelial cells",
    "Interstitial endothelial cells",
    "Leukocytes",
    "Podocytes",
    "Proximal Tubule Segments",
    "Thick Ascending Limb",
  ),
  "organamnist": _ORGANS,
  "organcmnist": _ORGANS,
  "organsmnist": _ORGANS,
}
CITATION = """@article{yang2023medmnist,
  title={MedMNIST v2: a large-scale lightweight benchmark for 2D and 3D biomedical image
    classification},
  author={Yang, Jiancheng and Shi, Rui and Wei, Donglai and Liu, Zequan and Zhao, Lin and Ke, Bilian
    and Pfister, Hanspeter and Ni, Bingbing},
  journal={Scientific Data}, volume={10}, pages={41}, year={2023}}"""
LICENCE = "CC BY 4.0; DermaMNIST CC BY-NC 4.0"
DOWNLOAD = """\
Get the set's file, such as pathmnist.npz, or pathmnist_224.npz for data.pixels=224, from
"MedMNIST" on Zenodo, and name its folder with --config.data.root=FOLDER:
  FOLDER/pathmnist.npz"""
TRAPS = """\
Patients are not told: every image is its own group, and parts may share patients. Images were cut
to squares and scaled down, so that they overlap their sources (PneumoniaMNIST Kermany's films,
ChestMNIST ChestX-ray14, DermaMNIST HAM10000) without any hash to tell. In breastmnist the positive
class, 1, is the healthy one. Four of the sets are in colour; the others have three equal channels
unless data.channels=1."""


def examples(cfg: settings.MedMNIST) -> Iterator[catalogue_lib.Example]:
  """Loads the file of `cfg.set`; an id is part and row.

  Raises:
    KeyError: no such set.
    FileNotFoundError: no such file.
    ValueError: a file of another layout, or labels that are none of the set's classes.
  """
  names, several = classes(cfg), _is_multi_label(cfg)
  root = files.downloaded(cfg.root, "MedMNIST's .npz files", DOWNLOAD)
  size = "" if cfg.pixels == 28 else f"_{cfg.pixels}"
  file = files.need(root, DOWNLOAD, f"{cfg.set}{size}.npz")
  images, labels = npz.load(file)
  for part, own in images.items():
    marks = npz.labels(labels, part, own, file, len(names) if several else 1)
    for row, label in enumerate(_named(marks, names, several, file)):
      load = functools.partial(own.__getitem__, row)
      yield catalogue_lib.Example(f"{part}/{row}", file, label, part=part, load=load)


def _named(
  marks: np.ndarray, names: tuple[str, ...], several: bool, file: pathlib.Path
) -> list[str | tuple[str, ...]]:
  """The class of each image, of [n, 1] numbers; or its classes, of [n, K] marks."""
  if several:
    return [tuple(names[label] for label in np.flatnonzero(row)) for row in marks]
  if marks.size and not 0 <= marks.min() <= marks.max() < len(names):
    raise ValueError(f"{file} has labels from {marks.min()} to {marks.max()}, for {list(names)}")
  return [names[label] for label in marks[:, 0]]


def _is_multi_label(cfg: settings.MedMNIST) -> bool:
  return cfg.set == "chestmnist"


def classes(cfg: settings.MedMNIST) -> tuple[str, ...]:
  """The names of the classes of `cfg.set`."""
  if cfg.set not in CLASSES:
    raise KeyError(
      f"MedMNIST has no 2-D set {cfg.set!r}, only {', '.join(CLASSES)}."
      f"{files.suggestion(cfg.set, CLASSES)} Name one with --config.data.set=NAME"
    )
  return CLASSES[cfg.set]


PAPER = paper.Paper(
  examples, classes, CITATION, LICENCE, DOWNLOAD, TRAPS, multi_label=_is_multi_label
)
