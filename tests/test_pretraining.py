"""Objectives of pretraining, each against a truth of its own, in float64 on eight devices.

The batch has 22 images in 24 slots; the two slots that only pad it hold noise.
"""

import dataclasses
import functools
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special
from sklearn.metrics import log_loss

from medjax import (
  augment,
  config,
  contract,
  models,
  objectives,
  optim,
  pixels,
  runs,
  settings,
  train,
  wiring,
  writer,
)
from medjax import mesh as mesh_lib
from medjax.data import catalogue
from medjax.models import heads, zoo
from medjax.models import net as net_lib
from medjax.objectives import base, pretext, views

TINY = pathlib.Path(__file__).with_name("tiny.py")
IMAGES, SLOTS, SIZE, TOTAL = 22, 24, 8, 10
INFO = contract.DataInfo(
  classes=("a", "b", "c"),
  image_shape=(SIZE, SIZE, 1),
  class_counts=(40, 10, 5),
  train_size=55,
  mean=(0.5,),
  std=(0.3,),
)
SGD = settings.SGD(lr=0.5, momentum=0.0, weight_decay=0.0, schedule="constant", clip=0.0)
CHANGE = settings.Augment(brightness=0.2, gamma=(0.7, 1.4))


@pytest.fixture(autouse=True)
def _double_precision(x64):
  yield


def _matrices(**shapes):
  """A net of matrix products, one after the other: its names and shapes are its parameters."""

  def init(key, images):
    del images
    keys = jax.random.split(key, len(shapes))
    draw = lambda key, shape: {"kernel": jax.random.normal(key, shape) / 4}  # noqa: E731
    drawn = {name: draw(k, s) for k, (name, s) in zip(keys, shapes.items(), strict=True)}
    first, *rest = drawn
    return {"encoder": drawn[first], "head": {name: drawn[name] for name in rest}}, {}

  def apply(params, stats, batch, *, train, key=None, momentum=None, endpoints=()):
    flat = batch[contract.IMAGE].reshape(len(batch[contract.IMAGE]), -1) - 0.5
    maps = [flat @ params["encoder"]["kernel"]]
    for layer in params["head"].values():
      maps.append(maps[-1] @ layer["kernel"])
    named = dict.fromkeys(endpoints, maps[1])
    return net_lib.Result(maps[-1], maps[0], endpoints=named), stats

  return net_lib.Net(init, apply)


LINEAR = _matrices(encoder=(SIZE * SIZE, 5), projector=(5, 4))
BOOTSTRAP = _matrices(encoder=(SIZE * SIZE, 5), projector=(5, 4), zpredictor=(4, 4))


def _batch():
  rng = np.random.default_rng(0)
  return {
    contract.IMAGE: rng.integers(0, 256, (SLOTS, SIZE, SIZE, 1), np.uint8),
    contract.LABEL: rng.integers(0, 3, SLOTS).astype(np.int32),
    contract.MASK: (np.arange(SLOTS) < IMAGES).astype(np.float32),
    contract.SLOT: np.arange(SLOTS, dtype=np.int32),
    contract.INDEX: np.arange(SLOTS, dtype=np.int32),
  }


def _objective(cfg, net, change=CHANGE, info=INFO):
  return objectives.make(cfg, net, optim.make(SGD, TOTAL, 0), augment.make(change), info)


@functools.cache
def _mapped(cfg, net, devices):
  """(objective, its step on so many devices), compiled once for all tests."""
  objective, mesh = _objective(cfg, net), mesh_lib.make(jax.devices()[:devices])
  whole = mesh_lib.REPLICATED
  specs = (whole, mesh_lib.cut(), whole, whole)
  return objective, mesh_lib.mapped(objective.step, mesh, specs, (whole, whole))


def _stepped(step, state):
  return step(state, _batch(), jax.random.key(1), np.float64(0.5))


def _named(name):
  return jax.random.fold_in(jax.random.key(1), np.uint32(zlib.crc32(name.encode())))


def _changed(images, slots):
  floats = pixels.to_float(jnp.asarray(images))
  return np.asarray(jax.jit(augment.make(CHANGE))(_named("augment"), floats, jnp.asarray(slots)))


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _assert_close(tree, other, atol=1e-12):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), tree, other)


def test_micle_takes_neighbouring_slots_for_the_two_views():
  """NT-Xent by a loop over the images of the batch, none of them doubled."""
  objective, step = _mapped(settings.MICLe(temperature=0.3), LINEAR, 8)
  state = objective.init(jax.random.key(0))
  _, metrics = _stepped(step, state)
  seen = {contract.IMAGE: _changed(_batch()[contract.IMAGE], np.arange(SLOTS))[:IMAGES]}
  z = _unit(np.asarray(LINEAR.apply(state.params, {}, seen, train=True)[0].output))
  found = []
  for i in range(IMAGES):
    others = [z[i] @ z[k] / 0.3 for k in range(IMAGES) if k != i]
    found.append(np.log(np.sum(np.exp(others))) - z[i] @ z[i ^ 1] / 0.3)
  assert float(metrics["loss"]) == pytest.approx(np.mean(found), abs=1e-12)
  cosines = (z[0::2] * z[1::2]).sum(1)
  assert float(metrics["alignment"]) == pytest.approx(cosines.mean(), abs=1e-12)
  assert float(metrics["feature_std"]) == pytest.approx(z.std(0).mean() * 2, abs=1e-12)


def _byol_state(objective, number=0):
  """A state whose target is not the network itself any more."""
  state, other = (objective.init(jax.random.key(seed)) for seed in (0, 7))
  target = {"params": other.params, "stats": other.stats}
  return state.replace(extra={base.TARGET: target}, step=jnp.asarray(number, jnp.int32))


def _byol_by_hand(state):
  """Loss and gradient with what the target says as constants: half the sum of both directions."""
  images = np.repeat(_batch()[contract.IMAGE], 2, axis=0)
  seen = {contract.IMAGE: _changed(images, np.arange(2 * SLOTS))[: 2 * IMAGES]}
  said = BOOTSTRAP.apply(
    state.extra[base.TARGET]["params"], {}, seen, train=True, endpoints=[heads.PROJECTION]
  )
  aims = _unit(np.asarray(said[0].endpoints[heads.PROJECTION]))

  def loss(params):
    q = BOOTSTRAP.apply(params, {}, seen, train=True)[0].output
    q /= jnp.linalg.norm(q, axis=-1, keepdims=True)
    one_way = (2 - 2 * (q[0::2] * aims[1::2]).sum(-1)).mean()
    other_way = (2 - 2 * (q[1::2] * aims[0::2]).sum(-1)).mean()
    return (one_way + other_way) / 2

  return jax.value_and_grad(loss)(state.params)


def test_byol_learns_from_its_target_and_gives_it_no_gradient():
  objective, step = _mapped(settings.BYOL(), BOOTSTRAP, 8)
  state = _byol_state(objective)
  after, metrics = _stepped(step, state)
  loss, grads = _byol_by_hand(state)
  assert float(metrics["loss"]) == pytest.approx(float(loss), abs=1e-12)
  _assert_close(after.params, jax.tree.map(lambda p, g: p - 0.5 * g, state.params, grads))
  moved = jax.tree.map(
    lambda t, p: 0.996 * t + 0.004 * p, state.extra[base.TARGET]["params"], after.params
  )
  _assert_close(after.extra[base.TARGET]["params"], moved)
  assert float(metrics["alignment"]) == pytest.approx(1 - float(loss) / 2, abs=1e-12)


@pytest.mark.slow
def test_byols_gradients_add_up_over_micro_batches():
  """Of 24 slots in two runs, the second of which holds those that only pad the batch."""
  whole, step = _mapped(settings.BYOL(), BOOTSTRAP, 1)
  rule = optim.make(dataclasses.replace(SGD, accumulate=2), TOTAL, 0)
  parts = objectives.make(settings.BYOL(), BOOTSTRAP, rule, augment.make(CHANGE), INFO)
  state = _byol_state(whole)
  mesh, uncut = mesh_lib.make(jax.devices()[:1]), mesh_lib.REPLICATED
  in_parts = mesh_lib.mapped(parts.step, mesh, (uncut, mesh_lib.cut(), uncut, uncut), uncut)
  (after, expected), (found, metrics) = (_stepped(one, state) for one in (step, in_parts))
  _assert_close(found.params, after.params)
  _assert_close(found.extra, after.extra)
  assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), abs=1e-12)


@pytest.mark.parametrize(("number", "decay"), [(5, 0.998), (10, 1.0)])
def test_byols_target_slows_down_by_a_cosine(number, decay):
  """Half way through the 10 steps the decay is half way between 0.996 and 1."""
  objective, step = _mapped(settings.BYOL(), BOOTSTRAP, 8)
  state = _byol_state(objective, number)
  after, _ = _stepped(step, state)
  target = state.extra[base.TARGET]["params"]
  moved = jax.tree.map(lambda t, p: decay * t + (1 - decay) * p, target, after.params)
  _assert_close(after.extra[base.TARGET]["params"], moved)


def test_byols_target_starts_as_the_network_and_takes_over_its_weights():
  objective = _objective(settings.BYOL(), BOOTSTRAP)
  state, other = (objective.init(jax.random.key(seed)) for seed in (0, 1))
  _assert_close(state.extra[base.TARGET]["params"], state.params, atol=0)
  brought = base.with_weights(state, other.params, other.stats)
  _assert_close(brought.extra[base.TARGET]["params"], other.params, atol=0)


def test_turns_are_those_of_numpy():
  images = np.random.default_rng(0).random((4, 5, 5, 3))
  for quarter in range(4):
    found = pretext.turned(jnp.asarray(images), jnp.full(4, quarter))
    np.testing.assert_array_equal(found, np.rot90(images, quarter, axes=(1, 2)))


def test_turns_are_drawn_by_slot_and_all_alike_often():
  draw = functools.partial(pretext.drawn_turns, jax.random.key(0))
  slots = np.arange(4000)
  turns = np.asarray(draw(jnp.asarray(slots)))
  assert np.bincount(turns, minlength=4).min() > 900
  np.testing.assert_array_equal(draw(jnp.asarray(slots[::-1])), turns[::-1])


def test_rotation_asks_for_the_turn_that_an_image_was_given():
  """Softmax regression on images that NumPy turned after they were augmented."""
  told = objectives.told(settings.Rotation(), INFO)
  assert told.classes == ("0", "90", "180", "270")
  objective, step = _mapped(settings.Rotation(), LINEAR, 8)
  state = objective.init(jax.random.key(0))
  _, metrics = _stepped(step, state)
  turns = np.asarray(pretext.drawn_turns(_named("turn"), jnp.arange(SLOTS)))[:IMAGES]
  images = _changed(_batch()[contract.IMAGE], np.arange(SLOTS))
  seen = np.stack([np.rot90(image, k) for image, k in zip(images, turns, strict=False)])
  logits = LINEAR.apply(state.params, {}, {contract.IMAGE: seen}, train=True)[0].output
  expected = log_loss(turns, special.softmax(logits, axis=1), labels=range(4))
  assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-12)
  hits = (np.asarray(logits).argmax(1) == turns).mean()
  assert float(metrics["accuracy"]) == pytest.approx(hits)


@pytest.mark.parametrize("cfg", [settings.MICLe(), settings.BYOL(), settings.Rotation()])
def test_pretraining_hands_out_embeddings_alone(cfg):
  net = BOOTSTRAP if cfg.name == "byol" else LINEAR
  objective = _objective(cfg, net)
  state = objective.init(jax.random.key(0))
  outputs = objective.forward(state, _batch())
  flat = _batch()[contract.IMAGE].reshape(SLOTS, -1) / 255 - 0.5
  assert outputs.scores is None
  np.testing.assert_allclose(
    outputs.embedding, flat @ np.asarray(state.params["encoder"]["kernel"]), atol=1e-12
  )


def test_equal_embeddings_have_no_spread():
  equal = jnp.tile(jnp.array([[0.6, 0.8]]), (5, 1))
  assert float(views.spread(equal, jnp.ones(5))) == pytest.approx(0, abs=1e-9)
  opposite = jnp.array([[1.0, 0], [-1, 0], [0, 1], [0, -1], [9, 9]])
  assert float(views.spread(opposite, jnp.array([1, 1, 1, 1, 0]))) == pytest.approx(1)


def test_sources_are_no_labels():
  net = _matrices(encoder=(SIZE * SIZE, 5), classes=(5, 3))
  with pytest.raises(ValueError, match=r"source_label .*set data\.target=source"):
    _objective(settings.SourceLabel(), net)
  found = _objective(settings.SourceLabel(), net, info=dataclasses.replace(INFO, target="source"))
  assert isinstance(found, objectives.supervised.Supervised)


def test_negatives_of_micro_batches_are_refused_by_name():
  rule = optim.make(dataclasses.replace(SGD, accumulate=2), TOTAL, 0)
  with pytest.raises(ValueError, match=r"accumulate=2 .*of micle"):
    objectives.make(settings.MICLe(), LINEAR, rule, augment.make(CHANGE), INFO)


def test_an_unknown_objective_lists_all():
  with pytest.raises(ValueError, match=r"objective\.name = 'simclear'.*did you mean 'simclr'") as e:
    config.parse({}, ["objective.name=simclear"])
  names = "simclr micle byol rotation source_label supervised gan_vanilla gan_semi gan_cond"
  assert set(names.split()) <= set(str(e.value).partition("Known: ")[2].split(", "))


def test_micle_tells_how_many_images_have_no_pair():
  names = np.array(["a", "b", "c"])
  part = catalogue.Part(
    "train", names, np.array(["p", "p", "q"]), np.zeros(3), lambda row: row, None
  )
  splits = catalogue.Splits({"train": part}, INFO, False, "resident", "")
  (note,) = wiring._pairs(settings.Stage(objective=settings.MICLe()), splits)
  assert note.startswith("pairs: 1 of 3 images have no other of their group")
  assert wiring._pairs(settings.Stage(objective=settings.SimCLR()), splits) == []


@pytest.mark.parametrize(
  ("overrides", "text"),
  [
    (["objective=rotation", "augment=simclr_color"], "hide the turn .* pretext_color"),
    (["objective=rotation", "augment.rotation=45"], "augment.rotation = 45 "),
    (["objective=byol", "objective.predictor=(64,)"], r"write \(hidden, 256\)"),
    (["objective=byol", "objective.predictor=(64, 32)"], r"write \(hidden, 256\)"),
    (["objective=byol", "objective.decay=1"], "objective.decay=1"),
  ],
)
def test_settings_that_do_not_fit_are_told(overrides, text):
  with pytest.raises(ValueError, match=text):
    config.parse({}, overrides)


def test_each_objective_has_policies_it_goes_with():
  for name in ("simclr_gray", "simclr_xray", "pretext_gray", "pretext_color", "cxr_safe"):
    assert (
      config.parse({}, ["objective=rotation", f"augment={name}"]).stages[0].augment.name == name
    )


def _shapes(cfg, model):
  info = objectives.told(cfg, INFO)
  projector, predictor = (getattr(cfg, name, None) for name in ("projector", "predictor"))
  net = models.make(model, info, net_lib.Execution(), projector, predictor=predictor)
  images = jax.ShapeDtypeStruct((2, *INFO.image_shape), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  batch = {contract.IMAGE: images}
  apply = functools.partial(net.apply, train=False, endpoints=[net_lib.EVERY])
  return params, jax.eval_shape(apply, params, stats, batch)[0]


@pytest.mark.parametrize(
  ("cfg", "width", "head"),
  [
    (settings.BYOL(projector=(16, 6), predictor=(12, 6)), 6, {"projector", "predictor"}),
    (settings.BYOL(projector=(16, 6), predictor=()), 6, {"projector"}),
    (settings.MICLe(projector=(16, 6)), 6, {"hidden", "bn", "out"}),
    (settings.Rotation(), 4, {"hidden", "classes"}),
  ],
  ids=["byol", "byol without predictor", "micle", "rotation"],
)
def test_heads_have_what_their_objective_asks_for(cfg, width, head):
  params, result = _shapes(cfg, settings.QuadSNet(widths=(4,), hidden=5))
  assert set(params["head"]) == head
  assert result.output.shape == (2, width)
  if cfg.name == "byol":
    assert result.endpoints[heads.PROJECTION].shape == (2, 6)


# Those of images; a side that each of them takes.
NETWORKS = {
  entry.model.name: entry.size
  for entry in zoo.ENTRIES.values()
  if entry.model.name not in ("gan", "metadata_mlp")
}


@pytest.mark.slow
@pytest.mark.parametrize(
  "cfg", [settings.BYOL(), settings.SimCLR(), settings.Rotation()], ids=lambda cfg: cfg.name
)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_under_every_kind_of_head(name, cfg):
  """Traced and not compiled: shapes of a training step's forward pass and its gradient."""
  side = NETWORKS[name]
  info = objectives.told(cfg, dataclasses.replace(INFO, image_shape=(side, side, 1)))
  projector, predictor = (getattr(cfg, name, None) for name in ("projector", "predictor"))
  model = settings.VARIANTS[settings.Model][name]
  net = models.make(model, info, net_lib.Execution(), projector, predictor=predictor)
  images = jax.ShapeDtypeStruct((4, side, side, 1), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)

  def loss(params, stats, images):
    batch = {contract.IMAGE: images, contract.SLOT: jnp.arange(4), contract.MASK: jnp.ones(4)}
    result, _ = net.apply(params, stats, batch, train=True, key=jax.random.key(0))
    return (result.output**2).sum(), result.output

  grads, output = jax.eval_shape(jax.grad(loss, has_aux=True), params, stats, images)
  assert jax.tree.structure(grads) == jax.tree.structure(params)
  assert output.shape == (4, {"byol": 256, "simclr": 128, "rotation": 4}[cfg.name])


LOW, HIGH = {"feature_std": 0.19}, {"feature_std": 0.21}


def test_the_alarm_needs_three_low_rows_in_a_row():
  said = []
  collapse = train.Collapse([], said.append)
  found = [collapse(row)["alarm/collapse"] for row in (LOW, LOW, HIGH, LOW, LOW, LOW, LOW, HIGH)]
  assert found == [0, 0, 0, 0, 0, 1, 1, 0]
  assert len(said) == 1 and "embeddings collapse" in said[0]
  assert collapse({"loss": 1.0}) == {"loss": 1.0}


def test_the_alarm_goes_on_where_a_run_was_cut():
  collapse = train.Collapse([HIGH, LOW, {"accuracy": 0.5}, LOW], lambda text: None)
  assert collapse(LOW)["alarm/collapse"] == 1


def _trained(tmp_path, *overrides):
  """Rows of the log of BYOL on synthetic images, of 60 steps."""
  small = ["model.widths=(4,)", "model.streams=('cs3',)", "augment=none", "augment.brightness=0.4"]
  fixed = ["objective=byol", "objective.projector=(32, 16)", "objective.decay=0.9"]
  length = ["train.length=60 steps", "optimizer.lr=0.01", "train.log_every=6 steps"]
  with jax.enable_x64(False):
    runs.start("train", f"{TINY}:simclr", tmp_path / "w", [*small, *fixed, *length, *overrides])
  return writer.read(tmp_path / "w" / "pretrain" / writer.FILE)


def test_byol_without_its_predictor_collapses_and_says_so(tmp_path, capsys):
  rows = _trained(tmp_path, "objective.predictor=()")
  assert rows[-1]["alarm/collapse"] == 1 and rows[-1]["feature_std"] < 0.2
  assert capsys.readouterr().out.count("the embeddings collapse") == 1


@pytest.mark.slow
def test_byol_with_its_predictor_does_not(tmp_path, capsys):
  rows = _trained(tmp_path, "objective.predictor=(32, 16)")
  assert not any(row["alarm/collapse"] for row in rows) and rows[-1]["feature_std"] > 0.4
  assert "collapse" not in capsys.readouterr().out
