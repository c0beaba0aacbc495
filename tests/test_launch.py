"""The start scripts, run for real on a copy of `launch/` with a PATH of stand-in tools.

The stand-ins are the outside world: an old Python, an index that does not answer, a GPU. What is
tested is what the scripts say and leave behind. Real installations are marked slow.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = [*sorted(ROOT.glob("launch/*.sh")), ROOT / ".ci/run"]
LOCKS = {path.stem: path for path in sorted(ROOT.glob("launch/locks/*.txt"))}
TOOLS = "awk basename bash cat chmod cmp df dirname flock grep mkdir rm sed sleep tail"

PYTHON = f"""#!/bin/sh
exec {sys.executable} "$@"
"""
OLD_PYTHON = """#!/bin/sh
echo 3 9 /usr/bin/python3
"""
# Makes an environment whose Python prints its arguments, and counts what it was asked for.
UV = """#!/bin/sh
echo "uv $*" >>"$CALLS"
case "$1" in
  venv) for last; do :; done; mkdir -p "$last/bin"
    printf '#!/bin/sh\\necho "started: $*"\\n' >"$last/bin/python"; chmod +x "$last/bin/python" ;;
  pip) test -z "$UV_SAYS" || { echo "$UV_SAYS"; exit 2; }; sleep "${UV_TAKES:-0}" ;;
esac
"""
GPU = """#!/bin/sh
echo "GPU 0: NVIDIA"
"""


class Checkout:
  """A copy of what `launch/` needs, and a PATH that holds only what a test puts there."""

  def __init__(self, folder: pathlib.Path):
    self.root, self.bin = folder / "a checkout", folder / "bin"
    self.calls = folder / "calls"
    self.root.mkdir()
    self.bin.mkdir()
    shutil.copytree(ROOT / "launch", self.root / "launch")
    shutil.copy(ROOT / "pyproject.toml", self.root)
    for name in TOOLS.split():
      if found := shutil.which(name):
        (self.bin / name).symlink_to(found)

  def tool(self, name: str, text: str) -> None:
    (self.bin / name).unlink(missing_ok=True)
    (self.bin / name).write_text(text)
    (self.bin / name).chmod(0o755)

  def start(self, *args: str, cwd: pathlib.Path | None = None, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
      [self.bin / "bash", self.root / "launch/local.sh", *args],
      env={"PATH": str(self.bin), "CALLS": str(self.calls), **env},
      cwd=cwd or self.root,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      start_new_session=True,
    )

  def run(self, *args: str, **more) -> subprocess.CompletedProcess:
    process = self.start(*args, **more)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(args, process.returncode, out, err)

  def asked(self, what: str) -> int:
    return self.calls.read_text().count(what) if self.calls.exists() else 0


@pytest.fixture
def checkout(tmp_path) -> Checkout:
  """A bare machine with a good Python and nothing else."""
  made = Checkout(tmp_path)
  made.tool("python3", PYTHON)
  return made


@pytest.fixture
def with_uv(checkout) -> Checkout:
  checkout.tool("uv", UV)
  return checkout


def _failed(done: subprocess.CompletedProcess, *words: str) -> None:
  assert done.returncode != 0
  errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
  assert len(errors) == 1, done.stderr
  assert all(word in done.stderr for word in words), done.stderr
  assert len(done.stderr.splitlines()) <= 12
  assert "started" not in done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_reads_it(script):
  subprocess.run(["bash", "-n", script], check=True)
  assert os.access(script, os.X_OK) == (script.name != "environment.sh")


def test_installs_once_and_hands_the_arguments_on(with_uv):
  first = with_uv.run("--config=a b", "--help")
  assert first.stdout == "started: -m medjax.main --config=a b --help\n", first.stderr
  calls = with_uv.asked("\n")
  assert with_uv.run().stdout == "started: -m medjax.main\n"
  assert with_uv.asked("pip install") == 3  # the build backend, the lock, then the project
  assert with_uv.asked("--require-hashes") == 2
  assert with_uv.asked("--no-deps") == 1
  assert with_uv.asked("\n") == calls


def test_second_start_is_quick(with_uv):
  with_uv.run()
  begin = time.monotonic()
  with_uv.run()
  assert time.monotonic() - begin < 3


def test_starts_where_the_user_stands(with_uv, tmp_path):
  with_uv.tool("uv", UV.replace("started: $*", "started in $PWD"))
  done = with_uv.run(cwd=tmp_path)
  assert done.stdout == f"started in {tmp_path}\n"


def test_changed_lock_makes_a_new_environment(with_uv):
  with_uv.run()
  (with_uv.root / ".venv/left").touch()
  with (with_uv.root / "launch/locks/run.txt").open("a") as lock:
    lock.write("# newer\n")
  assert with_uv.run().returncode == 0
  assert not (with_uv.root / ".venv/left").exists()
  assert with_uv.asked("uv venv") == 2


def test_moved_checkout_makes_a_new_environment(with_uv):
  with_uv.run()
  with_uv.root = with_uv.root.rename(with_uv.root.with_name("moved"))
  assert with_uv.run().returncode == 0
  assert with_uv.asked("uv venv") == 2


def test_interrupted_installation_starts_over(with_uv):
  process = with_uv.start(UV_TAKES="60")
  while not with_uv.asked("pip install"):
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  os.killpg(process.pid, signal.SIGKILL)
  process.communicate()
  assert with_uv.run().stdout.startswith("started")
  assert with_uv.asked("uv venv") == 2


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock on this machine")
def test_of_two_starts_one_installs(with_uv):
  both = [with_uv.start(UV_TAKES="0.5") for _ in range(2)]
  assert [process.communicate()[0] for process in both] == ["started: -m medjax.main\n"] * 2
  assert with_uv.asked("--no-deps") == 1


@pytest.mark.parametrize(
  ("gpu", "env", "lock"),
  [(False, {}, "run"), (True, {}, "cuda"), (True, {"JAX_PLATFORMS": "cpu"}, "run")],
)
def test_lock_follows_the_machine(with_uv, gpu, env, lock):
  if pathlib.Path("/dev/nvidia0").exists() and not gpu:
    pytest.skip("this machine has a GPU")
  if gpu:
    with_uv.tool("nvidia-smi", GPU)
  assert with_uv.run(**env).returncode == 0
  assert with_uv.asked(f"locks/{lock}.txt") == 1


def test_old_python(with_uv):
  with_uv.tool("python3", OLD_PYTHON)
  _failed(with_uv.run(), "3.11 or newer", "python3 is 3.9")


def test_newest_python_wins_and_a_broken_shim_does_not(with_uv):
  with_uv.tool("python3", OLD_PYTHON)
  with_uv.tool("python3.13", "#!/bin/sh\nexit 127\n")
  with_uv.tool("python3.12", PYTHON)
  assert with_uv.run().returncode == 0
  assert with_uv.asked(sys.executable) == 1


def test_no_python(with_uv):
  (with_uv.bin / "python3").unlink()
  _failed(with_uv.run(), "3.11 or newer", "no python3")


def test_python_without_venv_and_no_uv(checkout):
  bare = f'#!/bin/sh\ncase "$2" in *ensurepip*) exit 1 ;; esac\necho 3 11 {checkout.bin}/python3\n'
  checkout.tool("python3", bare)
  _failed(checkout.run(), "venv package", "uv")


def test_without_uv_it_takes_venv_and_pip(checkout):
  done = checkout.run(PIP_NO_INDEX="1", PIP_CONFIG_FILE=os.devnull)
  _failed(done, "the installer failed", "No matching distribution")
  assert (checkout.root / ".venv/bin/pip").exists()


@pytest.mark.parametrize(
  ("says", "told"),
  [
    ("error: dns error: failed to lookup address information", "no network"),
    ("error: client error (Connect): invalid peer certificate: UnknownIssuer", "a certificate was"),
    ("error: failed to write: No space left on device (os error 28)", "the disk is full"),
    ("error: Hash mismatch for `jax==0.10.2`", "not the one that the lock names"),
    ("error: something else", "the installer failed"),
  ],
)
def test_failed_installer_is_explained(with_uv, says, told):
  done = with_uv.run(UV_SAYS=says)
  _failed(done, told, says)
  assert with_uv.run().stdout.startswith("started")


def test_no_disk(with_uv):
  with_uv.tool("df", "#!/bin/sh\nprintf 'x\\nx 1 1 307200 1 x\\n'\n")
  _failed(with_uv.run(), "not enough disk", "300 MB left")
  assert not (with_uv.root / ".venv").exists()


def test_environment_of_someone_else_is_not_touched(with_uv):
  (with_uv.root / ".venv").mkdir()
  (with_uv.root / ".venv/mine").touch()
  _failed(with_uv.run(), "move it away")
  assert (with_uv.root / ".venv/mine").exists()


def _pins(name: str) -> dict[str, str]:
  """'package ; marker' -> version, of a lock."""
  lines = re.findall(r"^([\w.-]+)==([\w.]+)( ;[^\\\n]*)?", LOCKS[name].read_text(), re.MULTILINE)
  return {package + marker.rstrip(): version for package, version, marker in lines}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_names_no_place_and_hashes_everything(name):
  text = LOCKS[name].read_text()
  body = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
  requirements = re.split(r"(?<!\\)\n", body.strip())
  assert len(requirements) > 50
  shape = r"[\w.-]+==[\w.]+( ; [^\\/@]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+"
  assert not [r for r in requirements if not re.fullmatch(shape, r)]
  assert "://" not in text and "file:" not in text
  assert "./launch/lock.sh" in text.split("\n", 2)[1]


def test_locks_agree():
  for name in ("cuda", "test"):
    assert _pins("run").items() <= _pins(name).items()


def test_locks_hold_what_the_project_asks_for():
  file = tomllib.loads((ROOT / "pyproject.toml").read_text())
  extras = file["project"]["optional-dependencies"]
  asked = {"run": [], "cuda": ["jax-cuda12-plugin"], "test": extras["test"]}
  base = file["project"]["dependencies"] + file["dependency-groups"]["build"]
  for name, more in asked.items():
    wanted = {re.match(r"[\w-]+", line)[0].lower() for line in base + more}
    assert wanted <= {pin.split(" ")[0] for pin in _pins(name)}


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["uv", "pip"])
def test_real_installation(tmp_path, tool):
  if tool == "uv" and not shutil.which("uv"):
    pytest.skip("no uv on this machine")
  copied = tmp_path / "checkout"
  shutil.copytree(ROOT, copied, ignore=shutil.ignore_patterns(".*", "runs"))
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  if tool == "pip":
    (tmp_path / "uv").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "uv").chmod(0o755)
    env["PATH"] = f"{tmp_path}:{env['PATH']}"
  for _ in range(2):
    command = [copied / "launch/local.sh", "--help"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert "--workdir" in done.stdout, done.stderr
