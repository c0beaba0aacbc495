"""One of several processes, each with devices of its own, that feed one mesh together.

  python feeds_of_a_process.py 127.0.0.1:PORT PROCESSES NUMBER FOLDER

writes to FOLDER what lies on its devices: <kind>-<number>.npz, for every name of a batch the values
[steps, b, ...] and, under rows, those that were read.
"""

import os
import pathlib
import sys

DEVICES = 8  # of all processes


def main(address: str, processes: int, number: int, folder: pathlib.Path) -> None:
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES // processes}"
  import jax

  if processes > 1:
    jax.distributed.initialize(address, processes, number, heartbeat_timeout_seconds=10)
  import numpy as np

  assert len(jax.devices()) == DEVICES
  for kind in ("resident", "split", "chunked", "streamed", "sequential"):
    found = fed(kind)
    np.savez(folder / f"{kind}-{number}.npz", **found)


def fed(kind: str) -> dict:
  """Three calls of two steps each, as the training loop makes them."""
  import dataclasses

  import jax
  from jax import lax
  import numpy as np
  import test_feed_residence as residence

  from medjax import mesh as mesh_lib
  from medjax.data import feed as feed_lib

  mesh, seen = mesh_lib.make(), []
  part = residence.make_part()
  if kind != "resident":
    part = residence.together(part, seen)
  if kind == "sequential":
    part = dataclasses.replace(part, ids=part.ids[:90])  # 90 rows: 6 in the last batch of 12
    feed = feed_lib.sequential(part, 12, mesh, threads=2)
  else:
    feed = residence.make(part, kind, mesh, residence.BLOCKS)

  def every(resident, ticket):
    return lax.map(lambda one: feed.take(resident, one), ticket)

  mapped = mesh_lib.mapped(every, mesh, (feed.spec, mesh_lib.cut(1)), mesh_lib.cut(1))
  calls = []
  with jax.transfer_guard("disallow"):
    for _ in range(4):
      ticket = feed.next(2)
      assert ticket["slot"].is_fully_addressable == (jax.process_count() == 1)
      calls.append(mapped(feed.resident, ticket))
  feed.close()
  held = {name: np.concatenate([own(call[name]) for call in calls]) for name in calls[0]}
  return {**held, "rows": np.concatenate([*seen, np.zeros(0, int)])}


def own(array):
  """[steps, b, ...] what lies on this process's devices."""
  import numpy as np

  shards = sorted(array.addressable_shards, key=lambda shard: shard.index[1].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards], axis=1)


if __name__ == "__main__":
  main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), pathlib.Path(sys.argv[4]))
