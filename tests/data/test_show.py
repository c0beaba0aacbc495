import csv
import pathlib
import re

import numpy as np
from PIL import Image
import pytest

from medjax import settings
from medjax.data import __main__ as commands
from medjax.data import collection, readers

SIZE = 32


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
  """Ten PNG of two classes, a TIFF of three pages, and a file that is no image."""
  rng = np.random.default_rng(0)
  root = tmp_path_factory.mktemp("tree")
  for i in range(10):
    folder = root / "train" / ("cat" if i < 6 else "dog")
    folder.mkdir(parents=True, exist_ok=True)
    shape = (20, 30) if i < 6 else (24, 24, 3)
    Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"p{i // 2}_{i}.png")
  pages = [Image.new("L", (8, 8), shade) for shade in (10, 120, 240)]
  pages[0].save(root / "stack.tif", save_all=True, append_images=pages[1:])
  (root / "broken.png").write_bytes(b"no image at all")
  return root


def _run(capsys, *argv):
  assert commands.main([str(arg) for arg in argv]) == 0
  return capsys.readouterr().out


def _pictures(out):
  """The pictures of a sheet of one row."""
  canvas = np.asarray(Image.open(out / "sheet.png"))
  return [canvas[6 : 6 + SIZE, left : left + SIZE] for left in range(6, canvas.shape[1], SIZE + 6)]


def test_sheet_shows_what_the_network_sees(tree, tmp_path, capsys):
  told = _run(capsys, "show", tree, "--out", tmp_path, "--size", SIZE, "--channels", 3)
  assert "11 images shown, 1 files cannot be read" in told
  paths = [tree / "stack.tif", *sorted((tree / "train").rglob("*.png"))]
  want = [readers.read(path.read_bytes(), SIZE, 3) for path in paths]
  np.testing.assert_array_equal(_pictures(tmp_path), want)


def test_page_tells_steps_and_reasons(tree, tmp_path, capsys):
  argv = ("--out", tmp_path, "--size", SIZE, "--median", 3, "--frames", "all", "--resize", "smart")
  _run(capsys, "show", tree, *argv)
  page = (tmp_path / "show.html").read_text()
  assert page.count("median filter 3 x 3") == 13
  assert page.count("smart to 32 x 32") == 13
  assert all(f"stack.tif #{i}" in page for i in range(3))
  assert "broken.png" in page and "no PNG, JPEG, BMP, TIFF image by its content" in page
  assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)  # nothing is fetched


def test_few_of_many_are_evenly_spaced(tree, tmp_path, capsys):
  _run(capsys, "show", tree, "--out", tmp_path, "--size", SIZE, "--most", 4)
  paths = ["broken.png", "train/cat/p0_1.png", "train/cat/p2_4.png", "train/dog/p3_7.png"]
  page = (tmp_path / "show.html").read_text()
  assert all(path in page for path in paths)
  assert page.count("<img") == 3


def _rows(out):
  with (out / "images.csv").open(newline="") as stream:
    return list(csv.DictReader(stream))


def test_stats_equal_those_by_hand(tree, tmp_path, capsys):
  _run(capsys, "stats", tree, "--out", tmp_path, "--group-pattern", r"^(p\d)_")
  rows = _rows(tmp_path)
  assert len(rows) == 11
  for row in rows:
    pixels = readers.decode(pathlib.Path(row["name"].partition(" #")[0]).read_bytes()) / 255
    assert float(row["mean"]) == pytest.approx(pixels.mean(), abs=0.01)
    assert float(row["sd"]) == pytest.approx(pixels.std(), abs=0.01)
    for name, percent in (("p01", 1), ("p50", 50), ("p99", 99)):
      assert float(row[name]) == pytest.approx(np.percentile(pixels, percent), abs=0.02)
    assert (int(row["height"]), int(row["width"])) == pixels.shape[:2]
    assert row["colour"] == str(pixels.shape[2] == 3)
  assert [row["class"] for row in rows] == [""] + ["cat"] * 6 + ["dog"] * 4
  assert [row["group"] for row in rows[1:]] == [f"p{i // 2}" for i in range(10)]


def test_page_of_stats_counts_and_draws(tree, tmp_path, capsys):
  _run(capsys, "stats", tree, "--out", tmp_path, "--group-pattern", r"^(p\d)_")
  page = re.sub(r"<[^>]+>", "|", (tmp_path / "stats.html").read_text())
  cells = re.sub(r"\|+", "|", page)
  for line in ("PNG|10", "TIFF|1", "20 x 30|6", "24 x 24|4", "yes|4", "no|7", "cat|6|3", "dog|4|2"):
    assert f"|{line}|" in cells, line
  assert "5 groups hold 10 of 11 images, the largest 2." in cells
  assert "nor DICOM, NIfTI, MGH or NumPy|1|" in cells
  drawn = sorted(path.name for path in (tmp_path / "figures").iterdir())
  assert drawn == ["classes.png", "intensities.png", "means.png", "sizes.png"]
  for path in (tmp_path / "figures").iterdir():
    assert np.asarray(Image.open(path).convert("L")).std() > 5, path.name


def test_a_prepared_collection_is_shown_and_counted(tree, tmp_path, capsys):
  made = tmp_path / "made"
  _run(capsys, "prepare", tree, "--out", made, "--size", SIZE, "--workers", 1, "--keep-paths")
  opened = collection.open(made)
  assert len(opened) == 11
  _run(capsys, "show", made, "--out", tmp_path / "show")
  canvas = np.asarray(Image.open(tmp_path / "show" / "sheet.png"))
  pictures = opened.read(range(11))
  first = np.broadcast_to(pictures[0], (SIZE, SIZE, 3))
  np.testing.assert_array_equal(canvas[6 : 6 + SIZE, 6 : 6 + SIZE], first)
  _run(capsys, "stats", made, "--out", tmp_path / "stats")
  rows = _rows(tmp_path / "stats")
  assert len(rows) == 11
  assert {row["format"] for row in rows} == {"prepared"}
  for row, pixels in zip(rows, pictures, strict=True):
    assert float(row["mean"]) == pytest.approx(pixels.mean() / 255, abs=0.01)


def test_a_dicom_file_is_shown_windowed(shared_data, tmp_path, capsys):
  (path,) = (shared_data / "dicom").rglob("693_UNCR.dcm")
  _run(capsys, "show", path, "--out", tmp_path, "--size", SIZE, "--window", "bone", "--depth", 16)
  page = (tmp_path / "show.html").read_text()
  assert "bone window, -500 to 1300 HU" in page and "16 bit" in page
  cfg = settings.Reading(window="bone", depth=16)
  want = readers.to_8_bit(readers.read(path.read_bytes(), SIZE, 1, cfg))
  np.testing.assert_array_equal(_pictures(tmp_path)[0], np.repeat(want, 3, axis=2))


@pytest.mark.parametrize("command", ["show", "stats"])
def test_mistakes_are_told(command, tmp_path, capsys):
  assert commands.main([command, str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 1
  assert "does not exist" in capsys.readouterr().err
  (tmp_path / "empty").mkdir()
  assert commands.main([command, str(tmp_path / "empty"), "--out", str(tmp_path / "o")]) == 1
  assert "no image in" in capsys.readouterr().err
