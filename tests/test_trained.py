"""Opening a trained network: from its workdir, its stage or its checkpoint, without its data."""

import pathlib
import shutil

import files_to_predict
import jax.numpy as jnp
import numpy as np
import pytest
import untrained

from medjax import contract, data, evaluate, settings, trained
from medjax.data import __main__ as prepare
from medjax.data import collection, metadata, readers


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
  """A scored network whose data are gone: what is opened must not ask for them."""
  root = tmp_path_factory.mktemp("trained")
  untrained.workdir(root / "w", data=phantoms(root))
  shutil.rmtree(root / "decoded")
  return root / "w"


def phantoms(root: pathlib.Path) -> dict:
  return dict(name="phantom", image_size=16, patients=40, cache=f"{root}/decoded")


def test_it_scores_as_evaluation_did(workdir, tmp_path):
  opened = trained.opened(workdir)
  table = evaluate.read(workdir / "train" / "predictions_test.csv")
  part = data.make(settings.Phantom(image_size=16, patients=40, cache=str(tmp_path))).parts["test"]
  assert part.ids.tolist() == table.ids.tolist()
  images = jnp.asarray(np.stack([part.fetch(row) for row in range(len(part))]))
  scores = opened.objective.forward(opened.state, {contract.IMAGE: images}).scores
  np.testing.assert_allclose(scores, table.scores, atol=1e-6)


def test_workdir_stage_and_checkpoint_are_the_same_network(workdir):
  found = [
    trained.opened(place)
    for place in (workdir, workdir / "train", workdir / "train" / "checkpoints" / "best" / "1")
  ]
  assert {each.place for each in found} == {str(workdir / "train" / "checkpoints" / "best" / "1")}
  assert {each.folder for each in found} == {workdir / "train"}
  assert found[0].info == trained.recalled(workdir / "train") == found[2].info
  assert found[0].info.classes == ("clear", "nodular", "spiculated")
  assert found[0].stage.model.name == "quadsnet" and found[0].info.image_shape == (16, 16, 1)
  assert found[0].state.opt_state == () and found[0].state.extra == {}


@pytest.mark.parametrize(
  ("place", "stage", "says"),
  [
    ("nowhere", "", "is no trained network: give a workdir"),
    ("", "", "is no trained network"),
    ("w", "finetune", r"has no stage 'finetune', only \['train'\]"),
    ("w/train/checkpoints/best/7", "", "no checkpoint under .*best/7"),
    ("w/elsewhere", "", "has no stage 'elsewhere'"),
  ],
)
def test_what_is_no_network_is_told(workdir, place, stage, says):
  with pytest.raises(FileNotFoundError, match=says):
    trained.opened(workdir.parent / place, stage)


def test_a_stage_that_was_never_begun_or_has_no_checkpoint_is_told(workdir, tmp_path):
  copy = shutil.copytree(workdir, tmp_path / "w")
  shutil.rmtree(copy / "train" / "checkpoints")
  with pytest.raises(FileNotFoundError, match="no checkpoint under"):
    trained.opened(copy)
  (copy / "train" / trained.INFO).unlink()
  with pytest.raises(FileNotFoundError, match=r"was never trained: it has no info\.json"):
    trained.opened(copy)


def test_what_is_remembered_of_the_data_is_recalled(tmp_path):
  records = [{"age": 40, "sex": "f"}, {"age": 60, "sex": "m"}, {"age": None, "sex": ""}]
  fields = [metadata.Number("age"), metadata.Category("sex")]
  encoder = metadata.fit(records, fields)
  info = contract.DataInfo(
    classes=("a", "b"),
    image_shape=(8, 8, 3),
    class_counts=(2, 1),
    train_size=3,
    mean=(0.5, 0.25, 0.125),
    std=(0.1, 0.2, 0.3),
    metadata=encoder.width,
    encoding=encoder.described(),
  )
  trained.remember(tmp_path, info)
  again = trained.recalled(tmp_path)
  assert again == info and hash(again) == hash(info)
  restored = metadata.restored(again.encoding)
  assert restored == encoder and restored.names == ("age", "sex") and restored.width == 4
  # By hand: mean 50, deviation 10; other, f, m; nothing where it is not known.
  wanted = [[-1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0], [3, 1, 0, 0]]
  np.testing.assert_allclose(restored([*records, {"age": 80, "sex": "x"}]), wanted)


def test_a_network_of_a_prepared_collection_reads_files_as_the_collection_did(tmp_path):
  sources = [tmp_path / "one", tmp_path / "two"]
  drawn = [pixels[: 20 + i] for i, pixels in enumerate(files_to_predict.phantoms(28, 48))]
  for source, own in zip(sources, (drawn[::2], drawn[1::2]), strict=True):
    files_to_predict.write(source, own)
  how = ("--channels=1", "--size=16", "--resize=smart", "--gaussian=1", "--keep-paths")
  command = ["prepare", *map(str, sources), "--out", str(tmp_path / "c"), "--workers=1", *how]
  assert prepare.main(command) == 0
  own = dict(name="collection", root=str(tmp_path / "c"), image_size=16, target="source")
  own |= dict(split=dict(val=0.0, test=0.3), cache=f"{tmp_path}/decoded")
  untrained.workdir(tmp_path / "w", data=own)
  opened = trained.opened(tmp_path / "w")
  assert opened.stage.data.reading == settings.Reading(resize="smart", gaussian=1.0)
  table = evaluate.read(tmp_path / "w" / "train" / "predictions_test.csv")
  known = collection.open(tmp_path / "c").table.to_pylist()
  places = {f"0/{row['id']}": sources[int(row["source"])] / row["path"] for row in known}
  files = [places[name].read_bytes() for name in table.ids]
  images = [readers.read(file, 16, 1, opened.stage.data.reading) for file in files]
  batch = {contract.IMAGE: jnp.asarray(np.stack(images))}
  scores = opened.objective.forward(opened.state, batch).scores
  np.testing.assert_allclose(scores, table.scores, atol=1e-6)
  assert len(table) >= 8
