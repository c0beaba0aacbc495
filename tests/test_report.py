"""The report as a reader meets it: well-formed, alone, escaped, and saying what the figures say."""

import base64
import dataclasses
from html import parser
import io
import json
import re

import numpy as np
from PIL import Image
import pytest

from medjax import contract, figures, metrics, page, phrases, report

NASTY = "<b>&\"'$x$</b>"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class _Reader(parser.HTMLParser):
  """Checks that tags close in order; gathers tags, attributes and text."""

  def __init__(self, html: str):
    super().__init__(convert_charrefs=True)
    self.open: list[str] = []
    self.tags: list[tuple[str, dict]] = []
    self.texts: list[str] = []
    self.feed(html)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.texts.append(data)

  def attributes(self, tag: str, name: str) -> list[str]:
    return [attributes[name] for t, attributes in self.tags if t == tag and name in attributes]

  @property
  def text(self) -> str:
    return "\n".join(self.texts)


def _table(strength, classes=("benign", "malignant"), n=60, seed=0) -> contract.Predictions:
  rng = np.random.default_rng(seed)
  k = len(classes)
  labels = rng.integers(k, size=n)
  z = rng.normal(size=(n, k)) + strength * np.eye(k)[labels]
  scores = np.exp(z) / np.exp(z).sum(1, keepdims=True)
  ids = np.array([f"test/image{i}.png" for i in range(n)])
  return contract.Predictions(ids, (np.arange(n) // 2).astype(str), "test", labels, scores, classes)


def _history(name):
  rows = [{"stage": name, "step": s, "loss": 1 / s, "lr": 1e-3} for s in range(10, 60, 10)]
  return [row | {"val/macro_f1": 0.5, "val/loss": None if row["step"] == 20 else 1} for row in rows]


def _stage(name, table, **changes) -> report.StageReport:
  info = contract.DataInfo(
    classes=table.classes if table else (),
    image_shape=(8, 8, 1),
    class_counts=(20, 20) if table else (),
    train_size=40,
    mean=(0.5,),
    std=(0.2,),
  )
  found = {}
  if table:
    found["predictions"] = table
    wanted = report.names(len(table.classes), "macro_f1")
    found["intervals"] = metrics.intervals(table, wanted, 200, seed=0)
    rows = report.pick(table, each=3)
    pixels = np.random.default_rng(1).integers(256, size=(len(rows), 8, 8, 1))
    found["gallery"] = report.Gallery(pixels.astype(np.uint8), rows.tolist())
  found |= {"counts": "part  images\ntrain     40", "history": _history(name)} | changes
  return report.StageReport(name, info, **found)


def _synthetic(stage) -> report.StageReport:
  return dataclasses.replace(stage, info=dataclasses.replace(stage.info, synthetic=True))


def _report(stages, compared=True, **changes) -> report.Report:
  comparison = None
  if compared:
    wanted = report.names(len(stages[-1].info.classes), "macro_f1")
    comparison = report.compare(stages[-2], stages[-1], wanted, 200, seed=0)
  found = {"settings": {}, "command": "python -m medjax.main", "environment": {"jax": "0.10.2"}}
  return report.Report("A run", stages, "macro_f1", 200, comparison, **found | changes)


@pytest.fixture(scope="module")
def full() -> report.Report:
  stages = [_stage("pretrain", None), _stage("finetune", _table(4)), _stage("scratch", _table(1))]
  return _report(stages)


@pytest.fixture(scope="module")
def written(full, tmp_path_factory):
  return report.write(tmp_path_factory.mktemp("run") / "report.html", full)


def _read(path) -> _Reader:
  return _Reader(path.read_text(encoding="utf-8"))


def test_page_is_well_formed_and_stands_alone(written):
  html, found = written.read_text(encoding="utf-8"), _read(written)
  assert html.startswith("<!doctype html>")
  assert "http://" not in html and "https://" not in html
  tags = {tag for tag, _ in found.tags}
  assert not tags & {"script", "link", "iframe", "object"}
  assert all(src.startswith("data:image/png;base64,") for src in found.attributes("img", "src"))
  assert all(found.attributes("img", "alt"))
  assert {p.name for p in written.parent.iterdir()} == {"report.html", "report.json", "figures"}


def test_page_fits_a_phone(written):
  found = _read(written)
  assert "width=device-width, initial-scale=1" in found.attributes("meta", "content")
  for i, (tag, _) in enumerate(found.tags):
    if tag in ("table", "pre"):
      assert "scroll" in found.tags[i - 1][1]["class"]


def test_links_lead_somewhere(written):
  found = _read(written)
  anchors = {id_ for _, attributes in found.tags if (id_ := attributes.get("id"))}
  assert {href.removeprefix("#") for href in found.attributes("a", "href")} == anchors


def test_every_metric_stands_in_the_page_with_its_interval(full, written):
  text = _read(written).text
  for stage in full.scored:
    for name, i in stage.intervals.items():
      assert figures.label(name) in text
      assert f"{i.value:.3f} ({i.low:.3f} to {i.high:.3f})" in text
  for d in full.comparison.differences.values():
    assert f"{d.value:+.3f} ({d.low:+.3f} to {d.high:+.3f})" in text
  assert "60 images of 30 groups, test part; 95% intervals by 200 bootstrap" in text


def test_figures_are_pictures_embedded_and_saved(written):
  sources = [base64.b64decode(s.partition(",")[2]) for s in _read(written).attributes("img", "src")]
  files = {path.name: path.read_bytes() for path in (written.parent / "figures").iterdir()}
  drawn = {"loss", "learning_rate"}
  scored = drawn | {"validation", "confusion", "roc", "precision_recall", "calibration"}
  expected = {f"1_pretrain_{name}.png" for name in drawn | {"validation"}}
  expected |= {f"{stage}_{name}.png" for stage in ("2_finetune", "3_scratch") for name in scored}
  assert set(files) == expected | {"differences.png"}
  for content in files.values():
    assert content in sources
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    assert min(pixels.shape) > 200 and pixels.std() > 5


def test_example_images_are_embedded_exactly(full, written):
  stage = full.scored[0]
  sources = [base64.b64decode(s.partition(",")[2]) for s in _read(written).attributes("img", "src")]
  shown = [np.asarray(Image.open(io.BytesIO(source))) for source in sources]
  for picture in stage.gallery.pictures[..., 0]:
    assert any(p.shape == picture.shape and (p == picture).all() for p in shown)
  row = stage.gallery.rows[0]
  table, text = stage.predictions, _read(written).text
  assert f"truth {table.classes[table.labels[row]]}" in text
  guess = table.predicted[row]
  assert f"predicted {table.classes[guess]} {table.scores[row, guess]:.2f}" in text


def test_text_of_users_is_escaped_everywhere(tmp_path):
  table = _table(1, classes=(NASTY, "_other"))
  table = dataclasses.replace(table, ids=np.char.add(NASTY, table.ids))
  stages = [_stage(name, table, notes=[NASTY], counts=NASTY) for name in ("a", NASTY + "../../x")]
  run = _report(stages, settings={NASTY: NASTY}, command=NASTY, environment={NASTY: NASTY})
  path = report.write(tmp_path / "report.html", dataclasses.replace(run, title=NASTY))
  found = _read(path)
  assert not [tag for tag, _ in found.tags if tag == "b"]
  assert found.text.count(NASTY) > 15
  assert any(title.startswith(NASTY) for title in found.attributes("span", "title"))
  assert len(list((tmp_path / "figures").iterdir())) == 15
  assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "report.html", "report.json"]


def test_undecodable_names_do_not_stop_the_report(tmp_path):
  stage = _stage("a", _table(1), notes=["broken \udcff name"])
  report.write(tmp_path / "report.html", _report([stage], compared=False))
  assert "broken ? name" in _read(tmp_path / "report.html").text


def test_tables_and_drawings_that_are_handed_in_are_shown_and_told(tmp_path):
  interval = metrics.Interval(0.25, 0.125, 0.5, 1.0)
  rows = [["women", 1200, interval], ["men", 0.5, metrics.Interval(0.0, 0.0, 0.0, 0.0)]]
  table = report.Table("By sex", ["sex", "images", "AUC"], [*rows, ["else", float("nan"), ""]])
  png = page.png(figures.roc(_table(1)))
  drawing = report.Drawing("of all/kinds", "A caption.", png)
  run = _report([_stage("a", _table(1), tables=[table], drawings=[drawing])], compared=False)
  found = _read(report.write(tmp_path / "report.html", run))
  for text in ("By sex", "1,200", "0.250 (0.125 to 0.500)", "does not exist here", "A caption."):
    assert text in found.texts
  assert (tmp_path / "figures" / "1_a_of_all_kinds.png").read_bytes() == png
  told = json.loads((tmp_path / "report.json").read_text())["stages"][0]["tables"][0]
  assert told["title"] == "By sex" and told["head"] == ["sex", "images", "AUC"]
  number = {"value": 0.25, "low": 0.125, "high": 0.5, "defined": 1.0}
  nothing = {"value": None, "low": None, "high": None, "defined": 0.0}
  assert told["rows"] == [["women", 1200, number], ["men", 0.5, nothing], ["else", None, ""]]


def test_differences_are_told_as_numbers(full, written):
  told = json.loads(written.with_suffix(".json").read_text())
  assert told["verdict"] == "better" and told["comparison"]["baseline"] == "scratch"
  for name, d in full.comparison.differences.items():
    mine = told["comparison"]["differences"][name]
    assert [mine[key] for key in ("value", "low", "high", "p")] == [d.value, d.low, d.high, d.p]
  assert [stage["test"] is None for stage in told["stages"]] == [True, False, False]
  loss = told["stages"][0]["training"]["val/loss"]
  assert loss == {"steps": [10, 30, 40, 50], "values": [1, 1, 1, 1]}  # null at 20


def test_a_picture_stands_beside_where_the_network_looked(tmp_path):
  stage = _stage("a", _table(1))
  shown = stage.gallery.pictures
  overlays = np.random.default_rng(2).integers(256, size=(*shown.shape[:3], 3)).astype(np.uint8)
  gallery = dataclasses.replace(stage.gallery, overlays=overlays, note="A note on maps.")
  stage = dataclasses.replace(stage, gallery=gallery)
  found = _read(report.write(tmp_path / "report.html", _report([stage], compared=False)))
  sources = [base64.b64decode(s.partition(",")[2]) for s in found.attributes("img", "src")]
  pairs = [np.asarray(Image.open(io.BytesIO(source))) for source in sources]
  pairs = [pair for pair in pairs if pair.shape == (8, 16, 3)]
  assert len(pairs) == len(shown) and "A note on maps." in found.texts
  for pair in pairs:
    (row,) = [i for i, overlay in enumerate(overlays) if (overlay == pair[:, 8:]).all()]
    assert (pair[:, :8] == shown[row]).all()


def test_the_model_card_says_what_limits_the_network(tmp_path):
  stage = _synthetic(_stage("a", _table(1), leaky=True, facts={"network": "quadsnet"}))
  run = _report([stage], compared=False)
  text = _read(report.write(tmp_path / "report.html", run)).text.partition("Model card")[2]
  text = text.partition("Model card")[2]  # the first is a link to it
  assert "Takes an image of 8 x 8 pixels, 1 channel." in text
  assert "one of 2 classes: benign, malignant" in text and "40 images: benign 20" in text
  assert "no intended_use" in text and "network: quadsnet" in text
  for limit in (report.SYNTHETIC, report.LEAKY, "Only 30 groups", "An image of anything else"):
    assert limit in text
  assert "it does not show how the network does elsewhere" in text
  further = dataclasses.replace(stage, further=["berlin"])
  stated = _report([further], compared=False, use="Triage by radiologists.")
  text = _read(report.write(tmp_path / "report.html", stated)).text
  assert "Triage by radiologists." in text and "no intended_use" not in text
  assert "how the network does elsewhere, berlin may show" in text


def test_a_run_without_scores_has_no_model_card(tmp_path):
  run = _report([_stage("pretrain", None)], compared=False)
  assert "Model card" not in _read(report.write(tmp_path / "report.html", run)).text


def test_synthetic_and_leaky_are_said_first_and_only_where_they_are(tmp_path, full, written):
  assert "SYNTHETIC" not in _read(written).text + report.terminal_table(full)
  assert "LEAKY" not in _read(written).text + report.terminal_table(full)
  stage = _synthetic(_stage("train", _table(1), leaky=True))
  run = _report([stage], compared=False)
  text = _read(report.write(tmp_path / "report.html", run)).text
  for shown in (text, report.terminal_table(run)):
    assert report.SYNTHETIC in shown and report.LEAKY in shown
  assert text.index(report.SYNTHETIC) < text.index("Result")


@pytest.mark.parametrize(
  ("name", "bounds", "words"),
  [
    ("auc", (0.01, 0.05), "better"),
    ("auc", (-0.05, -0.01), "worse"),
    ("auc", (-0.01, 0.05), "no difference shown"),
    ("auc", (0.0, 0.0), "no difference shown"),
    ("brier", (0.01, 0.05), "worse"),
    ("ece", (-0.05, -0.01), "better"),
  ],
)
def test_verdicts(name, bounds, words):
  difference = metrics.Difference(sum(bounds) / 2, *bounds, defined=1.0, p=0.5)
  assert phrases.verdict(name, difference) == words


def test_headline_says_who_is_better(full):
  lines = report.terminal_table(full).splitlines()
  d = full.comparison.differences["macro_f1"]
  assert d.low > 0
  assert any(line.startswith("finetune is better than scratch: macro F1 +") for line in lines)
  turned = _report([full.stages[2], full.stages[1]])
  assert "scratch is worse than finetune: macro F1 -" in report.terminal_table(turned)
  same = _report([full.stages[1], dataclasses.replace(full.stages[1], name="twin")])
  assert "No difference shown between finetune and twin" in report.terminal_table(same)


def test_terminal_table_is_aligned_and_holds_every_metric(full):
  lines = report.terminal_table(full).splitlines()
  names = report.names(2, "macro_f1")
  assert names[0] == "macro_f1" and len(set(names)) == len(names)
  assert lines[0].split() == ["finetune", "scratch", "finetune", "minus", "scratch"]
  for name, line in zip(names, lines[1:], strict=False):
    assert line.startswith(figures.label(name))
    i = full.scored[1].intervals[name]
    assert line[lines[0].index("scratch") :].startswith(f"{i.value:.3f} ({i.low:.3f} to")


def test_a_run_without_a_classifier_has_a_report(tmp_path):
  run = _report([_stage("pretrain", None)], compared=False)
  assert "nothing is scored" in report.terminal_table(run)
  assert "nothing is scored" in _read(report.write(tmp_path / "report.html", run)).text


def test_stages_of_different_classes_share_a_page(tmp_path):
  three = _stage("three", _table(1, classes=("a", "b", "c")))
  run = _report([three, _stage("two", _table(1))], compared=False)
  text = _read(report.write(tmp_path / "report.html", run)).text
  assert "macro PPV" in text and "sensitivity" in text
  rows = {line.split("  ")[0]: line for line in report.terminal_table(run).splitlines()}
  assert [rows[name].count(" to ") for name in ("macro PPV", "sensitivity", "AUC")] == [1, 1, 2]


def test_what_does_not_exist_is_said(tmp_path):
  table = _table(1)
  table = dataclasses.replace(table, labels=np.zeros_like(table.labels))
  run = _report([_stage("train", table)], compared=False)
  text = _read(report.write(tmp_path / "report.html", run)).text
  assert "left out of every mean: malignant" in text
  assert "does not exist here" in text and not re.search(r"\bnan\b", text)
  assert re.search("^AUC +does not exist here$", report.terminal_table(run), re.MULTILINE)


def test_few_groups_are_warned_of():
  table = dataclasses.replace(_table(1), groups=(np.arange(60) // 20).astype(str))
  run = _report([_stage("train", table)], compared=False)
  assert "of 3 groups" in report.terminal_table(run)
  assert "Only 3 groups: 95% intervals" in report.terminal_table(run)


def test_pick_takes_the_worst_mistakes_and_the_surest_right_ones():
  positive = np.array([0.9, 0.55, 0.2, 0.4, 0.7, 0.95])
  table = dataclasses.replace(
    _table(1, n=6),
    labels=np.array([1, 0, 1, 1, 1, 0]),
    scores=np.stack([1 - positive, positive], 1),
  )
  np.testing.assert_array_equal(report.pick(table, each=2), [5, 2, 0, 4])
  np.testing.assert_array_equal(report.pick(table, each=9), [5, 2, 3, 1, 0, 4])


def test_tables_that_cannot_be_compared_are_refused(full):
  pretrain, finetune = full.stages[:2]
  with pytest.raises(ValueError, match="'pretrain' and 'finetune' cannot be compared"):
    report.compare(pretrain, finetune, ["auc"], 10, seed=0)


@pytest.mark.parametrize("k", [2, 3, 9])
def test_roc_draws_the_positive_class_alone_or_every_class(k):
  table = _table(1, classes=tuple("abcdefghi"[:k]))
  for draw in (figures.roc, figures.precision_recall):
    lines = draw(table).axes[0].get_lines()
    curves = [line for line in lines if line.get_label()[0] != "_"]
    assert len(curves) == (1 if k == 2 else k)
  first = figures.roc(table).axes[0].get_lines()[1]
  area = np.trapezoid(first.get_ydata(), first.get_xdata())
  if k == 2:
    assert area == pytest.approx(metrics.summary(table)["auc"])


def test_training_curves_are_drawn_where_the_rows_hold_them():
  drawn = figures.training_curves(_history("train"), ["macro_f1", "auc"])
  assert list(drawn) == ["loss", "validation", "learning rate"]
  train, val = drawn["loss"].axes[0].get_lines()
  np.testing.assert_allclose(train.get_ydata(), [1 / s for s in range(10, 60, 10)])
  np.testing.assert_array_equal(val.get_xdata(), [10, 30, 40, 50])  # null at 20
  assert len(drawn["validation"].axes[0].get_lines()) == 1
  assert list(figures.training_curves([{"step": 1, "loss": 2.0}], [])) == ["loss"]


def test_confusion_figure_shows_every_cell():
  table = _table(1, classes=("a", "b", "c"))
  texts = [t.get_text() for t in figures.confusion_matrix(table).axes[0].texts]
  assert len(texts) == 9
  assert sum(int(t.partition("\n")[0]) for t in texts) == 60


def test_environment_names_what_results_depend_on():
  found = report.environment()
  assert {"python", "jax", "flax", "numpy", "devices", "machine"} <= set(found)
  assert found["devices"].startswith("8 x cpu")
  assert json.dumps(found)
