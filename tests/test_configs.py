"""Every config parses, its step can be traced on every mesh, and one of each family really runs."""

import dataclasses
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from medjax import augment, config, contract, data, main, objectives, optim, settings, train, wiring
from medjax import mesh as mesh_lib
from medjax.data import catalogue, feed
from medjax.models import net as net_lib

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(
  str(path.relative_to(ROOT))
  for path in (ROOT / "configs").rglob("*.py")
  if "def get_config" in path.read_text()
)
PAPERS = [file for file in FILES if file.count("/") > 1]
STUDIES = ["configs/imbalance_bench.py", "configs/mednet/worth.py"]
THETAS = [file for file in FILES if "/theta" in file]
BASELINES = ("densenet121", "inception_v3", "mobilenet_v1", "resnet50", "vgg16", "xception")


def words(file: str) -> list[str]:
  """The variants that a config tells of when it is asked for one that it does not have."""
  with pytest.raises(ValueError, match="no variant 'unheard_of'") as refused:
    config.load(f"{file}:unheard_of")
  return re.findall(r":([\w+]+)", str(refused.value))


def parsed(spec: str) -> settings.Config:
  return config.parse(config.load(spec))


@pytest.mark.parametrize("file", FILES)
def test_every_variant_parses_and_reads_back(file):
  assert "smoke" in words(file)
  for word in ["", *words(file)]:
    found = parsed(f"{file}:{word}")
    assert config.parse(config.to_dict(found)) == found


@pytest.mark.parametrize(("word", "arms"), [("careful", 2), ("adapted", 1), ("imported", 1)])
def test_further_arms_have_the_rows_of_the_others(word, arms):
  few, more = (parsed(f"configs/mednet/worth.py:ham10000{end}") for end in ("", f"+{word}"))
  cells = [stage.cell for stage in few.stages if stage.cell]
  added = [s.cell for s in more.stages if s.cell and s.cell not in cells]
  assert len(added) == arms * len({cell[1:] for cell in cells}) == arms * 6


@pytest.mark.parametrize("where", ["", "phantom"])
def test_few_arms_are_stages_of_the_whole_bench(where):
  few, whole = (parsed(f"configs/imbalance_bench.py:{where}{end}") for end in ("+few", ""))
  assert set(few.stages) < set(whole.stages) and len(few.stages) == 7 * 3
  assert few.study.baseline in {stage.cell[0] for stage in few.stages}


def test_a_smoke_of_few_arms_is_refused_where_a_smoke_has_fewer():
  with pytest.raises(ValueError, match=r"no variant 'smoke\+few'; it has :\+few, :phantom, "):
    config.load("configs/imbalance_bench.py:smoke+few")


@pytest.mark.parametrize("file", [file for file in FILES if file not in STUDIES])
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


@pytest.mark.parametrize("file", STUDIES)
def test_smoke_of_a_study_is_some_arms_of_it_for_fewer_steps(file):
  whole, smoke = parsed(file), parsed(f"{file}:smoke")
  arms, fewer = ({stage.cell[:1] for stage in found.stages} for found in (whole, smoke))
  assert fewer <= arms and smoke.study == whole.study
  for stage in smoke.stages:
    assert stage.train.length.unit == "steps" and stage.train.length.value <= 10


@pytest.mark.parametrize("file", [file for file in FILES if file not in STUDIES])
def test_every_variant_has_a_smoke_run_that_is_long_enough_to_warm_up(file):
  for word in {*words(file)} - {"smoke"}:
    for stage in parsed(f"{file}:{word}+smoke").stages:
      train_cfg, optimizer = stage.train, stage.optimizer
      steps = train_cfg.length.steps(train_cfg.batch_size, 1000)
      warmup = optimizer.warmup.steps(train_cfg.batch_size, 1000, steps)
      assert steps <= 10 and optim.make_schedule(optimizer, steps, warmup)(steps - 1) >= 0
      assert max([stage.data.image_size, *train_cfg.sizes]) <= 96


@pytest.mark.parametrize("file", FILES)
def test_says_its_command(file):
  assert f"--config={file}" in (ROOT / file).read_text()


@pytest.mark.parametrize("file", PAPERS)
def test_says_what_it_measured_or_that_it_was_not_run(file):
  text = " ".join((ROOT / file).read_text().split('"""')[1].split())
  assert re.search(r"\b[Nn]ot run\b|\d\.\d\d", text)


def test_an_unknown_variant_lists_those_there_are():
  with pytest.raises(ValueError, match=r"no variant 'smok'; it has :densenet121, .*:smoke$"):
    config.load("configs/quadsnet/covid_ct.py:smok")
  with pytest.raises(ValueError, match=r"no variant 'smok'; it has :paper, .*:smoke$"):
    config.load("configs/soft_attention/resnet50.py:paper+smok")


def test_variants_add_up_in_any_order():
  both = parsed("configs/quadsnet/theta1.py:vgg16+paper+smoke")
  assert both == parsed("configs/quadsnet/theta1.py:smoke+paper+vgg16")
  (stage,) = both.stages
  assert (stage.model.name, stage.objective.loss.name) == ("vgg16", "margin")
  assert stage.data.image_size == 32 and stage.train.length.unit == "steps"


def test_a_group_of_another_name_takes_the_place_of_the_old_one():
  base = dict(model=dict(name="quadsnet", hidden=8), train=dict(batch_size=4, length="1 epochs"))
  over = dict(model=dict(name="vgg16"), train=dict(batch_size=8))
  assert common.merged(base, over) == dict(
    model=dict(name="vgg16"), train=dict(batch_size=8, length="1 epochs")
  )
  over = dict(model=dict(hidden=16))
  assert common.merged(base, over)["model"] == dict(name="quadsnet", hidden=16)
  assert base["model"]["hidden"] == 8


@pytest.mark.parametrize("file", PAPERS)
def test_only_what_repeats_a_paper_deals_by_image(file):
  leaky = {
    word
    for word in ["", *words(file)]
    for stage in parsed(f"{file}:{word}").stages
    if stage.data.split.mode == "image_random"
  }
  assert leaky <= {"paper", "code", "code34", "augmented"}


@pytest.mark.parametrize("file", THETAS)
@pytest.mark.parametrize("paper", ["", "paper+"])
def test_baselines_have_the_split_and_the_training_of_quadsnet(file, paper):
  (own,) = parsed(f"{file}:{paper.strip('+')}").stages
  for name in BASELINES:
    (stage,) = parsed(f"{file}:{paper}{name}").stages
    assert stage.model.name == name
    size = dict(image_size=own.data.image_size)
    same = dict(model=own.model, init_allow=(), data=dataclasses.replace(stage.data, **size))
    assert dataclasses.replace(stage, **same) == own


# What the specifications count; of a paper's network all numbers, running statistics included.
TOTALS = {
  "quadsnet/theta1:paper": 5_237_736 + 3_840,
  "quadsnet/theta5:paper": 5_237_994 + 3_840,
  "quadsnet/theta7:paper": 5_238_768 + 3_840,
  "pneumonia_cnn/standard:paper": 804_749 + 65,
  "pneumonia_cnn/standard:paper+gray": 800_141 + 65,
  "pneumonia_cnn/standard": 805_393 + 65,
  "pneumonia_cnn/sep_first:paper": 798_632 + 65,
  "pneumonia_cnn/sep_all:paper": 662_248 + 65,
  "pneumonia_cnn/sep_all:paper+gray": 661_718 + 65,
  "survey/cnn": 455_202 + 960,
  "mednet/kermany_cxr:paper": 10_789_442,
  "mednet/ham10000:paper": 10_790_594 + 5 * 513,
  "soft_attention/mobilenet_v3_small": 1_269_898 - 3 + 1,
  "soft_attention/mobilenet_v3_small:code": 990_010 - 3,
}
# A head of two classes on what Keras counts without that of ImageNet.
SLOW_TOTALS = {
  "quadsnet/theta1:paper+densenet121": 8_062_504 - 1025 * 1000 + 1025 * 2,
  "quadsnet/theta1:paper+inception_v3": 23_851_784 - 2049 * 1000 + 2049 * 2,
  "quadsnet/theta1:paper+mobilenet_v1": 4_253_864 - 1025 * 1000 + 1025 * 2,
  "quadsnet/theta1:paper+resnet50": 25_636_712 - 2049 * 1000 + 2049 * 2,
  "quadsnet/theta1:paper+vgg16": 14_714_688 + 513 * 2,
  "quadsnet/theta1:paper+xception": 22_910_480 - 2049 * 1000 + 2049 * 2,
  "soft_attention/densenet201": 18_257_242 - 3 + 1,
  "soft_attention/densenet201:code": 17_596_250 - 3,
  "soft_attention/densenet201:code+no_metadata": 17_477_463,
  "soft_attention/inception_resnet_v2": 55_020_794 - 3 + 1,
  "soft_attention/inception_resnet_v2:code": 47_654_074 - 3,
  "soft_attention/resnet50": 9_557_914 - 3 + 1,
  "soft_attention/resnet50:code": 24_460_186 - 3,
  "soft_attention/resnet152": 44_341_146 - 3 + 1,
  "soft_attention/resnet152:code": 50_299_802 - 3,
  "soft_attention/nasnet_large": 67_507_180 - 3 + 1,
  "soft_attention/nasnet_large:code": 78_573_004 - 3,
  "soft_attention/nasnet_mobile": 4_060_110 - 3 + 1,
  "soft_attention/nasnet_mobile:code": 3_956_094 - 3,
  "soft_attention/mobilenet_v2": 1_218_394 - 3 + 1,
  "soft_attention/mobilenet_v2:code": 1_354_714 - 3,
  "soft_attention/mobilenet_v3_large": 3_468_442 - 3 + 1,
  "soft_attention/mobilenet_v3_large:code": 2_694_762 - 3,
  "soft_attention/mobilenet_v3_large:code34": 2_666_922 - 3,
  "soft_attention/vgg16:augmented": 62_650_711,
  "survey/darknet53_six": 61_554_802,
  "survey/darknet53_six:single": 40_626_790,
  "survey/chexnet_14": 8_062_504 - 986 * 1025,
}


def made_up(stage: settings.Stage) -> contract.DataInfo:
  """What a stage's data would tell: its own classes, where a paper's set has them."""
  cfg, of = stage.data, data.PAPERS.get(type(stage.data))
  classes = of.classes(cfg) if of else ("a", "b")
  metadata = 21 if isinstance(cfg, settings.HAM10000) else 0
  several = bool(of and of.multi_label(cfg))
  shape = (cfg.image_size, cfg.image_size, cfg.channels)
  counts = tuple(range(2, 2 + len(classes)))
  means = (0.5,) * cfg.channels
  return contract.DataInfo(
    classes, shape, counts, 100, means, means, metadata, multi_label=several, target=cfg.target
  )


def total(spec: str) -> int:
  """Numbers of the network of a config's first stage, without those of its preprocessing."""
  stage = parsed(f"configs/{spec.partition(':')[0]}.py:{spec.partition(':')[2]}").stages[0]
  info = made_up(stage)
  net = wiring.network(stage, info, net_lib.Execution())
  images = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), images)
  found = jax.tree_util.tree_leaves_with_path(shapes)
  return sum(leaf.size for path, leaf in found if "'input'" not in jax.tree_util.keystr(path))


@pytest.mark.parametrize("spec", TOTALS)
def test_networks_have_the_parameters_that_the_papers_count(spec):
  assert total(spec) == TOTALS[spec]


@pytest.mark.slow
@pytest.mark.parametrize("spec", SLOW_TOTALS)
def test_large_networks_have_the_parameters_that_the_papers_count(spec):
  assert total(spec) == SLOW_TOTALS[spec]


# One of each family, of those whose first step is traced fast.
TRACED = (
  "configs/quadsnet/theta2.py",
  "configs/soft_attention/mobilenet_v3_small.py",
  "configs/pneumonia_cnn/sep_all.py",
  "configs/survey/cnn.py",
  "configs/mednet/ham10000.py",
  "configs/mednet/pretrain_gray.py",
)


def kinds(file: str) -> list[settings.Stage]:
  """The networks' stages, but one of each kind: others are dealt or begin in another way."""
  plain = dict(init_from="", seed=None, cell=())
  found = {}
  networks = [s for s in parsed(file).stages if not isinstance(s.objective, settings.Classical)]
  for stage in networks:
    data_cfg = dataclasses.replace(stage.data, root="", split=settings.Split())
    found.setdefault(dataclasses.replace(stage, name="", data=data_cfg, **plain), stage)
  return [*found.values()]


def trace(stage: settings.Stage) -> None:
  """Shapes and types alone: nothing is compiled. The images are made up."""
  info, mesh = made_up(stage), mesh_lib.make()
  net = wiring.network(stage, info, net_lib.Execution("cpu", axis=contract.AXIS))
  optimizer = optim.make(stage.optimizer, 100, 5, net.stages)
  objective = objectives.make(stage.objective, net, optimizer, augment.make(stage.augment), info)
  state = jax.eval_shape(objective.init, jax.random.key(0))
  pixels = np.zeros((8, *info.image_shape), np.uint8)
  marks = np.zeros((8, len(info.classes)), np.float32) if info.multi_label else np.arange(8) % 2
  known = np.zeros((8, info.metadata), np.float32) if info.metadata else None
  names = np.arange(8).astype(str)
  part = catalogue.Part("train", names, names, marks, pixels.__getitem__, pixels, known)
  batches = feed.training(part, 16, 0, mesh, "resident")
  run = train.dispatcher(objective, batches.take, mesh)
  inputs = batches.resident, batches.next(2), jnp.zeros(2), jax.random.key(0)
  after, metrics = jax.eval_shape(run, state, *inputs)
  shape = lambda leaf: leaf.shape  # noqa: E731
  assert jax.tree.map(shape, after) == jax.tree.map(shape, state)
  assert metrics["loss"].shape == (2,)


@pytest.mark.parametrize("file", TRACED)
def test_the_step_can_be_traced(file):
  trace(parsed(file).stages[0])


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_every_step_can_be_traced(file):
  for stage in kinds(file):
    trace(stage)


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
@pytest.mark.parametrize("file", PAPERS)
def test_every_config_on_public_sets_runs(file, tmp_path, shared_data):
  stages = parsed(file).stages
  missing = [stage.data.root for stage in stages if not pathlib.Path(stage.data.root).exists()]
  if missing:
    pytest.skip(f"no {missing[0]}")
  runs(f"{file}:smoke", tmp_path)


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path):
  runs("configs/quickstart.py:smoke", tmp_path)
