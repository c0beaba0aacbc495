"""The report in a real browser: every picture is there, nothing is wider than the window."""

import html
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from medjax import contract, main, metrics, report

TINY = pathlib.Path(__file__).with_name("tiny.py")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed here"),
]

# A window is never narrower than 500 pixels, but a frame may be.
FRAME = """<!doctype html>
<script>addEventListener("message", event => document.title = event.data);</script>
<iframe src="page.html" style="border: 0; width: {width}px; height: 2000px"></iframe>
"""
# What a reader's browser makes of the page, told to the frame's owner once everything is laid out.
PROBE = """
<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(each => each.open = true);
  const images = [...document.images];
  const fetched = performance.getEntriesByType("resource").map(entry => entry.name);
  const wide = [...document.querySelectorAll("body *")].filter(each =>
    !each.closest(".scroll") && each.getBoundingClientRect().right > innerWidth + 1);
  parent.postMessage(JSON.stringify({
    width: innerWidth,
    overflow: document.documentElement.scrollWidth - innerWidth,
    wide: wide.map(each => each.tagName + "." + each.className),
    images: images.length,
    missing: images.filter(each => !each.complete || each.naturalWidth === 0).length,
    fetched: fetched.filter(name => !name.startsWith("data:")),
    collapsed: images.filter(each => each.getBoundingClientRect().width < 40).length,
  }), "*");
});
</script>
"""


def _seen(page: pathlib.Path, width: int, folder: pathlib.Path) -> dict:
  """What the browser says of a copy of the page that has no figures beside it."""
  (folder / "page.html").write_text(page.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
  (folder / "frame.html").write_text(FRAME.format(width=width), encoding="utf-8")
  command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
  command += [f"--user-data-dir={folder}/profile", f"--window-size={width},2000", "--dump-dom"]
  command += ["--virtual-time-budget=20000"]
  done = subprocess.run(
    [*command, f"file://{folder}/frame.html"],
    capture_output=True,
    text=True,
    timeout=100,
    check=True,
  )
  return json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout)[1]))


def _unwieldy(folder: pathlib.Path) -> pathlib.Path:
  """A page of many classes with long names, long ids, wide tables and long words."""
  classes = tuple(f"a_class_whose_name_is_{'very_' * c}long" for c in range(9))
  rng, n = np.random.default_rng(0), 90
  labels = np.arange(n) % 9
  scores = rng.dirichlet(np.ones(9), size=n)
  ids = np.array([f"{'folder/' * 9}{'x' * 80}{i}.png" for i in range(n)])
  table = contract.Predictions(ids, ids, "test", labels, scores, classes)
  rows, word = report.pick(table), "W" * 300
  pictures = rng.integers(256, size=(len(rows), 16, 16, 1)).astype(np.uint8)
  overlays = rng.integers(256, size=(len(rows), 16, 16, 3)).astype(np.uint8)
  info = contract.DataInfo(classes, (16, 16, 1), (10,) * 9, 90, (0.5,), (0.2,))
  found = metrics.intervals(table, report.names(9, "macro_f1"), 50, 0)
  of_classes = metrics.by_class(table, 50, 0)
  each = {c: {m: of[i] for m, of in of_classes.items()} for i, c in enumerate(classes)}
  many = report.Table("Wide", [f"column {i}" for i in range(30)], [["cell"] * 30] * 3, word)
  stage = report.StageReport(
    "train",
    info,
    "\n".join(["a line of a table that is rather long " * 9] * 3),
    predictions=table,
    intervals=found,
    per_class=each,
    gallery=report.Gallery(pictures, rows.tolist(), overlays, word),
    notes=[word],
    tables=[many, report.Table("Wordy", ["a", "b"], [[word, word]])],
    checks={word: word},
    facts={"network": word},
    hashes={"weights of checkpoints/best/16": "0" * 64},
  )
  run = report.Report(word, [stage], "macro_f1", 50, question=word, use=word, command=word * 3)
  return report.write(folder / "report.html", run)


@pytest.fixture(scope="module", params=["of a run", "unwieldy"])
def page(request, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("page")
  if request.param == "unwieldy":
    return _unwieldy(folder)
  maps = "--config.eval.maps=gradcam"
  assert main.main([f"--config={TINY}:stages", f"--workdir={folder}", maps]) == 0
  return folder / "report.html"


@pytest.mark.parametrize("width", [1280, 390])
def test_every_picture_is_there_and_nothing_is_wider_than_the_window(page, width, tmp_path):
  seen = _seen(page, width, tmp_path)
  assert seen["width"] == width
  assert seen["images"] > 10 and seen["missing"] == 0 and seen["collapsed"] == 0
  assert seen["fetched"] == []
  assert seen["overflow"] <= 0 and seen["wide"] == []


def test_what_is_too_wide_and_what_is_missing_is_noticed(tmp_path):
  page = tmp_path / "bad.html"
  page.write_text('<!doctype html><img src="data:image/png;base64,AA"><p style="width:900px">x')
  seen = _seen(page, 390, tmp_path)
  assert seen["overflow"] > 0 and seen["wide"] == ["P."] and seen["missing"] == 1
