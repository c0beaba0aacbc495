"""The best so far, early stopping and the plateau rule, against Keras's callbacks and by hand."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from medjax import optim, settings

NAN = float("nan")
MIN, MAX = "log_loss", "macro_f1"  # a metric that is better small, and one that is better large
EVALUATIONS = 50


def _tracked(values, patience, min_delta=0.0):
  """(best, evaluations until the stop)."""
  best = optim.Best()
  for count, value in enumerate(values, 1):
    best = best.track(value, 10 * count, min_delta)
    if best.exhausts(patience):
      return best, count
  return best, None


def test_first_evaluation_is_the_best_whatever_it_is():
  assert _tracked([-5.0], 1) == (optim.Best(-5.0, 10, 0), None)


def test_stops_when_wait_reaches_patience():
  best, stopped = _tracked([0.1, 0.3, 0.2, 0.3, 0.29, 0.9], 3)
  assert best == optim.Best(0.3, 20, 3)
  assert stopped == 5


def test_min_delta_must_be_beaten_not_reached():
  assert _tracked([0.25, 0.5], 9, min_delta=0.25)[0] == optim.Best(0.25, 10, 1)
  assert _tracked([0.25, 0.5, 0.625], 9, min_delta=0.25)[0] == optim.Best(0.625, 30, 0)


def test_nan_never_improves_not_even_at_first():
  """Keras would keep a NaN that comes first as the best for ever."""
  assert _tracked([NAN, NAN], 2) == (optim.Best(None, 0, 2), 2)
  assert _tracked([NAN, 0.5, NAN], 2) == (optim.Best(0.5, 20, 1), None)


def test_no_patience_never_stops():
  assert not optim.Best(0.5, 1, wait=1000).exhausts(0)


def _series(name):
  """50 values of one metric; multiples of 1/64, exact in Keras's float32 too, tie often."""
  rng = np.random.default_rng(len(name))
  steps = np.arange(EVALUATIONS)
  values = {
    "flat": np.full(EVALUATIONS, 0.5),
    "falling": np.exp(-steps / 15) + 0.1 * rng.random(EVALUATIONS),
    "rising": steps / 64,
    "random": rng.normal(size=EVALUATIONS),
    "rough": rng.integers(-2, 3, EVALUATIONS).cumsum() / 64,
    "with NaN": rng.integers(-2, 3, EVALUATIONS).cumsum() / 64,
  }[name]
  if name == "with NaN":
    values[1:][rng.random(EVALUATIONS - 1) < 0.3] = NAN
  return values.tolist()


SERIES = ["flat", "falling", "rising", "random", "rough", "with NaN"]
MIN_DELTAS = [0.0, 1e-4, 1 / 64, 0.1]


@pytest.fixture(scope="module")
def model():
  model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
  model.compile(optimizer=keras.optimizers.SGD(), loss="mse")
  return model


def _keras_course(model, callback, values, lr):
  """After every evaluation by Keras: whether it stopped, the learning rate, the wait."""
  model.stop_training, model.optimizer.learning_rate = False, lr
  callback.set_model(model)
  callback.on_train_begin()
  for epoch, value in enumerate(values):
    callback.on_epoch_end(epoch, {"watched": value})
    yield model.stop_training, float(model.optimizer.learning_rate.value), callback.wait


def _course(values, metric, stop, optimizer):
  """The standing after every evaluation."""
  standing = optim.Standing()
  for step, value in enumerate(values, 1):
    standing = standing.after({metric: value}, step, metric, stop, optimizer)
    yield standing


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize(("metric", "mode"), [(MIN, "min"), (MAX, "max")])
@pytest.mark.parametrize("min_delta", MIN_DELTAS)
def test_early_stopping_equals_keras(model, name, metric, mode, min_delta):
  values = _series(name)
  for patience in range(1, 6):
    callback = keras.callbacks.EarlyStopping(
      "watched", mode=mode, min_delta=min_delta, patience=patience
    )
    stop = settings.Patience(patience=patience, min_delta=min_delta)
    theirs = [(stopped, wait) for stopped, _, wait in _keras_course(model, callback, values, 1.0)]
    course = [standing.stop for standing in _course(values, metric, stop, settings.SGD())]
    ours = [(best.exhausts(patience), best.wait) for best in course]
    last = ([stopped for stopped, _ in theirs] + [True]).index(True)  # Keras trains no further
    assert ours[: last + 1] == theirs[: last + 1]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:keras")
@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize(("metric", "mode"), [(MIN, "min"), (MAX, "max")])
@pytest.mark.parametrize("min_delta", MIN_DELTAS)
def test_plateau_equals_keras(model, name, metric, mode, min_delta):
  values, lr = _series(name), 0.003
  for patience in range(1, 6):
    rule = dict(patience=patience, min_delta=min_delta, factor=0.3, min_lr=1e-5)
    callback = keras.callbacks.ReduceLROnPlateau("watched", mode=mode, **rule)
    theirs = list(_keras_course(model, callback, values, lr))
    optimizer = settings.SGD(lr=lr, plateau=settings.Plateau(**rule))
    course = list(_course(values, metric, settings.Patience(), optimizer))
    np.testing.assert_allclose(
      [standing.scale * lr for standing in course], [rate for _, rate, _ in theirs], rtol=1e-6
    )
    assert [standing.plateau.wait for standing in course] == [wait for *_, wait in theirs]


def test_the_series_above_stop_early_late_and_never_and_reach_the_least_rate():
  """Otherwise the two tests above would compare little."""
  stops, rates = set(), set()
  plateau = settings.Plateau(patience=2, factor=0.3, min_lr=1e-5)
  for name in SERIES:
    stop, optimizer = settings.Patience(patience=5), settings.SGD(lr=0.003, plateau=plateau)
    for metric in (MIN, MAX):
      course = list(_course(_series(name), metric, stop, optimizer))
      ends = [count for count, standing in enumerate(course, 1) if standing.stop.exhausts(5)]
      stops.add(ends[0] if ends else None)
      rates.add(course[-1].scale * 0.003)
  assert None in stops and len(stops) > 4
  assert (min(rates), max(rates)) == pytest.approx((1e-5, 0.003))


def _plateau(**changes):
  return settings.Plateau(**{**dict(patience=2, min_delta=0.0, factor=0.5), **changes})


def test_plateau_by_hand():
  """Two evaluations without improvement halve the rate; the wait starts anew, the best stays."""
  values = [0.5, 0.5, 0.4, 0.45, 0.3, 0.6, 0.6]
  optimizer = settings.SGD(lr=0.8, plateau=_plateau(min_lr=0.25))
  course = list(_course(values, MAX, settings.Patience(), optimizer))
  lrs = [optimizer.lr * standing.scale for standing in course]
  assert lrs == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.25, 0.25, 0.25])
  assert [standing.plateau.wait for standing in course] == [0, 1, 0, 1, 0, 0, 1]
  assert course[4].plateau == optim.Best(0.5, 1, 0)


def test_a_rate_below_the_least_is_left_alone():
  optimizer = settings.SGD(lr=1e-8, plateau=_plateau(patience=1, min_lr=1e-7))
  assert {s.scale for s in _course([0.5] * 9, MAX, settings.Patience(), optimizer)} == {1.0}


@pytest.mark.parametrize("patience", [0, 1])
def test_a_rate_of_zero_has_nothing_to_lower(patience):
  optimizer = settings.SGD(lr=0.0, plateau=_plateau(patience=patience))
  assert {s.scale for s in _course([0.5] * 9, MAX, settings.Patience(), optimizer)} == {1.0}


def test_plateau_of_no_patience_never_lowers():
  optimizer = settings.SGD(plateau=_plateau(patience=0))
  assert {s.scale for s in _course([0.5] * 9, MAX, settings.Patience(), optimizer)} == {1.0}


def test_plateau_multiplies_the_cosine():
  """Whatever the schedule, an evaluation lowers all later rates by the same factor."""
  cfg = settings.SGD(lr=0.2, schedule="cosine", plateau=_plateau(min_lr=0.01))
  schedule = optim.make_schedule(cfg, 90, 0)
  rates = []
  for count, standing in enumerate(_course([0.5] * 9, MAX, settings.Patience(), cfg)):
    rates += [schedule(update) * standing.scale for update in range(10 * count, 10 * count + 10)]
  scale = np.repeat([1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625], 10)
  cosine = 0.1 * (1 + np.cos(np.pi * np.arange(90) / 90))
  np.testing.assert_allclose(rates, cosine * scale, rtol=1e-12)


def test_three_rules_may_watch_three_metrics():
  found = {  # the best: second, third, first
    "macro_f1": [0.2, 0.9, 0.3, 0.4],
    "log_loss": [0.9, 0.8, 0.1, 0.5],
    "ece": [0.05, 0.2, 0.3, 0.4],
    "accuracy": [0.1, 0.2, 0.3, 0.4],
  }
  stop = settings.Patience(monitor="log_loss", patience=1)
  optimizer = settings.SGD(plateau=_plateau(monitor="ece", patience=3))
  standing = optim.Standing()
  for i in range(4):
    now = {name: values[i] for name, values in found.items()}
    standing = standing.after(now, 10 * (i + 1), "macro_f1", stop, optimizer)
  assert standing == optim.Standing(
    chosen=optim.Best(0.9, 20, 2),
    stop=optim.Best(-0.1, 30, 1),
    plateau=optim.Best(-0.05, 10, 0),
    scale=0.5,
  )


def test_an_empty_monitor_is_the_metric_that_selects():
  stop, optimizer = settings.Patience(patience=1, min_delta=0.5), settings.SGD(plateau=_plateau())
  *_, standing = _course([0.9, 0.7, 0.3], MIN, stop, optimizer)
  assert standing.chosen == optim.Best(-0.3, 3, 0)
  assert standing.stop == optim.Best(-0.3, 3, 0)
  assert standing.plateau == optim.Best(-0.3, 3, 0)


def test_the_chosen_one_needs_no_min_delta():
  stop = settings.Patience(patience=9, min_delta=0.1)
  *_, standing = _course([0.5, 0.55, 0.58], MAX, stop, settings.SGD())
  assert (standing.chosen.step, standing.stop.step) == (3, 1)


def _through_json(standing):
  return optim.Standing.from_json(
    json.loads(json.dumps(dataclasses.asdict(standing), allow_nan=False))
  )


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("metric", [MIN, MAX])
def test_standing_goes_on_from_strict_json_as_if_never_cut_off(name, metric):
  stop = settings.Patience(patience=3, min_delta=1e-3)
  optimizer = settings.SGD(lr=0.003, plateau=_plateau(factor=0.3))
  values = _series(name)
  whole = list(_course(values, metric, stop, optimizer))
  standing = _through_json(optim.Standing())
  for step, value in enumerate(values, 1):
    standing = standing.after({metric: value}, step, metric, stop, optimizer)
    standing = _through_json(standing)
    assert standing == whole[step - 1]


def test_no_evaluation_but_nan_survives_strict_json():
  stop, optimizer = settings.Patience(patience=9), settings.SGD()
  *_, standing = _course([NAN, NAN], MAX, stop, optimizer)
  assert _through_json(standing) == standing
  assert standing.chosen == optim.Best(None, 0, 2)


def test_a_checkpoint_without_a_standing_is_the_beginning():
  assert optim.Standing.from_json({}) == optim.Standing()
