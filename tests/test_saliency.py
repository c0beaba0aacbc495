"""Maps of what speaks for a class, against closed forms, sums and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats as scipy_stats

from medjax import contract, models, saliency, settings, trees
from medjax.models import net as net_lib
from medjax.saliency import cascade, outer
from medjax.saliency import view as view_lib

MEDNET = settings.MedNet(width=2, blocks=2, pooled=(2,), connections=(), hidden=0)
INFO = contract.DataInfo(("a", "b", "c"), (32, 32, 1), (1, 1, 1), 3, (0.5,), (0.2,))
TARGETS = np.array([2, 0, 1], np.int32)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1)).astype(np.uint8)


def _net(cfg=MEDNET):
  return models.make(cfg, INFO, net_lib.Execution("cpu"))


@pytest.fixture(scope="module")
def mednet():
  """Weights of a MedNet, and statistics that no initialisation would give."""
  params, stats = jax.jit(_net().init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
  return params, jax.tree.map(lambda leaf: leaf + 0.1, stats)


def _convolved(x, kernel, stride):
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _apply(params, stats, batch, *, train, endpoints=(), offsets=None):
  """Two convolutions with ReLU, the end points `one` and `two`, global average, dense layer."""
  x, found = batch[contract.IMAGE], {}
  for name in ("one", "two"):
    x = jax.nn.relu(_convolved(x, params[name], 4 if name == "one" else 2) - 0.05)
    x = found[name] = x + (offsets or {}).get(name, 0)
  embedding = x.mean((1, 2))
  wanted = found if net_lib.EVERY in endpoints else {name: found[name] for name in endpoints}
  return net_lib.Result(embedding @ params["dense"], embedding, None, wanted), stats


SMALL = net_lib.Net(lambda key, images: ({}, {}), _apply)


@pytest.fixture(scope="module")
def weights():
  """Of `SMALL`."""
  rng = np.random.default_rng(5)
  shapes = {"one": (5, 5, 1, 6), "two": (3, 3, 6, 8), "dense": (8, 3)}
  return {name: rng.normal(0, 0.5, shape) for name, shape in shapes.items()}, {}


def _maps(weights, method, net=SMALL, images=IMAGES, targets=TARGETS, mean=(0.5,), **options):
  look = saliency.compiled(net, saliency.make(method, **options), mean)
  return np.asarray(look(*weights, {contract.IMAGE: jnp.asarray(images)}, jnp.asarray(targets)))


def _linear(factors, squared=0.0):
  """A network whose logits [b, K] are sums of pixels times `factors` [K, H, W, C], and squares."""

  def apply(params, stats, batch, *, train, **how):
    images = batch[contract.IMAGE]
    logits = jnp.einsum("bhwc,khwc->bk", images, factors)
    return net_lib.Result(logits + squared * (images**2).sum((1, 2, 3))[:, None], logits), stats

  return net_lib.Net(lambda key, images: ({}, {}), apply)


FACTORS = np.random.default_rng(1).normal(size=(3, 32, 32, 2))
COLOURED = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 2)).astype(np.uint8)


def _map_and_kernel(weights):
  batch = {contract.IMAGE: jnp.asarray(IMAGES / 255)}
  values = _apply(*weights, batch, train=False, endpoints=["two"])[0].endpoints["two"]
  return np.asarray(values), weights[0]["dense"]


def _upsampled(maps):
  return jax.image.resize(maps, (len(maps), 32, 32), "linear")


def test_grad_cam_before_a_global_average_is_the_class_activation_map(x64, weights):
  """Selvaraju et al. 2017, section 3.1: the weights are then those of the dense layer."""
  values, kernel = _map_and_kernel(weights)
  cam = np.einsum("bhwc,cb->bhw", values, kernel[:, TARGETS])
  assert values.shape == (3, 4, 4, 8) and (cam > 0).any() and (cam < 0).any()
  expected = _upsampled(np.maximum(cam, 0) / 16)
  np.testing.assert_allclose(_maps(weights, "gradcam"), expected, 1e-5, 1e-9)


def test_grad_cam_plus_plus_is_what_its_equations_say(x64, weights):
  values, kernel = _map_and_kernel(weights)
  expected = []
  for value, target in zip(values, TARGETS, strict=True):
    total = np.zeros((4, 4))
    for channel in range(8):
      slope = kernel[channel, target] / 16
      alpha = slope**2 / (2 * slope**2 + value[..., channel].sum() * slope**3)
      total += 16 * alpha * max(slope, 0) * value[..., channel]
    expected.append(np.maximum(total, 0))
  found = _maps(weights, "gradcam++")
  np.testing.assert_allclose(found, _upsampled(np.stack(expected)), 1e-5, 1e-9)


def test_any_end_point_of_a_network_can_be_looked_at(mednet):
  """A batch norm and a ReLU lie between `b1` and `b2`, whose gradients differ therefore."""
  deep, shallow = (_maps(mednet, "gradcam", _net(), endpoint=name) for name in ("", "b1"))
  assert deep.shape == shallow.shape == (3, 32, 32) and not np.allclose(deep, shallow)
  with pytest.raises(ValueError, match="no map 'b9'; it has stem, b1, b2"):
    _maps(mednet, "gradcam", _net(), endpoint="b9")


SOFT = settings.SoftAttention(
  backbone=settings.DenseNet(units=(2, 2), growth=4), cut="conv2_block2_concat", maps=4
)
IN_ORDER = [MEDNET, SOFT]


@pytest.mark.parametrize("cfg", IN_ORDER, ids=lambda cfg: cfg.name)
def test_maps_are_listed_as_an_image_passes_them(cfg):
  """By the equations of the program: a map is made after those that it is made of."""
  net = _net(cfg)
  weights = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
  images = jax.ShapeDtypeStruct((2, 32, 32, 1), np.float32)

  def every(params, stats, images):
    batch = {contract.IMAGE: images}
    return net.apply(params, stats, batch, train=False, endpoints=[net_lib.EVERY])[0].endpoints

  program = jax.make_jaxpr(every)(*weights, images).jaxpr
  line = {var: i for i, equation in enumerate(program.eqns) for var in equation.outvars}
  names = sorted(jax.eval_shape(every, *weights, images))
  expected = sorted(names, key=lambda name: line[program.outvars[names.index(name)]])

  def listed(params, stats, images):
    view = view_lib.View(net, params, stats, {}, (0.5,), lambda logits: logits)
    found.extend(view_lib.shapes(view, images))
    return view_lib.last_map(view, images)

  found = []
  assert jax.eval_shape(lambda *args: found.append(listed(*args)), *weights, images) is None
  *found, last = found
  assert found == expected and last == [name for name in found if name != "attention"][-1]
  assert ("attention" in found) == (cfg is SOFT)  # what the method looks for


def _attended(*args, endpoints=(), **how):
  """`SMALL` with a map of that name."""
  result, stats = _apply(*args, endpoints=[net_lib.EVERY], **how)
  scores = result.endpoints["two"].sum(-1, keepdims=True)
  found = result.endpoints | {"attention": jax.nn.softmax(scores, axis=(1, 2))}
  return result.replace(endpoints=found), stats


def test_the_attention_of_a_network_is_its_own_map(x64, weights):
  batch = {contract.IMAGE: jnp.asarray(IMAGES / 255)}
  own = _attended(*weights, batch, train=False)[0].endpoints["attention"][..., 0]
  found = _maps(weights, "attention", net_lib.Net(SMALL.init, _attended))
  np.testing.assert_allclose(found, _upsampled(own), 1e-5)
  assert np.ptp(found, axis=(1, 2)).min() > 0.01


def test_a_network_without_attention_is_told_so(x64, weights):
  with pytest.raises(ValueError, match="no soft attention: choose another method"):
    _maps(weights, "attention")


@pytest.mark.parametrize("baseline", ["black", "mean"])
def test_integrated_gradients_add_up_to_what_the_image_changed(x64, weights, baseline):
  """The completeness axiom; Sundararajan et al. 2017, proposition 1."""
  found = _maps(weights, "integrated_gradients", baseline=baseline, steps=256)

  def logits(images):
    return _apply(*weights, {contract.IMAGE: images}, train=False)[0].output

  empty = jnp.full((3, 32, 32, 1), 0.5 if baseline == "mean" else 0.0)
  change = (logits(jnp.asarray(IMAGES / 255)) - logits(empty))[np.arange(3), TARGETS]
  assert abs(change).min() > 1e-3
  np.testing.assert_allclose(found.sum((1, 2)), change, atol=0.005 * abs(change).max())


def test_gradients_of_a_linear_network_are_its_factors(x64):
  net, shown = _linear(FACTORS), COLOURED / 255
  pixels = _maps(({}, {}), "integrated_gradients", net, COLOURED, mean=(0.2, 0.6), baseline="mean")
  expected = (FACTORS[TARGETS] * (shown - [0.2, 0.6])).sum(-1)
  np.testing.assert_allclose(pixels, expected, 1e-5, 1e-6)
  squares = _linear(0 * FACTORS, squared=1.0)  # which the middles of few steps integrate exactly
  pixels = _maps(({}, {}), "integrated_gradients", squares, COLOURED, mean=(0.2, 0.6), steps=4)
  np.testing.assert_allclose(pixels, (shown**2).sum(-1), 1e-5, 1e-6)
  smooth = _maps(({}, {}), "smoothgrad", net, COLOURED, mean=(0.2, 0.6))
  np.testing.assert_allclose(smooth, abs(FACTORS[TARGETS]).max(-1), 1e-5, 1e-6)


def test_smoothgrad_looks_at_noisy_copies(x64):
  """The gradient of half the squared pixels is the noisy image, whose mean is known."""
  net, shown = _linear(0 * FACTORS, squared=0.5), COLOURED / 255
  found = [
    _maps(({}, {}), "smoothgrad", net, COLOURED, mean=(0.2, 0.6), samples=64, seed=seed)
    for seed in (0, 0, 1)
  ]
  np.testing.assert_array_equal(found[0], found[1])
  assert (found[0] != found[2]).all()
  off = found[0] - shown.max(-1)
  assert 0.1 < off.std() / (0.15 / np.sqrt(64)) < 1.1  # the larger of two is less spread than one


@pytest.mark.parametrize(("patch", "stride"), [(4, 2), (5, 3), (32, 32), (0, 0)])
def test_occlusion_is_what_a_loop_over_patches_finds(x64, patch, stride):
  found = _maps(
    ({}, {}), "occlusion", _linear(FACTORS), COLOURED, mean=(0.2, 0.6), patch=patch, stride=stride
  )
  patch, stride = patch or 4, stride or 2
  starts = sorted({*range(0, 32 - patch, stride), 32 - patch})
  lost = FACTORS[TARGETS] * (COLOURED / 255 - [0.2, 0.6])
  total, often = np.zeros((3, 32, 32)), np.zeros((32, 32))
  for top in starts:
    for left in starts:
      box = (slice(top, top + patch), slice(left, left + patch))
      total[:, *box] += lost[:, *box].sum((1, 2, 3))[:, None, None]
      often[box] += 1
  np.testing.assert_allclose(found, total / often, 1e-5, 1e-6)


EVERY = [*(set(saliency.METHODS) - {"attention"})]


@pytest.mark.parametrize("method", sorted(EVERY))
def test_a_map_does_not_depend_on_what_lies_beside_it(x64, weights, monkeypatch, method):
  """Nor on how many changed copies are on the device together."""
  small = {"integrated_gradients": {"steps": 10}, "smoothgrad": {"samples": 10}}.get(method, {})
  together = _maps(weights, method, **small)
  monkeypatch.setattr(outer, "AT_ONCE", 3)
  alone = [
    _maps(weights, method, images=IMAGES[i, None], targets=TARGETS[i, None], **small)[0]
    for i in (0, 2)
  ]
  assert np.ptp(together, axis=(1, 2))[[0, 2]].min() > 0
  np.testing.assert_allclose(alone, together[[0, 2]], 1e-5, 1e-9)


def test_memory_does_not_grow_with_the_samples():
  net, bytes_ = _linear(FACTORS, squared=1.0), []
  for samples in (16, 256):
    look = saliency.compiled(net, saliency.make("smoothgrad", samples=samples), (0.5,) * 2)
    program = look.lower({}, {}, {contract.IMAGE: COLOURED}, TARGETS).compile()
    bytes_.append(program.memory_analysis().temp_size_in_bytes)
  assert bytes_[1] < 1.1 * bytes_[0] + 4096


def _textures(count):
  """Noise [n, 32, 32, 1] with a square of checkers, rows or columns, the square, and which."""
  rng, lines = np.random.default_rng(6), np.indices((32, 32)) // 2 % 2
  images, labels = rng.uniform(0.2, 0.6, (count, 32, 32, 1)), np.arange(count) % 3
  masks = np.zeros((count, 32, 32), bool)
  for image, mask, label in zip(images, masks, labels, strict=True):
    top, left = rng.integers(0, 24, 2)
    mask[top : top + 8, left : left + 8] = True
    texture = (lines.sum(0) % 2, *lines)[label]
    image[mask, 0] = 0.2 + 0.4 * texture[mask]
  return (255 * images).astype(np.uint8), labels.astype(np.int32), masks


def _drawn(seed):
  rng = np.random.default_rng(seed)
  shapes = {"one": (5, 5, 1, 6), "two": (3, 3, 6, 8), "dense": (8, 3)}
  return {name: jnp.asarray(rng.normal(0, 0.3, shape)) for name, shape in shapes.items()}


def _trained(params, images, labels):
  """The weights after 300 steps of Adam on all images, and the share that is then right."""
  batch, adam = {contract.IMAGE: jnp.asarray(images / 255, jnp.float32)}, optax.adam(0.01)

  def loss(params):
    logits = 10 * _apply(params, {}, batch, train=True)[0].output
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), (logits.argmax(1) == labels).mean()

  def step(carry, _):
    (_, right), slopes = jax.value_and_grad(loss, has_aux=True)(carry[0])
    updates, state = adam.update(slopes, carry[1])
    return (optax.apply_updates(carry[0], updates), state), right

  (params, _), right = jax.lax.scan(step, (params, adam.init(params)), None, 300)
  return params, right[-1]


def test_grad_cam_finds_what_was_learnt_and_random_weights_lose_it():
  """Chance is 1; measured 3.2 with learnt weights, and 0.6 to 1.2 with twelve random ones."""
  images, labels, masks = _textures(96)
  learnt, right = jax.jit(_trained)(_drawn(5), images, labels)
  look = saliency.compiled(SMALL, saliency.make("gradcam"), (0.4,))

  def share(params):
    found = np.asarray(look(params, {}, {contract.IMAGE: images}, labels)) + 1e-12
    return ((found * masks).sum((1, 2)) / found.sum((1, 2)) / masks.mean((1, 2))).mean()

  assert right == 1
  assert share(learnt) > 2.5
  assert max(share(_drawn(seed)) for seed in range(20, 24)) < 1.5


def test_weights_are_drawn_anew_from_the_head_down(mednet):
  net, shape = _net(), jnp.zeros((1, 32, 32, 1))
  before = [trees.flatten(tree) for tree in mednet]
  seen = []
  for stage, *trees_ in cascade.anew(net, *mednet, jax.random.key(7), shape):
    seen.append(stage)
    for old, new in zip(before, map(trees.flatten, trees_), strict=True):
      assert old.keys() == new.keys()
      for path in old:
        drawn = any(path.startswith(f"{stage}/") for stage in seen)
        same = np.array_equal(old[path], new[path])
        assert same or drawn, path
        assert not same or not drawn or path.endswith(("bias", "scale")), path
  assert tuple(reversed(seen)) == net.stages


def test_rank_correlation_is_spearmans(x64):
  rng = np.random.default_rng(3)
  one, other = rng.integers(0, 9, (2, 4, 6, 5)).astype(float)  # with ties
  other[3] = 2.0
  expected = [scipy_stats.spearmanr(one[i].ravel(), other[i].ravel())[0] for i in range(3)]
  np.testing.assert_allclose(cascade.rank_correlation(one, other), [*expected, 0], atol=1e-12)
  np.testing.assert_allclose(cascade.rank_correlation(one, one**3), 1)


@pytest.mark.parametrize(
  ("method", "options", "error", "told"),
  [
    ("grad_cam", {}, KeyError, "choose one of gradcam, gradcam"),
    ("occlusion", {"endpoint": "b2"}, ValueError, "no setting 'endpoint'; it has patch, stride"),
    ("attention", {"seed": 1}, ValueError, "it has none"),
    ("smoothgrad", {"samples": 0}, ValueError, "samples=0: give 1 or more"),
    ("occlusion", {"stride": -1}, ValueError, "stride=-1: give 0 or more"),
    ("integrated_gradients", {"baseline": "grey"}, ValueError, "choose black or mean"),
  ],
)
def test_settings_that_do_not_exist_are_told(method, options, error, told):
  with pytest.raises(error, match=told):
    saliency.make(method, **options)


@pytest.mark.parametrize("options", [{"patch": 33}, {"patch": 4, "stride": 5}, {"stride": 9}])
def test_patches_that_leave_pixels_out_are_refused(weights, options):
  with pytest.raises(ValueError, match="give a patch that fits"):
    _maps(weights, "occlusion", **options)
