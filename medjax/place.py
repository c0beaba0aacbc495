"""Where this process stands among those that run together, by flags or by the environment."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import os
import pathlib
import re
import zlib

_FIRST_PORT, _PORTS = 61440, 4096  # above those that Linux hands out by itself


@dataclasses.dataclass(frozen=True)
class Place:
  """One process among several.

  Attributes:
    coordinator: `HOST:PORT` of process 0, where all meet. processes: how many there are.
    process: which one this is, from 0. devices: which of the host's GPUs it takes; None for all.
    source: who said so.
  """

  coordinator: str
  processes: int
  process: int
  devices: tuple[int, ...] | None = None
  source: str = "flags"


def found(
  coordinator: str = "",
  processes: int = 0,
  process: int = -1,
  environment: Mapping[str, str] = os.environ,
) -> Place | None:
  """This process's place by flags, or else by what SLURM, Open MPI or Kubernetes tell it.

  Args:
    coordinator: `HOST:PORT` of process 0. processes: how many. process: which one, from 0.
    environment: `MEDJAX_COORDINATOR`, `MEDJAX_PROCESSES` and `MEDJAX_PROCESS` (or an Indexed Job's
      `JOB_COMPLETION_INDEX`) stand for the flags.

  Returns:
    None for a run of one process.

  Raises:
    ValueError: only some of it was said, or it cannot be so.
  """
  coordinator = coordinator or environment.get("MEDJAX_COORDINATOR", "")
  processes = processes or _number(environment, "MEDJAX_PROCESSES", 0)
  if process < 0:
    index = _number(environment, "JOB_COMPLETION_INDEX", -1)
    process = _number(environment, "MEDJAX_PROCESS", index)
  if coordinator or processes:
    return _named(coordinator, processes, process)
  return _slurm(environment) or _open_mpi(environment)


def _number(environment: Mapping[str, str], name: str, otherwise: int) -> int:
  value = environment.get(name) or str(otherwise)
  try:
    return int(value)
  except ValueError:
    raise ValueError(f"{name}={value} in the environment is no number: set or unset it") from None


def _named(coordinator: str, processes: int, process: int) -> Place | None:
  if processes == 1 and process <= 0:
    return None
  if not re.fullmatch(r".+:\d+", coordinator) or not 0 <= process < processes:
    raise ValueError(
      f"--coordinator={coordinator} --processes={processes} --process={process}: give all three,"
      " such as --coordinator=node1:61500 --processes=4 --process=0, the last from 0 to 3"
    )
  return Place(coordinator, processes, process)


def _slurm(environment: Mapping[str, str]) -> Place | None:
  """The place of a task that `srun` started; a shell inside an allocation has none."""
  nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
  first = re.match(r"([^,\[]+)(?:\[(\d+))?", nodes)  # such as node[007-010,12],login
  processes, process = (_number(environment, f"SLURM_{name}", -1) for name in ("NTASKS", "PROCID"))
  if not first or processes <= 1 or process < 0:
    return None
  job = f"{environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
  here = len(environment.get("SLURM_GTIDS", "").split(","))
  devices = _share(_number(environment, "SLURM_LOCALID", 0), here, environment)
  address = f"{first[1]}{first[2] or ''}:{_port(job)}"
  return Place(address, processes, process, devices, "SLURM")


def _open_mpi(environment: Mapping[str, str]) -> Place | None:
  size = _number(environment, "OMPI_COMM_WORLD_SIZE", 1)
  if size <= 1:
    return None
  uri, here = environment.get("OMPI_MCA_orte_hnp_uri", ""), "OMPI_COMM_WORLD_LOCAL_"
  host = re.search(r"tcp6?://\[?([^],/]+?)[],:]", uri)
  count = _number(environment, f"{here}SIZE", size)
  if host is None and count != size:
    raise ValueError(
      "this Open MPI does not tell where process 0 runs: give --coordinator=HOST:PORT, "
      f"--processes={size} and --process=$OMPI_COMM_WORLD_RANK"
    )
  address = f"{host[1] if host else 'localhost'}:{_port(uri or str(os.getppid()))}"
  devices = _share(_number(environment, f"{here}RANK", 0), count, environment)
  return Place(address, size, _number(environment, "OMPI_COMM_WORLD_RANK", 0), devices, "Open MPI")


def _port(job: str) -> int:
  """The same in all processes of a job, and seldom the same in two jobs."""
  return _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS


def _share(local: int, count: int, environment: Mapping[str, str]) -> tuple[int, ...] | None:
  """The GPUs of one of `count` processes on a host, where all of them see all."""
  named = environment.get("CUDA_VISIBLE_DEVICES")
  nodes = list(pathlib.Path("/dev").glob("nvidia[0-9]*"))
  seen = len(nodes) if named is None else len(list(filter(None, named.split(","))))
  each = seen // count
  if count == 1 or each == 0 or "SLURM_GPUS_PER_TASK" in environment:
    return None
  return tuple(range(local * each, (local + 1) * each))
