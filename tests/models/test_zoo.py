"""Every network by name: its counts against the papers', Keras's and torchvision's."""

import json
import subprocess
import sys

import keras_parity as parity
import pytest

from medjax import settings
from medjax.models import costs, zoo
from medjax.models.__main__ import main

# (total, trainable) where published or found by Keras, None where the source has one of them alone.
IMAGENET = {
  "densenet121": (8_062_504, 7_978_856),
  "densenet169": (14_307_880, 14_149_480),
  "densenet201": (20_242_984, 20_013_928),
  "resnet50": (25_636_712, 25_583_592),
  "resnet152": (60_419_944, 60_268_520),
  "inception_v3": (23_851_784, 23_817_352),
  "inception_resnet_v2": (55_873_736, 55_813_192),
  "xception": (22_910_480, 22_855_952),
  "vgg16": (138_357_544, 138_357_544),
  "vgg19": (143_667_240, 143_667_240),
  "mobilenet_v1": (4_253_864, 4_231_976),
  "mobilenet_v2": (3_538_984, 3_504_872),
  "mobilenet_v3_small": (2_554_968, 2_542_856),
  "mobilenet_v3_large": (5_507_432, 5_483_032),
  "nasnet_mobile": (5_326_716, 5_289_978),
  "nasnet_large": (88_949_818, 88_753_150),
  # torchvision counts what learns; batch norm keeps a mean and a variance for each of its scales.
  "resnet18": (11_689_512 + 2 * 4_800, 11_689_512),
  "resnet34": (21_797_672 + 2 * 8_512, 21_797_672),
  "resnet50_v15": (25_557_032 + 2 * 26_560, 25_557_032),
  "resnet152_v15": (60_192_808 + 2 * 75_712, 60_192_808),
  # 14 logits in place of 1,000.
  "chexnet": (8_062_504 - 986 * 1025, 7_978_856 - 986 * 1025),
}
PAPERS = {
  "quadsnet": (5_237_736 + 3_840, 5_237_736),
  "quadsnet_exact": (5_235_944 + 2_048, 5_235_944),
  "quadsnet_gap": (5_238_888 + 3_840, 5_238_888),
  "quadsnet_total": (5_235_944, 5_232_104),
  "quadsnet_convbn": (5_241_576 + 7_680, 5_241_576),
  "quadsnet_direct": (4_718_952 + 3_840, 4_718_952),
  "quadsnet_one": (6_231_016 + 7_680, 6_231_016),
  "mednet/gray": (10_789_442, 10_779_970),
  "mednet/color": (10_790_594, 10_781_122),
  "mednet_16/gray": (None, 868_930),
  "mednet_32/gray": (None, 2_902_850),
  "mednet_48/gray": (None, 6_206_530),
  "mednet_96/gray": (None, 23_736_130),
  "mednet_128/gray": (None, 41_771_330),
  "pneumonia_cnn/gray": (800_785, 800_113),
  "pneumonia_cnn/gray/rows": (800_141, 799_791),
  "pneumonia_cnn/color": (805_393, 804_721),
  "pneumonia_cnn/color/rows": (804_749, 804_399),
  "pneumonia_sep_first/color": (799_276, 798_604),
  "pneumonia_sep_first/color/rows": (798_632, 798_282),
  "pneumonia_sep_all/color": (662_892, 662_220),
  "pneumonia_sep_all/color/rows": (662_248, 661_898),
  "pneumonia_sep_all/gray": (662_362, 661_690),
  "pneumonia_sep_all/gray/rows": (661_718, 661_368),
  # A separable convolution in the second place has 18,752 in place of 147,520 parameters, in the
  # third 1,616 in place of 9,232.
  "pneumonia_sep_mid/color": (805_393 - 128_768, 804_721 - 128_768),
  "pneumonia_sep_last/color": (805_393 - 7_616, 804_721 - 7_616),
  "survey_cnn": (455_202 + 960, 455_202),
  # In each block of C channels two dense layers to C / 16 and back.
  "survey_cnn_se": (None, 455_202 + sum(2 * c * c // 16 + c // 16 + c for c in (32, 64, 128, 256))),
  # 21 columns of metadata in, two layers of 256 with batch norm, 7 classes out; Keras's layer that
  # standardises the age counts 3 more.
  "metadata_mlp": (73_735 + 2 * 512 + 3, 21 * 256 + 512 + 256 * 256 + 512 + 256 * 7 + 7),
  "darknet53": (41_645_640, 40_584_928 + 1024 * 1000 + 1000),
  "darknet53_fpn": (61_554_802, 61_502_194),
  "gan": (None, 10_148_609 - 7 * 1024 - 1025 + 7 * 1025),  # seven classes in a projection's place
}
# Backbone and cut: total, total with metadata, trainable with metadata (Nguyen et al. 2022, from
# the summaries in their notebooks; those of the cuts of the paper by the sums of their layers).
SOFT_ATTENTION = {
  "vgg16/code": (62_650_711, None, None),
  "densenet201/code": (17_477_463, 17_596_250, 17_382_935),
  "inception_resnet_v2/code": (47_535_287, 47_654_074, 47_599_671),
  "resnet50/code": (24_341_399, 24_460_186, 24_407_063),
  "resnet152/code": (50_181_015, 50_299_802, 50_160_663),
  "nasnet_large/code": (78_454_217, 78_573_004, 78_389_773),
  "nasnet_mobile/code": (3_837_307, 3_956_094, 3_922_873),
  "mobilenet_v2/code": (1_235_927, 1_354_714, 1_334_039),
  "mobilenet_v3_large/code": (2_575_975, 2_694_762, 2_672_599),
  "mobilenet_v3_large/code34": (2_548_135, 2_666_922, 2_646_679),
  "mobilenet_v3_small/code": (871_223, 990_010, 979_239),
  "densenet201/paper": (18_138_455, 18_257_242, None),
  "inception_resnet_v2/paper": (54_902_007, 55_020_794, None),
  "resnet50/paper": (9_439_127, 9_557_914, None),
  "resnet152/paper": (44_222_359, 44_341_146, None),
  "nasnet_large/paper": (67_388_393, 67_507_180, None),
  "nasnet_mobile/paper": (3_941_323, 4_060_110, None),
  "mobilenet_v2/paper": (1_099_607, 1_218_394, None),
  "mobilenet_v3_large/paper": (3_349_655, 3_468_442, None),
  "mobilenet_v3_small/paper": (1_151_111, 1_269_898, None),
}

BRANCH = 90_112 + 4096 * 7  # the dense layer of the metadata, and its share of the last one
NORMALIZATION = 3  # Keras's layer before it counts the age's mean, variance and number


@pytest.fixture(scope="module")
def listing() -> dict[str, list[str]]:
  """What `python -m medjax.models` prints: name -> the cells of its line."""
  command = [sys.executable, "-m", "medjax.models"]
  header, *lines = subprocess.check_output(command, text=True).splitlines()
  assert header.split()[:5] == ["name", "total", "trainable", "MACs", "depth"]
  return {line.split()[0]: line.split()[1:] for line in lines}


@pytest.fixture
def counts(listing):
  """Name -> (total, trainable)."""
  return lambda name: tuple(int(cell.replace(",", "")) for cell in listing[name][:2])


@pytest.mark.parametrize("name", [*IMAGENET, *PAPERS])
def test_counts_are_the_published_ones(counts, name):
  total, trainable = counts(name)
  expected = (IMAGENET | PAPERS)[name]
  assert trainable == expected[1]
  assert total == (expected[0] or total)


@pytest.mark.parametrize("name", SOFT_ATTENTION)
def test_counts_of_soft_attention_are_the_published_ones(counts, name):
  total, trainable = counts(f"soft_attention/{name}")
  with_metadata, trainable_with_metadata = counts(f"soft_attention/{name}/metadata")
  published = SOFT_ATTENTION[name]
  assert total == published[0]
  assert with_metadata == (published[1] or total + BRANCH + NORMALIZATION)
  assert trainable_with_metadata == (published[2] or trainable + BRANCH)


def test_the_learnt_factor_is_one_parameter(counts):
  total, trainable = counts("soft_attention/densenet201/paper")
  assert counts("soft_attention") == (total + 1, trainable + 1)
  total, trainable = counts("soft_attention/vgg16/code")
  assert counts("vgg16_soft_attention") == (total + 1, trainable + 1)


def test_every_preset_is_listed():
  listed = {entry.model.name for entry in zoo.ENTRIES.values()}
  assert listed == set(settings.VARIANTS[settings.Model])
  names = [f"soft_attention/{name}" for name in SOFT_ATTENTION]
  assert {n.removesuffix("/metadata") for n in zoo.ENTRIES if "attention/" in n} == set(names)


# Layers as their authors count them, and multiply-accumulates, in millions, of their papers.
KNOWN = {
  "vgg16": (16, 15_470),
  "resnet18": (18, 1_814),
  "resnet34": (34, 3_664),
  "resnet152": (152, 11_282),
  "densenet121": (121, 2_834),
  "mobilenet_v1": (28, 569),
  "mobilenet_v2": (53, 301),
  "darknet53": (53, None),
}


@pytest.mark.parametrize("name", KNOWN)
def test_depth_and_multiplications_are_those_of_the_papers(name):
  found, (depth, millions) = zoo.ENTRIES[name].costs(), KNOWN[name]
  assert found.depth == depth
  assert round(found.macs / 1e6) == (millions or round(found.macs / 1e6))


def test_multiplications_of_each_kind_of_layer():
  """By hand: 3x3 convolutions, 3x3 depthwise with 1x1, dense layers, on 200, 100 and 50 pixels."""
  dense = 25 * 25 * 16 * 64 + 64
  plain = 9 * (200**2 * 3 * 256 + 100**2 * 256 * 64 + 50**2 * 64 * 16)
  assert zoo.ENTRIES["pneumonia_cnn/color"].costs().macs == plain + dense
  separable = (
    200**2 * (9 * 3 + 3 * 256) + 100**2 * (9 * 256 + 256 * 64) + 50**2 * (9 * 64 + 64 * 16)
  )
  assert zoo.ENTRIES["pneumonia_sep_all/color"].costs().macs == separable + dense


# Ours -> the name in Keras, and the images it is built for.
IN_KERAS = {
  "densenet121": "DenseNet121",
  "densenet169": "DenseNet169",
  "densenet201": "DenseNet201",
  "resnet50": "ResNet50",
  "resnet152": "ResNet152",
  "inception_v3": "InceptionV3",
  "inception_resnet_v2": "InceptionResNetV2",
  "xception": "Xception",
  "vgg16": "VGG16",
  "vgg19": "VGG19",
  "mobilenet_v1": "MobileNet",
  "mobilenet_v2": "MobileNetV2",
  "mobilenet_v3_small": "MobileNetV3Small",
  "mobilenet_v3_large": "MobileNetV3Large",
  "nasnet_mobile": "NASNetMobile",
  "nasnet_large": "NASNetLarge",
}
SMALL = {"mobilenet_v1", "mobilenet_v2", "vgg16"}


@pytest.mark.parametrize(
  "name",
  [name if name in SMALL else pytest.param(name, marks=pytest.mark.slow) for name in IN_KERAS],
)
def test_counts_are_those_of_keras(counts, name):
  model = getattr(parity.keras.applications, IN_KERAS[name])(weights=None)
  trainable = sum(weight.value.size for weight in model.trainable_weights)
  assert counts(name) == (model.count_params(), trainable)
  assert model.input_shape[1] in (None, zoo.ENTRIES[name].size)  # V3 has no size of its own


def test_tensors_without_the_constants_of_the_preprocessing():
  params, stats = costs.counted(
    {"encoder": {"conv": 1}},
    {"encoder": {"backbone": {"encoder": {"input": {"mean": 2}}}, "bn": {"mean": 3}}},
  )
  assert params == {"encoder": {"conv": 1}}
  assert stats == {"encoder": {"bn": {"mean": 3}}}


def test_one_line_a_network(listing):
  assert list(listing) == list(zoo.ENTRIES)
  assert " ".join(listing["vgg19"]) == (
    "143,667,240 143,667,240 19,632,062,464 19 224x224x3 1000 Keras"
  )


def test_one_network_in_detail(capsys):
  assert main(["resnet18", "--size", "64"]) == 0
  printed = capsys.readouterr().out
  assert "| encoder/conv2/block1/1_conv/kernel | (3, 3, 64, 64)" in printed
  assert "Total: 11,689,512" in printed
  ends = [line.split(maxsplit=1) for line in printed.splitlines() if "_out " in line]
  assert ["conv3_block2_out", "[1, 8, 8, 128]"] in ends


def test_one_network_as_json(capsys):
  assert main(["soft_attention/mobilenet_v3_small/code/metadata", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["total"], found["trainable"], found["classes"]) == (990_010, 979_239, 7)
  assert found["params"]["head/classes/kernel"] == [4 * 4 * 2 * 576 + 4096, 7]
  assert found["endpoints"]["attention"] == [1, 7, 7, 1]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["resnet19"], "no network is called 'resnet19': did you mean resnet18"),
    (["mednet"], "did you mean mednet/gray, mednet/color?"),
    (["--size", "64"], "name it before"),
    (["darknet53", "--size", "16"], "set data.image_size to 32 or more"),
  ],
)
def test_errors_are_told(capsys, arguments, message):
  assert main(arguments) == 1
  told = capsys.readouterr()
  assert told.out == ""
  assert told.err.startswith("error: ")
  assert message in told.err
