"""An exported folder as `artifact` opens it: all of it as it was exported, or refused by name."""

import hashlib
import json
import pathlib
import shutil

import exported
import numpy as np
import pytest

from medjax import artifact, export, settings
from medjax.export import program

TINY = settings.QuadSNet(widths=(2, 4), hidden=4)


@pytest.fixture(scope="module")
def source() -> program.Source:
  return exported.source(TINY, 16)


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory) -> pathlib.Path:
  out = tmp_path_factory.mktemp("export") / "exported"
  export.write(out, source, {"run": "quickstart"})
  return out


@pytest.fixture
def copied(folder, tmp_path) -> pathlib.Path:
  return shutil.copytree(folder, tmp_path / "copied")


def test_it_scores_as_the_network_does_at_any_batch(folder, source):
  found = artifact.opened(folder)
  given = program.random_inputs(source, 7)
  want = exported.forward(source, given)
  for size in (1, 7):
    got = found.scores(given["image"][:size])
    assert got.dtype == np.float64
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-5)
    assert exported.difference(got, want[:size]) < 1e-5


def test_it_knows_what_it_scores(folder, source):
  found = artifact.opened(folder)
  assert found.classes == ("class0", "class1", "class2") and found.image_shape == (16, 16, 3)
  assert found.reading == source.stage.data.reading and found.operating == source.operating
  assert not found.multi_label and found.encoding == ()
  assert found.manifest["origin"]["run"] == "quickstart"


@pytest.mark.parametrize("name", [artifact.PROGRAM, artifact.WEIGHTS, artifact.MANIFEST])
def test_a_changed_byte_is_refused_by_the_name_of_its_file(copied, name):
  whole = (copied / name).read_bytes()
  for place in np.random.default_rng(0).integers(0, len(whole), 20):
    changed = bytearray(whole)
    changed[place] ^= 1
    (copied / name).write_bytes(changed)
    with pytest.raises((ValueError, FileNotFoundError), match=name):
      artifact.opened(copied)
  (copied / name).write_bytes(whole)
  artifact.opened(copied)


def test_a_manifest_with_other_classes_is_refused(copied):
  text = (copied / artifact.MANIFEST).read_text()
  (copied / artifact.MANIFEST).write_text(text.replace('"class0"', '"class9"'))
  with pytest.raises(ValueError, match=r"manifest\.json is not the file that was exported"):
    artifact.opened(copied)


@pytest.mark.parametrize("name", [artifact.PROGRAM, artifact.WEIGHTS])
def test_a_missing_file_is_named(copied, name):
  (copied / name).unlink()
  with pytest.raises(FileNotFoundError, match=name):
    artifact.opened(copied)


def test_a_cut_file_is_refused(copied):
  path = copied / artifact.PROGRAM
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(ValueError, match=artifact.PROGRAM):
    artifact.opened(copied)


def test_a_folder_without_a_manifest_is_none(tmp_path):
  (tmp_path / artifact.MANIFEST).write_text('{"name": "of something else"}')
  assert not artifact.is_one(tmp_path)
  with pytest.raises(FileNotFoundError, match=r"python -m medjax\.export"):
    artifact.opened(tmp_path)


def test_a_newer_form_is_told(copied):
  path = copied / artifact.MANIFEST
  kept = json.loads(path.read_text()) | {artifact.KEY: 2}
  path.write_text(json.dumps(kept))
  with pytest.raises(ValueError, match="form 2"):
    artifact.opened(copied)


def test_digests_are_those_of_the_files(folder):
  files = artifact.verified(folder)["files"]
  assert set(files) == {artifact.PROGRAM, artifact.WEIGHTS}
  for name, about in files.items():
    content = (folder / name).read_bytes()
    assert about == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
