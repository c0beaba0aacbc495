import io
import itertools

import numpy as np
from PIL import Image
import pytest
from scipy import fft

from medjax.data import duplicates
from medjax.data.duplicates import hamming


def _smooth(rng, count, side=64):
  """Pictures with most of their light in low frequencies, as photographs have: [n, side, side]."""
  low = rng.normal(size=(count, 12, 12)) / (1 + np.add.outer(np.arange(12), np.arange(12)))
  low[:, 0, 0] = 0
  waves = fft.idctn(low, s=(side, side), axes=(1, 2), norm="ortho")
  waves /= np.abs(waves).max((1, 2), keepdims=True)
  return np.rint(128 + 110 * waves).astype(np.uint8)


def _clustered(rng, count):
  """Hashes of which many are within a few bits of one another, or of one another's complement."""
  middles = rng.integers(1, 2**64, count // 20, dtype=np.uint64)
  chosen = middles[rng.integers(0, len(middles), count)]
  flips = rng.random((count, 64)) < rng.uniform(0, 0.12, (count, 1))
  chosen ^= (flips << np.arange(64, dtype=np.uint64)).sum(1, dtype=np.uint64)
  return np.where(rng.random(count) < 0.3, ~chosen, chosen)


def _brute_force(hashes, negative=False, parts=None):
  other = ~hashes if negative else hashes
  near = np.bitwise_count(hashes[:, None] ^ other[None]) <= 8
  near &= (hashes[:, None] != 0) & (hashes[None] != 0)
  if parts is not None:
    near &= parts[:, None] != parts[None]
  return set(zip(*np.nonzero(np.triu(near, 1)), strict=True))


def _candidates(hashes, negative=False, parts=None):
  search = hamming.Search(hashes, parts, most=1000)
  found = [
    pair
    for left, right in search.candidates(negative)
    for pair in zip(left.tolist(), right.tolist(), strict=True)
  ]
  assert len(set(found)) == len(found)
  assert not search.crowded.any()
  return set(found)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_bands_find_what_brute_force_over_all_pairs_finds(seed, negative):
  rng = np.random.default_rng(seed)
  hashes = _clustered(rng, 3000)
  hashes[rng.integers(0, 3000, 30)] = 0
  expected = _brute_force(hashes, negative)
  assert len(expected) > 1000
  assert _candidates(hashes, negative) == expected
  parts = rng.integers(0, 3, 3000)
  across = _brute_force(hashes, negative, parts)
  assert 0 < len(across) < len(expected)
  assert _candidates(hashes, negative, parts) == across


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_images_have_few_pairs(count):
  images = _smooth(np.random.default_rng(0), count)
  hashes = duplicates.hashes(images)
  assert hashes.shape == (count,)
  assert len(duplicates.pairs(hashes, lambda rows: images[rows])) == 0


def test_every_spread_of_eight_bits_is_found_and_nine_bits_are_not():
  rng = np.random.default_rng(0)
  one = rng.integers(1, 2**64, dtype=np.uint64)
  for _ in range(20):
    bits = rng.permutation(64)[:9].astype(np.uint64)
    far = one ^ np.bitwise_or.reduce(np.uint64(1) << bits)
    near = far ^ (np.uint64(1) << bits[0])
    assert _candidates(np.array([one, near])) == {(0, 1)}
    assert _candidates(np.array([one, far])) == set()
    assert _candidates(np.array([one, ~near]), negative=True) == {(0, 1)}


def test_bits_are_signs_of_the_lowest_cosines():
  images = _smooth(np.random.default_rng(0), 50)
  spectra = fft.dctn(images.astype(float), axes=(1, 2))
  u, v = np.divmod(np.arange(64**2), 64)
  lowest = sorted(range(64**2), key=lambda i: (u[i] ** 2 + v[i] ** 2, u[i]))[1:65]
  signs = spectra.reshape(50, -1)[:, lowest] > 0
  bits = [i for band in range(3) for i in range(band, 64, 3)]
  expected = [sum(int(row[i]) << place for place, i in enumerate(bits)) for row in signs]
  assert duplicates.hashes(images).tolist() == expected


def test_negative_has_the_complement():
  images = _smooth(np.random.default_rng(0), 200)
  np.testing.assert_array_equal(duplicates.hashes(255 - images), ~duplicates.hashes(images))


def test_flat_images_have_no_hash_and_no_pair():
  rng = np.random.default_rng(0)
  flat = 100 + (rng.random((20, 64, 64)) < 0.2).astype(np.uint8)
  images = np.concatenate([flat, np.zeros((5, 64, 64), np.uint8), _smooth(rng, 1).repeat(2, 0)])
  hashes = duplicates.hashes(images)
  assert (hashes[:25] == 0).all()
  pairs = duplicates.pairs(hashes, lambda rows: images[rows])
  assert list(zip(pairs.left, pairs.right, strict=True)) == [(25, 26)]


def test_correlation_is_numpys():
  rng = np.random.default_rng(0)
  images = _smooth(rng, 40)
  images[39] = 7
  one, other = rng.integers(0, 39, (2, 300))
  expected = [np.corrcoef(images[[a, b]].reshape(2, -1))[0, 1] for a, b in np.stack([one, other]).T]
  np.testing.assert_allclose(duplicates.correlations(images, one, other), expected, atol=1e-6)
  assert not duplicates.correlations(images, one, np.full(300, 39)).any()


def _changed(images, rng):
  """Each image once more: brighter, as its negative, or noisy."""
  brighter = np.rint(20 + 0.8 * images[0::3]).astype(np.uint8)
  noisy = np.clip(images[2::3] + rng.normal(0, 3, images[2::3].shape), 0, 255).astype(np.uint8)
  return [*brighter], [*(255 - images[1::3])], [*noisy]


def test_changed_pictures_are_found_and_others_are_not():
  rng = np.random.default_rng(0)
  images = _smooth(rng, 300)
  again = [image for three in zip(*_changed(images, rng), strict=True) for image in three]
  both = np.concatenate([images, again])
  asked = []

  def thumbs_of(rows):
    asked.append(rows)
    return both[rows]

  pairs = duplicates.pairs(duplicates.hashes(both), thumbs_of)
  assert list(zip(pairs.left, pairs.right, strict=True)) == [(i, 300 + i) for i in range(300)]
  assert (np.sign(pairs.correlation) == np.tile([1, -1, 1], 100)).all()
  assert pairs.crowded == 0
  assert all((np.diff(rows) > 0).all() for rows in asked)


def test_like_hashes_of_unlike_pixels_are_no_pair():
  rng = np.random.default_rng(0)
  image = _smooth(rng, 1)[0]
  fine = 40 * rng.choice([-1, 1], (64, 64))  # high frequencies, which the hash does not see
  images = np.stack([image, np.clip(image + fine, 0, 255).astype(np.uint8)])
  hashes = duplicates.hashes(images)
  assert np.bitwise_count(hashes[0] ^ hashes[1]) <= 8
  assert np.corrcoef(images.reshape(2, -1))[0, 1] < 0.985
  assert len(duplicates.pairs(hashes, lambda rows: images[rows])) == 0


def test_pairs_do_not_depend_on_the_order_of_rows():
  rng = np.random.default_rng(0)
  images = _smooth(rng, 100)
  images = np.concatenate([images, images[:50] // 2, 255 - images[:30]])
  hashes, order = duplicates.hashes(images), rng.permutation(180)
  pairs = duplicates.pairs(hashes, lambda rows: images[rows])
  moved = duplicates.pairs(hashes[order], lambda rows: images[order][rows])
  there = {tuple(sorted(p)) for p in zip(order[moved.left], order[moved.right], strict=True)}
  assert there == set(zip(pairs.left, pairs.right, strict=True))
  assert len(there) == 50 + 30 + 30


def test_a_crowd_costs_little_and_is_told():
  images = _smooth(np.random.default_rng(0), 2)
  hashes = duplicates.hashes(images).repeat([9000, 1])
  pairs = duplicates.pairs(hashes, lambda rows: images[(rows >= 9000).astype(int)], most=16)
  assert len(pairs) <= 9000 * 16
  assert pairs.crowded > 8000
  assert set(np.concatenate([pairs.left, pairs.right])) == set(range(9000))


def test_thumbnails_are_means_over_areas():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (128, 192, 1), np.uint8)
  blocks = image.reshape(64, 2, 64, 3).mean((1, 3))
  np.testing.assert_allclose(duplicates.thumbnails(image), blocks, atol=0.51)
  deep = rng.integers(0, 2**16, (128, 128, 1), np.uint16)
  blocks = deep.reshape(64, 2, 64, 2).mean((1, 3)) / 257
  np.testing.assert_allclose(duplicates.thumbnails(deep), blocks, atol=0.51)


def test_thumbnails_of_colour_are_luminance():
  image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  grey = image @ [0.299, 0.587, 0.114]
  np.testing.assert_allclose(duplicates.thumbnails(image), grey, atol=0.51)


def test_thumbnails_of_many_are_those_of_each():
  images = np.random.default_rng(0).integers(0, 256, (5, 30, 100, 3), np.uint8)
  expected = np.stack([duplicates.thumbnails(image) for image in images])
  assert expected.shape == (5, 64, 64)
  np.testing.assert_array_equal(duplicates.thumbnails(images), expected)
  assert duplicates.thumbnails(images[:0]).shape == (0, 64, 64)


@pytest.mark.parametrize("shape", [(28, 28), (40, 300), (300, 40), (1, 1), (500, 3)])
def test_thumbnails_of_one_grey_stay_so(shape):
  image = np.full((*shape, 1), 77, np.uint8)
  np.testing.assert_array_equal(duplicates.thumbnails(image), np.full((64, 64), 77))


def _recompressed(picture, quality):
  buffer = io.BytesIO()
  picture.save(buffer, "JPEG", quality=quality)
  return Image.open(buffer)


def test_recompressed_and_rescaled_pictures_are_found(shared_data):
  files = sorted((shared_data / "chest_xray_kermany").glob("*/*/*"))[::29]
  films = [Image.open(file).convert("L") for file in files]
  again = [_recompressed(film, quality=30) for film in films]
  smaller = [film.resize((97, 150), Image.Resampling.BICUBIC) for film in films]
  images = [np.asarray(film)[..., None] for film in itertools.chain(films, again, smaller)]
  thumbs = np.stack([duplicates.thumbnails(image) for image in images])
  pairs = duplicates.pairs(duplicates.hashes(thumbs), lambda rows: thumbs[rows])
  count = len(films)
  assert count > 200
  found = list(zip((pairs.left % count).tolist(), (pairs.right % count).tolist(), strict=True))
  assert len(found) >= 0.99 * 3 * count  # each film, its copy and its smaller copy: three pairs
  assert all(one == other for one, other in found)
