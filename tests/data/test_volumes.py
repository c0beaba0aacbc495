import gzip

import nibabel
from nibabel import orientations
import numpy as np
import pytest

from medjax import settings
from medjax.data import readers
from medjax.data.readers import frame, volumes

ALL = settings.Reading(frames="all", window="full")


def _packed(values, affine=None, kind=nibabel.Nifti1Image, **header):
  image = kind(values, np.eye(4) if affine is None else affine)
  for key, value in header.items():
    image.header[key] = value
  return image.to_bytes()


def _stack(data, cfg=ALL):
  return np.stack([f.pixels[..., 0] for f in readers.frames(data, cfg)])


def _scaled(values):
  low, high = np.nanmin(values), np.nanmax(values)
  return np.rint(np.nan_to_num((values - low) / max(high - low, 1e-30), nan=0.0) * 65535)


def _as_looked_at(ras, axis):
  """[X, Y, Z] in RAS -> [slices, rows, columns], each written out by hand."""
  if axis == "axial":
    return np.stack([ras[::-1, ::-1, k].T for k in range(ras.shape[2])])
  if axis == "coronal":
    return np.stack([ras[::-1, j, ::-1].T for j in range(ras.shape[1])])
  return np.stack([ras[i, ::-1, ::-1].T for i in range(ras.shape[0])])


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_every_volume_equals_nibabels_own_array_in_ras(shared_data, axis):
  files = sorted((shared_data / "nifti").iterdir())
  assert len(files) == 8
  for file in files:
    image = nibabel.as_closest_canonical(nibabel.load(file))
    ras = np.asanyarray(image.dataobj).astype(float)
    series = np.moveaxis(ras, -1, 0) if ras.ndim == 4 else ras[None]
    want = np.concatenate([_as_looked_at(_scaled(volume), axis) for volume in series])
    cfg = settings.Reading(frames="all", window="full", axis=axis)
    got = _stack(file.read_bytes(), cfg)
    assert got.shape == want.shape, file.name
    assert np.abs(got.astype(int) - want).max() <= 1, file.name  # rounded the other way


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "ASL"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.MGHImage])
def test_a_mark_lies_where_a_radiologist_looks_for_it(codes, kind):
  ras = np.zeros((7, 9, 11), np.float32)
  ras[1, 7, 9] = 1.0  # to the left, anterior, superior
  way = orientations.axcodes2ornt(tuple(codes))
  back = orientations.ornt_transform(orientations.axcodes2ornt(tuple("RAS")), way)
  values = orientations.apply_orientation(ras, back)
  affine = np.linalg.inv(orientations.inv_ornt_aff(way, values.shape))
  data = _packed(np.ascontiguousarray(values), affine, kind)

  def place(axis):
    stack = _stack(data, settings.Reading(frames="all", window="full", axis=axis))
    return tuple(int(i) for i in np.unravel_index(stack.argmax(), stack.shape))

  # slice from inferior, posterior or left; row from the top; column: the patient's left is right
  assert place("axial") == (9, 9 - 1 - 7, 7 - 1 - 1)
  assert place("coronal") == (7, 11 - 1 - 9, 7 - 1 - 1)
  assert place("sagittal") == (1, 11 - 1 - 9, 9 - 1 - 7)


def test_a_series_counts_on_volume_after_volume():
  values = np.zeros((2, 3, 4, 6), np.int16)
  values += np.arange(4, dtype=np.int16)[:, None] + 10 * np.arange(6, dtype=np.int16)
  values[0, 0, 0], values[0, 0, 1] = 100, -1  # every volume spans the same range
  data = _packed(values)

  def shades(policy):
    cfg = settings.Reading(frames=policy, window="full")
    return [
      (f.index, round(float(f.pixels[0, 0, 0]) * 101 / 65535) - 1)
      for f in readers.frames(data, cfg)
    ]

  assert shades("middle") == [(14, 32)]  # slice 2 of volume 3
  assert shades("all") == [(i, i % 4 + i // 4 * 10) for i in range(24)]
  assert shades("every:5:3") == [(0, 0), (5, 11), (10, 22)]


def test_volumes_of_five_axes_count_the_fourth_first():
  values = np.zeros((2, 2, 1, 2, 3), np.int16)
  values[0, 0, 0] = np.array([[1], [2]]) * 10 + np.arange(3)  # written last: the corner
  values[1, 1, 0], values[1, 0, 0] = 100, 0
  frames = readers.frames(_packed(values), ALL)
  corners = [round(float(f.pixels[1, 1, 0]) * 100 / 65535) for f in frames]
  assert corners == [10, 20, 11, 21, 12, 22]


def test_windows_of_volumes():
  values = np.linspace(-1000, 3000, 4096).reshape(16, 16, 16)
  values.flat[:4], values.flat[-4:] = -30_000, 30_000

  def span(cfg, **header):
    data = _packed(values.astype(np.float32), None, **header)
    shown = np.concatenate([f.pixels.ravel() for f in readers.frames(data, cfg)])
    turned = np.concatenate([s.ravel() for s in _as_looked_at(values, "axial")])
    inner = (shown > 0) & (shown < 65535)
    return turned[inner].min(), turned[inner].max()

  def reading(window):
    return settings.Reading(frames="all", window=window)

  assert span(reading("lung")) == pytest.approx((-1000, 150), abs=4)
  assert span(reading("brain")) == pytest.approx((0, 80), abs=2)
  low, high = np.percentile(values, (1, 99))
  assert span(reading("file")) == pytest.approx((low, high), abs=2)
  assert span(reading("percentile"), cal_min=0, cal_max=9) == pytest.approx((low, high), abs=2)
  assert span(reading("file"), cal_min=500, cal_max=900) == pytest.approx((500, 900), abs=2)


def test_scale_of_the_header_is_applied_and_bits_survive():
  values = np.arange(4096, dtype=np.int16).reshape(64, 64, 1)
  image = nibabel.Nifti1Image(values, np.eye(4))
  image.header.set_slope_inter(0.5, -100)
  got = _stack(image.to_bytes())
  assert len(np.unique(got)) == 4096
  brain = _stack(image.to_bytes(), settings.Reading(window="brain"))
  assert (brain[0] == 0).sum() == 201  # up to the stored 200: 0.5 x 200 - 100 = 0 HU


def test_not_a_number_is_black():
  values = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
  values[0, 0, 0], values[1, 1, 1] = np.nan, np.inf
  got = _stack(_packed(values))
  turned = _as_looked_at(values, "axial")
  assert got[np.isnan(turned)] == 0
  assert got[np.isinf(turned)] == got[turned == 63] == 65535
  assert got[turned == 32] == np.rint(31 / 62 * 65535)


def test_colour_volumes_keep_their_colour():
  rng = np.random.default_rng(0)
  rgb = rng.integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
  values = rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
  (found,) = readers.frames(_packed(values), settings.Reading())
  assert found.about.colour
  np.testing.assert_array_equal(found.pixels, rgb[::-1, ::-1, 3].swapaxes(0, 1))


def test_gzip_or_not_is_the_same():
  data = _packed(np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32))
  np.testing.assert_array_equal(_stack(gzip.compress(data)), _stack(data))


@pytest.mark.parametrize("shape", [(5,), (5, 6)])
def test_flat_volumes_are_read(shape):
  values = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
  got = _stack(_packed(values))
  assert got.shape == (1, *(*shape, 1)[1::-1])
  assert len(np.unique(got)) == values.size


def _header(**fields):
  data = bytearray(_packed(np.zeros((2, 2, 2), np.int16)))
  header = nibabel.Nifti1Header(bytes(data[:348]))
  for key, value in fields.items():
    header[key] = value
  return header.binaryblock + bytes(data[348:])


BAD = {
  "large": (_header(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]), "30,000 x 30,000 x 30,000 voxels"),
  "none": (_header(dim=[3, 0, 2, 2, 1, 1, 1, 1]), "no voxels"),
  "short": (_packed(np.zeros((20, 20, 20), np.int16))[:5000], "damaged volume"),
  "complex": (_packed(np.zeros((2, 2, 2), np.complex64)), "no grey values"),
  "pair": (_header(magic=b"ni1"), "without its voxels"),
  "gzip": (gzip.compress(b"a letter"), "gzip of something else"),
  "cut": (gzip.compress(_packed(np.ones((9, 9, 9), np.int16)))[:-20], "damaged volume"),
}


@pytest.mark.parametrize("name", BAD)
def test_unreadable_says_why(name):
  data, reason = BAD[name]
  with pytest.raises(readers.Unreadable, match=reason):
    list(readers.frames(data))


def test_a_gzip_bomb_is_refused(monkeypatch):
  monkeypatch.setattr(frame, "MAX_BYTES", 10**6)
  bomb = gzip.compress(bytes(10**7))
  with pytest.raises(readers.Unreadable, match="unpacks to more than the limit of 1,000,000 bytes"):
    list(volumes.frames(bomb, settings.Reading()))
