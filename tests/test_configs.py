"""Every config parses, its step can be traced on every mesh, and one of each family really runs."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from medjax import augment, config, contract, main, models, objectives, optim, settings, train
from medjax import mesh as mesh_lib
from medjax.data import catalogue, feed
from medjax.models import net as net_lib

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
  str(path.relative_to(ROOT))
  for path in (ROOT / "configs").rglob("*.py")
  if path.name != "common.py"
)


def variants(file: str) -> list[str]:
  return [file, f"{file}:smoke", *([f"{file}:paper"] if "covid" in file else [])]


ALL = [variant for file in FILES for variant in variants(file)]


def parsed(spec: str) -> settings.Config:
  return config.parse(config.load(spec))


@pytest.mark.parametrize("spec", ALL)
def test_parses_and_reads_back(spec):
  found = parsed(spec)
  assert config.parse(config.to_dict(found)) == found


@pytest.mark.parametrize("file", FILES)
def test_smoke_is_the_same_network_on_smaller_images_for_fewer_steps(file):
  whole, smoke = parsed(file), parsed(f"{file}:smoke")
  for stage, small in zip(whole.stages, smoke.stages, strict=True):
    assert (small.model, small.objective, small.augment) == (
      stage.model,
      stage.objective,
      stage.augment,
    )
    assert small.data.image_size < stage.data.image_size
    assert small.train.length.unit == "steps" and small.train.length.value <= 10


@pytest.mark.parametrize("file", FILES)
def test_says_its_command(file):
  assert f"--config={file}" in (ROOT / file).read_text()


def test_an_unknown_variant_lists_those_there_are():
  with pytest.raises(ValueError, match="no variant 'smok'; it has :paper, :smoke"):
    config.load("configs/quadsnet/covid_ct.py:smok")


STAGES = [
  pytest.param(stage, id=f"{spec}-{stage.name}")
  for spec in ALL
  if ":smoke" not in spec
  for stage in parsed(spec).stages
]


@pytest.mark.parametrize("stage", STAGES)
def test_the_step_can_be_traced(stage):
  """Shapes and types alone: nothing is compiled. The classes are made up."""
  size, channels = stage.data.image_size, stage.data.channels
  info = contract.DataInfo(
    ("a", "b"), (size, size, channels), (5, 3), 8, (0.5,) * channels, (0.2,) * channels
  )
  mesh = mesh_lib.make()
  optimizer = optim.make(stage.optimizer, 100, 5)
  execution = net_lib.Execution("cpu", axis=contract.AXIS)
  projector = getattr(stage.objective, "projector", None)
  net = models.make(stage.model, info, execution, projector)
  objective = objectives.make(stage.objective, net, optimizer, augment.make(stage.augment), info)
  state = jax.eval_shape(objective.init, jax.random.key(0))
  pixels = jnp.zeros((8, *info.image_shape), jnp.uint8)
  part = catalogue.Part("train", *(jnp.arange(8),) * 3, fetch=pixels.__getitem__, images=pixels)
  batches = feed.training(part, 16, 0, mesh, "resident")
  run = train.dispatcher(objective, batches.take, mesh)
  inputs = batches.resident, batches.next(2), jnp.zeros(2), jax.random.key(0)
  after, metrics = jax.eval_shape(run, state, *inputs)
  assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(
    lambda leaf: leaf.shape, state
  )
  assert metrics["loss"].shape == (2,)


def runs(spec: str, tmp_path: pathlib.Path, *more: str) -> None:
  assert main.main([f"--config={spec}", f"--workdir={tmp_path}/w", *more]) == 0
  assert (tmp_path / "w" / "report.html").is_file()


TWO_STEPS = "--config.train.length=2 steps"


def test_quadsnet_runs_on_real_images(tmp_path, shared_data):
  root = f"--config.data.root={shared_data}/covid_ct"
  runs("configs/quadsnet/covid_ct.py:smoke", tmp_path, TWO_STEPS, root)


def test_mednet_pretrains_and_is_fine_tuned_on_real_images(tmp_path, shared_data):
  root = f"--config.data.root={shared_data}/mednist"
  runs("configs/mednet/pretrain_gray.py:smoke", tmp_path / "first", TWO_STEPS, root)
  root = f"--config.data.root={shared_data}/pneumoniamnist/pneumoniamnist.npz"
  start = f"--config.init_from={tmp_path}/first/w/pretrain"
  runs("configs/mednet/finetune_pneumoniamnist.py:smoke", tmp_path, TWO_STEPS, root, start)


@pytest.mark.slow
@pytest.mark.parametrize("file", [file for file in FILES if "/" in file.removeprefix("configs/")])
def test_every_config_on_public_sets_runs(file, tmp_path, shared_data):
  runs(f"{file}:smoke", tmp_path)


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path):
  runs("configs/quickstart.py:smoke", tmp_path)
