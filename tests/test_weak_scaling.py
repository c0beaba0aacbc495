"""With as many images a device, a step is the same work a device, however many devices there are.

The work is what XLA counts in the step before it optimises; nothing is compiled or run.
"""

import jax
import numpy as np
import pytest

from medjax import augment, contract, models, objectives, optim, settings
from medjax import mesh as mesh_lib
from medjax.models import net as net_lib

EACH, SIDE = 2, 96  # images a device; pixels, the fewest that every network takes
PRESETS = settings.VARIANTS[settings.Model]
# One of each family; soft attention on the smallest of its backbones.
FAMILIES = {
  **{
    name: PRESETS[name] for name in ("mednet", "resnet18", "vgg16", "survey_cnn", "pneumonia_cnn")
  },
  **{name: PRESETS[name] for name in ("densenet121", "xception", "darknet53", "nasnet_mobile")},
  **{name: PRESETS[name] for name in ("inception_v3", "inception_resnet_v2")},
  **{name: PRESETS[name] for name in ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small")},
  "soft_attention": settings.SoftAttention(backbone=PRESETS["mobilenet_v2"], metadata="none"),
}
NO_IMAGE_CLASSIFIERS = {"gan", "metadata_mlp"}
OTHERS = sorted(PRESETS.keys() - FAMILIES.keys() - NO_IMAGE_CLASSIFIERS)
SMALL = settings.QuadSNet(widths=(4,), convs_per_block=1, sep_convs_per_block=1, hidden=4)


def flops(model: settings.Model, devices: int, side: int) -> float:
  """Of one device, in a step of `EACH` images on each."""
  info = contract.DataInfo(("a", "b"), (side, side, 3), (4, 4), 8, (0.5,) * 3, (0.3,) * 3)
  net = models.make(model, info, net_lib.Execution("plain", axis=contract.AXIS))
  rule = optim.make(settings.SGD(), 10, 0)
  objective = objectives.make(
    settings.Supervised(), net, rule, augment.make(settings.Augment()), info
  )
  mesh, whole = mesh_lib.make(jax.devices()[:devices]), mesh_lib.REPLICATED
  step = mesh_lib.mapped(objective.step, mesh, (whole, mesh_lib.cut(), whole, whole), whole)
  slots = (devices * EACH,)
  batch = {
    contract.IMAGE: jax.ShapeDtypeStruct((*slots, *info.image_shape), np.uint8),
    contract.LABEL: jax.ShapeDtypeStruct(slots, np.int32),
    contract.MASK: jax.ShapeDtypeStruct(slots, np.float32),
    contract.SLOT: jax.ShapeDtypeStruct(slots, np.int32),
  }
  key = jax.eval_shape(jax.random.key, 0)
  state, rate = jax.eval_shape(objective.init, key), jax.ShapeDtypeStruct((), np.float32)
  return step.lower(state, batch, key, rate).cost_analysis()["flops"]


def assert_constant(model: settings.Model, side: int, numbers: tuple[int, ...] = (2, 4, 8)) -> None:
  one, *several = (flops(model, devices, side) for devices in (1, *numbers))
  print(f"\n{model.name}: {one:.4g} on one device, {several[0] / one:.4f} times as much on several")
  assert several == [several[0]] * len(numbers)
  assert several[0] == pytest.approx(one, rel=0.02)  # what is summed over devices counts, too


def test_a_device_has_as_much_to_do_beside_others_as_alone():
  assert_constant(SMALL, 16)
  assert flops(SMALL, 1, 16) < 0.5 * flops(SMALL, 1, 32)  # it is the images that are counted


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_scales_so(name):
  assert_constant(FAMILIES[name], SIDE)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_other_network_scales_so_from_one_device_to_eight(name):
  assert_constant(PRESETS[name], SIDE, (8,))
