"""Eight fake CPU devices for every test, and the real sets where they are at hand."""

import os
import pathlib
import subprocess

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["KERAS_BACKEND"] = "jax"  # Keras imports TensorFlow where it is not told otherwise

import jax
import pytest

from medjax import mesh as mesh_lib

SHARED = pathlib.Path(
  os.environ.get("MEDJAX_DATA", pathlib.Path(__file__).parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
  """The folder of real sets; tests that need it are skipped where it is missing."""
  if not SHARED.is_dir():
    pytest.skip(f"no real data at {SHARED}: set MEDJAX_DATA to the folder that holds covid_ct, ...")
  return SHARED


@pytest.fixture(params=[1, 3, 8])
def mesh(request) -> jax.sharding.Mesh:
  """A mesh of one, three and eight devices."""
  return mesh_lib.make(jax.devices()[: request.param])


@pytest.fixture
def mesh1() -> jax.sharding.Mesh:
  return mesh_lib.make(jax.devices()[:1])


@pytest.fixture
def x64():
  """Float64 while the test runs."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def tmpfs(tmp_path):
  """Mounts a small file system, where that is allowed."""
  mounted = []

  def mount(options: str) -> pathlib.Path:
    place = tmp_path / f"mounted{len(mounted)}"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=False)
    if done.returncode:
      pytest.skip("mounting a small file system needs more rights")
    mounted.append(place)
    return place

  yield mount
  for place in mounted:
    subprocess.run(["umount", "-l", place], check=True)
