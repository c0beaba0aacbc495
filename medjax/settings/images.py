"""Settings of images: where they come from, how they are dealt, what is changed at random."""

from __future__ import annotations

import dataclasses
from typing import Literal

from medjax.settings.feeding import Feeding
from medjax.settings.reading import Reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
  """How images are dealt to train, val and test.

  Attributes:
    mode: `official` takes the set's own parts and makes the missing ones by group; `grouped`
      ignores the official parts; `image_random` cuts through groups, is tagged leaky, and exists
      only to reproduce published numbers.
    val: share of the training part that becomes val where there is none; 0 makes no val.
    test: share of all images that becomes test where there is none; 0 makes no test.
    seed: which of the possible splits.
    folds: with 2 or more, what is not test is dealt to so many folds by group, an official val part
      with it, and one fold is val instead of a share; 0 makes no folds.
    fold: which of them is val, counted from 0.
    folded: the part that a fold is, val or test. As test, all images are dealt to folds, official
      parts or not, so that over all folds each is tested once; val is then dealt from the others.
    leaks: what is done where the set's own parts share a group or a picture: `refuse` stops, and
      `stamp` goes on with every output stamped leaky. A published split is always stamped only.
    fraction: share of the train part's groups that is kept, the same share of every class and at
      least one group; smaller fractions lie in larger ones. Val and test stay as they are.
    fraction_seed: which of the possible choices.
    rest: what becomes of the other images: `drop` leaves them out, and `unlabelled` keeps them in
      the train part without their labels, as a set of their own beside the labelled ones
      (`feeding.weights`).
  """

  mode: Literal["official", "grouped", "image_random"] = "official"
  val: float = 0.125
  test: float = 0.2
  seed: int = 0
  folds: int = 0
  fold: int = 0
  folded: Literal["val", "test"] = "val"
  leaks: Literal["refuse", "stamp"] = "refuse"
  fraction: float = 1.0
  fraction_seed: int = 0
  rest: Literal["drop", "unlabelled"] = "drop"

  def __post_init__(self):
    if not 0 < self.fraction <= 1:
      raise ValueError(f"split.fraction={self.fraction}: choose a share above 0, and 1 for all")
    if self.folds < 0 or self.folds == 1:
      raise ValueError(f"split.folds={self.folds}: choose 2 or more, or 0 for no folds")
    if not 0 <= self.fold < max(self.folds, 1):
      raise ValueError(
        f"split.fold={self.fold} with split.folds={self.folds}: folds are counted from 0"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """A set of images.

  Attributes:
    root: folder or file that holds it.
    image_size: images are brought to this many pixels, height and width (`reading.resize`).
    channels: 1 (grey) or 3 (RGB); every file mode is brought to it.
    feed: every image is decoded once, to the cache. `resident` keeps all on every device, `split`
      a share on each, `chunked` two windows of the order on the devices, and `streamed` sends each
      batch; `auto` takes resident up to `resident_gb`.
    feeding: the order in which images are drawn.
    threads: decoding threads; 0 means one a core.
    cache: folder for decoded images.
    max_unreadable: share of unreadable files above which the run stops.
    patience: seconds that a disk may take for a file, or for a batch of decoded images, before the
      run stops; 0 waits for ever.
    reading: how a file's values become pixels.
    target: what the labels are: those of the set, or where each image is from: its zip or folder,
      in collections its modality and body part, or its set where these are not known.
    generated: a folder of images that `python -m medjax.generate` made, for the train part alone.
  """

  name: str
  root: str = ""
  image_size: int = 64
  channels: Literal[1, 3] = 3
  split: Split = Split()
  feed: Literal["auto", "resident", "split", "chunked", "streamed"] = "auto"
  feeding: Feeding = Feeding()
  resident_gb: float = 4.0
  threads: int = 0
  cache: str = "~/.cache/medjax/data"
  max_unreadable: float = 0.01
  patience: float = 300.0
  reading: Reading = Reading()
  target: Literal["label", "source"] = "label"
  generated: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phantom(Data):
  """Synthetic radiograph-like images of patients (`data/datasets/phantom.py`).

  Attributes:
    patients: how many patients to draw, each with several images.
    shares: of how many patients in a row how many are of each class.
    labelled: whether lesion classes are told; without them everything is training data.
    seed: which patients; two seeds share none.
  """

  name: str = "phantom"
  channels: Literal[1, 3] = 1
  patients: int = 200
  shares: tuple[int, int, int] = (6, 3, 1)
  labelled: bool = True
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder(Data):
  """`root/[train|val|test/]class/**/image`; the group is the image unless `group_pattern` says.

  Attributes:
    group_pattern: regular expression on the file's name; its first group (or whole match) is the
      patient, lesion or source that must not be cut across parts.
  """

  name: str = "image_folder"
  group_pattern: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Data):
  """A CSV with one row an image; paths are relative to the CSV.

  Attributes:
    path, label, group, part: names of its columns; those of `group` and `part` may be missing.
    classes: class names in label order; by default those of the training part, sorted.
    separator: what stands between the classes of an image that has several, such as `|`; a blank
      cell then means none of them. Empty where every image has one.
    numbers, categories: columns of metadata that networks may see; blank cells are not known.
    kept: columns that no network sees, kept beside the scores for `eval.subgroups` and
      `eval.pool_by`.
  """

  name: str = "table"
  path: str = "path"
  label: str = "label"
  group: str = "group"
  part: str = "split"
  classes: tuple[str, ...] = ()
  separator: str = ""
  numbers: tuple[str, ...] = ()
  categories: tuple[str, ...] = ()
  kept: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Npz(Data):
  """MedMNIST's layout: `{train,val,test}_{images,labels}` in one .npz file."""

  name: str = "npz"
  channels: Literal[1, 3] = 1
  image_size: int = 28


@dataclasses.dataclass(frozen=True, kw_only=True)
class ZipFolder(Data):
  """A folder of zip files of images, read in place; the zip's name is the source label."""

  name: str = "zip_folder"
  channels: Literal[1, 3] = 1
  split: Split = Split(val=0.0, test=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection(Data):
  """Prepared collections (`python -m medjax.data prepare`); `root` is the first.

  Attributes:
    more: further ones of the same size and depth, drawn as often as `feeding.weights` says.
    label: the column of the manifest that becomes the label; empty for unlabelled images.
    duplicates: which images that `prepare` found to be copies of an earlier one are left out.
    kept: columns of the manifest that no network sees, kept beside the scores for `eval.subgroups`
      and `eval.pool_by`.
  """

  name: str = "collection"
  channels: Literal[1, 3] = 1
  split: Split = Split(val=0.0, test=0.0)
  more: tuple[str, ...] = ()
  label: str = ""
  duplicates: Literal["keep", "drop_equal", "drop_near"] = "drop_equal"
  kept: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """Random changes of an image, made on the device (Keras ImageDataGenerator semantics).

  Attributes:
    rotation: degrees to each side. shift: share of the size. zoom: factor within 1 +- zoom.
    hflip, vflip: mirrored with probability 0.5. Never on by default: a mirrored chest is wrong.
    crop_area: share of the image a random crop keeps, (low, high); (1, 1) crops nothing.
    crop_ratio: aspect ratio of that crop, drawn log-uniformly.
    brightness: added, within +-. contrast: factor within 1 +-. gamma: exponent, (low, high).
    saturation: of colours, factor within 1 +-. hue: turn of the colour circle, within +-, 0.5 for
      all of it.
    jitter: probability with which brightness, contrast, saturation and hue change at all.
    grayscale: probability that colours go.
    stain: of haematoxylin, eosin and DAB in a stained slide: their densities are multiplied by a
      factor within 1 +-, and what is added to them, as optical density, is within +-.
    invert: probability of the negative.
    blur_sigma: pixels, (low, high), with probability `blur`.
    noise_sigma: standard deviation on [0, 1] pixels, with probability `noise`.
    cutout: sides of a square that is painted over, as a share of the image's.
  """

  name: str = "none"
  rotation: float = 0.0
  shift: float = 0.0
  zoom: float = 0.0
  hflip: bool = False
  vflip: bool = False
  crop_area: tuple[float, float] = (1.0, 1.0)
  crop_ratio: tuple[float, float] = (1.0, 1.0)
  brightness: float = 0.0
  contrast: float = 0.0
  gamma: tuple[float, float] = (1.0, 1.0)
  invert: float = 0.0
  blur: float = 0.0
  blur_sigma: tuple[float, float] = (0.1, 2.0)
  noise: float = 0.0
  noise_sigma: float = 0.02
  saturation: float = 0.0
  hue: float = 0.0
  jitter: float = 1.0
  grayscale: float = 0.0
  stain: float = 0.0
  cutout: float = 0.0
