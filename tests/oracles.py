"""The published implementations that ours are measured against, on the same weights."""

import torchvision
from torch import nn

from backbones import BACKBONES

FIRST = {build.func: name for name, build in reversed(BACKBONES.items())}  # type: ignore[attr-defined]
"""The first variant of each class. What costs much is tried on these, where the others only repeat their layers."""

# Names that differ, and networks torchvision does not have. Backbones absent from both libraries are None: their
# parameter count is the only oracle.
TIMM: dict[str, str] = {
    "se_resnet50": "legacy_seresnet50",
    "se_resnet101": "legacy_seresnet101",
    "se_resnet152": "legacy_seresnet152",
    "se_resnext50_32x4d": "legacy_seresnext50_32x4d",
    "se_resnext101_32x4d": "legacy_seresnext101_32x4d",
    "senet154": "legacy_senet154",
    "resnext101_32x4d": "resnext101_32x4d",
    "resnetv2_50": "resnetv2_50",
    "resnetv2_101": "resnetv2_101",
    "resnetv2_152": "resnetv2_152",
    "xception": "legacy_xception",
    "xception41": "xception41.tf_in1k",
    "xception65": "xception65.tf_in1k",
    "xception71": "xception71.tf_in1k",
    "mobilenet_v1": "mobilenetv1_100",
    "mobilenet_v1_125": "mobilenetv1_125",
    "efficientnet_lite0": "tf_efficientnet_lite0",
    "efficientnet_lite1": "tf_efficientnet_lite1",
    "efficientnet_lite2": "tf_efficientnet_lite2",
    "efficientnet_lite3": "tf_efficientnet_lite3",
    "efficientnet_lite4": "tf_efficientnet_lite4",
}
WITHOUT_ORACLE: set[str] = {
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnetv2_200",
    "densenet40",
    "densenet100_bc",
    "wrn16_8",
    "wrn28_10",
    "wrn40_4",
    "lenet5",
    "alexnet_2gpu",
    "zfnet",
    "unet_encoder",
    "yolov1",
    "mobilenet_v1_025",
    "mobilenet_v1_050",
    "mobilenet_v1_075",
}

# What a published count was taken at, where that is not 3 input channels and 1000 classes.
IN_CHANNELS: dict[str, int] = {"lenet5": 1}
ON_CIFAR10 = (
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "wrn16_8",
    "wrn28_10",
    "wrn40_4",
    "densenet40",
    "densenet100_bc",
)
CLASSES: dict[str, int] = {"lenet5": 10} | dict.fromkeys(ON_CIFAR10, 10)
# The knobs that a head for classification sets, under which the last map is what the published classifier takes.
KNOBS: dict[str, dict[str, bool]] = {name: {"pyramid": False} for name in ("vit_b_16", "vit_b_32", "vit_l_16")}
# Image sizes for parity, where the oracle does not take just any.
SIZES: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(KNOBS, ((224, 224),))

# Measured in double precision under dilation: at random weights these amplify the rounding of single precision beyond
# the bound (ReLU6 switches at both ends, and nothing renormalises), so that it would not show what is exact.
IN_DOUBLE: set[str] = {f"efficientnet_lite{i}" for i in range(5)}

# Trainable parameters with the 1000-class (or the paper's own) classifier.
PARAMETERS = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "alexnet_2gpu": 60_965_224,
    "zfnet": 62_357_608,
    "vgg11": 132_863_336,
    "vgg13": 133_047_848,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "vgg11_bn": 132_868_840,
    "vgg13_bn": 133_053_736,
    "vgg16_bn": 138_365_992,
    "vgg19_bn": 143_678_248,
    "unet_encoder": 19_868_200,
    "yolov1": 23_428_136,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "resnet110": 1_727_962,
    "resnetv2_50": 25_549_352,
    "resnetv2_101": 44_541_480,
    "resnetv2_152": 60_185_128,
    "resnetv2_200": 64_666_152,
    "wrn16_8": 10_961_370,
    "wrn28_10": 36_479_194,
    "wrn40_4": 8_949_210,
    "se_resnet50": 28_088_024,
    "se_resnet101": 49_326_872,
    "se_resnet152": 66_821_848,
    "se_resnext50_32x4d": 27_559_896,
    "se_resnext101_32x4d": 48_955_416,
    "senet154": 115_088_984,
    "googlenet": 6_624_904,
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "densenet40": 1_019_722,
    "densenet100_bc": 769_162,
    "xception": 22_855_952,
    "xception41": 26_969_560,
    "xception65": 39_916_312,
    "xception71": 42_338_736,
    "mobilenet_v1_025": 470_072,
    "mobilenet_v1_050": 1_331_592,
    "mobilenet_v1_075": 2_585_560,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v1_125": 6_270_840,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_small": 2_542_856,
    "mobilenet_v3_large": 5_483_032,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_b6": 43_040_704,
    "efficientnet_b7": 66_347_960,
    "efficientnet_v2_s": 21_458_488,
    "efficientnet_v2_m": 54_139_356,
    "efficientnet_v2_l": 118_515_272,
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
    "efficientnet_lite3": 8_197_096,
    "efficientnet_lite4": 13_006_568,
    "vit_b_16": 86_567_656,
    "vit_b_32": 88_224_232,
    "vit_l_16": 304_326_632,
    "swin_t": 28_288_354,
    "swin_s": 49_606_258,
    "swin_b": 87_768_224,
    "swin_v2_t": 28_351_570,
    "swin_v2_s": 49_737_442,
    "swin_v2_b": 87_930_848,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
    "convnext_base": 88_591_464,
    "convnext_large": 197_767_336,
}


def oracle(name: str) -> nn.Module | None:
    """The other library's network, untrained, 1000 classes, in eval mode."""
    if name in WITHOUT_ORACLE:
        return None
    if name in TIMM:
        import timm  # takes a second, which only some processes of a test session need

        return timm.create_model(TIMM[name], pretrained=False).eval()
    return torchvision.models.get_model(name, weights=None).eval()
