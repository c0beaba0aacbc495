"""Image, metadata or both, on any network: who sees what, and under which names."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import contract, models, settings, trees
from medjax.models import net as net_lib

WIDTH = 5
INFO = contract.DataInfo(
  ("a", "b", "c"), (16, 16, 1), (4, 4, 4), 12, (0.5,), (0.2,), metadata=WIDTH
)
IMAGE = settings.QuadSNet(widths=(4,), streams=("cs3",), convs_per_block=1, pool="gap", hidden=6)
BOTH = dataclasses.replace(IMAGE, metadata="dense")
ALONE = settings.MetadataMLP(width=8)


def _batch(n=6):
  rng = np.random.default_rng(0)
  return {
    contract.IMAGE: jnp.asarray(rng.random((n, 16, 16, 1), np.float32)),
    contract.METADATA: jnp.asarray(rng.normal(size=(n, WIDTH)).astype(np.float32)),
  }


@functools.cache
def _made(cfg, cosine=False):
  net = models.make(cfg, INFO, net_lib.Execution(), cosine=cosine)
  params, stats = net.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
  return jax.jit(functools.partial(net.apply, train=False)), params, stats


def _logits(cfg, batch):
  apply, params, stats = _made(cfg)
  return np.asarray(apply(params, stats, batch)[0].output)


@pytest.mark.parametrize(
  ("cfg", "image", "metadata"),
  [(IMAGE, True, False), (BOTH, True, True), (ALONE, False, True)],
  ids=["image", "both", "metadata"],
)
def test_a_network_sees_what_it_is_asked_to_see(cfg, image, metadata):
  whole, other = _batch(), jax.tree.map(lambda x: x[::-1], _batch())
  logits = _logits(cfg, whole)
  for name, sees in ((contract.IMAGE, image), (contract.METADATA, metadata)):
    moved = np.abs(_logits(cfg, whole | {name: other[name]}) - logits).max()
    assert (moved > 1e-4) == sees, name


def test_the_classifier_has_the_names_that_it_has_without_metadata():
  """So that weights of the image alone can be brought along."""
  plain, fused = (trees.flatten(_made(cfg)[1]) for cfg in (IMAGE, BOTH))
  assert {path for path in fused if "/metadata/" not in path} == set(plain)
  wider = {path for path in plain if fused[path].shape != plain[path].shape}
  assert wider == {"head/hidden/kernel"}
  assert fused["head/hidden/kernel"].shape == (4 + 4096, 6)
  assert fused["head/metadata/dense/kernel"].shape == (WIDTH, 4096)


def test_the_fused_logits_by_hand():
  apply, params, stats = _made(BOTH)
  result, _ = apply(params, stats, _batch())
  head = jax.tree.map(np.asarray, params["head"])
  dense = lambda x, layer: x @ layer["kernel"] + layer["bias"]  # noqa: E731
  beside = np.maximum(dense(np.asarray(_batch()[contract.METADATA]), head["metadata"]["dense"]), 0)
  x = np.concatenate([np.asarray(result.embedding), beside], axis=1)
  truth = dense(np.maximum(dense(x, head["hidden"]), 0), head["classes"])
  np.testing.assert_allclose(result.output, truth, atol=1e-5)


def test_pretraining_leaves_the_metadata_out():
  net = models.make(BOTH, INFO, net_lib.Execution(), projector=(8, 4))
  params, _ = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
  assert not [path for path in trees.flatten(params) if "metadata" in path]


@pytest.mark.parametrize(
  ("cfg", "info", "message"),
  [
    (BOTH, dataclasses.replace(INFO, metadata=0), "set model.metadata=none"),
    (ALONE, dataclasses.replace(INFO, metadata=0), "metadata_mlp needs data with metadata"),
    (dataclasses.replace(ALONE, metadata="dense"), INFO, "sees nothing else: set none"),
    (
      settings.Darknet(name="darknet53_fpn", pyramid=True, metadata="dense"),
      dataclasses.replace(INFO, image_shape=(32, 32, 1)),
      "classifies parts of its embedding",
    ),
    (
      settings.SoftAttention(
        backbone=settings.ResNet(units=(1, 1), metadata="dense"), cut="conv3_block1_out"
      ),
      dataclasses.replace(INFO, image_shape=(32, 32, 1)),
      "set model.metadata",
    ),
  ],
  ids=["no metadata", "none for the branch alone", "twice", "pyramid", "backbone"],
)
def test_what_does_not_go_together_is_told(cfg, info, message):
  with pytest.raises(ValueError, match=message):
    models.make(cfg, info, net_lib.Execution())
