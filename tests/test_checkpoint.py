"""Checkpoints: what is read is what was written, and a wrong one is told."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import checkpoint
from medjax.objectives import base


def state(step: int = 0, width: int = 3) -> base.TrainState:
  params = {"encoder": {"kernel": jnp.arange(width, dtype=jnp.float32) + step}}
  stats = {"encoder": {"mean": jnp.ones(2)}}
  moments = ({"count": jnp.asarray(step)}, [jnp.zeros(width)])
  return base.TrainState(jnp.asarray(step, jnp.int32), params, stats, moments, {})


def saved(folder, *steps: int) -> checkpoint.Checkpoints:
  found = checkpoint.Checkpoints(folder)
  for step in steps:
    found.save(checkpoint.LAST, step, state(step), {"best": {"value": 0.1}})
  found.wait()
  return found


def test_what_is_restored_is_what_was_saved(tmp_path):
  found = saved(tmp_path, 2, 4)
  again, meta = found.restore(checkpoint.LAST, jax.eval_shape(state))
  assert jax.tree.structure(again) == jax.tree.structure(state(4))
  jax.tree.map(np.testing.assert_array_equal, again, state(4))
  assert meta == {"best": {"value": 0.1}}


def test_the_newest_two_and_the_best_are_kept_and_kinds_do_not_mix(tmp_path):
  found = saved(tmp_path, 1, 2, 4)
  found.save(checkpoint.BEST, 1, state(1), {})
  found.save(checkpoint.BEST, 2, state(2), {})
  found.wait()
  assert (found.latest(checkpoint.LAST), found.latest(checkpoint.BEST)) == (4, 2)
  assert sorted(path.name for path in (tmp_path / "last").iterdir()) == ["2", "4"]
  assert [path.name for path in (tmp_path / "best").iterdir()] == ["2"]


def test_a_save_holds_the_state_as_it_was(tmp_path):
  donating = jax.jit(lambda s: jax.tree.map(lambda x: x * 0, s), donate_argnums=0)
  found, now = checkpoint.Checkpoints(tmp_path), state(7)
  found.save(checkpoint.LAST, 7, now, {})
  jax.block_until_ready(donating(now))
  found.wait()
  again, _ = found.restore(checkpoint.LAST, jax.eval_shape(state))
  np.testing.assert_array_equal(again.params["encoder"]["kernel"], [7, 8, 9])


def test_another_models_checkpoint_is_told(tmp_path):
  found = saved(tmp_path, 2)
  with pytest.raises(ValueError, match=r"another model.*params/encoder/kernel"):
    found.restore(checkpoint.LAST, jax.eval_shape(lambda: state(width=5)))


def test_a_missing_checkpoint_is_told(tmp_path):
  with pytest.raises(FileNotFoundError, match="no best checkpoint"):
    saved(tmp_path, 2).restore(checkpoint.BEST, state())


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
  saved(tmp_path, 2).close()
  shutil.copytree(tmp_path / "last" / "2", tmp_path / "last" / "4.orbax-checkpoint-tmp")
  assert checkpoint.Checkpoints(tmp_path).latest(checkpoint.LAST) == 2


def test_weights_prefer_the_best_and_are_found_from_a_stage_or_a_step(tmp_path):
  found = saved(tmp_path / "stage" / "checkpoints", 4)
  assert checkpoint.weights(tmp_path / "stage")[1].endswith("last/4")
  found.save(checkpoint.BEST, 2, state(2), {})
  found.wait()
  tree, place = checkpoint.weights(tmp_path / "stage")
  assert place.endswith("best/2") and set(tree) == {"params", "stats"}
  np.testing.assert_array_equal(tree["params"]["encoder"]["kernel"], [2, 3, 4])
  assert checkpoint.weights(tmp_path / "stage" / "checkpoints" / "last" / "4")[1].endswith("4")
  with pytest.raises(FileNotFoundError, match="runs/quickstart/pretrain"):
    checkpoint.weights(tmp_path)


def test_weights_of_the_last_checkpoint_are_their_moving_average(tmp_path):
  found, now, mean = checkpoint.Checkpoints(tmp_path / "last_kind"), state(4), state(1)
  average = {"params": mean.params, "stats": mean.stats}
  found.save(checkpoint.LAST, 4, now.replace(extra={base.AVERAGE: average}), {})
  found.wait()
  tree, _ = checkpoint.weights(tmp_path / "last_kind")
  np.testing.assert_array_equal(tree["params"]["encoder"]["kernel"], [1, 2, 3])


def test_of_a_long_complaint_what_the_system_said_is_told(tmp_path):
  complaint = f"RESOURCE_EXHAUSTED: {'d' * 400}: No space left on device {'e' * 400}"

  def write():
    raise ValueError(complaint)

  with pytest.raises(OSError, match=f"under {tmp_path}: No space left on device. Mend that"):
    checkpoint._told(write, tmp_path)
