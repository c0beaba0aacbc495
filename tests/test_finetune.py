"""Fine-tuning: rates that fall from stage to stage, statistics that stay, starts from other stages.

The truth of a step is worked by hand from the step without the rule in question.
"""

import contextlib
import dataclasses
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from medjax import (
  augment,
  checkpoint,
  config,
  contract,
  data,
  main,
  models,
  objectives,
  optim,
  settings,
  stages,
  trees,
  wiring,
)
from medjax import mesh as mesh_lib
from medjax.models import net as net_lib

INFO = contract.DataInfo(("a", "b", "c"), (16, 16, 1), (6, 6, 6), 18, (0.5,), (0.2,))
MEDNET = settings.MedNet(width=2, blocks=2, pooled=(2,), connections=(), hidden=4)
QUADSNET = settings.QuadSNet(widths=(4, 8), hidden=4, bn="fusion")
FLAT = dict(schedule="constant", clip=0.0)

PARAMS = {
  "encoder": {
    "stem": {"kernel": [1.0, -2.0], "bias": [0.5]},
    "block1": {"kernel": [3.0], "scale": [2.0]},
    "block10": {"kernel": [0.25]},
  },
  "head": {"kernel": [4.0], "bias": [-1.0]},
}
STAGES = ("encoder/stem", "encoder/block1", "encoder/block10", "head")


def arrays(scale: float = 1.0):
  return jax.tree.map(lambda x: scale * jnp.asarray(x), PARAMS, is_leaf=lambda x: type(x) is list)


def moves(cfg: settings.Optimizer, stages=()) -> dict[str, np.ndarray]:
  """How far three updates moved every parameter, by path; the gradients do not see the moves."""
  optimizer = optim.make(cfg, 10, 0, stages)
  params, before = arrays(), trees.flatten(arrays())
  state = optimizer.init(params)
  for update in range(3):
    grads = optimizer.split(arrays(0.1 + update))[0]
    params, state = optimizer.apply(grads, state, params, jnp.asarray(optimizer.schedule(update)))
  return {path: np.asarray(leaf - before[path]) for path, leaf in trees.flatten(params).items()}


@pytest.mark.parametrize("cls", [settings.Adam, settings.KerasAdam, settings.SGD])
def test_a_stage_moves_by_the_decayed_rate(cls, x64):
  """Without weight decay an update is the rate times what the gradients say."""
  plain = {"weight_decay": 0.0} if cls is settings.SGD else {}
  whole = moves(cls(lr=0.1, **plain, **FLAT))
  found = moves(cls(lr=0.1, layer_decay=0.5, **plain, **FLAT), STAGES)
  for path, moved in whole.items():
    factor = {"stem": 0.125, "block1": 0.25, "block10": 0.5}.get(path.split("/")[1], 1.0)
    np.testing.assert_allclose(found[path], factor * moved, rtol=1e-12)
    assert np.abs(moved).min() > 0.01


def test_weight_decay_of_a_stage_falls_with_its_rate(x64):
  """One AdamW step by hand: the first one has length 1 but for eps, then decay * x of kernels."""
  cfg = settings.AdamW(lr=0.1, layer_decay=0.5, weight_decay=0.3, eps=0.0, **FLAT)
  optimizer = optim.make(cfg, 10, 0, STAGES)
  params = arrays()
  after, _ = optimizer.apply(arrays(), optimizer.init(params), params, jnp.asarray(0.1))
  stem, head = after["encoder"]["stem"], after["head"]
  np.testing.assert_allclose(stem["kernel"], [1 - 0.0125 * 1.3, -2 + 0.0125 * 1.6], rtol=1e-9)
  np.testing.assert_allclose(stem["bias"], [0.5 - 0.0125], rtol=1e-9)
  np.testing.assert_allclose(head["kernel"], [4 - 0.1 * 2.2], rtol=1e-9)
  np.testing.assert_allclose(head["bias"], [-1 + 0.1], rtol=1e-9)


def test_a_frozen_stage_counts_and_does_not_move(x64):
  cfg = settings.Adam(lr=0.1, layer_decay=0.5, freeze=("encoder/block1",), **FLAT)
  found, whole = moves(cfg, STAGES), moves(settings.Adam(lr=0.1, **FLAT))
  np.testing.assert_array_equal(found["encoder/block1/kernel"], 0)
  np.testing.assert_allclose(found["encoder/stem/bias"], 0.125 * whole["encoder/stem/bias"])


@pytest.mark.parametrize("model", [QUADSNET, MEDNET], ids=["quadsnet", "mednet"])
def test_every_parameter_of_a_network_has_the_rate_of_its_depth(model):
  """A QuadSNet's streams lie side by side: their first blocks are equally far from the head."""
  net = models.make(model, INFO, net_lib.Execution())
  params, _ = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
  zeros = jax.tree.map(lambda p: np.zeros(p.shape, np.float32), params)
  ones = jax.tree.map(np.ones_like, zeros)
  cfg = settings.SGD(lr=1.0, layer_decay=0.5, weight_decay=0.0, **FLAT)
  optimizer = optim.make(cfg, 10, 0, net.stages)
  step = jax.jit(lambda p, g, lr: optimizer.apply(g, optimizer.init(p), p, lr)[0])
  after = step(zeros, ones, jnp.float32(1))
  depths: dict[str, set[int]] = {}
  for path, leaf in trees.flatten(after).items():
    top, inside, block, *_ = (*path.split("/"), "")
    name = {"encoder": block if inside in settings.QuadSNet().streams else inside}.get(top, top)
    depths.setdefault(name, set()).update((-np.log2(-np.asarray(leaf))).ravel().tolist())
  expected = {"block1": 3, "block2": 2, "bn": 1, "head": 0}
  if model is MEDNET:
    expected = {"stem1": 4, "stem2": 3, "b1": 2, "b2": 1, "head": 0}
  assert depths == {name: {depth} for name, depth in expected.items()}


def test_a_parameter_of_no_stage_is_told():
  optimizer = optim.make(settings.Adam(layer_decay=0.5), 10, 0, STAGES)
  with pytest.raises(ValueError, match=r"layer_decay=0.5: generator/kernel lies in no stage"):
    optimizer.init({"generator": {"kernel": jnp.zeros(2)}, **arrays()})


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_a_decay_is_a_share(decay):
  with pytest.raises(ValueError, match=r"optimizer.layer_decay = .* must be between 0 and 1"):
    config.parse({}, [f"optimizer.layer_decay={decay}"])


# Statistics that stay.


def batch() -> contract.Batch:
  rng = np.random.default_rng(0)
  return {
    contract.IMAGE: jnp.asarray(rng.integers(0, 256, (6, 16, 16, 1), np.uint8)),
    contract.LABEL: jnp.arange(6, dtype=jnp.int32) % 3,
    contract.MASK: jnp.array([1.0] * 5 + [0.0]),
    contract.SLOT: jnp.arange(6, dtype=jnp.int32),
  }


@pytest.fixture(scope="module")
def trained():
  """A net, a state with odd statistics, and that state after two steps that keep them."""
  model = settings.QuadSNet(widths=(4,), hidden=0, streams=("cs3",), convs_per_block=1, dropout=0.0)
  net = models.make(model, INFO, net_lib.Execution(axis=contract.AXIS, freeze_stats=True))
  cfg = settings.SGD(lr=0.5, momentum=0.0, weight_decay=0.0, ema=0.9, **FLAT)
  objective = objectives.make(
    settings.Supervised(), net, optim.make(cfg, 10, 0), augment.make(settings.Augment()), INFO
  )
  start = objective.init(jax.random.key(0))
  stats = jax.tree.map(lambda leaf: 0.5 * leaf + 0.11, start.stats)
  before = objectives.base.with_weights(start, start.params, stats)
  mesh, whole = mesh_lib.make(jax.devices()[:1]), mesh_lib.REPLICATED
  step = mesh_lib.mapped(
    objective.step, mesh, (whole, mesh_lib.cut(), whole, whole), (whole, whole)
  )
  after = before
  for number in range(2):
    after, _ = step(after, batch(), jax.random.key(number), jnp.float32(0.5))
  return net, before, after


def test_frozen_statistics_stay_to_the_bit_while_weights_learn(trained):
  _, before, after = trained
  same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))  # noqa: E731
  jax.tree.map(same, before.stats, after.stats)
  jax.tree.map(same, before.stats, after.extra["average"]["stats"])
  for path, leaf in trees.flatten(after.params).items():
    if path.startswith("encoder") and path.endswith("kernel"):
      assert (np.asarray(leaf) != np.asarray(trees.flatten(before.params)[path])).any(), path


def test_frozen_statistics_are_those_that_a_step_normalises_by(trained):
  """The step is that of the network as it is evaluated: its loss differentiated directly."""
  net, before, after = trained
  images = objectives.base.with_floats(batch())

  def loss(params):
    result, _ = net.apply(params, before.stats, images, train=False)
    picked = jax.nn.log_softmax(result.output)[jnp.arange(5), images[contract.LABEL][:5]]
    return -picked.mean()  # of the five that count

  params, grad = before.params, jax.jit(jax.grad(loss))
  for _ in range(2):
    params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grad(params))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), after.params, params
  )


@pytest.mark.parametrize(
  ("change", "text"),
  [
    (["eval.recalibrate=64", "init_from=x"], "eval.recalibrate estimates them anew"),
    (["train.bn_group=8", "init_from=x"], "train.bn_group groups the statistics"),
    ([], "init_from is empty"),
  ],
  ids=["recalibrated", "grouped", "nothing to keep"],
)
def test_what_moves_or_lacks_the_statistics_is_told(tmp_path, change, text):
  tree = {"data": {"name": "phantom", "patients": 40, "image_size": 16}}
  (stage,) = config.parse(tree, ["train.freeze_stats=true", *change]).stages
  with pytest.raises(ValueError, match=f"train.freeze_stats keeps .* {text}"):
    wiring.wire(0, stage, data.make(stage.data), tmp_path, mesh_lib.make())


# Starts from other stages.


def chain(folder: pathlib.Path) -> pathlib.Path:
  """A config: pretrained without labels, then the head, then all of a related set, then another."""
  rng = np.random.default_rng(0)
  arrays = {}
  for part, n in (("train", 24), ("val", 8), ("test", 8)):
    arrays[f"{part}_images"] = rng.integers(0, 256, (n, 16, 16), np.uint8)
    arrays[f"{part}_labels"] = np.arange(n) % 2
  np.savez(folder / "two.npz", **arrays)
  file = folder / "chain.py"
  file.write_text(f"""
from ml_collections import ConfigDict

def get_config(arg=""):
  return ConfigDict(dict(
    data=dict(name="phantom", image_size=16, patients=30),
    model=dict(name="quadsnet", widths=(4, 8), streams=("cs3", "ss3"), hidden=4, bn_momentum=0.5),
    train=dict(batch_size=8, length="4 steps", steps_per_dispatch=2),
    eval=dict(every="2 steps", bootstrap=20),
    optimizer=dict(name="adamw", lr=0.01, warmup="0 steps"),
    stages=(
      dict(name="pretrain", data=dict(labelled=False, seed=1), objective="simclr",
           optimizer=dict(ema=0.5)),
      dict(name="head", init_from="pretrain", optimizer=dict(freeze=("encoder",)),
           train=dict(freeze_stats=True)),
      dict(name="whole", init_from="head", optimizer=dict(layer_decay=0.5),
           train=dict(freeze_stats=True)),
      dict(name="other", init_from="whole", data=dict(name="npz", root={str(folder / "two.npz")!r},
           image_size=16)),
    )))
""")
  return file


@pytest.fixture(scope="module")
def chained(tmp_path_factory) -> tuple[pathlib.Path, str]:
  """The workdir of the chain, and what was told on the way."""
  folder, told = tmp_path_factory.mktemp("chain"), io.StringIO()
  with contextlib.redirect_stdout(told):
    assert main.main([f"--config={chain(folder)}", f"--workdir={folder / 'w'}"]) == 0
  return folder / "w", told.getvalue()


def saved(stage: pathlib.Path, kind: str = "last") -> dict:
  """Flat tensors of a checkpoint."""
  (place,) = (stage / "checkpoints" / kind).iterdir()
  return trees.flatten(ocp.StandardCheckpointer().restore((place / "state").resolve()))


@pytest.mark.slow
def test_head_first_then_all_then_another_set(chained):
  """SimCLR's averaged encoder, its statistics to the bit through two stages, a new head twice."""
  pretrained, head, whole = (saved(chained[0] / name) for name in ("pretrain", "head", "whole"))
  encoder = [path for path in head if path.startswith(("params/encoder", "stats/encoder"))]
  for path in encoder:
    np.testing.assert_array_equal(head[path], pretrained[f"extra/average/{path}"], err_msg=path)
    if path.startswith("stats"):
      np.testing.assert_array_equal(whole[path], head[path], err_msg=path)
  differ = [path for path in encoder if (whole[path] != head[path]).any()]
  assert differ and all(path.startswith("params") for path in differ)


@pytest.mark.slow
def test_a_head_of_other_classes_is_left_out_and_told(chained):
  workdir, told = chained
  assert saved(workdir / "other")["params/head/classes/bias"].shape == (2,)
  last = told[told.index("other  init_from") :]
  for what in ("new", "left over"):
    assert f"other  2 {what}: params/head/classes/bias, params/head/classes/kernel\n" in last


@pytest.mark.parametrize(
  ("kept", "start"), [((), 1.0), (("target",), 1.0), (("target", "average"), 3.0)], ids=str
)
def test_a_start_is_the_online_network_or_its_average_and_never_a_target(tmp_path, kept, start):
  def filled(value):
    return {"params": {"encoder": {"x": np.full(2, value)}}, "stats": {"encoder": {"m": value}}}

  extra = {name: filled({"target": 2.0, "average": 3.0}[name]) for name in kept}
  state = objectives.base.TrainState(np.int32(4), **filled(1.0), opt_state=(), extra=extra)
  saved_here = checkpoint.Checkpoints(tmp_path / "byol" / "checkpoints")
  saved_here.save(checkpoint.LAST, 4, jax.tree.map(jnp.asarray, state), {})
  saved_here.wait()
  saved_here.close()
  found, _ = checkpoint.weights(tmp_path / "byol")
  assert {path: np.max(leaf) for path, leaf in trees.flatten(found).items()} == {
    "params/encoder/x": start,
    "stats/encoder/m": start,
  }


def test_a_gan_is_no_start_for_a_classifier_nor_the_other_way():
  gan, net = {"generator": {}, "discriminator": {}}, {"encoder": {}, "head": {}}
  for ours, theirs in ((gan, net), (net, gan)):
    with pytest.raises(ValueError, match=r"init_from runs/x holds .* a GAN's networks are no enc"):
      stages._check_alike(ours, theirs, "runs/x")
  stages._check_alike(net, net, "runs/x")


def test_statistics_that_nothing_was_learnt_for_are_not_kept():
  stage = settings.Stage(init_from="x", train=settings.Train(freeze_stats=True))
  account = trees.Account((), (), ("params/head/a", "stats/head/bn/mean"), ())
  with pytest.raises(ValueError, match="x has none for 1 of them, such as stats/head/bn/mean"):
    stages._check_frozen_stats(stage, account)
  stages._check_frozen_stats(stage, dataclasses.replace(account, new=("params/head/a",)))
  stages._check_frozen_stats(dataclasses.replace(stage, train=settings.Train()), account)
