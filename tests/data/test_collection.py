import csv
import hashlib
import os
import pathlib
import random
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
import trees_of_files as trees

from medjax import settings
from medjax.data import collection, readers, sources
from medjax.data.collection import finishing, making, shards
from medjax.data.collection import plan as plan_lib
from medjax.data.duplicates import fingerprints


def _plan(out, *roots, **fields) -> plan_lib.Plan:
  out.mkdir(exist_ok=True)
  return plan_lib.Plan(out, roots, **({"size": 32, "salt": b"pepper"} | fields))


def _make(out, *roots, workers=1, **fields):
  counts = making.make(_plan(out, *roots, **fields), making.by_processes(workers))
  return counts, collection.open(out)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
  """(tree, counts, collection with paths) of a tree with everything in it."""
  root = tmp_path_factory.mktemp("mixed")
  trees.mixed_tree(root / "tree")
  return root / "tree", *_make(root / "out", root / "tree", keep_paths=True)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
  """(tree, finished collection) of three shards."""
  root = tmp_path_factory.mktemp("many")
  trees.many(root / "tree", 600)
  _make(root / "out", root / "tree")
  return root / "tree", root / "out"


def _bytes(tree) -> dict[str, bytes]:
  with sources.Reader(tree) as reader:
    return {e.path: reader.read(e) for e in sources.walk(tree) if not e.refused}


def _rows(opened) -> dict[str, dict]:
  return {row["path"]: row | {"at": i} for i, row in enumerate(opened.table.to_pylist())}


class TestManifest:
  def test_counts_add_up_to_the_files_found(self, mixed):
    tree, counts, opened = mixed
    listed = list(sources.walk(tree))
    assert counts["found"] == len(listed) == 23
    assert counts["read"] == counts["images"] == len(opened) == 13
    assert counts["passed_over"] == 3
    assert counts["quarantined"] == 7

  def test_every_file_is_in_one_place(self, mixed):
    tree, _, opened = mixed
    rows = set(_rows(opened))
    text = (opened.folder / "quarantine.tsv").read_text()
    refused = {line.split("\t")[0]: line.split("\t")[1] for line in text.splitlines()}
    assert refused.pop("path") == "reason"
    assert all(refused.values())
    assert set(refused) == {
      "broken.png", "damaged.zip", "empty.dcm", "films.zip/../escape.png", "films.zip/bomb.png",
      "loop", "text.jpg",
    }  # fmt: skip
    passed = {"notes.txt", ".hidden/thumb.png", "films.zip/a/readme.txt"}
    assert rows | set(refused) | passed == {e.path for e in sources.walk(tree)}

  def test_images_are_what_the_reader_makes_of_the_files(self, mixed):
    tree, _, opened = mixed
    files = _bytes(tree)
    assert opened.channels == 3 and opened.dtype == np.uint8
    for path, row in _rows(opened).items():
      wanted = readers.read(files[path], 32, 3 if row["colour"] else 1)
      got = opened.read([row["at"]])[0]
      assert np.array_equal(got, np.broadcast_to(wanted, (32, 32, 3))), path

  def test_rows_are_read_in_any_order(self, mixed):
    opened = mixed[2]
    rows = np.random.default_rng(0).integers(0, len(opened), 40)
    assert np.array_equal(opened.read(rows), np.concatenate([opened.read([r]) for r in rows]))
    assert opened.read([]).shape == (0, 32, 32, 3)

  def test_hashes_are_of_bytes_and_of_pixels(self, mixed):
    tree, _, opened = mixed
    rows = _rows(opened)
    for path, data in _bytes(tree).items():
      if path in rows:
        assert rows[path]["sha256"] == hashlib.sha256(data).hexdigest()
    same = ("Doe^John/grey.png", "Doe^John/same_pixels.bmp", "Doe^John/grey_as_rgb.png")
    assert len({rows[path]["pixels_sha256"] for path in same}) == 1
    assert len({row["pixels_sha256"] for row in rows.values()}) == 10

  @pytest.mark.parametrize("channels", [1, 3])
  def test_pixels_are_digested_as_in_a_folder_even_where_transparent(self, tmp_path, channels):
    pixels = trees.picture(1, colour=channels == 3)
    if channels == 1:
      pixels = np.repeat(pixels[..., None], 3, 2)
    data = trees.encoded(np.dstack([pixels, trees.picture(2)]))
    trees.write(tmp_path / "tree/clear.png", data)
    _, made = _make(tmp_path / "out", tmp_path / "tree")
    assert made.table["pixels_sha256"].to_pylist() == [fingerprints.of(data).pixels]

  def test_what_is_near_does_not_hang_on_the_size(self, mixed, tmp_path):
    tree, _, opened = mixed
    _, larger = _make(tmp_path / "out", tree, size=96)
    for name in ("phash", "exact_of", "near_of"):
      assert larger.table[name].to_pylist() == opened.table[name].to_pylist()

  def test_duplicates_point_to_the_first(self, mixed):
    rows = _rows(mixed[2])
    first = rows["Doe^John/grey.png"]["id"]
    exact = {path for path, row in rows.items() if row["exact_of"] == first}
    assert exact == {
      "Doe^John/same_bytes.png", "Doe^John/same_pixels.bmp", "Doe^John/grey_as_rgb.png"
    }  # fmt: skip
    assert rows["near.jpg"]["near_of"] == first
    others = set(rows) - exact - {"near.jpg"}
    assert not any(rows[path]["exact_of"] or rows[path]["near_of"] for path in others)

  def test_columns_tell_what_the_images_are(self, mixed):
    rows = _rows(mixed[2])
    assert rows["colour.jpg"]["colour"] and not rows["Doe^John/grey_as_rgb.png"]["colour"]
    assert (rows["small.png"]["height"], rows["small.png"]["width"]) == (20, 20)
    assert (rows["deep.png"]["bits"], rows["small.png"]["bits"]) == (16, 8)
    ids = [row["id"] for row in rows.values()]
    assert len(set(ids)) == len(ids)

  def test_16_bits_stay_16(self, mixed, tmp_path):
    tree = mixed[0]
    reading = settings.Reading(depth=16)
    _, opened = _make(tmp_path / "out", tree, keep_paths=True, channels=1, reading=reading)
    at = _rows(opened)["deep.png"]["at"]
    wanted = readers.read((tree / "deep.png").read_bytes(), 32, 1, reading)
    got = opened.read([at])[0]
    assert got.dtype == np.uint16 and got.max() > 255
    assert np.array_equal(got, wanted)

  def test_one_channel_is_kept_and_given(self, mixed, tmp_path):
    _, opened = _make(tmp_path / "out", mixed[0], channels=1)
    assert opened.read([0, 1]).shape == (2, 32, 32, 1)

  def test_sources_are_told_by_number(self, tmp_path):
    for i, name in enumerate("ab"):
      trees.write(tmp_path / name / "same.png", trees.encoded(trees.picture(i)))
    _, opened = _make(tmp_path / "out", tmp_path / "a", tmp_path / "b" / "same.png")
    assert opened.table["source"].to_pylist() == [0, 1]
    assert len(set(opened.table["key"].to_pylist())) == 2

  def test_a_collection_in_its_own_source_is_left_out(self, tmp_path):
    trees.write(tmp_path / "a.png", trees.encoded(trees.picture(0)))
    for _ in range(2):
      counts, _ = _make(tmp_path / "out", tmp_path)
      assert counts["found"] == 1


class TestPrivacy:
  def test_paths_are_for_the_owner_alone(self, mixed, tmp_path):
    _make(tmp_path / "out", mixed[0])
    for path in (tmp_path / "out").rglob("*"):
      if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077:
        data = path.read_bytes()
        assert b"Doe" not in data and b"films" not in data, path
    table = pyarrow.parquet.read_table(tmp_path / "out/manifest.parquet")
    assert "Doe" not in str(table.to_pylist())
    modes = {
      p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir() if p.is_file()
    }
    assert {n for n, mode in modes.items() if mode == 0o600} == {"sources.tsv", "quarantine.tsv"}

  def test_the_map_leads_from_keys_to_paths(self, mixed, tmp_path):
    tree, _, told = mixed
    _, opened = _make(tmp_path / "out", tree)
    with (tmp_path / "out/sources.tsv").open(newline="") as file:
      paths = {row["key"]: row["path"] for row in csv.DictReader(file, delimiter="\t")}
    assert set(paths.values()) == {entry.path for entry in sources.walk(tree)}
    assert [paths[key] for key in opened.table["key"].to_pylist()] == told.table["path"].to_pylist()

  def test_keys_follow_the_salt(self, mixed, tmp_path):
    keys = [
      _make(tmp_path / name, mixed[0], salt=salt)[1].table["key"].to_pylist()
      for name, salt in (("a", b"pepper"), ("b", b"other"))
    ]
    assert keys[0] == mixed[2].table["key"].to_pylist()
    assert not set(keys[0]) & set(keys[1])


class TestSameBytes:
  def test_any_number_of_workers(self, many, tmp_path):
    tree, once = many
    _make(tmp_path / "again", tree, workers=1)
    _make(tmp_path / "three", tree, workers=3)
    wanted = trees.contents(once)
    assert len(wanted) == 3 + 4
    assert trees.contents(tmp_path / "again") == wanted
    assert trees.contents(tmp_path / "three") == wanted

  def test_any_place_of_the_source(self, many, tmp_path):
    tree, once = many
    (tmp_path / "moved").symlink_to(tree)
    _make(tmp_path / "out", tmp_path / "moved")
    assert trees.contents(tmp_path / "out") == trees.contents(once)

  def test_file_by_file_in_workers_of_their_own(self, mixed, tmp_path):
    tree, _, opened = mixed

    def made(plan, numbers):
      yield from (shards.write_apart(plan, number) for number in numbers)

    making.make(_plan(tmp_path / "out", tree, keep_paths=True), made)
    assert trees.contents(tmp_path / "out") == trees.contents(opened.folder)


class TestResuming:
  def test_finished_shards_are_not_made_again(self, many, tmp_path):
    tree, once = many
    plan = _plan(tmp_path / "out", tree)

    def stopped(plan, numbers):
      yield shards.write((plan, 1))
      raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
      making.make(plan, stopped)
    with pytest.raises(FileNotFoundError, match="no finished collection"):
      collection.open(plan.folder)
    made = []

    def noted(plan, numbers):
      made.extend(numbers)
      yield from making.by_processes(1)(plan, numbers)

    making.make(plan, noted)
    assert made == [0, 2]
    assert trees.contents(plan.folder) == trees.contents(once)

  def test_a_finished_collection_is_left_as_it_is(self, many):
    tree, once = many
    before = trees.contents(once)
    counts = making.make(_plan(once, tree), lambda plan, numbers: pytest.fail("made again"))
    assert counts["found"] == 600
    assert trees.contents(once) == before

  @pytest.mark.parametrize("change", [{"size": 31}, {"salt": b"salt"}, {"keep_paths": True}])
  def test_other_settings_are_refused(self, many, tmp_path, change):
    tree, once = many
    with pytest.raises(ValueError, match="other settings or another salt"):
      making.make(_plan(once, tree, **change), making.by_processes(1))
    plan = _plan(tmp_path / "out", tree)
    with pytest.raises(KeyboardInterrupt):
      making.make(plan, _interrupted)
    with pytest.raises(ValueError, match="begun with other sources, settings"):
      making.make(_plan(tmp_path / "out", tree, **change), making.by_processes(1))

  def test_other_files_are_refused(self, many, tmp_path):
    with pytest.raises(ValueError, match="holds a collection of other files"):
      making.make(_plan(many[1], tmp_path), making.by_processes(1))

  def test_killed_three_times_it_ends_the_same(self, many, tmp_path):
    tree, once = many
    out = tmp_path / "out"
    for look_for in ("unfinished/begun.json", "unfinished/*.parquet", "manifest.parquet"):
      process = _started(tree, out)
      while process.poll() is None and not list(out.glob(look_for)):
        time.sleep(0.002)
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
    assert _started(tree, out).wait() == 0
    assert trees.contents(out) == trees.contents(once)

  @pytest.mark.slow
  @pytest.mark.parametrize("seed", range(3))
  def test_killed_at_random_it_ends_the_same(self, tmp_path, seed):
    out = tmp_path / "out"
    trees.many(tmp_path / "tree", 5000)  # 20 shards
    _make(tmp_path / "once", tmp_path / "tree")
    rng = random.Random(seed)
    for finished in sorted(rng.sample(range(19), 3)):
      process = _started(tmp_path / "tree", out)
      while len(list(out.glob("unfinished/*.parquet"))) <= finished:
        time.sleep(0.001)
      time.sleep(rng.uniform(0, 0.05))
      os.killpg(process.pid, signal.SIGKILL)
      assert process.wait() == -signal.SIGKILL
    assert _started(tmp_path / "tree", out).wait() == 0
    assert trees.contents(out) == trees.contents(tmp_path / "once")


def _started(tree, out) -> subprocess.Popen:
  command = [sys.executable, "-m", "medjax.data", "prepare", tree, "--out", out]
  options = ["--size", "32", "--salt", "pepper", "--workers", "2"]
  return subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, start_new_session=True)


def _interrupted(plan, numbers):
  raise KeyboardInterrupt
  yield


class TestWorkers:
  @pytest.mark.parametrize(
    ("limit", "reason"),
    [({"gigabytes": 0.3}, "needs more than 0.3 GB"), ({"seconds": 0.4}, "took longer than 0.4 s")],
  )
  def test_a_file_that_takes_too_much_costs_itself(self, tmp_path, limit, reason):
    trees.many(tmp_path / "tree", 5)
    large = np.zeros((11500, 11500, 3), np.uint8)
    trees.write(tmp_path / "tree/large.png", trees.encoded(large, compress_level=1))
    counts, _ = _make(tmp_path / "out", tmp_path / "tree", **limit)
    assert (counts["read"], counts["quarantined"]) == (5, 1)
    assert f"large.png\t{reason}" in (tmp_path / "out/quarantine.tsv").read_text()

  def test_a_worker_that_is_killed_costs_nothing(self, many, tmp_path):
    tree, once = many
    killed = []

    def made(plan, numbers):
      for counts in making.by_processes(2)(plan, numbers):
        workers = [] if killed else _grandchildren(os.getpid())
        for worker in workers:
          os.kill(worker, signal.SIGKILL)
        killed.extend(workers)
        yield counts

    making.make(_plan(tmp_path / "out", tree), made)
    assert killed
    assert trees.contents(tmp_path / "out") == trees.contents(once)


def _children(process: int) -> list[int]:
  tasks = pathlib.Path(f"/proc/{process}/task").glob("*/children")
  return [int(child) for task in tasks for child in task.read_text().split()]


def _grandchildren(process: int) -> list[int]:
  """The workers: a server that this process started forks them."""
  return [worker for server in _children(process) for worker in _children(server)]


class TestMarks:
  def test_first_equal_is_the_first(self):
    assert finishing.first_equal(np.array(["b", "a", "b", "c", "a"])).tolist() == [0, 1, 0, 3, 1]

  def test_first_joined_goes_through_any_number_of_steps(self):
    rng = np.random.default_rng(0)
    for _ in range(50):
      count = int(rng.integers(1, 40))
      left, right = rng.integers(0, count, (2, int(rng.integers(0, 40))))
      reached = np.eye(count, dtype=int)
      reached[left, right] = reached[right, left] = 1
      for _ in range(6):
        reached = (reached @ reached > 0).astype(int)
      assert finishing.first_joined(count, left, right).tolist() == reached.argmax(1).tolist()
    chain = np.arange(999)
    assert not finishing.first_joined(1000, chain, chain + 1).any()
