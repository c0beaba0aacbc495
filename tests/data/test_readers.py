import io
import resource
import struct
import warnings
import zlib

import cv2
import jax
import numpy as np
from PIL import Image, ImageOps
import pytest
import simplejpeg
from trees_of_files import encoded

from medjax import settings
from medjax.data import readers
from medjax.data.readers import frame


def _png_16(pixels):
  """A 16-bit PNG of [H, W, C], written by hand: neither library writes grey with alpha."""
  kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
  height, width = pixels.shape[:2]
  lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)

  def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

  header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
  body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + body


def _smooth(rng, height, width, channels):
  """Smooth random uint8 pixels, as JPEG keeps them."""
  coarse = rng.integers(0, 256, (4, 5, channels), dtype=np.uint8)
  return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).reshape(
    height, width, channels
  )


@pytest.fixture
def rng():
  return np.random.default_rng(0)


GREY_MODES = {
  "L": lambda grey: grey,
  "LA": lambda grey: grey.convert("LA"),
  "RGB": lambda grey: grey.convert("RGB"),
  "RGBA": lambda grey: grey.convert("RGBA"),
  "P": lambda grey: grey.convert("P"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
  ("kind", "mode"),
  [(k, m) for k in ("PNG", "TIFF", "BMP") for m in GREY_MODES if (k, m) != ("BMP", "LA")],
)
def test_no_trace_of_mode_or_format(rng, kind, mode, channels):
  pixels = rng.integers(0, 256, (40, 30), dtype=np.uint8)
  image = GREY_MODES[mode](Image.fromarray(pixels))
  got = readers.read(encoded(image, kind), 16, channels)
  want = readers.read(pixels, 16, channels)
  assert got.shape == (16, 16, channels)
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, want)


def test_bilevel_png(rng):
  pixels = rng.integers(0, 2, (16, 16)).astype(bool)
  got = readers.read(encoded(Image.fromarray(pixels)), 16, 1)
  np.testing.assert_array_equal(got[..., 0], pixels * 255)


@pytest.mark.parametrize("kind", [".png", ".jpg", ".bmp", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_agrees_with_opencv(rng, kind, channels):
  pixels = _smooth(rng, 37, 50, channels)
  data = cv2.imencode(kind, pixels)[1].tobytes()
  flag = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
  want = cv2.imdecode(np.frombuffer(data, np.uint8), flag).reshape(37, 50, channels)[..., ::-1]
  got = readers.decode(data)
  if kind == ".jpg":  # the two libraries carry two JPEG decoders
    assert np.abs(got.astype(int) - want).max() <= 2
  else:
    np.testing.assert_array_equal(got, want)


def test_cmyk_jpeg_becomes_rgb(rng):
  pixels = _smooth(rng, 32, 32, 3)
  data = encoded(Image.fromarray(pixels).convert("CMYK"), "JPEG", quality=100)
  got = readers.read(data, 32, 3)
  assert np.abs(got.astype(int) - pixels).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(rng, kind, orientation):
  image = Image.fromarray(_smooth(rng, 24, 40, 3))
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(image, kind, exif=exif)
  want = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  np.testing.assert_array_equal(readers.decode(data), np.asarray(want))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bit_tiff(rng, orientation):
  pixels = rng.integers(0, 65536, (6, 9), dtype=np.uint16)
  data = encoded(Image.fromarray(pixels), "TIFF", tiffinfo={0x0112: orientation})
  want = Image.fromarray((pixels >> 8).astype(np.uint8))
  want.getexif()[0x0112] = orientation
  np.testing.assert_array_equal(
    readers.decode(data)[..., 0] >> 8, np.asarray(ImageOps.exif_transpose(want))
  )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_16_bit_png(rng, orientation):
  pixels = rng.integers(0, 65536, (6, 9), dtype=np.uint16)
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encoded(Image.fromarray(pixels), "PNG", exif=exif)
  want = Image.fromarray((pixels >> 8).astype(np.uint8))
  want.getexif()[0x0112] = orientation
  np.testing.assert_array_equal(
    readers.decode(data)[..., 0] >> 8, np.asarray(ImageOps.exif_transpose(want))
  )


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_16_bit_ramp_is_scaled_not_clipped(kind):
  ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  data = cv2.imencode(kind, ramp)[1].tobytes()
  decoded = readers.decode(data)
  assert decoded.dtype == np.uint16
  assert len(np.unique(decoded)) > 4000
  np.testing.assert_array_equal(decoded[..., 0], ramp)
  got = readers.read(data, 256, 1)[..., 0]
  assert len(np.unique(got)) == 256
  np.testing.assert_array_equal(got, np.rint(ramp / 257.0))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_of_every_kind(rng, channels):
  pixels = rng.integers(0, 65536, (12, 9, channels), dtype=np.uint16)
  decoded = readers.decode(_png_16(pixels))
  colour, alpha = (pixels[..., :-1], pixels[..., -1:]) if channels in (2, 4) else (pixels, None)
  grey_as_rgb = np.broadcast_to(colour, (12, 9, 3))
  want = grey_as_rgb if channels > 1 else colour
  np.testing.assert_array_equal(decoded[..., : want.shape[2]], want)
  if alpha is not None:
    np.testing.assert_array_equal(decoded[..., 3:], alpha)
    want = grey_as_rgb * (alpha / 65535.0)
  square = readers.read(_png_16(pixels[:9]), 9, 3)
  want_8 = np.broadcast_to(want[:9], (9, 9, 3)) / 257.0
  assert np.abs(square - want_8).max() <= 0.51


def test_transparency_is_composited_on_black():
  pixels = np.array([[[200, 100, 50, 255], [200, 100, 50, 128], [200, 100, 50, 0]]] * 3, np.uint8)
  got = readers.read(encoded(Image.fromarray(pixels)), 3, 3)
  np.testing.assert_array_equal(got[0], [[200, 100, 50], [100, 50, 25], [0, 0, 0]])


def test_transparent_palette_entry_is_black():
  image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8), "L").convert("P")
  image.putpalette([250, 250, 250, 90, 80, 70])
  got = readers.read(encoded(image, transparency=0), 2, 3)
  np.testing.assert_array_equal(got[0], [[0, 0, 0], [90, 80, 70]])


@pytest.mark.parametrize("size", [8, 20, 64])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_stretch_is_antialiased_bilinear(rng, size, depth, channels):
  top = np.iinfo(depth).max
  pixels = rng.integers(0, top + 1, (45, 31, channels)).astype(depth)
  shape = (size, size, channels)
  want = jax.image.resize(pixels.astype(np.float32), shape, "linear", antialias=True)
  got = readers.fit(pixels, size, channels)
  # Pillow rounds to 8 bits after each direction, and 16 bits are rounded once.
  assert np.abs(got - np.asarray(want) / (top // 255)).max() <= 1.01


def test_grey_is_rec_601_luminance():
  colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)
  np.testing.assert_array_equal(readers.fit(colours, 2, 1)[..., 0], [[76, 150], [29, 255]])


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_grey_kept_as_rgb_is_exactly_grey(depth):
  values = np.linspace(0, np.iinfo(depth).max, 256).astype(depth).reshape(16, 16, 1)
  rgb = np.repeat(values, 3, axis=2)
  np.testing.assert_array_equal(readers.fit(rgb, 16, 1), readers.fit(values, 16, 1))


def _multipage():
  pages = [Image.new("L", (8, 8)), Image.new("L", (8, 4))]
  return encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])


BAD = {
  "empty": (lambda: b"", "0 bytes"),
  "text": (lambda: b"id,label\n1,2\n" * 20, "no PNG, JPEG, BMP, TIFF image"),
  "gif": (lambda: encoded(Image.new("L", (8, 8)), "GIF"), "no PNG, JPEG"),
  "pages": (_multipage, "2 pages of different sizes"),
  "npz": (lambda: _saved(np.zeros((8, 8), np.uint8), ["train_images", "b"]), "holds 2 arrays"),
  "float npy": (lambda: _saved(np.zeros((8, 8), np.float32)), "pixels are float32"),
  "stack npy": (lambda: _saved(np.zeros((8, 8, 8), np.uint8)), "not uint8 or uint16"),
  "short npy": (lambda: _saved(np.zeros((8, 8), np.uint8))[:-3], "damaged"),
  "float": (lambda: encoded(Image.new("F", (8, 8)), "TIFF"), "no known range"),
  "signed": (lambda: encoded(Image.new("I", (8, 8)), "TIFF"), "no known range"),
}


@pytest.mark.parametrize("name", BAD)
def test_unreadable_says_why(name):
  data, reason = BAD[name]
  with pytest.raises(readers.Unreadable, match=reason):
    readers.read(data(), 8, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files_are_unreadable(rng, kind, share):
  data = encoded(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
  with pytest.raises(readers.Unreadable), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Pillow's, about the damage
    readers.decode(data[: int(share * len(data))])


@pytest.mark.parametrize("channels", [1, 3])
def test_truncated_16_bit_png_is_unreadable(rng, channels):
  data = _png_16(rng.integers(0, 65536, (64, 64, channels), dtype=np.uint16))
  with pytest.raises(readers.Unreadable):
    readers.decode(data[: len(data) // 2])


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF"])
def test_damage_never_escapes_as_another_error(rng, kind):
  whole = encoded(Image.fromarray(_smooth(rng, 16, 16, 3)), kind)
  for _ in range(200):
    data = bytearray(whole)
    for place in rng.integers(0, len(data), 4):
      data[place] = rng.integers(256)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      try:
        assert readers.read(bytes(data), 8, 3).shape == (8, 8, 3)
      except readers.Unreadable as error:
        assert str(error)


@pytest.mark.parametrize(
  "pixels",
  [np.zeros((4, 4), np.float32), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4), np.uint8)],
)
def test_pixels_of_another_kind_are_refused(pixels):
  with pytest.raises(readers.Unreadable, match="pixels"):
    readers.read(pixels, 8, 1)


def test_covid_ct_by_two_decoders(shared_data):
  files = sorted((shared_data / "covid_ct").glob("CT_*/*"))[::25]
  assert len(files) > 25
  for file in files:
    got = readers.decode(file.read_bytes())
    want = cv2.imread(str(file), cv2.IMREAD_COLOR)[..., ::-1]
    gap = np.abs(np.broadcast_to(got[..., :3], want.shape).astype(int) - want)
    assert gap.max() <= 3 and gap.mean() < 0.5, file.name


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_equals_pillow(rng, mode, subsampling, progressive):
  image = Image.fromarray(_smooth(rng, 61, 83, 3)).convert(mode)
  data = encoded(image, "JPEG", subsampling=subsampling, progressive=progressive)
  want = np.asarray(Image.open(io.BytesIO(data))).reshape(61, 83, -1)
  np.testing.assert_array_equal(readers.decode(data), want)


def test_jpeg_with_stray_bytes_is_read_as_pillow_reads_it(rng):
  data = encoded(Image.fromarray(_smooth(rng, 40, 40, 3)), "JPEG")
  stray = data[:-2] + b"\x00\x01\x02" + data[-2:]
  with pytest.raises(ValueError):
    simplejpeg.decode_jpeg(stray)
  want = np.asarray(Image.open(io.BytesIO(stray)))
  np.testing.assert_array_equal(readers.decode(stray), want)


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_pages_of_a_tiff_come_in_order(depth):
  pages = [np.full((6, 9), 40 * shade, depth) + np.arange(9, dtype=depth) for shade in range(5)]
  first, *others = map(Image.fromarray, pages)
  data = encoded(first, "TIFF", save_all=True, append_images=others)
  frames = list(readers.frames(data, settings.Reading(frames="all")))
  assert [found.index for found in frames] == [0, 1, 2, 3, 4]
  np.testing.assert_array_equal([found.pixels[..., 0] for found in frames], pages)
  np.testing.assert_array_equal(readers.decode(data)[..., 0], pages[2])


def _saved(array, pack=None):
  stream = io.BytesIO()
  np.save(stream, array) if pack is None else np.savez(stream, **dict.fromkeys(pack, array))
  return stream.getvalue()


@pytest.mark.parametrize("pack", [None, ["image"]])
@pytest.mark.parametrize("dtype", ["|u1", "<u2", ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numpy_files(rng, pack, dtype, order):
  pixels = rng.integers(0, 256, (5, 7, 3)).astype(dtype, order=order)
  found = readers.decode(_saved(pixels, pack))
  assert found.dtype in (np.uint8, np.uint16)
  np.testing.assert_array_equal(found, pixels)


def _vast(kind):
  """A small file whose header claims 60,000 x 60,000 pixels."""
  if kind == "PNG":
    data = bytearray(encoded(Image.new("L", (8, 8)), "PNG"))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
  elif kind == "JPEG":
    data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 60_000, 60_000)
  elif kind == "BMP":
    data = bytearray(encoded(Image.new("L", (8, 8)), "BMP"))
    data[18:26] = struct.pack("<ii", 60_000, 60_000)
  elif kind == "TIFF":
    data = bytearray(encoded(Image.new("L", (8, 8)), "TIFF"))
    for tag in (256, 257):
      place = data.index(struct.pack("<HHI", tag, 4, 1)) + 8
      data[place : place + 4] = struct.pack("<I", 60_000)
  else:
    data = _saved(np.zeros((10, 10), np.uint8)).replace(b"(10, 10), }   ", b"(60000,60000)}")
  return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "NumPy"])
def test_vast_headers_are_refused_before_memory_is_taken(kind):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(readers.Unreadable, match=r"limit|3600000000"):
    readers.decode(_vast(kind))
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_an_image_just_above_the_limit_is_refused():
  size = int(frame.MAX_PIXELS**0.5) + 1
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Pillow's, about the size
    with pytest.raises(readers.Unreadable, match=f"above the limit of {frame.MAX_PIXELS:,}"):
      readers.decode(encoded(Image.new("1", (size, size)), "PNG"))


@pytest.mark.parametrize("channels", [1, 3])
def test_smart_resize_keeps_the_aspect_ratio(rng, channels):
  cfg = settings.Reading(resize="smart")
  pixels = np.full((30, 60, channels), 200, np.uint8)
  got = readers.fit(pixels, 40, channels, cfg)
  want = np.zeros((40, 40, channels), np.uint8)
  want[10:30] = 200
  np.testing.assert_array_equal(got, want)
  tall = readers.fit(pixels.swapaxes(0, 1), 40, channels, cfg)
  np.testing.assert_array_equal(tall, want.swapaxes(0, 1))
  line = readers.fit(np.full((1, 300, 1), 9, np.uint8), 10, 1, cfg)
  assert (line == 9).sum() == 10
  square = rng.integers(0, 256, (40, 40, channels), dtype=np.uint8)
  np.testing.assert_array_equal(readers.fit(square, 40, channels, cfg), square)


@pytest.mark.parametrize("resize", ["stretch", "smart"])
def test_depth_16_keeps_16_bits_and_widens_8(rng, resize):
  cfg = settings.Reading(depth=16, resize=resize)
  ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  got = readers.read(_png_16(ramp[..., None]), 256, 1, cfg)
  assert got.dtype == np.uint16
  np.testing.assert_array_equal(got[..., 0], ramp)
  small = readers.read(ramp, 128, 1, cfg)
  assert len(np.unique(small)) > 4000
  pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
  np.testing.assert_array_equal(readers.read(pixels, 20, 3, cfg), pixels * np.uint16(257))


def test_about_tells_what_the_file_holds(rng):
  grey = rng.integers(0, 255, (6, 9), dtype=np.uint8)
  for image, bits, colour in (
    (Image.fromarray(grey), 8, False),
    (Image.fromarray(grey).convert("RGB"), 8, False),
    (Image.fromarray(np.dstack([grey, grey, grey + 1])), 8, True),
    (Image.fromarray(grey > 99), 1, False),
    (Image.fromarray(grey.astype(np.uint16)), 16, False),
  ):
    for kind in ("PNG", "TIFF"):
      about = next(readers.frames(encoded(image, kind))).about
      assert (about.format, about.bits, about.colour) == (kind, bits, colour)
      assert (about.height, about.width) == (6, 9)
  exif = Image.Exif()
  exif[0x0112] = 6
  about = next(readers.frames(encoded(Image.fromarray(grey), "PNG", exif=exif))).about
  assert (about.height, about.width) == (9, 6)
  assert about.steps == ("turned upright by its EXIF orientation",)
