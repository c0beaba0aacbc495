"""The model zoo: every network by name, on the images for which it was published or counted."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses

from medjax import contract, models, settings
from medjax.models import costs, net, soft_attention

IMAGENET, LESIONS = 1000, 7  # classes of ImageNet and of HAM10000
METADATA = 21  # age, sex in 4 columns, localization in 16 (Nguyen et al. 2022, their code)
# Keras's layer that standardises the age counts mean, variance and number; here the data keep them.
STANDARDISATION = 3

_PRESETS = settings.VARIANTS[settings.Model]
_KERAS = (
  "densenet121",
  "densenet169",
  "densenet201",
  "resnet50",
  "resnet152",
  "inception_v3",
  "inception_resnet_v2",
  "xception",
  "vgg16",
  "vgg19",
  "mobilenet_v1",
  "mobilenet_v2",
  "mobilenet_v3_small",
  "mobilenet_v3_large",
  "nasnet_mobile",
  "nasnet_large",
)
_SIDE = 224  # of most networks' images
_SIDES = {"inception_v3": 299, "inception_resnet_v2": 299, "xception": 299, "nasnet_large": 331}


@dataclasses.dataclass(frozen=True)
class Entry:
  """A network on data of its own kind.

  Attributes:
    name: a preset of `settings`, and after a slash what was changed in it.
    model: its settings. size, channels: of its square images. classes: of its head.
    source: whose count the tests compare it with.
    metadata: width of the metadata that it takes.
  """

  name: str
  model: settings.Model
  size: int
  classes: int
  source: str
  channels: int = 3
  metadata: int = 0

  def make(self) -> tuple[net.Net, tuple[int, int, int]]:
    """The network and the shape [H, W, C] of its images."""
    shape = (self.size, self.size, self.channels)
    names = tuple(f"class{i}" for i in range(self.classes))
    half = (0.5,) * self.channels
    info = contract.DataInfo(names, shape, (1,) * len(names), len(names), half, half, self.metadata)
    return models.make(self.model, info, net.Execution()), shape

  def costs(self) -> costs.Costs:
    """What it costs, counted as Keras does."""
    found = costs.of(*self.make())
    extra = STANDARDISATION if self.metadata else 0
    return dataclasses.replace(found, total=found.total + extra)


def _imagenet() -> Iterator[Entry]:
  for name in _KERAS:
    yield Entry(name, _PRESETS[name], _SIDES.get(name, _SIDE), IMAGENET, "Keras")
  for name in ("resnet18", "resnet34", "resnet50_v15", "resnet152_v15"):
    yield Entry(name, _PRESETS[name], _SIDE, IMAGENET, "torchvision")
  yield Entry("chexnet", _PRESETS["chexnet"], _SIDE, 14, "Keras")


def _quadsnet() -> Iterator[Entry]:
  for name, model in _PRESETS.items():
    if isinstance(model, settings.QuadSNet):
      paper = name in ("quadsnet_exact", "quadsnet_total")
      yield Entry(name, model, _SIDE, 2, "paper" if paper else "layers")


def _mednet() -> Iterator[Entry]:
  for name, model in _PRESETS.items():
    if isinstance(model, settings.MedNet):
      for version, channels in (("gray", 1), ("color", 3)):
        yield Entry(f"{name}/{version}", model, _SIDE, 2, "layers", channels)


def _pneumonia() -> Iterator[Entry]:
  for name, model in _PRESETS.items():
    if isinstance(model, settings.PneumoniaCNN):
      for version, channels in (("gray", 1), ("color", 3)):
        rows = dataclasses.replace(model, bn_axis="row")
        yield Entry(f"{name}/{version}", model, 200, 1, "Keras", channels)
        yield Entry(f"{name}/{version}/rows", rows, 200, 1, "Keras", channels)


def _survey() -> Iterator[Entry]:
  for name in ("survey_cnn", "survey_cnn_se"):
    yield Entry(name, _PRESETS[name], 128, 2, "layers")
  yield Entry("darknet53", _PRESETS["darknet53"], 256, IMAGENET, "layers")
  yield Entry("darknet53_fpn", _PRESETS["darknet53_fpn"], 256, 6, "layers")
  yield Entry("gan", _PRESETS["gan"], 64, LESIONS, "layers")


def _metadata() -> Iterator[Entry]:
  model = _PRESETS["metadata_mlp"]
  yield Entry("metadata_mlp", model, _SIDE, LESIONS, "layers", metadata=METADATA)


def _soft_attention() -> Iterator[Entry]:
  """The presets, and every cut without the learnt factor, as the authors' code has it."""
  for name in ("soft_attention", "vgg16_soft_attention"):
    yield Entry(name, _PRESETS[name], _SIDE, LESIONS, "layers")
  model = dataclasses.replace(_PRESETS["vgg16_soft_attention"], attention="paper_no_gamma")
  yield from _with_and_without_metadata("soft_attention/vgg16/code", model, "authors' code")
  for backbone, cuts in soft_attention.CUTS.items():
    for cut in cuts:
      model = settings.SoftAttention(
        backbone=_PRESETS[backbone], cut=cut, attention="paper_no_gamma"
      )
      source = "layers" if cut == "paper" else "authors' code"
      yield from _with_and_without_metadata(f"soft_attention/{backbone}/{cut}", model, source)


def _with_and_without_metadata(
  name: str, model: settings.SoftAttention, source: str
) -> Iterator[Entry]:
  size = _SIDES.get(model.backbone.name, _SIDE)
  yield Entry(name, model, size, LESIONS, source)
  model = dataclasses.replace(model, metadata="dense")
  yield Entry(f"{name}/metadata", model, size, LESIONS, source, metadata=METADATA)


_FAMILIES = (_imagenet, _quadsnet, _mednet, _pneumonia, _survey, _metadata, _soft_attention)
ENTRIES = {entry.name: entry for family in _FAMILIES for entry in family()}
