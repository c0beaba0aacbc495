"""How fast files are predicted, and in how much memory: `-n 0 -s` prints it."""

from collections.abc import Sequence
import os
import pathlib
import time

import files_to_predict
import numpy as np
import pytest
import untrained

from medjax import evaluate, predict, trained
from medjax import mesh as mesh_lib
from medjax.data import catalogue, inputs, readers
from medjax.data import feed as feed_lib
from medjax.predict import scoring

FILES, SIDE = 1000, 128
LEAST = 0.9  # of the evaluation loop's rate
GROWTH = 1.05  # of memory between the first and the second half
# Backbones with soft attention, at the sizes that their authors used.
LARGE = {"mobilenet_v3_large": 224, "densenet201": 224, "inception_resnet_v2": 299}
ROUNDS = 5


def memory() -> float:
  """Resident megabytes."""
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def mixed(folder: pathlib.Path) -> list[pathlib.Path]:
  """Files of every format, one in fifty broken."""
  drawn = files_to_predict.phantoms(FILES, SIDE + 32)
  return files_to_predict.write(folder, drawn, broken_every=50)


@pytest.mark.slow
def test_memory_stays_flat_over_a_thousand_files(tmp_path):
  mixed(tmp_path / "mixed")
  data = dict(name="phantom", image_size=SIDE, patients=40, cache=f"{tmp_path}/decoded")
  untrained.workdir(tmp_path / "w", data=data)
  predictor = predict.opened([tmp_path / "w"], batch_size=16)
  held = []
  for some in predict.rows(predictor, inputs.walk([str(tmp_path / "mixed")])):
    assert len(some) <= 16
    held.append(memory())
  early, late = max(held[8 : len(held) // 2]), max(held[len(held) // 2 :])
  print(f"\n{FILES} files: {early:.0f} MB resident in the first half, then {late:.0f}")
  assert late < GROWTH * early


def as_evaluated(
  opened: trained.Trained, files: Sequence[pathlib.Path]
) -> tuple[np.ndarray, float]:
  """Scores [n, K] by the evaluation loop, and its seconds."""
  reading = opened.stage.data.reading
  pixels = np.stack([readers.read(file.read_bytes(), SIDE, 1, reading) for file in files])
  names = np.array([file.name for file in files])
  part = catalogue.Part("test", names, names, np.zeros(len(names)), pixels.__getitem__, pixels)
  mesh = mesh_lib.make()
  score, state = evaluate.scorer(opened.objective, mesh), mesh_lib.put(mesh, opened.state)
  feed = feed_lib.sequential(part, predict.BATCH, mesh)
  score(state, feed.next(1)).block_until_ready()  # compiles
  start = time.perf_counter()
  found = evaluate.table(score, state, feed)
  feed.close()
  return found, time.perf_counter() - start


@pytest.mark.slow
def test_a_thousand_files_keep_up_with_evaluation(tmp_path):
  """The evaluation loop, whose images are decoded already, takes its halves before and after."""
  paths = mixed(tmp_path / "mixed")
  data = dict(name="phantom", image_size=SIDE, patients=40, cache=f"{tmp_path}/decoded")
  untrained.workdir(tmp_path / "w", data=data, model=dict(name="quadsnet"))
  opened = trained.opened(tmp_path / "w")
  predictor = predict.Predictor([scoring.Network(opened)])
  predictor([np.zeros((SIDE, SIDE), np.uint8)])  # compiles
  good = [path for i, path in enumerate(paths) if i % 50 != 49]
  half = len(good) // 2
  before, first = as_evaluated(opened, good[:half])
  start = time.perf_counter()
  found = predict.rows(predictor, inputs.walk([str(tmp_path / "mixed")]))
  rows = [row for some in found for row in some]
  took = time.perf_counter() - start
  after, second = as_evaluated(opened, good[half:])
  assert [row.path for row in rows] == [str(path) for path in paths]
  assert [bool(row.error) for row in rows] == [i % 50 == 49 for i in range(FILES)]
  scores = np.stack([row.scores for row in rows if row.scores is not None])
  np.testing.assert_allclose(scores, np.concatenate([before, after]), atol=1e-6)
  ours, theirs = len(good) / took, len(good) / (first + second)
  print(f"\nimages/s: predict {ours:.2f}, evaluation {theirs:.2f}, ratio {ours / theirs:.3f}")
  assert ours > LEAST * theirs


def attentive(folder: pathlib.Path, backbone: str) -> predict.Predictor:
  """A network of Nguyen et al. 2022 as their tables cut it, without metadata, weights at random."""
  data = dict(name="phantom", image_size=LARGE[backbone], patients=40, channels=3)
  model = dict(name="soft_attention", backbone=backbone, cut="paper", metadata="none")
  stage = dict(data=data | dict(cache=f"{folder}/decoded"), model=model, eval=dict(batch_size=4))
  opened = trained.opened(untrained.workdir(folder / backbone, **stage))
  return predict.Predictor([scoring.Network(opened)])


def seconds(predictor: predict.Predictor, images: np.ndarray) -> float:
  start = time.perf_counter()
  predictor(images)
  return time.perf_counter() - start


@pytest.mark.slow
def test_milliseconds_of_large_networks(tmp_path):
  """One image at a time and in batches of 32, round by round; no other work may be beside it."""
  rng = np.random.default_rng(0)
  predictors = {name: attentive(tmp_path, name) for name in LARGE}
  images = {n: rng.integers(0, 256, (32, s, s, 3), np.uint8) for n, s in LARGE.items()}
  sides = [(name, count) for count in (1, 32) for name in LARGE]
  for name, count in sides:
    seconds(predictors[name], images[name][:count])  # compiles
  took: dict[tuple[str, int], list[float]] = {side: [] for side in sides}
  for name, count in sides * ROUNDS:
    took[name, count].append(seconds(predictors[name], images[name][:count]) / count * 1e3)
  print()
  for (name, count), each in took.items():
    print(f"{name}, {count} at once: {np.median(each):.1f} ms ({min(each):.1f} to {max(each):.1f})")
  for count in (1, 32):
    small, _, large = (np.median(took[name, count]) for name in LARGE)
    assert small < large
