"""Sets that come as arrays: MNIST and MedMNIST."""

import collections
import gzip
import struct

import numpy as np
import pytest

from medjax import contract, data, settings
from medjax.data.datasets import medmnist


def _idx(file, array):
  shape = struct.pack(f">{array.ndim}I", *array.shape)
  file.write_bytes(gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()))


def _rows(cfg):
  return data.DATASETS[type(cfg)](cfg)


class TestMNIST:
  def test_the_real_files(self, shared_data):
    rows = _rows(settings.MNIST(root=str(shared_data / "mnist")))
    counts = collections.Counter(rows.parts.tolist())
    assert counts == {"train": 60_000, "test": 10_000}
    first = [1, 135, 5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(rows.labels[:60_000]).tolist() == first[2:]  # as LeCun counts them
    with gzip.open(shared_data / "mnist/t10k-images-idx3-ubyte.gz") as stream:
      stream.read(16)
      want = np.frombuffer(stream.read(784), np.uint8).reshape(28, 28)
    np.testing.assert_array_equal(rows.read(60_000), want)
    assert rows.ids[60_000] == "test/0"

  def test_damaged_files_are_told(self, tmp_path):
    images = np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2)
    for prefix in ("train", "t10k"):
      _idx(tmp_path / f"{prefix}-images-idx3-ubyte.gz", images)
      _idx(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", np.arange(3, dtype=np.uint8))
    cfg = settings.MNIST(root=str(tmp_path))
    np.testing.assert_array_equal(_rows(cfg).read(4), images[1])
    file = tmp_path / "train-images-idx3-ubyte.gz"
    _idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(2, dtype=np.uint8))
    with pytest.raises(ValueError, match="holds 3 images, and there are 2 labels"):
      _rows(cfg)
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-1]))
    with pytest.raises(ValueError, match="is damaged, or no idx file"):
      _rows(cfg)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=r"train-images.* is damaged: "):
      _rows(cfg)


class TestMedMNIST:
  def _save(self, folder, name, classes, colour=(), several=False):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 7), ("val", 2), ("test", 3)):
      arrays[f"{part}_images"] = rng.integers(0, 256, (n, 28, 28, *colour), dtype=np.uint8)
      shape, top = ((n, classes), 2) if several else ((n, 1), classes)
      arrays[f"{part}_labels"] = rng.integers(0, top, shape, dtype=np.uint8)
    np.savez(folder / f"{name}.npz", **arrays)
    return arrays

  @pytest.mark.parametrize("name", medmnist.CLASSES)
  def test_every_2d_set(self, tmp_path, name):
    several = name == "chestmnist"
    classes = medmnist.CLASSES[name]
    arrays = self._save(tmp_path, name, len(classes), (3,) * (name == "pathmnist"), several)
    rows = _rows(settings.MedMNIST(root=str(tmp_path), set=name))
    assert rows.classes == classes
    assert rows.parts.tolist() == ["train"] * 7 + ["val"] * 2 + ["test"] * 3
    labels = np.concatenate([arrays[f"{part}_labels"] for part in contract.PARTS])
    np.testing.assert_array_equal(rows.labels, labels if several else labels[:, 0])
    np.testing.assert_array_equal(rows.read(8), arrays["val_images"][1])

  def test_numbers_of_classes_are_the_authors(self):
    counts = {name: len(classes) for name, classes in medmnist.CLASSES.items()}
    assert counts == dict(
      pathmnist=9, chestmnist=14, dermamnist=7, octmnist=4, pneumoniamnist=2, retinamnist=5,
      breastmnist=2, bloodmnist=8, tissuemnist=8, organamnist=11, organcmnist=11, organsmnist=11,
    )  # fmt: skip

  def test_larger_images_have_files_of_their_own(self, tmp_path):
    self._save(tmp_path, "breastmnist_64", 2)
    assert len(_rows(settings.MedMNIST(root=str(tmp_path), set="breastmnist", pixels=64))) == 12
    with pytest.raises(FileNotFoundError, match=r"holds no breastmnist\.npz\.\nGet"):
      _rows(settings.MedMNIST(root=str(tmp_path), set="breastmnist"))

  def test_wrong_names_and_labels_are_told(self, tmp_path):
    with pytest.raises(KeyError, match=r"no 2-D set 'pathmist'.*Did you mean 'pathmnist'\?"):
      _rows(settings.MedMNIST(root=str(tmp_path), set="pathmist"))
    self._save(tmp_path, "breastmnist", 5)
    with pytest.raises(ValueError, match="has labels from 0 to 4, for"):
      _rows(settings.MedMNIST(root=str(tmp_path), set="breastmnist"))

  def test_pneumoniamnist(self, shared_data):
    rows = _rows(settings.MedMNIST(root=str(shared_data / "pneumoniamnist")))
    official = {"train": (1214, 3494), "val": (135, 389), "test": (234, 390)}
    assert rows.classes == ("normal", "pneumonia")
    counts = collections.Counter(zip(rows.parts.tolist(), rows.labels.tolist(), strict=True))
    assert counts == {(part, k): n for part, pair in official.items() for k, n in enumerate(pair)}
