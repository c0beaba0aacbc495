"""Settings of the public sets: which of them, and what of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from medjax.settings.images import Data


@dataclasses.dataclass(frozen=True, kw_only=True)
class CovidCT(Data):
  """COVID-CT (Zhao et al. 2020): official lists, source figures as groups."""

  name: str = "covid_ct"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChestXrayKermany(Data):
  """Chest films of children (Kermany et al. 2018): official test, patients as groups."""

  name: str = "chest_xray_kermany"
  channels: Literal[1, 3] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class OctKermany(Data):
  """Retinal OCT in four classes (Kermany et al. 2018): official test, patients as groups."""

  name: str = "oct_kermany"
  channels: Literal[1, 3] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class HAM10000(Data):
  """Skin lesions in seven classes with age, sex and place (Tschandl et al. 2018).

  Attributes:
    official_test: adds the test part of ISIC 2018, task 3, and deals none from the 10,015.
    drop_missing: leaves out the 57 images whose patient's age is not known.
  """

  name: str = "ham10000"
  official_test: bool = False
  drop_missing: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class IsicMalignantBenign(Data):
  """Skin lesions of the ISIC archive in two classes, as Kaggle has them: official test."""

  name: str = "isic_malignant_benign"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EyePACS(Data):
  """Fundus photographs of Kaggle's diabetic retinopathy detection, both eyes as one group.

  Attributes:
    task: `grades` 0 to 4; `binary`, none or any retinopathy; `balanced`, the same with as many
      images without as with, drawn by `split.seed`.
    official_test: adds Kaggle's test part by the labels that were published later.
  """

  name: str = "eyepacs"
  task: Literal["grades", "binary", "balanced"] = "grades"
  official_test: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class MalariaCells(Data):
  """Red blood cells with and without malaria (Rajaraman et al. 2018), patients as groups."""

  name: str = "malaria_cells"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BreakHis(Data):
  """Breast tumours under the microscope (Spanhol et al. 2016), patients as groups.

  Attributes:
    task: `binary`, benign or malignant, or the eight `types`.
    magnification: 40, 100, 200 or 400; 0 takes all.
    fold: 1 to 5, which of the published parts in train and test; 0 deals by patient.
  """

  name: str = "breakhis"
  task: Literal["binary", "types"] = "binary"
  magnification: Literal[0, 40, 100, 200, 400] = 0
  fold: Literal[0, 1, 2, 3, 4, 5] = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChestXray14(Data):
  """Chest films with up to 14 findings (Wang et al. 2017): official lists, patients as groups.

  Attributes:
    task: `findings`, of which a film may have several; or `six` classes, the findings that are most
      often alone, 1,000 such films of each, drawn by `split.seed` and dealt by patient.
  """

  name: str = "chestxray14"
  channels: Literal[1, 3] = 1
  task: Literal["findings", "six"] = "findings"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MNIST(Data):
  """Handwritten digits (LeCun et al. 1998): official test."""

  name: str = "mnist"
  channels: Literal[1, 3] = 1
  image_size: int = 28


@dataclasses.dataclass(frozen=True, kw_only=True)
class MedMNIST(Data):
  """One of the twelve 2-D sets of MedMNIST (Yang et al. 2023): official parts.

  Attributes:
    set: such as `pathmnist`; `data.name=medmnist:pathmnist` says both.
    pixels: side of the images in the file; 28 is `SET.npz`, others are `SET_64.npz` and so on.
  """

  name: str = "medmnist"
  image_size: int = 28
  set: str = "pneumoniamnist"
  pixels: Literal[28, 64, 128, 224] = 28


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tfds(Data):
  """A set that tensorflow-datasets has prepared as array_record; `root` is its data folder.

  Attributes:
    set: the builder's name, `name/config` where it has several; `data.name=tfds:patch_camelyon`
      says both.
  """

  name: str = "tfds"
  root: str = "~/tensorflow_datasets"
  set: str = ""
