import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax import contract, models, settings, trees
from medjax.models import mednet, quadsnet
from medjax.models import net as net_lib

PLAIN = net_lib.Execution()
QUAD_TINY = settings.QuadSNet(widths=(2, 3), convs_per_block=1, sep_convs_per_block=1, hidden=4)
MED_TINY = settings.MedNet(
  width=2,
  blocks=2,
  pooled=(2,),
  connections=(("stem", "b2", "conv"), ("b1", "b2", "identity")),
  hidden=4,
)


def _info(size=224, channels=3, classes=2):
  names = tuple(f"class{i}" for i in range(classes))
  counts, mean, std = (10,) * classes, (0.4,) * channels, (0.2,) * channels
  return contract.DataInfo(names, (size, size, channels), counts, 10 * classes, mean, std)


def _batch(images, mask=None, slots=None):
  n = len(images)
  mask = jnp.ones(n) if mask is None else mask
  return {
    contract.IMAGE: images,
    contract.MASK: mask,
    contract.SLOT: jnp.arange(n) if slots is None else slots,
  }


def _shapes(cfg, info, **kwargs):
  """Abstract (params, stats) of a network at its full size."""
  images = jax.ShapeDtypeStruct((1, *info.image_shape), jnp.float32)
  return jax.eval_shape(models.make(cfg, info, PLAIN, **kwargs).init, jax.random.key(0), images)


def _weights(cfg, info):
  """Random (params, stats) of a network, without the seconds of compiling its own."""
  rng, (params, stats) = np.random.default_rng(0), _shapes(cfg, info)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), params)
  stats = jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype(leaf.dtype), stats)
  return params, stats


def _images(n, info, seed=1):
  return jax.random.uniform(jax.random.key(seed), (n, *info.image_shape))


# Name -> trainable parameters, and all with moving statistics: three channels, two classes.
COUNTS = {
  "quadsnet": (5_237_736, 5_241_576),
  "quadsnet_exact": (5_235_944, 5_235_944 + 2 * 1024),
  "quadsnet_gap": (5_238_888, 5_238_888 + 3_840),
  "quadsnet_total": (5_232_104, 5_235_944),
  "quadsnet_convbn": (5_241_576, 5_241_576 + 2 * 3_840),
  "quadsnet_direct": (4_718_952, 4_718_952 + 3_840),
  "quadsnet_one": (6_231_016, 6_231_016 + 2 * 3_840),
  "mednet": (10_781_122, 10_790_594),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_every_preset(name):
  info = _info()
  params, stats = _shapes(settings.VARIANTS[settings.Model][name], info)
  constants = trees.count(stats["encoder"].pop("input"))
  trainable = trees.count(params)
  assert constants == 2 * 3
  assert (trainable, trainable + trees.count(stats)) == COUNTS[name]


@pytest.mark.parametrize(
  ("channels", "classes", "count"),
  [(3, 4, 5_237_994), (3, 10, 5_238_768), (1, 2, 5_237_736 - 2_372)],
)
def test_quadsnet_counts_by_data(channels, classes, count):
  params, _ = _shapes(settings.QuadSNet(), _info(channels=channels, classes=classes))
  assert trees.count(params) == count


def test_quadsnet_stream_sums():
  params, _ = _shapes(settings.QuadSNet(), _info())
  sums = {name: trees.count(part) for name, part in params["encoder"].items()}
  assert sums == {"cs3": 1_172_256, "cs5": 3_254_560, "ss3": 137_467, "ss5": 148_779}
  head = {name: trees.count(part) for name, part in params["head"].items()}
  assert head == {"hidden": 524_416, "classes": 258}


@pytest.mark.parametrize(
  ("width", "count"),
  [
    (16, 868_930),
    (32, 2_902_850),
    (48, 6_206_530),
    (64, 10_779_970),
    (96, 23_736_130),
    (128, 41_771_330),
  ],
)
def test_gray_mednet_counts_by_width(width, count):
  params, _ = _shapes(settings.MedNet(width=width), _info(channels=1))
  assert trees.count(params) == count


def _convolutions(params):
  return sum(kernel.ndim == 4 for kernel in trees.flatten(params).values())


def test_mednet_has_44_convolutions_and_12_connections():
  cfg = settings.MedNet()
  params, _ = _shapes(cfg, _info())
  shorts = sum("short" in block for block in params["encoder"].values())
  assert _convolutions(params) == 44
  assert shorts + len(cfg.connections) == 12
  everywhere = tuple((source, target, "conv") for source, target, _ in cfg.connections)
  params, _ = _shapes(settings.MedNet(connections=everywhere), _info())
  assert _convolutions(params) == 46


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("separable", [False, True])
def test_quadsnet_streams_end_alike(size, separable):
  stream = quadsnet.Stream(settings.QuadSNet(), size, separable)
  image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  mode = net_lib.Mode(PLAIN)
  out, _ = jax.eval_shape(lambda x: stream.init_with_output(jax.random.key(0), x, mode), image)
  assert out.shape == (1, 14, 14, 256)


@pytest.mark.parametrize(
  ("cfg", "size", "features"),
  [
    (settings.QuadSNet(), 224, 4 * 1024),
    (settings.QuadSNet(), 28, 4 * 1024),
    (settings.QuadSNet(), 16, 4 * 1024),
    (settings.QuadSNet(pool="avg2"), 224, 7 * 7 * 1024),
    (settings.QuadSNet(pool="gap"), 71, 1024),
    (settings.QuadSNet(streams=("cs3", "ss5"), widths=(8, 16)), 30, 2 * 2 * 32),
    *((settings.MedNet(), size, 256) for size in (64, 65, 71, 97, 224)),
    (settings.MedNet(width=16, hidden=0), 64, 64),
  ],
)
def test_embedding_whatever_the_image_size(cfg, size, features):
  info = _info(size, classes=5)
  net = models.make(cfg, info, PLAIN)
  images = jax.ShapeDtypeStruct((2, *info.image_shape), jnp.float32)
  params, stats = jax.eval_shape(net.init, jax.random.key(0), images)
  apply = functools.partial(net.apply, train=False)
  result, _ = jax.eval_shape(apply, params, stats, {contract.IMAGE: images})
  assert result.embedding.shape == (2, features)
  assert result.output.shape == (2, 5)


@pytest.mark.parametrize("cfg", [settings.QuadSNet(widths=(8, 16)), MED_TINY])
def test_a_projector_takes_the_classifiers_place(cfg):
  info = _info(64, classes=0)
  params, stats = _shapes(cfg, info, projector=(32, 8))
  assert params["head"]["hidden"]["kernel"].shape[1] == 32
  assert params["head"]["out"]["kernel"].shape == (32, 8)
  assert set(stats["head"]["bn"]) == {"mean", "var"}


def _mistakes():
  connect = functools.partial(dataclasses.replace, settings.MedNet())
  yield connect(connections=(("b2", "b9", "conv"),)), "'b9', 'conv'.* is impossible: ends are stem"
  yield connect(connections=(("b2", "stem", "conv"),)), "nothing ends at stem"
  yield connect(connections=(("b4", "b4", "conv"),)), "forwards"
  yield connect(connections=(("b2", "b4", "dense"),)), "'conv' or 'identity'"
  yield connect(connections=(("stem", "b4", "identity"),)), "64 channels do not fit a block's 256"
  yield connect(connections=(("b1", "b2", "conv"), ("b1", "b2", "identity"))), "same ends"
  yield connect(blocks=4, connections=()), r"pooled=\(3, 5, 7\): take block numbers from 1 to 4"
  yield settings.QuadSNet(streams=("cs3", "cs7")), "take some of cs3, cs5, ss3, ss5"
  yield settings.QuadSNet(streams=()), "each once"
  yield settings.QuadSNet(widths=(8,) * 9), "set data.image_size to 512 or more"


@pytest.mark.parametrize(("cfg", "message"), list(_mistakes()), ids=lambda value: str(value)[:20])
def test_impossible_settings(cfg, message):
  with pytest.raises(ValueError, match=message):
    models.make(cfg, _info(), PLAIN)


def test_a_cosine_classifier_says_cosines(x64):
  """Between the features after the hidden layer and each class's column, by NumPy."""
  cfg, images = (
    settings.QuadSNet(widths=(4,), hidden=16),
    np.random.default_rng(0).random((4, 8, 8, 3)),
  )
  net = models.make(cfg, _info(8), PLAIN, cosine=True)
  params, stats = net.init(jax.random.key(0), images)
  result, _ = net.apply(params, stats, {contract.IMAGE: jnp.asarray(images)}, train=False)
  head = jax.tree.map(np.asarray, params["head"])
  features = result.embedding @ head["hidden"]["kernel"] + head["hidden"]["bias"]
  features, vectors = np.maximum(features, 0), head["classes"]["kernel"]
  lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(vectors, axis=0)
  np.testing.assert_allclose(result.output, features @ vectors / lengths, atol=1e-9)
  assert "bias" not in head["classes"]


def test_no_classes_and_no_such_network():
  with pytest.raises(ValueError, match="no labels"):
    models.make(settings.QuadSNet(), _info(classes=0), PLAIN)
  with pytest.raises(KeyError, match="known are QuadSNet, MedNet"):
    models.make(settings.Model(name="lenet"), _info(), PLAIN)


def test_a_block_is_five_convolutions_with_a_batch_norm_each():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 6, 5, 3)).astype(np.float32)
  cfg, mode = settings.MedNet(width=2), net_lib.Mode(PLAIN)
  block = mednet.Block(cfg)
  shapes = jax.eval_shape(block.init, jax.random.key(0), x, mode)
  drawn = jax.tree.map(lambda leaf: rng.uniform(0.5, 2, leaf.shape).astype(np.float32), shapes)
  params, stats = drawn["params"], drawn["batch_stats"]["bn"]
  start, outputs = 0, []
  for name, width in [("conv1", 2), ("conv3", 2), ("conv5", 2), ("conv7", 2), ("short", 8)]:
    own = slice(start, start := start + width)
    kernel = params[name]["kernel"]
    map_ = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    normal = (map_ - stats["mean"][own]) / np.sqrt(stats["var"][own] + cfg.bn_epsilon)
    outputs.append(normal * params["bn"]["scale"][own] + params["bn"]["bias"][own])
  truth = np.concatenate([np.maximum(one, 0) for one in outputs[:4]], axis=-1) + outputs[4]
  np.testing.assert_allclose(block.apply(drawn, x, mode), truth, rtol=2e-5, atol=1e-4)


def _zeroed(params, where):
  flat = trees.flatten(params)
  return trees.unflatten(
    {path: np.zeros_like(leaf) if where(path) else leaf for path, leaf in flat.items()}
  )


def test_gradient_reaches_the_stem_through_the_long_connections_alone():
  info = _info(64, channels=1)
  cfg = settings.MedNet(width=4, hidden=8)
  net, (params, stats) = models.make(cfg, info, PLAIN), _weights(cfg, info)
  is_block = lambda path: path.split("/")[1] in {f"b{i}" for i in range(1, 9)}  # noqa: E731
  batch = _batch(_images(2, info))

  @jax.jit
  def stem_gradient(params):
    def loss(params):
      result, _ = net.apply(params, stats, batch, train=False)
      return (result.output**2).sum()

    return jax.grad(loss)(params)["encoder"]["stem1"]["conv"]["kernel"]

  without_blocks = _zeroed(params, is_block)
  assert jnp.abs(stem_gradient(without_blocks)).max() > 0
  without_l1 = _zeroed(without_blocks, lambda path: "stem_b4" in path)
  assert jnp.abs(stem_gradient(without_l1)).max() == 0


def test_identity_connections_add_the_pooled_map():
  """Blocks of zeros but for a bias each: what arrives at the end is counted by hand."""
  info = _info(64, channels=1)
  net, (params, stats) = models.make(MED_TINY, info, PLAIN), _weights(MED_TINY, info)
  params = _zeroed(params, lambda path: path.startswith("encoder"))
  params["encoder"]["b1"]["bn"]["bias"][8:] += 0.5  # of the short connection, after the branches'
  params["encoder"]["b2"]["bn"]["bias"][8:] -= 0.2
  result, _ = jax.jit(functools.partial(net.apply, train=False))(
    params, stats, _batch(_images(2, info))
  )
  np.testing.assert_allclose(result.embedding, np.full((2, 8), 0.5 - 0.2), rtol=1e-6)


# --- the seam


@pytest.mark.parametrize("cfg", [QUAD_TINY, MED_TINY])
def test_plain_dicts_in_and_out(cfg):
  info = _info(16, channels=1)
  net = models.make(cfg, info, PLAIN)
  params, stats = net.init(jax.random.key(0), _images(1, info))
  apply = jax.jit(functools.partial(net.apply, train=True))
  result, moved = apply(params, stats, _batch(_images(4, info)), key=jax.random.key(1))
  for tree in (params, stats, moved):
    nodes = [tree, *tree.values(), *tree["encoder"].values()]
    assert all(type(node) is dict for node in nodes)
  assert jax.tree.structure(stats) == jax.tree.structure(moved)
  assert set(params) == {"encoder", "head"}
  assert result.output.shape == (4, 2)
  for name in ("mean", "std"):  # what the input layer holds is no running statistic
    truth = np.float32(getattr(info, name))
    np.testing.assert_array_equal(moved["encoder"]["input"][name], truth)


def test_the_net_normalises_its_input():
  info = _info(16, channels=1)
  cfg = dataclasses.replace(QUAD_TINY, preprocess="stats")
  raw, normalised = (
    models.make(c, info, PLAIN) for c in (dataclasses.replace(cfg, preprocess="unit"), cfg)
  )
  params, stats = _weights(cfg, info)
  images, constants = _images(3, info), stats["encoder"]["input"]
  ours = jax.jit(functools.partial(normalised.apply, train=False))(params, stats, _batch(images))
  raw_apply = jax.jit(functools.partial(raw.apply, train=False))
  truth = raw_apply(params, stats, _batch((images - constants["mean"]) / constants["std"]))
  np.testing.assert_allclose(ours[0].output, truth[0].output, atol=1e-5)


@pytest.mark.parametrize(
  ("cfg", "gain", "fans", "bound"),
  [
    (settings.QuadSNet(widths=(16, 32, 48)), 2, lambda i, o: i + o, math.sqrt(3)),
    (settings.MedNet(width=16), 2, lambda i, o: i, 2 / 0.8796),
  ],
)
def test_initial_kernels(cfg, gain, fans, bound):
  info = _info(64)
  net = models.make(cfg, info, PLAIN)
  params, stats = net.init(jax.random.key(3), _images(1, info))
  kernels = {k: np.asarray(v) for k, v in trees.flatten(params).items() if k.endswith("kernel")}
  seen = {k: v for k, v in kernels.items() if v.size > 1000}
  assert len(seen) > 10
  for kernel in seen.values():
    *window, inputs, outputs = kernel.shape
    deviation = math.sqrt(gain / fans(math.prod(window) * inputs, math.prod(window) * outputs))
    assert abs(kernel.mean()) < 5 * deviation / math.sqrt(kernel.size)
    assert kernel.std() == pytest.approx(deviation, rel=4 / math.sqrt(kernel.size))
    assert np.abs(kernel).max() <= deviation * bound * 1.001
  first, second = (v.ravel()[:500] / v.std() for v in list(seen.values())[:2])
  assert abs(np.corrcoef(first, second)[0, 1]) < 0.2
  others = {k: v for k, v in trees.flatten(params).items() if k not in kernels}
  assert all((v == (1 if k.endswith("scale") else 0)).all() for k, v in others.items())
  again = net.init(jax.random.key(3), _images(1, info))
  jax.tree.map(np.testing.assert_array_equal, (params, stats), again)
  other, _ = net.init(jax.random.key(4), _images(1, info))
  assert not np.array_equal(other["head"]["classes"]["kernel"], params["head"]["classes"]["kernel"])


def test_training_needs_a_key_and_recalibration_none():
  info = _info(16, channels=1)
  net, (params, stats) = models.make(QUAD_TINY, info, PLAIN), _weights(QUAD_TINY, info)
  batch = _batch(_images(6, info))
  with pytest.raises(ValueError, match="needs a key"):
    net.apply(params, stats, batch, train=True)
  recalibrate = jax.jit(functools.partial(net.apply, train=True, momentum=0.0))
  once = recalibrate(params, stats, batch)[1]
  rubbish = jax.tree.map(lambda x: x + 7, stats)
  rubbish["encoder"]["input"] = stats["encoder"]["input"]
  again = recalibrate(params, rubbish, batch)[1]
  jax.tree.map(np.testing.assert_array_equal, once, again)


def _tree_allclose(ours, truth, **tolerance):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), ours, truth)


@pytest.mark.parametrize(
  "cfg",
  [
    settings.QuadSNet(widths=(3,), convs_per_block=1, sep_convs_per_block=1, hidden=16),
    settings.MedNet(width=2, blocks=1, pooled=(1,), connections=(("stem", "b1", "conv"),)),
  ],
  ids=["quadsnet", "mednet"],
)
def test_forms_agree_on_whole_networks(x64, cfg):
  info = _info(17)
  images, key = _images(3, info), jax.random.key(2)
  cpu, plain = (models.make(cfg, info, net_lib.Execution(form)) for form in ("cpu", "plain"))
  params, stats = _weights(cfg, info)

  def gradient(net):
    def loss(params):
      result, moved = net.apply(params, stats, _batch(images), train=True, key=key)
      return jnp.sin(result.output).sum(), (result, moved)

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  ours, truth = gradient(cpu), gradient(plain)
  assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {np.dtype("float64")}
  _tree_allclose(ours, truth, atol=1e-11)
  assert all(jnp.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(ours[0]))  # all were reached


def test_bfloat16_computes_low_and_keeps_high():
  cfg = settings.MedNet(width=2, blocks=1, pooled=(), connections=(), hidden=4)
  info = _info(16, channels=1)
  images = _images(8, info)

  def run(dtype):
    net = models.make(cfg, info, net_lib.Execution(dtype=dtype))
    params, stats = _weights(cfg, info)
    apply = functools.partial(net.apply, train=True, momentum=0.0)
    text = str(jax.make_jaxpr(apply)(params, stats, _batch(images)))
    return jax.jit(apply)(params, stats, _batch(images)), text

  (low, program), (high, high_program) = run("bfloat16"), run("float32")
  assert {leaf.dtype for leaf in jax.tree.leaves(low)} == {np.dtype("float32")}
  convolutions = [line for line in program.splitlines() if "= conv_general_dilated" in line]
  assert convolutions
  assert all(":bf16" in line for line in convolutions)
  assert "bf16" not in high_program
  np.testing.assert_allclose(low[0].embedding, high[0].embedding, atol=0.05)
  assert not np.array_equal(low[0].embedding, high[0].embedding)


def test_mednet_pools_as_often_as_the_trunk():
  cfg = settings.MedNet()
  image = jnp.zeros((1, 57, 57, 1))
  sizes = {
    (start, end): mednet._pooled(cfg, image, start, end).shape[1]
    for start, end in ((0, 4), (2, 5), (4, 8), (5, 7), (1, 2))
  }
  assert sizes == {(0, 4): 29, (2, 5): 15, (4, 8): 15, (5, 7): 29, (1, 2): 57}
