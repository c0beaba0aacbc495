"""Thresholds against scikit-learn's curves and brute force, and what they refuse."""

import numpy as np
import pytest
from sklearn import metrics as sk

from medjax import config, contract, settings
from medjax.metrics import thresholds

CLASSES = ("clear", "nodular")
AT_LEAST = {
  name: settings.AtLeast(name=name, at_least=0.8) for name in ("sensitivity", "specificity", "ppv")
}
COST = settings.Cost(costs=((0.0, 1.0), (5.0, 0.0)))


def table(labels, scores, split="val", classes=CLASSES, groups=None) -> contract.Predictions:
  """Of two classes by the score of the second; of more as they are."""
  labels, scores = np.asarray(labels), np.asarray(scores, float)
  ids = np.arange(len(labels)).astype(str)
  both = scores if scores.ndim == 2 else np.column_stack([1 - scores, scores])
  return contract.Predictions(ids, ids if groups is None else groups, split, labels, both, classes)


def problems(count: int):
  """Random problems of a few tied scores up to many different ones, both classes there."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    n = int(rng.integers(4, 60))
    labels = rng.integers(2, size=n)
    labels[:2] = 0, 1
    places = int(rng.integers(1, 50))
    yield labels, rng.integers(places + 1, size=n) / places


def rates_at(labels, scores, value):
  """Sensitivity, specificity and PPV when the score must reach `value`."""
  given = scores >= value
  tp, fp = (given & (labels == 1)).sum(), (given & (labels == 0)).sum()
  positive, negative = labels.sum(), (labels == 0).sum()
  return tp / positive, (negative - fp) / negative, tp / max(tp + fp, 1)


def every(labels, scores):
  """The three rates at each distinct score, from the highest down."""
  return [rates_at(labels, scores, value) for value in np.unique(scores)[::-1]]


def test_youden_is_where_scikit_learns_curve_is_farthest_from_chance():
  for labels, scores in problems(200):
    fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    found = thresholds.choose(settings.Threshold(), table(labels, scores), "nodular")
    sensitivity, specificity, _ = rates_at(labels, scores, found.value)
    best = (tpr - fpr)[1:].max()  # the first is where no image is given the class
    assert sensitivity + specificity - 1 == pytest.approx(best, abs=1e-12)


def test_of_equally_good_thresholds_youden_takes_the_highest():
  found = thresholds.choose(
    settings.Threshold(), table([1, 0, 1, 0], [0.9, 0.7, 0.5, 0.3]), "nodular"
  )
  assert found.value == pytest.approx(0.8)


@pytest.mark.parametrize("name", AT_LEAST)
def test_a_rate_is_reached_and_what_is_paid_for_it_is_least(name):
  kept = ("sensitivity", "specificity", "ppv").index(name)
  paid = 1 if name == "sensitivity" else 0
  reached = 0
  for labels, scores in problems(200):
    found = [r for r in every(labels, scores) if r[kept] >= 0.8]
    if not found:
      with pytest.raises(thresholds.Unreached, match=f"the highest {name} is"):
        thresholds.choose(AT_LEAST[name], table(labels, scores), "nodular")
      continue
    chosen = thresholds.choose(AT_LEAST[name], table(labels, scores), "nodular")
    at = rates_at(labels, scores, chosen.value)
    assert at[kept] >= 0.8 and at[paid] == max(r[paid] for r in found)
    reached += 1
  assert 50 < reached <= 200


def test_the_cheapest_threshold_is_that_of_brute_force():
  cheapest = 0
  for labels, scores in problems(200):
    costs = {
      value: 5 * ((scores < value) & (labels == 1)).sum()
      + ((scores >= value) & (labels == 0)).sum()
      for value in [*np.unique(scores), 2.0]  # at 2 no image is given the class
    }
    if costs[2.0] < min(cost for value, cost in costs.items() if value <= 1):
      with pytest.raises(thresholds.Unreached, match="no image costs least"):
        thresholds.choose(COST, table(labels, scores), "nodular")
      continue
    value = thresholds.choose(COST, table(labels, scores), "nodular").value
    mine = 5 * ((scores < value) & (labels == 1)).sum() + ((scores >= value) & (labels == 0)).sum()
    assert mine == min(costs.values())
    cheapest += 1
  assert cheapest > 100


def test_a_false_alarm_may_cost_so_much_that_no_image_is_to_be_given_the_class():
  dear = settings.Cost(costs=((0.0, 5.0), (1.0, 0.0)))
  mixed = table([1, 0, 1, 0], [0.5, 0.5, 0.2, 0.2])
  with pytest.raises(thresholds.Unreached, match="to give the class to no image costs least"):
    thresholds.choose(dear, mixed, "nodular")
  clean = table([1, 0, 1, 0], [0.9, 0.5, 0.2, 0.2])
  assert thresholds.choose(dear, clean, "nodular").value == pytest.approx(0.7)


def test_a_threshold_lies_halfway_to_the_next_score():
  scores = [0.9, 0.6, 0.2, 0.1]
  for name, value in {"sensitivity": 0.4, "specificity": 0.4, "ppv": 0.4}.items():
    found = thresholds.choose(AT_LEAST[name], table([1, 1, 0, 0], scores), "nodular")
    assert found.value == pytest.approx(value), name
  all_given = table([1, 0], [0.4, 0.8])
  assert thresholds.choose(AT_LEAST["sensitivity"], all_given, "nodular").value == 0.2


def test_neighbours_among_floating_point_numbers_are_told_apart():
  low = 0.5
  high = np.nextafter(low, 1)
  found = thresholds.choose(settings.Threshold(), table([1, 0], [high, low]), "nodular")
  assert low < found.value <= high


def test_a_threshold_is_not_scored_on_the_part_that_it_was_chosen_on():
  rng = np.random.default_rng(1)
  labels = np.tile([0, 1], 50)
  scores = np.clip(labels * 0.3 + rng.random(100) * 0.7, 0, 1)
  for part, other in (("test", "val"), ("val", "test")):
    found = thresholds.choose(settings.Threshold(), table(labels, scores, part), "nodular")
    assert found.part == part
    with pytest.raises(ValueError, match=f"chosen on the part '{part}'.*eval.thresholds"):
      thresholds.scored(found, table(labels, scores, part), 20, 0)
    assert thresholds.scored(found, table(labels, scores, other), 20, 0)


def test_a_config_cannot_choose_on_the_test_part():
  for each in ({"name": "youden"}, {"name": "sensitivity"}, {"name": "cost"}):
    with pytest.raises(ValueError, match=r"part=test.*cannot be scored there.*part=val"):
      config.parse({"eval": {"thresholds": [{**each, "part": "test"}]}})


def test_what_a_threshold_is_worth_has_the_rates_of_its_matrix_and_intervals_over_groups():
  labels = np.array([1] * 20 + [0] * 30)
  scores = np.where(np.arange(50) % 5 == 0, 0.4, np.where(labels == 1, 0.9, 0.1))
  found = thresholds.Threshold("nodular", "youden", "val", 0.3)
  groups = np.repeat(np.arange(25), 2).astype(str)
  at = thresholds.scored(found, table(labels, scores, "test", groups=groups), 500, 0)
  tn, fp, fn, tp = sk.confusion_matrix(labels, scores >= 0.3).ravel()
  truth = tp / (tp + fn), tn / (tn + fp), tp / (tp + fp), tn / (tn + fn)
  assert [at[name].value for name in thresholds.SHOWN] == pytest.approx(truth)
  assert at["specificity"].low < at["specificity"].value < at["specificity"].high


def test_each_of_more_than_two_classes_has_its_own_threshold():
  rng = np.random.default_rng(2)
  classes = ("a", "b", "c")
  labels = np.arange(90) % 3
  scores = rng.dirichlet(np.ones(3), 90) + 0.5 * np.eye(3)[labels]
  whole = table(labels, scores / scores.sum(1, keepdims=True), classes=classes)
  found, notes = thresholds.chosen([settings.Threshold()], {"val": whole})
  assert [t.positive for t in found] == list(classes) and not notes
  for place, each in enumerate(found):
    single = table((labels == place).astype(int), whole.scores[:, place])
    assert each.value == thresholds.choose(settings.Threshold(), single, "nodular").value
  (one,), _ = thresholds.chosen([settings.Threshold(positive="b")], {"val": whole})
  assert one == found[1]


def test_each_class_of_images_that_may_have_several_is_chosen_by_its_own_labels():
  rng = np.random.default_rng(3)
  labels = (rng.random((60, 2)) < 0.4).astype(np.float32)
  scores = np.clip(0.4 * labels + 0.6 * rng.random((60, 2)), 0, 1)
  found, _ = thresholds.chosen([settings.Threshold()], {"val": table(labels, scores)})
  for place, each in enumerate(found):
    fpr, tpr, _ = sk.roc_curve(labels[:, place], scores[:, place])
    at = rates_at(labels[:, place], scores[:, place], each.value)
    assert at[0] + at[1] - 1 == pytest.approx((tpr - fpr).max())


def test_what_cannot_be_chosen_is_a_sentence_and_the_others_are_chosen():
  wanted = [settings.AtLeast(name="ppv", at_least=0.99), settings.Threshold()]
  worst = table([0, 1, 0, 1], [0.9, 0.8, 0.7, 0.6])
  found, notes = thresholds.chosen(wanted, {"val": worst})
  assert [t.criterion for t in found] == ["youden"]
  assert notes == (
    "ppv >= 0.99 of 'nodular' on the part 'val' cannot be reached: the highest ppv is 0.500",
  )


def test_a_part_without_the_class_is_told():
  _, (note,) = thresholds.chosen([settings.Threshold()], {"val": table([0, 0], [0.1, 0.2])})
  assert note.endswith("on the part 'val' cannot be told: there is no image of 'nodular'")


def test_an_unknown_class_or_part_is_told():
  val = table([0, 1], [0.1, 0.2])
  with pytest.raises(ValueError, match=r"'cat'.*clear, nodular"):
    thresholds.chosen([settings.Threshold(positive="cat")], {"val": val})
  with pytest.raises(ValueError, match="'north'; scored are val"):
    thresholds.chosen([settings.Threshold(part="north")], {"val": val})
  with pytest.raises(ValueError, match=r"'cat'.*clear, nodular"):
    thresholds.Threshold("cat", "youden", "val", 0.5).decided(table([0, 1], [0.1, 0.2], "test"))


def test_criteria_are_typed_on_the_command_line():
  overrides = ["eval.thresholds=({'name': 'ppv', 'at_least': 0.7, 'positive': 'b'}, 'youden')"]
  found = config.parse({}, overrides).stages[0].eval.thresholds
  assert found == (
    settings.AtLeast(name="ppv", at_least=0.7, positive="b"),
    settings.Threshold(),
  )
  assert config.parse({}, ["eval.thresholds=youden"]).stages[0].eval.thresholds == found[1:]
  both = config.parse({"eval": {"thresholds": ["cost", "specificity"]}})
  assert config.parse(config.to_dict(both)) == both
  for wrong in (
    "youdn",
    "{'name': 'ppv', 'at_least': 2}",
    "{'name': 'cost', 'costs': ((1,0),(0,0))}",
  ):
    with pytest.raises(ValueError, match=r"youden|at_least|costs"):
      config.parse({}, [f"eval.thresholds={wrong}"])


def test_a_million_scores_are_looked_at_together():
  rng = np.random.default_rng(4)
  labels = np.arange(1_000_000) % 2
  whole = table(labels, (rng.random(1_000_000) + 0.3 * labels) / 1.3)
  found = thresholds.choose(settings.AtLeast(at_least=0.95), whole, "nodular")
  assert 0.95 <= rates_at(labels, whole.scores[:, 1], found.value)[0] < 0.95001
