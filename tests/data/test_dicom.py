import io
import logging
import re
import warnings

import numpy as np
import pydicom
from pydicom import pixels as pydicom_pixels
from pydicom import uid
import pytest

from medjax import settings
from medjax.data import readers
from medjax.data.readers import dicom

pytestmark = pytest.mark.filterwarnings("ignore:::pydicom")

ALL = settings.Reading(frames="all")
FULL = settings.Reading(window="full", depth=16)


def _files(shared_data):
  return sorted(path for path in (shared_data / "dicom").rglob("*") if path.is_file())


def _named(shared_data, name):
  (found,) = (shared_data / "dicom").rglob(name)
  return found


def _stored(path):
  """What pydicom itself makes of a file: frames, or None where it fails."""
  header = pydicom.dcmread(path)
  try:
    stored = header.pixel_array
  except Exception:
    return None
  return stored if int(header.get("NumberOfFrames") or 1) > 1 else stored[None]


def _bytes(header):
  stream = io.BytesIO()
  pydicom.dcmwrite(stream, header, enforce_file_format=True)
  return stream.getvalue()


def _grey(stored, bits=16, photometric="MONOCHROME2", **elements):
  """A file of grey frames [H, W] or [n, H, W]."""
  header = pydicom.Dataset()
  header.file_meta = pydicom.dataset.FileMetaDataset()
  header.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
  header.SOPClassUID = uid.SecondaryCaptureImageStorage
  header.SOPInstanceUID = "1.2.3"
  header.Rows, header.Columns = stored.shape[-2:]
  header.NumberOfFrames = 1 if stored.ndim == 2 else len(stored)
  header.SamplesPerPixel, header.PhotometricInterpretation = 1, photometric
  header.BitsAllocated = 8 * stored.itemsize
  header.BitsStored, header.HighBit = bits, bits - 1
  header.PixelRepresentation = int(stored.dtype.kind == "i")
  header.PixelData = stored.tobytes()
  for keyword, value in elements.items():
    setattr(header, keyword, value)
  return header


def _ramp(bits=12):
  return np.arange(2**bits, dtype=np.uint16).reshape(64, -1)


def test_every_file_is_read_or_refused_with_its_reason(shared_data):
  read, refused = [], {}
  for path in _files(shared_data):
    try:
      read.append([path, list(readers.frames(path.read_bytes(), ALL))])
    except readers.Unreadable as error:
      refused[path.name] = str(error)
  assert len(_files(shared_data)) == 151
  assert len(read) == 92
  assert all(refused.values())
  assert refused["rtplan.dcm"] == "DICOM without pixels (RT Plan Storage)"
  assert "less than expected (8130 vs 8192 bytes)" in refused["MR_truncated.dcm"]
  for path, frames in read:
    assert [frame.index for frame in frames] == list(range(len(frames))), path
    assert all(frame.pixels.dtype in (np.uint8, np.uint16) for frame in frames), path
    assert all(frame.pixels.shape[2] in (1, 3) for frame in frames), path


def test_stored_values_equal_pydicoms_own_arrays(shared_data):
  compared = 0
  for path in _files(shared_data):
    want = _stored(path)
    if want is not None:
      header = dicom._header(path.read_bytes())
      got = list(dicom.stored_frames(header, range(len(want))))
      np.testing.assert_array_equal(got, want, err_msg=path.name)
      compared += 1
    else:
      with pytest.raises(readers.Unreadable):
        list(readers.frames(path.read_bytes(), ALL))
  assert compared == 92


COLOURS = {  # row -> RGB of the test card in pydicom's SC files
  5: (255, 0, 0),
  15: (255, 128, 128),
  25: (0, 255, 0),
  35: (128, 255, 128),
  45: (0, 0, 255),
  55: (128, 128, 255),
  65: (0, 0, 0),
  75: (64, 64, 64),
  85: (192, 192, 192),
  95: (255, 255, 255),
}


def test_colour_comes_out_right_whatever_it_is_stored_as(shared_data):
  seen = set()
  for path in _files(shared_data):
    if path.name.startswith("SC_rgb") and "small" not in path.name:
      frame = readers.decode(path.read_bytes(), settings.Reading(frames="every:1:1"))
      if frame.shape[0] == 100:
        got = readers.to_8_bit(frame)[list(COLOURS), 50].astype(int)
        assert np.abs(got - list(COLOURS.values())).max() <= 5, path.name
        header = pydicom.dcmread(path, stop_before_pixels=True)
        seen.add((header.file_meta.TransferSyntaxUID, header.PhotometricInterpretation))
  assert len(seen) == 8


def test_jpeg_of_12_bits(shared_data):
  stored = next(
    dicom.stored_frames(
      dicom._header(_named(shared_data, "JPGExtended.dcm").read_bytes()), range(1)
    )
  )
  assert stored.shape == (1024, 256)
  assert (stored[420, 140], stored[230, 120]) == (244, 95)  # pydicom's tests, other decoders


def test_palette_is_applied(shared_data):
  path = _named(shared_data, "OBXXXX1A_rle.dcm")
  header = pydicom.dcmread(path)
  want = pydicom_pixels.apply_color_lut(header.pixel_array, header)
  frame = next(readers.frames(path.read_bytes()))
  np.testing.assert_array_equal(frame.pixels, want)
  assert frame.about.colour
  assert "palette applied" in frame.about.steps


@pytest.mark.parametrize("name", ["MR_small.dcm", "4919", "emri_small.dcm", "CT_small.dcm"])
@pytest.mark.parametrize("window", ["file", "full", "percentile"])
def test_monochrome1_twin_equals_its_monochrome2(shared_data, name, window):
  data = _named(shared_data, name).read_bytes()
  twin = pydicom.dcmread(io.BytesIO(data))
  top = -1 if twin.PixelRepresentation else 2**twin.BitsStored - 1
  twin.PixelData = (top - twin.pixel_array).astype(twin.pixel_array.dtype).tobytes()
  twin.PhotometricInterpretation = "MONOCHROME1"
  if "PixelPaddingValue" in twin:
    twin.PixelPaddingValue = top - twin.PixelPaddingValue
  if "WindowCenter" in twin:  # mirrored; DICOM windows reach half a value further down than up
    twin.WindowCenter = top - twin.WindowCenter + 1
  cfg = settings.Reading(window=window, frames="all")
  pairs = zip(readers.frames(data, cfg), readers.frames(_bytes(twin), cfg), strict=True)
  for ours, theirs in pairs:
    assert ours.pixels.max() > 40_000
    assert np.abs(ours.pixels.astype(int) - theirs.pixels).max() <= 1  # rounded the other way


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("depth", [8, 16])
def test_ramp_keeps_its_values_through_to_the_result(bits, depth):
  data = _bytes(_grey(_ramp(bits), bits))
  cfg = settings.Reading(window="full", depth=depth)
  size = {12: 64, 16: 256}[bits]
  square = _bytes(_grey(_ramp(bits).reshape(size, -1)[:, :size], bits)) if bits == 12 else data
  decoded = readers.decode(data, cfg)
  assert len(np.unique(decoded)) == 2**bits
  np.testing.assert_array_equal(
    decoded[..., 0].ravel(), np.rint(np.arange(2**bits) * 65535 / (2**bits - 1))
  )
  got = readers.read(square, size, 1, cfg)
  assert got.dtype == {8: np.uint8, 16: np.uint16}[depth]
  assert depth == 8 or len(np.unique(readers.read(data, 256, 1, cfg))) > 4000


def test_frames_come_in_order():
  stack = np.arange(7, dtype=np.uint8)[:, None, None] * np.full((4, 5), 30, np.uint8)
  data = _bytes(_grey(stack, 8))

  def shades(policy):
    frames = list(readers.frames(data, settings.Reading(frames=policy)))
    assert [int(f.pixels[0, 0, 0]) for f in frames] == [30 * f.index for f in frames]
    return [f.index for f in frames]

  assert shades("all") == [0, 1, 2, 3, 4, 5, 6]
  assert shades("middle") == [3]
  assert shades("every:2:3") == [0, 2, 4]
  assert shades("every:3:9") == [0, 3, 6]


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEGLSLossless, uid.JPEG2000Lossless])
def test_frames_come_in_order_when_compressed(syntax):
  rng = np.random.default_rng(0)
  stack = rng.integers(0, 4096, (5, 64, 80)).astype(np.uint16)
  header = _grey(stack, 12)
  header.compress(syntax, generate_instance_uid=False)
  got = list(dicom.stored_frames(dicom._header(_bytes(header)), range(1, 5, 2)))
  np.testing.assert_array_equal(got, stack[1::2])


def test_each_frame_of_an_enhanced_file_has_its_own_scale_and_window():
  stack = np.tile(np.arange(64, dtype=np.uint16).reshape(8, 8), (3, 1, 1))
  header = _grey(stack, 12)
  groups = []
  for slope in (1, 2, 4):
    scale, voi, group = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = slope, 0, "US"
    voi.WindowCenter, voi.WindowWidth = 32, 64
    group.PixelValueTransformationSequence = [scale]
    group.FrameVOILUTSequence = [voi]
    groups.append(group)
  header.PerFrameFunctionalGroupsSequence = groups
  for frame in readers.frames(_bytes(header), ALL):
    want = np.clip(np.arange(64) * 2**frame.index / 63 * 65535, 0, 65535)
    np.testing.assert_allclose(frame.pixels.ravel(), want, atol=1)


def _windowed(header, window="file"):
  return readers.decode(_bytes(header), settings.Reading(window=window))[..., 0].astype(int)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_window_of_the_header_equals_pydicoms(function):
  header = _grey(_ramp(), 12, RescaleSlope=2, RescaleIntercept=-1000)
  header.WindowCenter, header.WindowWidth, header.VOILUTFunction = [40, 300], [400, 9], function
  measured = pydicom_pixels.apply_modality_lut(_ramp(), header)
  want = pydicom_pixels.apply_windowing(measured, header)
  want = (want + 1000) / (2 * 4095) * 65535
  assert np.abs(_windowed(header) - want).max() <= 1


def test_window_of_no_width_is_none():
  header = _grey(_ramp(), 12, WindowCenter=0, WindowWidth=0)
  np.testing.assert_array_equal(_windowed(header), _windowed(_grey(_ramp(), 12)))


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_voi_lut_equals_a_table_by_hand(bits):
  table = np.linspace(0, 1, 300) ** 2 * (2**bits - 1)
  table = np.rint(table).astype(np.uint16)
  item = pydicom.Dataset()
  item.LUTDescriptor, item.LUTData = [300, 100, bits], table.tobytes()
  header = _grey(_ramp(), 12, VOILUTSequence=[item])
  want = table[np.clip(_ramp().astype(int) - 100, 0, 299)] / (2**bits - 1) * 65535
  assert np.abs(_windowed(header) - want).max() <= 1


def test_modality_lut_comes_first():
  table = np.arange(4096, dtype=np.uint16)[::-1] * 16
  item = pydicom.Dataset()
  item.LUTDescriptor, item.LUTData = [4096, 0, 16], table.tobytes()
  header = _grey(_ramp(), 12, ModalityLUTSequence=[item])
  want = (table.reshape(64, -1) / table.max()) * 65535
  assert np.abs(_windowed(header, "full") - want).max() <= 1


@pytest.mark.parametrize(
  ("window", "low", "high"),
  [("lung", -1350, 150), ("soft_tissue", -150, 250), ("bone", -500, 1300), ("brain", 0, 80)],
)
def test_named_windows_of_ct_are_in_hounsfield_units(window, low, high):
  header = _grey(_ramp(), 12, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024)
  header.WindowCenter, header.WindowWidth = 0, 10
  want = np.clip((_ramp().astype(float) - 1024 - low) / (high - low), 0, 1) * 65535
  assert np.abs(_windowed(header, window) - want).max() <= 1
  header.Modality = "MR"
  np.testing.assert_array_equal(_windowed(header, window), _windowed(header, "file"))


@pytest.mark.parametrize("modality", ["MR", "PT", "CT"])
def test_without_a_window_mr_and_pet_take_percentiles(modality):
  stored = np.append(np.full(4096 - 20, 100, np.uint16) + np.arange(4076) % 50, np.full(20, 4000))
  header = _grey(stored.astype(np.uint16).reshape(64, 64), 12, Modality=modality)
  got = _windowed(header).ravel()
  assert (got[:50].max() > 60_000) == (modality != "CT")
  assert got[-1] == 65535


def test_padding_does_not_stretch_the_range():
  stored = _ramp().astype(np.int16)
  stored[0] = -2000
  header = _grey(stored, 16, PixelPaddingValue=-2000)
  got = _windowed(header)
  assert (got[0] == 0).all()
  assert got[1].min() == 0 and got[-1].max() == 65535


@pytest.mark.parametrize("bits", [1, 7, 8])
def test_few_bits_are_shown_as_stored(bits):
  stored = (np.arange(64).reshape(8, 8) * 37 % 2**bits).astype(np.uint8)
  header = _grey(stored, bits)
  if bits == 1:
    header.BitsAllocated = 1
    header.PixelData = np.packbits(stored.ravel(), bitorder="little").tobytes()
  got = readers.decode(_bytes(header))
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got[..., 0], np.floor(stored * (255 / (2**bits - 1)) + 1e-9))


def test_overlays_are_ignored():
  header = _grey(_ramp(), 12)
  plain = readers.decode(_bytes(header))
  header.add_new(0x60000010, "US", 64)
  header.add_new(0x60000011, "US", 64)
  header.add_new(0x60003000, "OW", b"\xff" * 512)
  np.testing.assert_array_equal(readers.decode(_bytes(header)), plain)


def test_file_without_preamble_or_meta_is_read():
  header = _grey(_ramp(), 12)
  stream = io.BytesIO()
  pydicom.dcmwrite(stream, header, enforce_file_format=True)
  bare = stream.getvalue()[132:]
  np.testing.assert_array_equal(readers.decode(bare), readers.decode(stream.getvalue()))
  del header.file_meta
  for implicit in (True, False):
    stream = io.BytesIO()
    header.save_as(stream, implicit_vr=implicit, little_endian=True)
    got = readers.decode(stream.getvalue())
    np.testing.assert_array_equal(got[..., 0], np.rint(_ramp() * (65535 / 4095)))


BAD = {
  "large": ({"Rows": 60_000, "Columns": 60_000}, "60,000 x 60,000 pixels, above the limit"),
  "none": ({"Rows": 0}, "no pixels: 0 x 64"),
  "samples": ({"SamplesPerPixel": 4}, "4 samples a pixel"),
  "photometric": ({"PhotometricInterpretation": "DOE^JOHN"}, "unknown kind of colour"),
  "frames": ({"NumberOfFrames": 9}, "less than expected"),
  "bits": ({"BitsAllocated": 24}, "less than expected (8192 vs 12288 bytes)"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_shown_is_refused(name):
  elements, reason = BAD[name]
  with pytest.raises(readers.Unreadable, match=re.escape(reason)):
    readers.decode(_bytes(_grey(_ramp(), 12, **elements)))


def test_identifiers_leave_as_salted_hashes_only():
  header = _grey(_ramp(), 12, Modality="CT", BodyPartExamined="CHEST")
  header.PatientID, header.PatientName = "PAT-4711", "DOE^JOHN"
  header.StudyInstanceUID, header.SeriesInstanceUID = "1.2.34567", "1.2.34567"
  header.StudyDate = "19701231"
  (frame,) = readers.frames(_bytes(header), salt=b"pepper")
  about = frame.about
  assert (about.modality, about.body_part, about.bits) == ("CT", "CHEST", 12)
  hashes = {about.patient, about.study, about.series}
  assert len(hashes) == 3 and all(re.fullmatch("[0-9a-f]{32}", each) for each in hashes)
  assert not re.search("4711|DOE|34567|1970", repr(about))
  (other,) = readers.frames(_bytes(header), salt=b"salt")
  assert not hashes & {other.about.patient, other.about.study, other.about.series}
  header.PatientID, header.Modality, header.BodyPartExamined = "", "DOE", "DOE^JOHN"
  (blank,) = readers.frames(_bytes(header))
  assert (blank.about.patient, blank.about.modality, blank.about.body_part) == ("", "", "")


NAME = "Hildegunst^Mythenmetz"


@pytest.mark.parametrize(
  "keyword", ["NumberOfFrames", "WindowWidth", "RescaleSlope", "SOPClassUID"]
)
def test_no_error_warning_or_log_repeats_the_header(keyword, caplog, capfd):
  header = _grey(_ramp(), 12, WindowCenter=5, RescaleIntercept=0)
  header.PatientName = header.StudyDate = NAME
  data = _bytes(header)
  element = pydicom.DataElement(keyword, "UI" if keyword == "SOPClassUID" else "LO", NAME)
  header = pydicom.dcmread(io.BytesIO(data))
  header[keyword] = element
  if keyword == "SOPClassUID":
    del header.PixelData
  stream = io.BytesIO()
  pydicom.dcmwrite(stream, header)
  with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
    warnings.simplefilter("default")
    warnings.filterwarnings("ignore", module="pydicom")
    with pytest.raises(readers.Unreadable) as error:
      readers.decode(stream.getvalue())
  assert "Hildegunst" not in f"{error.value} {error.value.__cause__}"
  assert "Hildegunst" not in "".join(str(w.message) for w in warned)
  assert "Hildegunst" not in caplog.text + "".join(capfd.readouterr())


def test_no_identifier_of_the_test_files_is_told(shared_data):
  for path in _files(shared_data):
    header = pydicom.dcmread(path)
    told = ""
    try:
      told = "".join(repr(f.about) for f in readers.frames(path.read_bytes(), ALL, b"salt"))
    except readers.Unreadable as error:
      told = str(error)
    for element in header.iterall():
      personal = element.VR in ("PN", "DA", "DT") or element.keyword in (
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SOPInstanceUID",
        "AccessionNumber",
        "InstitutionName",
      )
      value = str(element.value or "")
      if personal and len(value) >= 4:
        assert value not in told, (path.name, element.keyword)
