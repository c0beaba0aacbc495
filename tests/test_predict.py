"""Prediction of files: the rows, what they say, and what a user may get wrong."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import shutil
import tarfile
from typing import Any
import zipfile

import files_to_predict
import numpy as np
from PIL import Image
import pytest
from scipy import special
import untrained

import medjax
from medjax import artifact, evaluate, predict, settings, trained
from medjax.export import __main__ as export
from medjax.metrics import calibration, operating, thresholds
from medjax.predict import __main__ as command
from medjax.predict import scoring

CLASSES = ("a", "b", "c")


def run(*args: str | pathlib.Path) -> int:
  return command.main([str(arg) for arg in args])


def told(capsys, *args: str | pathlib.Path) -> str:
  """The error of a command that must fail, as the user sees it."""
  assert run(*args) == 1
  text = capsys.readouterr().err
  assert text.startswith("error: ") and "Traceback" not in text
  return text


def rows(table: pathlib.Path) -> list[dict[str, str]]:
  with table.open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def scores(found: list[dict[str, str]], classes: tuple[str, ...] = CLASSES) -> np.ndarray:
  return np.array([[float(row[f"score_{name}"]) for name in classes] for row in found])


def typed(*lines: str) -> io.TextIOWrapper:
  """Standard input."""
  return io.TextIOWrapper(io.BytesIO(b"".join(os.fsencode(line) + b"\n" for line in lines)))


def of_folder(root: pathlib.Path, workdir: pathlib.Path, **tree: Any) -> pathlib.Path:
  """A network of 16-px images that keeps aspect ratios, so that reading is not the default."""
  reading = dict(resize="smart")
  data = dict(name="image_folder", root=str(root), image_size=16, reading=reading)
  return untrained.workdir(workdir, data=data | dict(cache=f"{workdir.parent}/decoded"), **tree)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> pathlib.Path:
  """A folder a class, of files in every format, of different sizes and shapes."""
  root = tmp_path_factory.mktemp("images") / "set"
  drawn = files_to_predict.phantoms(42, 40)
  for number, name in enumerate(CLASSES):
    own = [pixels[: 20 + i, : 40 - 4 * number] for i, pixels in enumerate(drawn[number::3])]
    files_to_predict.write(root / name, own)
  return root


@pytest.fixture(scope="module")
def workdir(images, tmp_path_factory) -> pathlib.Path:
  return of_folder(images, tmp_path_factory.mktemp("run") / "w")


@pytest.fixture(scope="module")
def predicted(images, workdir, tmp_path_factory) -> list[dict[str, str]]:
  """Every image of the set, in one go."""
  out = tmp_path_factory.mktemp("out") / "p.csv"
  assert run(workdir, images, "--out", out) == 0
  return rows(out)


def test_a_row_an_input_with_the_columns_that_users_script_against(images, predicted):
  assert list(predicted[0]) == ["path", "predicted", *(f"score_{c}" for c in CLASSES), "error"]
  files = sorted(str(path) for path in images.rglob("*") if path.is_file())
  assert [row["path"] for row in predicted] == files
  found = scores(predicted)
  np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
  assert [row["predicted"] for row in predicted] == [CLASSES[i] for i in found.argmax(1)]


def test_files_score_as_evaluation_scored_them(images, workdir, predicted):
  found = {row["path"]: score for row, score in zip(predicted, scores(predicted), strict=True)}
  for part in ("val", "test"):
    table = evaluate.read(workdir / "train" / f"predictions_{part}.csv")
    ours = np.stack([found[str(images / name)] for name in table.ids])
    np.testing.assert_allclose(ours, table.scores, atol=1e-6)
    assert len(np.unique(table.scores.round(6), axis=0)) == len(table)  # no two alike by chance


@pytest.mark.slow
def test_covid_ct_scores_as_evaluation_scored_it(shared_data, tmp_path, monkeypatch):
  root = shared_data / "covid_ct"
  own = dict(name="covid_ct", root=str(root), image_size=64, cache=f"{tmp_path}/decoded")
  folder = untrained.workdir(tmp_path / "w", data=own)
  table = evaluate.read(folder / "train" / "predictions_test.csv")
  monkeypatch.setattr("sys.stdin", typed(*(str(root / name) for name in table.ids)))
  assert run(folder, "-", "--out", tmp_path / "p.csv") == 0
  found = scores(rows(tmp_path / "p.csv"), table.classes)
  assert len(found) == 203
  np.testing.assert_allclose(found, table.scores, atol=1e-6)


def test_images_in_memory_score_as_their_files(images, workdir, predicted):
  files = [row["path"] for row in predicted if row["path"].endswith(("png", "bmp", "npy"))]
  pixels = [
    np.load(name) if name.endswith("npy") else np.asarray(Image.open(name)) for name in files
  ]
  assert len({each.shape for each in pixels}) > 10
  classifier = medjax.load(workdir)
  found = classifier(pixels)
  wanted = {row["path"]: score for row, score in zip(predicted, scores(predicted), strict=True)}
  np.testing.assert_allclose(found, [wanted[name] for name in files], atol=1e-6)
  assert classifier.predicted(found) == [CLASSES[i] for i in found.argmax(1)]
  same = np.stack([pixels[0]] * 3)[..., None]
  np.testing.assert_allclose(classifier(same), np.repeat(found[:1], 3, 0), atol=1e-6)
  assert classifier([]).shape == (0, 3)
  with pytest.raises(ValueError, match="put one into a list"):
    classifier(same[0])
  with pytest.raises(ValueError, match="float64"):
    classifier([np.zeros((8, 8))])
  with pytest.raises(ValueError, match="trained without metadata"):
    classifier(pixels[:1], [{"age": 3}])


class Counting:
  """A `scoring.Scorer` that scores nothing and notes how many images it was given at once."""

  classes, image_shape, multi_label, encoding = ("no", "yes"), (8, 8, 1), False, ()
  reading, operating = settings.Reading(), operating.Operating()

  def __init__(self):
    self.widths: list[int] = []

  def scores(self, images: np.ndarray, metadata: np.ndarray | None = None) -> np.ndarray:
    self.widths.append(len(images))
    return np.zeros((len(images), 2))


@pytest.mark.parametrize(
  ("images", "widths"), [(0, []), (1, [1]), (3, [4]), (8, [8]), (9, [8, 8]), (16, [8, 8])]
)
def test_few_images_cost_no_whole_batch(images, widths):
  counting = Counting()
  found = predict.Predictor([counting], batch_size=8)(np.zeros((images, 8, 8, 1), np.uint8))
  assert counting.widths == widths and found.shape == (images, 2)


def test_inputs_are_files_folders_archives_patterns_and_names_on_standard_input(
  images, workdir, tmp_path, monkeypatch
):
  first, second, third = sorted((images / "a").glob("*"))[:3]
  with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
    archive.write(first, "x/1.png")
    archive.writestr("x/readme.txt", "passed over")
  with tarfile.open(tmp_path / "films.tar.gz", "w:gz") as archive:
    archive.add(second, "2.jpg")
  odd = tmp_path / os.fsdecode(b'odd, \xff "name"\n[1].png')
  shutil.copy(first, odd)
  plain = shutil.copy(third, os.fsdecode(b"%s/\xff.png" % os.fsencode(tmp_path)))
  monkeypatch.setattr("sys.stdin", typed(plain, "nowhere.png", ""))
  monkeypatch.chdir(tmp_path)
  names = ["films.zip", "films.tar.gz", str(odd), f"{images}/a/*.png", "-", str(first), str(first)]
  assert run(workdir, *names, "--out", "p.csv") == 0
  with open("p.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
    found = list(csv.DictReader(file))
  pattern = sorted(map(str, (images / "a").glob("*.png")))
  wanted = ["films.zip/x/1.png", "films.tar.gz/2.jpg", str(odd), *pattern, plain]
  assert [row["path"] for row in found] == [*wanted, "nowhere.png", str(first), str(first)]
  assert [row["error"] for row in found if row["error"]] == ["does not exist"]
  of = {row["path"]: row["score_a"] for row in found}
  assert float(of["films.zip/x/1.png"]) == pytest.approx(float(of[str(first)]), abs=1e-6)


def test_files_that_cannot_be_read_have_their_reason_in_their_row(workdir, tmp_path, capsys):
  drawn = files_to_predict.phantoms(28, 24)
  paths = files_to_predict.write(tmp_path / "mixed", drawn, broken_every=5)
  (tmp_path / "mixed" / "damaged.zip").write_bytes(b"PK, but no more")
  assert run(workdir, tmp_path / "mixed", "--out", tmp_path / "p.csv") == 0
  found = rows(tmp_path / "p.csv")
  wrong = {pathlib.Path(row["path"]): row for row in found if row["error"]}
  assert set(wrong) == {*paths[4::5], tmp_path / "mixed" / "damaged.zip"}
  for row in wrong.values():
    assert row["predicted"] == row["score_a"] == "" and "\n" not in row["error"]
  assert all(row["predicted"] in CLASSES for row in found if not row["error"])
  assert "29 rows" in (text := capsys.readouterr().out) and "6 of them with an error" in text


def test_the_temperature_and_the_thresholds_of_the_model_are_applied(
  workdir, images, predicted, tmp_path
):
  copy = shutil.copytree(workdir, tmp_path / "w")
  plain = scores(predicted)
  limit = float(np.median(special.softmax(np.log(plain) / 0.5, axis=1)[:, 2]))
  used = operating.Operating(
    calibration.Temperature(0.5, "val"), (thresholds.Threshold("c", "by hand", "val", limit),)
  )
  operating.write(copy / "train", used)
  assert run(copy, images, "--out", tmp_path / "p.csv") == 0
  found = rows(tmp_path / "p.csv")
  np.testing.assert_allclose(scores(found), special.softmax(np.log(plain) / 0.5, 1), atol=1e-5)
  given = [CLASSES[2] if s[2] >= limit else CLASSES[s[:2].argmax()] for s in scores(found)]
  assert [row["predicted"] for row in found] == given
  assert given.count("c") == pytest.approx(len(found) / 2, abs=1)


def test_several_models_give_the_mean_of_their_scores(images, workdir, predicted, tmp_path):
  other = shutil.copytree(workdir, tmp_path / "other")
  operating.write(other / "train", operating.Operating(calibration.Temperature(0.5, "val")))
  assert run(workdir, images / "a", "--and", other, "--out", tmp_path / "both.csv") == 0
  one = scores(predicted)[:14]
  two = special.softmax(np.log(one) / 0.5, axis=1)
  np.testing.assert_allclose(scores(rows(tmp_path / "both.csv")), (one + two) / 2, atol=1e-6)


def test_maps_show_where_the_network_looked(images, workdir, tmp_path, capsys):
  drawn = sorted((images / "a").glob("*.png"))
  (tmp_path / "cut.png").write_bytes(drawn[0].read_bytes()[:80])
  given = (workdir, *drawn, tmp_path / "cut.png", "--out", tmp_path / "p.csv")
  assert run(*given, "--maps", tmp_path / "maps") == 0
  assert len(rows(tmp_path / "p.csv")) == len(drawn) + 1
  found = rows(tmp_path / "maps" / "explained.csv")
  assert {row["path"] for row in found} == {*map(str, drawn), str(tmp_path / "cut.png")}
  for row in found:
    if not row["error"]:
      assert np.load(tmp_path / "maps" / row["map"]).shape == (16, 16)
  assert "is not empty" in told(capsys, *given, "--maps", tmp_path / "maps")
  text = told(capsys, *given, "--and", workdir, "--maps", tmp_path / "more")
  assert "give one MODEL" in text


def test_an_exported_classifier_predicts_the_same_and_a_tampered_one_is_refused(
  images, workdir, predicted, tmp_path, capsys
):
  assert export.main([str(workdir), "--out", str(tmp_path / "exported")]) == 0
  given = (tmp_path / "exported", images / "b", "--out", tmp_path / "p.csv")
  assert run(*given) == 0
  found = rows(tmp_path / "p.csv")
  np.testing.assert_allclose(scores(found), scores(predicted)[14:28], atol=1e-5)
  assert [row["predicted"] for row in found] == [row["predicted"] for row in predicted[14:28]]
  assert "has no stages" in told(capsys, *given, "--stage=train")
  program = tmp_path / "exported" / artifact.PROGRAM
  program.write_bytes(program.read_bytes()[:-1] + b"x")
  assert f"{program} is not the file that was exported" in told(capsys, *given)


# Metadata beside the images.


@pytest.fixture(scope="module")
def fused(tmp_path_factory) -> pathlib.Path:
  """A table of images with ages and sexes, and a network that sees them."""
  root = tmp_path_factory.mktemp("table")
  paths = files_to_predict.write(root / "images", files_to_predict.phantoms(40, 16))
  lines = ["path,image,label,age,sex"]
  for i, path in enumerate(paths):
    name, age = path.relative_to(root), "" if i % 9 == 0 else 20 + i
    lines.append(f"{name},{name},{'ill' if i % 2 else 'well'},{age},{'mf'[i % 3 > 0]}")
  (root / "table.csv").write_text("\n".join(lines) + "\n")
  table = dict(name="table", root=str(root / "table.csv"), image_size=16, cache=f"{root}/decoded")
  data = table | dict(numbers=("age",), categories=("sex",))
  untrained.workdir(root / "w", data=data, model=untrained.MODEL | dict(metadata="dense"))
  return root


def test_metadata_are_encoded_as_in_training(fused, tmp_path):
  table = evaluate.read(fused / "w" / "train" / "predictions_test.csv")
  known = ("--metadata", fused / "table.csv")
  assert run(fused / "w", fused / "images", *known, "--out", tmp_path / "p.csv") == 0
  classes = ("ill", "well")
  found = {row["path"]: row for row in rows(tmp_path / "p.csv")}
  ours = scores([found[str(fused / name)] for name in table.ids], classes)
  np.testing.assert_allclose(ours, table.scores, atol=1e-6)
  with (fused / "table.csv").open(newline="") as file:
    records = {record["image"]: record for record in csv.DictReader(file)}
  png = [name for name in records if name.endswith(".png")]
  pixels = [np.asarray(Image.open(fused / name)) for name in png]
  in_memory = medjax.load(fused / "w")(pixels, [records[name] for name in png])
  wanted = scores([found[str(fused / name)] for name in png], classes)
  np.testing.assert_allclose(in_memory, wanted, atol=1e-6)


def test_an_image_of_which_nothing_is_known_has_that_in_its_row(fused, tmp_path):
  lines = (fused / "table.csv").read_text().splitlines()
  short = fused / "short.csv"
  short.write_text("\n".join([lines[0], *lines[3:]]) + "\n")
  known = ("--metadata", short)
  assert run(fused / "w", fused / "images", *known, "--out", tmp_path / "p.csv") == 0
  found = rows(tmp_path / "p.csv")
  assert [bool(row["error"]) for row in found] == [True, True] + [False] * 38
  assert found[0]["error"] == f"{short} has no row for it"


def test_mistakes_about_metadata_are_told(fused, workdir, images, tmp_path, capsys):
  out = ("--out", tmp_path / "p.csv")
  assert "age, sex beside the image: give them by --metadata" in told(
    capsys, fused / "w", fused / "images", *out
  )
  known = ("--metadata", tmp_path / "t.csv")
  (tmp_path / "t.csv").write_text("image,agee,sex\nx.png,3,m\n")
  assert "no column 'age'" in (text := told(capsys, fused / "w", fused / "images", *known, *out))
  assert "Did you mean 'agee'?" in text
  (tmp_path / "t.csv").write_text("file,age,sex\nx.png,3,m\n")
  assert "no column 'image'" in told(capsys, fused / "w", fused / "images", *known, *out)
  (tmp_path / "t.csv").write_text("image,age,sex\nx.png,3,m\nx.png,3,m\n")
  assert "more than one row" in told(capsys, fused / "w", fused / "images", *known, *out)
  (tmp_path / "t.csv").write_text("image,age,sex\nx.png,old,m\n")
  assert "is to be a number" in told(capsys, fused / "w", fused / "images", *known, *out)
  assert "without metadata" in told(capsys, workdir, images, "--metadata", tmp_path / "t.csv", *out)
  assert not (tmp_path / "p.csv").exists()


# What a user may get wrong.


def test_mistakes_are_told_before_anything_is_written(workdir, fused, images, tmp_path, capsys):
  out = ("--out", tmp_path / "p.csv")
  assert "nowhere does not exist" in told(capsys, workdir, "nowhere", *out)
  assert "no trained network" in told(capsys, tmp_path, images, *out)
  assert "no stage 'nope', only ['train']" in told(capsys, workdir, images, "--stage=nope", *out)
  assert "different classes" in told(capsys, workdir, images, "--and", fused / "w", *out)
  (tmp_path / "collection.json").write_text("{}")
  assert "prepared collection" in told(capsys, workdir, tmp_path, *out)
  assert not (tmp_path / "p.csv").exists()


def test_another_file_is_not_written_over(workdir, images, tmp_path, capsys):
  (tmp_path / "labels.csv").write_text("id,label\n1,ill\n")
  text = told(capsys, workdir, images, "--out", tmp_path / "labels.csv")
  assert "holds id,label" in text and (tmp_path / "labels.csv").read_text() == "id,label\n1,ill\n"


def test_a_table_that_was_finished_may_be_made_anew(workdir, images, tmp_path):
  out = ("--out", tmp_path / "p.csv")
  one, two = sorted((images / "a").glob("*.png"))[:2]
  assert run(workdir, one, two, *out) == 0
  assert run(workdir, two, *out) == 0
  assert [row["path"] for row in rows(tmp_path / "p.csv")] == [str(two)]
  assert list(tmp_path.iterdir()) == [tmp_path / "p.csv"]


def test_a_stage_without_scores_is_refused(workdir):
  opened = trained.opened(workdir)
  stage = dataclasses.replace(opened.stage, objective=settings.SimCLR())
  with pytest.raises(ValueError, match="is no classifier, so it predicts nothing"):
    scoring.Network(dataclasses.replace(opened, stage=stage))


def test_an_older_workdir_that_lacks_the_encoding_says_how_to_get_it(fused, tmp_path, capsys):
  copy = shutil.copytree(fused / "w", tmp_path / "w")
  told_of = json.loads((copy / "train" / trained.INFO).read_text())
  del told_of["encoding"]
  (copy / "train" / trained.INFO).write_text(json.dumps(told_of))
  text = told(capsys, copy, fused / "images", "--out", tmp_path / "p.csv")
  assert "--task=evaluate" in text
