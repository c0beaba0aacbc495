"""What a file from outside may do, who may read what a run leaves, and whom a run talks to: nobody.

The rules on code are read from the source. The run is a real one, in a process whose every
connection, lookup and unpickled name is noted down by Python itself.
"""

import ast
from collections.abc import Iterator
import io
import json
import os
import pathlib
import re
import stat
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import numpy as np
from PIL import Image
import pytest

from medjax import main
from medjax.data import __main__ as data_commands
from medjax.data.datasets import npz

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / "tests/tiny.py"
SOURCES = [
  path for folder in ("medjax", "configs", "launch") for path in (ROOT / folder).rglob("*.py")
]
TREES = {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in sorted(SOURCES)}

# Modules that run what a file says, and where one may stand: an unpickler that knows tensors alone.
UNSAFE = {
  "pickle",
  "_pickle",
  "cPickle",
  "dill",
  "cloudpickle",
  "joblib",
  "shelve",
  "marshal",
  "torch",
}
UNPICKLER = "medjax/models/pretrained/torch_files.py"
# Modules that ask other machines. Processes of one run meet by JAX; a lock tells its host's name.
NETWORK = {"urllib.request", "http", "requests", "ftplib", "smtplib", "aiohttp", "httpx", "fsspec"}
# Calls that run text or unpack where a name says.
FORBIDDEN = {
  *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"),
  *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "shutil.unpack_archive"),
}
UNPACKING = {"extract", "extractall"}


def _imported(tree: ast.AST) -> Iterator[str]:
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _calls(name: str) -> Iterator[tuple[str, ast.Call]]:
  """What is called, as it is written, such as `np.load`."""
  for node in ast.walk(TREES[name]):
    if isinstance(node, ast.Call):
      yield ast.unparse(node.func), node


def _set(call: ast.Call, keyword: str) -> object:
  """The constant that a keyword of a call is."""
  found = [each.value for each in call.keywords if each.arg == keyword]
  return found[0].value if found and isinstance(found[0], ast.Constant) else None


# Rules on code.


def test_nothing_is_unpickled_but_tensors_by_names_that_are_known():
  for name, tree in TREES.items():
    tops = {each.split(".")[0] for each in _imported(tree)} & UNSAFE
    assert tops == ({"pickle"} if name == UNPICKLER else set()), f"{name} imports {tops}"
  used = {
    ast.unparse(node) for node in ast.walk(TREES[UNPICKLER]) if isinstance(node, ast.Attribute)
  }
  assert {each for each in used if each.startswith("pickle.")} == {"pickle.Unpickler"}
  (reader,) = (
    node
    for node in TREES[UNPICKLER].body
    if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(b) for b in node.bases)
  )
  names = {node.name for node in reader.body if isinstance(node, ast.FunctionDef)}
  assert names == {"find_class", "persistent_load"}


def test_no_text_is_run_and_no_archive_unpacked():
  for name in TREES:
    for called, call in _calls(name):
      where = f"{name}:{call.lineno}: {called}"
      assert called not in FORBIDDEN, where
      assert called.rpartition(".")[2] not in UNPACKING, where
      assert _set(call, "shell") is None, where
      if called in ("np.load", "numpy.load"):
        assert _set(call, "allow_pickle") is False, f"{where} without allow_pickle=False"


def test_nothing_asks_other_machines():
  for name, tree in TREES.items():
    found = {
      each for each in _imported(tree) for bad in NETWORK if f"{each}.".startswith(f"{bad}.")
    }
    assert not found, f"{name} imports {found}"


def test_folders_of_runs_and_commands_are_made_for_their_owner():
  """Each that may be the first of its path; what is made to be handed on is listed."""
  handed_on = {
    "medjax/data/prepare.py",  # names and salt in it are kept apart
    "medjax/ensemble/weights.py",  # in a folder that its command has made
    "medjax/export/__init__.py",
    "medjax/generate/__init__.py",
  }
  within = {"medjax/checkpoint.py", "medjax/writer.py", "medjax/runs.py"}  # a workdir that is there
  open_to_all = {
    name
    for name in TREES
    for called, call in _calls(name)
    if name.startswith("medjax/") and called.endswith(".mkdir") and _set(call, "parents")
    if not (call.args and ast.unparse(call.args[0]) == "448")  # 0o700
  }
  assert open_to_all <= handed_on | within
  assert any(
    ast.unparse(c.args[0]) == "448" for n, c in _calls("medjax/runs.py") if n == "workdir.mkdir"
  )


# Files from outside.


class Trap:
  """Writes a file where it is unpickled."""

  def __init__(self, path: pathlib.Path):
    self._path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self._path,)


def test_an_array_of_objects_is_not_unpickled(tmp_path):
  objects = np.array([Trap(tmp_path / "ran")], object)
  np.savez(tmp_path / "set.npz", train_images=objects, train_labels=np.zeros(1))
  with pytest.raises(ValueError, match=r"set\.npz is no readable \.npz file"):
    npz.load(tmp_path / "set.npz")
  with np.load(tmp_path / "set.npz", allow_pickle=True) as file:
    file["train_images"]
  assert (tmp_path / "ran").exists()  # the trap works


def _image() -> bytes:
  stream = io.BytesIO()
  Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(stream, "png")
  return stream.getvalue()


def _hostile(folder: pathlib.Path) -> None:
  """Archives whose members lie outside of them, are links to elsewhere, or unpack to gigabytes."""
  folder.mkdir()
  with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("good.png", _image())
    archive.writestr("../../outside.png", _image())
    archive.writestr(str(folder.parent / "absolute.png"), _image())
    archive.writestr("bomb.png", bytes(2**27))
  with tarfile.open(folder / "b.tar", "w") as archive:
    for name in ("fine.png", "../outside.png"):
      info = tarfile.TarInfo(name)
      info.size = len(_image())
      archive.addfile(info, io.BytesIO(_image()))
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, str(folder.parent / "secret.png")
    archive.addfile(link)


def test_hostile_archives_are_read_without_leaving_a_trace_elsewhere(tmp_path, capsys):
  (tmp_path / "secret.png").write_bytes(_image())
  _hostile(tmp_path / "in")
  before = set(tmp_path.rglob("*"))
  out = tmp_path / "out"
  args = ["prepare", str(tmp_path / "in"), "--out", str(out), "--size=16", "--workers=1"]
  data_commands.main([*args, "--max-unreadable=1"])
  told = capsys.readouterr().out
  assert "7 files = 2 read" in told and "5 in quarantine" in told, told
  after = {path for path in tmp_path.rglob("*") if out not in (path, *path.parents)}
  assert after == before
  reasons = (out / "quarantine.tsv").read_text()
  assert reasons.count("leaves the archive") == 3
  assert "bomb" in reasons and "a link or device" in reasons


# A run.

WATCHED = """
import json, os, sys
seen = []
def note(event, args):
  if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
      "socket.sendmsg", "urllib.Request", "http.client.connect", "pickle.find_class"):
    seen.append([event, str(args[1:])])
  elif event == "socket.__new__" and args[1] != 1:  # 1: AF_UNIX, by which threads wake each other
    seen.append([event, str(args[1:])])
sys.addaudithook(note)
from medjax import main
status = main.main(sys.argv[2:])
inodes = set()
for name in ("tcp", "tcp6", "udp", "udp6"):
  with open(f"/proc/self/net/{name}") as file:
    inodes |= {line.split()[9] for line in file.readlines()[1:]}
links = []
for number in os.listdir("/proc/self/fd"):
  try:
    links.append(os.readlink(f"/proc/self/fd/{number}"))
  except OSError:
    pass
seen += [["open", link] for link in links if link[8:-1] in inodes and link.startswith("socket:")]
with open(sys.argv[1], "w") as file:
  json.dump({"status": status, "seen": seen}, file)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[pathlib.Path, dict]:
  """A home after a run of a few steps in it, and what its process noted down."""
  home = tmp_path_factory.mktemp("home")
  command = [sys.executable, "-c", WATCHED, home / "noted.json", f"--config={TINY}"]
  command += [f"--workdir={home}/runs/it", "--config.eval.bootstrap=10"]
  (home / ".cache/medjax").mkdir(parents=True)
  compiled = pathlib.Path("~/.cache/medjax/xla").expanduser()  # by earlier starts
  (home / ".cache/medjax/xla").symlink_to(compiled)
  done = subprocess.run(
    command,
    env=os.environ | {"HOME": str(home), "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
    umask=0o022,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return home, json.loads((home / "noted.json").read_text())


def test_a_run_talks_to_nobody_and_unpickles_nothing(run):
  """Of native code, that no connection is open at the end; of Python, that none was ever made."""
  _, noted = run
  assert noted == {"status": 0, "seen": []}


def _mode(path: pathlib.Path) -> int:
  return stat.S_IMODE(path.stat().st_mode)


def test_what_a_run_makes_is_for_its_owner_alone(run):
  home, _ = run
  assert (home / "runs/it/train/predictions_test.csv").is_file()
  assert oct(_mode(home / "runs/it")) == oct(0o700)
  assert oct(_mode(home / ".cache/medjax/data")) == oct(0o700)
  assert oct(_mode(home / "runs")) == oct(0o755)  # a folder of folders, as any other


def test_a_folder_that_is_there_stays_as_its_owner_made_it(tmp_path):
  """A group that works together has made it for itself."""
  workdir = tmp_path / "ours"
  workdir.mkdir()
  workdir.chmod(0o2770)
  args = [f"--config={ROOT}/configs/folder.py", f"--workdir={workdir}"]
  assert main.main([*args, f"--config.data.root={tmp_path}/nowhere"]) == 1
  assert (workdir / "config.json").is_file() and oct(_mode(workdir)) == oct(0o2770)


# The review.


def test_every_package_that_runs_was_reviewed_in_the_version_that_is_locked():
  rows = re.findall(r"^\| `([\w-]+)` \| ([\w., ]+) \|", (ROOT / "SECURITY.md").read_text(), re.M)
  reviewed = {name.lower(): version.split(", ") for name, version in rows}
  project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
  asked = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
  lock = (ROOT / "launch/locks/run.txt").read_text()
  pins: dict[str, list[str]] = {}
  for name, version in re.findall(r"^([\w.-]+)==([\w.]+)", lock, re.M):
    pins.setdefault(name, []).append(version)
  assert reviewed == {name: pins[name] for name in asked}
