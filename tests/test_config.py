"""Configs: what wins, what a variant keeps, and what an error says."""

import pathlib

import pytest

from medjax import config, settings

STAGED = dict(
  data="phantom",
  optimizer=dict(lr=0.1),
  stages=(
    dict(name="first", objective="simclr", optimizer=dict(lr=0.2)),
    dict(name="second", init_from="first"),
  ),
)


def stages(*overrides: str) -> dict[str, settings.Stage]:
  return {stage.name: stage for stage in config.parse(STAGED, overrides).stages}


def test_a_stage_inherits_the_top_level_and_its_own_values_win():
  parsed = stages()
  assert parsed["first"].optimizer.lr == 0.2
  assert parsed["second"].optimizer.lr == 0.1


def test_an_override_at_top_level_reaches_every_stage():
  parsed = stages("optimizer.lr=3e-4", "data.root=2020")
  assert {stage.optimizer.lr for stage in parsed.values()} == {3e-4}
  assert parsed["second"].data.root == "2020", "text stays text where text is asked for"


def test_an_override_reaches_the_stages_whose_variant_has_the_setting():
  parsed = stages("objective.loss=margin", "objective.loss.mix=0.5")
  assert isinstance(parsed["first"].objective, settings.SimCLR)
  assert parsed["second"].objective.loss == settings.Margin(mix=0.5)
  with pytest.raises(ValueError, match=r"unknown key objective\.los"):
    stages("objective.los=margin")


def test_an_override_of_one_stage_leaves_the_others():
  parsed = stages("optimizer.lr=3e-4", "stages.second.optimizer.lr=1")
  assert (parsed["first"].optimizer.lr, parsed["second"].optimizer.lr) == (3e-4, 1.0)


def test_init_from_leaves_the_chain_between_stages():
  parsed = stages("init_from=runs/before")
  assert parsed["first"].init_from == "runs/before"
  assert parsed["second"].init_from == "first"


def test_one_stage_configs_take_the_same_overrides():
  parsed = config.parse(dict(data="phantom"), ["init_from=x", "objective.name=simclr"])
  (stage,) = parsed.stages
  assert (stage.name, stage.init_from) == ("train", "x")
  assert isinstance(stage.objective, settings.SimCLR)


def test_another_variant_keeps_the_settings_both_have_and_drops_the_rest():
  tree = dict(data=dict(name="phantom", patients=7, image_size=48))
  (stage,) = config.parse(tree, ["data.name=image_folder", "data.root=x"]).stages
  assert stage.data == settings.ImageFolder(root="x", image_size=48)


@pytest.mark.parametrize(
  ("tree", "overrides"),
  [
    ({"data": "medmnist:bloodmnist"}, []),
    ({"data": {"name": "medmnist:bloodmnist", "image_size": 28}}, []),
    ({"data": {"name": "medmnist", "set": "bloodmnist"}}, []),
    ({}, ["data=medmnist:bloodmnist"]),
    ({"data": "medmnist"}, ["data.name=medmnist:bloodmnist"]),
  ],
)
def test_a_colon_says_which_set_of_a_variant(tree, overrides):
  found = config.parse(tree, overrides).stages[0].data
  assert found == settings.MedMNIST(set="bloodmnist")


def test_a_colon_where_there_is_no_choice_is_told():
  with pytest.raises(ValueError, match=r"unknown key data\.set"):
    config.parse({"data": "phantom:bloodmnist"})


def test_presets_bring_their_defaults_and_can_be_changed():
  (stage,) = config.parse(dict(augment=dict(name="cxr_safe", zoom=0.2))).stages
  assert (stage.augment.rotation, stage.augment.zoom) == (10, 0.2)


def test_values_are_read_by_the_type_of_their_key():
  (stage,) = config.parse(
    {},
    [
      "model.widths=(8,16)",
      "model.use_bias=true",
      "train.length=2 epochs",
      "train.batch_size=8",
      "optimizer.clip=2",
      "augment.crop_area=0.5,1",
    ],
  ).stages
  assert stage.model.widths == (8, 16) and stage.model.use_bias is True
  assert stage.train.length == settings.Duration(2, "epochs")
  assert stage.optimizer.clip == 2.0 and stage.augment.crop_area == (0.5, 1.0)


@pytest.mark.parametrize(
  ("override", "says"),
  [
    ("lr=3", "did you mean 'optimizer.lr'"),
    ("optimizr.lr=3", "did you mean 'optimizer'"),
    ("optimizer.lrr=3", "did you mean 'lr'"),
    ("optimizer.lr=high", "optimizer.lr = 'high' is not a number"),
    ("optimizer.lr=true", "not a number"),
    ("train.batch_size=2.5", "not a whole number"),
    ("train.batch_size=0", "at least 1"),
    ("optimizer.accumulate=0", "optimizer.accumulate = 0 of stage 'train' must be at least 1"),
    ("optimizer.ema=1", "between 0 and 0.999999"),
    ("objective.defer_weights=80", "between 0 and 1"),
    ("optimizer.plateau.patiense=3", "did you mean 'patience'"),
    ("train.length=3", "50 epochs"),
    ("data.name=phantm", "did you mean 'phantom'"),
    ("data.feed=disk", "'resident', 'split'"),
    ("objective.loss=margn", "did you mean 'margin'"),
    ("stages.thrid.seed=1", "there is no stage 'thrid'"),
    ("optimizer.lr", "has no value"),
    ("data=3", "unknown"),
  ],
)
def test_an_error_says_what_was_meant(override, says):
  with pytest.raises(ValueError, match="config") as error:
    config.parse({}, [override])
  assert says in str(error.value)


def test_what_plateau_and_stop_watch_can_be_named():
  overrides = ["optimizer.plateau.patience=5", "optimizer.plateau.monitor=log_loss"]
  overrides += ["train.stop.patience=35", "optimizer.freeze=encoder", "optimizer.name=keras_adam"]
  stage = config.parse({}, overrides).stages[0]
  assert stage.optimizer == settings.KerasAdam(
    plateau=settings.Plateau(patience=5, monitor="log_loss"), freeze=("encoder",)
  )
  assert stage.train.stop == settings.Patience(patience=35)


def test_contradictions_are_refused():
  with pytest.raises(ValueError, match="compare"):
    config.parse(STAGED | dict(compare=("first", "third")))
  with pytest.raises(ValueError, match="only from an earlier stage"):
    config.parse(STAGED, ["stages.first.init_from=second"])
  with pytest.raises(ValueError, match="distinct names"):
    config.parse(dict(stages=(dict(name="a"), dict(name="a"))))


def test_the_resolved_config_reads_back_equal():
  parsed = config.parse(STAGED, ["seed=3"])
  assert config.parse(config.to_dict(parsed)) == parsed


def test_a_config_file_is_found_and_run(tmp_path: pathlib.Path):
  file = tmp_path / "mine.py"
  file.write_text(
    "from ml_collections import ConfigDict\n"
    "def get_config(arg=''):\n  return ConfigDict(dict(title=arg))\n"
  )
  assert config.load(f"{file}:smoke") == {"title": "smoke"}
  with pytest.raises(FileNotFoundError, match="no config file"):
    config.load(str(tmp_path / "other.py"))
  file.write_text("x = 1\n")
  with pytest.raises(ValueError, match="get_config"):
    config.load(str(file))


@pytest.mark.parametrize(
  ("text", "steps"),
  [("3 epochs", 300), ("1 epoch", 100), ("7 steps", 7), ("3.2e3 examples", 320), ("5 %", 20)],
)
def test_durations(text, steps):
  assert settings.Duration.parse(text).steps(batch_size=10, train_size=1000, total=400) == steps
