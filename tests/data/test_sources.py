import gzip
import io
import os
import pathlib
import random
import subprocess
import tarfile
import tracemalloc
import zipfile

import pytest

from medjax.data import archives, sources


def _write(path, data=b"x"):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)
  return path


def _zipped(members, method=zipfile.ZIP_DEFLATED) -> bytes:
  data = io.BytesIO()
  with zipfile.ZipFile(data, "w", method) as archive:
    for name, content in members:
      archive.writestr(name, content)
  return data.getvalue()


def _tarred(members, mode="w") -> bytes:
  data = io.BytesIO()
  with tarfile.open(fileobj=data, mode=mode) as archive:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      archive.addfile(info, io.BytesIO(content))
  return data.getvalue()


def _paths(source):
  return [entry.path for entry in sources.walk(source)]


def _refusals(source):
  return {entry.path: entry.refused for entry in sources.walk(source) if entry.refused}


def _contents(source):
  with sources.Reader(source) as reader:
    return {e.path: reader.read(e) for e in sources.walk(source) if not e.refused}


class TestOrder:
  def test_files_come_sorted_by_folder_and_name(self, tmp_path):
    names = ["b", "a/2", "a/10", "a.x", "A", "c/d/e/f", "ä"]
    for name in random.Random(0).sample(names, len(names)):
      _write(tmp_path / name)
    assert _paths(tmp_path) == ["A", "a/10", "a/2", "a.x", "b", "c/d/e/f", "ä"]

  def test_lengths_are_those_of_the_files(self, tmp_path):
    _write(tmp_path / "a", b"12345")
    _write(tmp_path / "b.zip", _zipped([("c", b"0" * 1000)]))
    assert [entry.bytes for entry in sources.walk(tmp_path)] == [5, 1000]

  def test_a_file_is_a_source_of_one(self, tmp_path):
    path = _write(tmp_path / "a.png", b"abc")
    assert _contents(path) == {"a.png": b"abc"}

  def test_an_archive_is_a_source(self, tmp_path):
    path = _write(tmp_path / "a.zip", _zipped([("x/b.png", b"abc")]))
    assert _contents(path) == {"a.zip/x/b.png": b"abc"}

  def test_a_missing_source_is_named(self, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: name a folder"):
      next(sources.walk(tmp_path / "nowhere"))

  def test_names_that_are_no_text_are_read(self, tmp_path):
    raw = os.fsencode(tmp_path) + b"/\xff\n\t.png"
    pathlib.Path(os.fsdecode(raw)).write_bytes(b"odd")
    assert list(_contents(tmp_path).values()) == [b"odd"]

  def test_a_tree_deeper_than_the_stack_is_listed(self, tmp_path):
    there = os.getcwd()
    os.chdir(tmp_path)
    try:
      for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
      pathlib.Path("x").write_bytes(b"")
    finally:
      os.chdir(there)
    assert _paths(tmp_path) == ["d/" * 1500 + "x"]
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # deeper than shutil's, too

  def test_clutter_is_listed_and_told(self, tmp_path):
    for name in ("a.png", "notes.txt", ".hidden/a.png", "__MACOSX/a.png"):
      _write(tmp_path / name)
    clutter = {entry.path: entry.is_clutter for entry in sources.walk(tmp_path)}
    assert clutter == {
      "a.png": False, "notes.txt": True, ".hidden/a.png": True, "__MACOSX/a.png": True
    }  # fmt: skip

  def test_a_hidden_archive_is_not_opened(self, tmp_path):
    _write(tmp_path / "._films.zip", b"a resource fork, no zip file")
    (entry,) = sources.walk(tmp_path)
    assert entry.is_clutter and not entry.refused


MEMBERS = [(f"{i % 7}/{i}.png", random.Random(i).randbytes(1000 + i)) for i in range(50)]


class TestArchives:
  @pytest.mark.parametrize(
    ("name", "pack"),
    [
      ("a.zip", _zipped),
      ("a.ZIP", lambda members: _zipped(members, zipfile.ZIP_STORED)),
      ("a.zip", lambda members: _zipped(members, zipfile.ZIP_LZMA)),
      ("a.tar", _tarred),
      ("a.tar.gz", lambda members: _tarred(members, "w:gz")),
      ("a.tgz", lambda members: _tarred(members, "w:gz")),
      ("a.tar.bz2", lambda members: _tarred(members, "w:bz2")),
      ("a.tar.xz", lambda members: _tarred(members, "w:xz")),
      ("a.zip/b.tar.gz", lambda members: _zipped([("b.tar.gz", _tarred(members, "w:gz"))])),
      ("a.tar/b.zip", lambda members: _tarred([("b.zip", _zipped(members))])),
    ],
  )
  def test_members_are_read_in_place_in_any_order(self, tmp_path, name, pack):
    _write(tmp_path / name.split("/")[0], pack(MEMBERS))
    entries = list(sources.walk(tmp_path))
    assert [entry.path for entry in entries] == [f"{name}/{member}" for member, _ in MEMBERS]
    content = {f"{name}/{member}": data for member, data in MEMBERS}
    shuffled = random.Random(0).sample(entries, len(entries))
    with sources.Reader(tmp_path) as reader:
      assert all(reader.read(entry) == content[entry.path] for entry in entries + shuffled)
    assert os.listdir(tmp_path) == [name.split("/")[0]]

  def test_many_archives_are_read_in_any_order(self, tmp_path):
    for i in range(20):
      _write(tmp_path / f"{i:02}.zip", _zipped([("a", b"%d" % i), ("b", b"%db" % i)]))
    entries = list(sources.walk(tmp_path))
    with sources.Reader(tmp_path) as reader:
      for entry in random.Random(1).sample(entries, len(entries)):
        number, member = int(entry.path[:2]), entry.path[-1]
        assert reader.read(entry) == b"%d" % number + b"b" * (member == "b")

  def test_long_names_in_tars_are_read(self, tmp_path):
    name = "/".join(["d" * 90] * 4)
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
      with tarfile.open(tmp_path / "a.tar", "w", format=kind) as archive:
        for last in "ab":
          info = tarfile.TarInfo(f"{name}/{last}")
          info.size = 1
          archive.addfile(info, io.BytesIO(last.encode()))
      assert _contents(tmp_path) == {f"a.tar/{name}/a": b"a", f"a.tar/{name}/b": b"b"}

  def test_archives_are_told_by_name(self):
    assert archives.is_archive("A.Zip") and archives.is_archive("a.tar.gz")
    assert not any(map(archives.is_archive, ["a.npz", "a.nii.gz", "a.docx", "zip", "a.gz"]))


class TestRefusals:
  @pytest.mark.parametrize("name", ["../a.png", "x/../../a.png", "/etc/a.png", "..\\a", "C:\\a"])
  def test_a_path_out_of_its_archive(self, tmp_path, name):
    _write(tmp_path / "a.zip", _zipped([(name, b"x"), ("good.png", b"y")]))
    _write(tmp_path / "b.tar", _tarred([(name, b"x"), ("good.png", b"y")]))
    refused = _refusals(tmp_path)
    assert set(refused.values()) == {"its path leaves the archive"} and len(refused) == 2
    assert list(_contents(tmp_path).values()) == [b"y", b"y"]

  def test_a_zip_bomb(self, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
      with archive.open("bomb.png", "w") as member:
        for _ in range(100):
          member.write(bytes(2**20))
      archive.writestr("good.png", b"y")
    tracemalloc.start()
    refused = _refusals(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(refused) == ["a.zip/bomb.png"] and "bomb" in refused["a.zip/bomb.png"]
    assert list(_contents(tmp_path)) == ["a.zip/good.png"]
    assert peak < 2**24

  def test_a_tar_bomb(self, tmp_path):
    with gzip.open(tmp_path / "a.tar.gz", "wb") as file:
      info = tarfile.TarInfo("bomb.png")
      info.size = 300 * 2**20
      file.write(info.tobuf())
      for _ in range(300):
        file.write(bytes(2**20))
      file.write(_tarred([("good.png", b"y")]))
    refused = _refusals(tmp_path)
    assert list(refused) == ["a.tar.gz/bomb.png"] and "bomb" in refused["a.tar.gz/bomb.png"]
    assert _contents(tmp_path) == {"a.tar.gz/good.png": b"y"}

  def test_a_member_that_claims_more_than_memory_holds(self, tmp_path):
    info = tarfile.TarInfo("huge.png")
    info.size = 2**40
    data = gzip.compress(info.tobuf())
    _write(tmp_path / "a.tar.gz", data)
    assert "1,099,511,627,776 bytes are more" in _refusals(tmp_path)["a.tar.gz"]

  def test_a_large_image_in_a_compressed_tar_is_no_bomb(self, tmp_path):
    content = random.Random(0).randbytes(2**20) * 80
    _write(tmp_path / "a.tar.gz", _tarred([("scan.nii", content), ("b", b"b")], "w:gz"))
    assert not _refusals(tmp_path)

  def test_a_file_beyond_the_limit(self, tmp_path):
    with (tmp_path / "a.nii").open("wb") as file:
      file.truncate(archives.MOST_BYTES + 1)
    assert "more than the 2,147,483,648" in _refusals(tmp_path)["a.nii"]

  def test_archives_nested_without_end(self, tmp_path):
    data = _zipped([("good.png", b"y")])
    for _ in range(5):
      data = _zipped([("inner.zip", data)])
    _write(tmp_path / "a.zip", data)
    assert list(_refusals(tmp_path).values()) == ["more than 3 archives in one another"]

  def test_an_encrypted_member(self, tmp_path):
    data = bytearray(_zipped([("a.png", b"secret"), ("b.png", b"open")]))
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    _write(tmp_path / "a.zip", bytes(data))
    assert _refusals(tmp_path) == {"a.zip/a.png": "encrypted"}

  @pytest.mark.filterwarnings("ignore:Duplicate name")
  def test_two_members_of_one_name(self, tmp_path):
    _write(tmp_path / "a.zip", _zipped([("a.png", b"1"), ("a.png", b"2")]))
    _write(tmp_path / "b.tar", _tarred([("a.png", b"1"), ("a.png", b"2")]))
    assert [e.refused for e in sources.walk(tmp_path)] == [
      "", "a second member of the same name", "", "a second member of the same name"
    ]  # fmt: skip
    assert list(_contents(tmp_path).values()) == [b"1", b"1"]

  def test_links_in_a_tar(self, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
      info = tarfile.TarInfo("passwd")
      info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
      archive.addfile(info)
    assert _refusals(tmp_path) == {"a.tar/passwd": "a link or device in an archive"}

  def test_a_circle_of_links(self, tmp_path):
    _write(tmp_path / "a/x.png")
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    assert _refusals(tmp_path) == {
      "a/up": "a link to a folder that it lies in",
      "self": "cannot be opened: Too many levels of symbolic links",
    }

  def test_a_circle_through_two_folders(self, tmp_path):
    _write(tmp_path / "a/x.png")
    _write(tmp_path / "b/y.png")
    (tmp_path / "a/to_b").symlink_to("../b")
    (tmp_path / "b/to_a").symlink_to("../a")
    assert _paths(tmp_path) == [
      "a/to_b/to_a", "a/to_b/y.png", "a/x.png", "b/to_a/to_b", "b/to_a/x.png", "b/y.png"
    ]  # fmt: skip
    assert list(_refusals(tmp_path)) == ["a/to_b/to_a", "b/to_a/to_b"]

  def test_links_that_multiply_are_followed_once(self, tmp_path):
    for level in range(30):
      (tmp_path / f"{level:02}").mkdir()
      for name in ("p", "q"):
        (tmp_path / f"{level:02}" / name).symlink_to(f"../{level + 1:02}")
    (tmp_path / "30").mkdir()
    assert len(_paths(tmp_path)) < 100

  def test_links_to_folders_elsewhere_are_followed(self, tmp_path):
    _write(tmp_path / "elsewhere/x.png", b"there")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to(tmp_path / "elsewhere")
    assert _contents(tmp_path / "set") == {"link/x.png": b"there"}

  def test_what_is_no_file(self, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert _refusals(tmp_path) == {
      "gone": "cannot be opened: No such file or directory", "pipe": "no regular file"
    }  # fmt: skip

  def test_damaged_archives_cost_themselves(self, tmp_path):
    packed, plain = _zipped(MEMBERS), _tarred(MEMBERS)
    _write(tmp_path / "cut.zip", packed[:-100])
    _write(tmp_path / "none.zip", b"")
    _write(tmp_path / "none.tar", b"")
    _write(tmp_path / "text.tar.gz", b"no archive")
    _write(tmp_path / "cut.tar", plain[:30000])
    _write(tmp_path / "cut.tgz", gzip.compress(plain)[:30000])
    spoiled = bytearray(plain)
    spoiled[20 * 2048 : 20 * 2048 + 2048] = b"\xff" * 2048
    _write(tmp_path / "spoiled.tar", bytes(spoiled))
    refused = _refusals(tmp_path)
    names = {"cut.zip", "none.zip", "none.tar", "text.tar.gz", "cut.tar", "cut.tgz", "spoiled.tar"}
    assert set(refused) == names
    assert all(reason.startswith("archive not read to its end: ") for reason in refused.values())

  def test_mutated_archives_are_read_or_refused(self, tmp_path):
    for kind, data in (("zip", _zipped(MEMBERS)), ("tar", _tarred(MEMBERS)),
                       ("tgz", _tarred(MEMBERS, "w:gz"))):  # fmt: skip
      for seed in range(60):
        rng = random.Random(f"{kind} {seed}")
        mutated = bytearray(data)
        for _ in range(rng.randint(1, 30)):
          mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        _write(tmp_path / f"{seed}.{kind}", bytes(mutated[: rng.choice([None, -1000, 700])]))
    read = refused = 0
    with sources.Reader(tmp_path) as reader:
      for entry in sources.walk(tmp_path):
        try:
          reader.read(entry)
          read += 1
        except OSError:
          refused += 1
    assert read > 1000 and refused > 100

  def test_a_file_that_changed_since_it_was_listed(self, tmp_path):
    path = _write(tmp_path / "a.png", b"12345")
    (entry,) = sources.walk(tmp_path)
    with sources.Reader(tmp_path) as reader:
      _write(path, b"123")
      with pytest.raises(OSError, match="holds 3 bytes instead of 5"):
        reader.read(entry)
      path.unlink()
      with pytest.raises(OSError, match="cannot be read: No such file"):
        reader.read(entry)
