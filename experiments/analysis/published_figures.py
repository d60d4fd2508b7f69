"""What papers and libraries state about the networks: the figures with which `experiments/fidelity.py` compares ours.

Torchvision's come from its own metadata; timm's from its benchmark tables (millions of parameters, GMACs at the test
size, which count norms and activations too); receptive fields, where not from a paper, from Araujo, Norris, Sim 2019,
"Computing Receptive Fields of Convolutional Neural Networks", doi 10.23915/distill.00021.
"""

from typing import Any, NamedTuple

import torchvision


class Figures(NamedTuple):
    """Published figures of one network; None if nothing is published."""

    params: float | None
    gmacs: float | None
    source: str
    digits: int = 0
    """Decimals of `params` in millions; 0 for an exact count."""


TIMM: dict[str, tuple[float, float]] = {
    "se_resnet50": (28.09, 3.88),
    "se_resnet101": (49.33, 7.61),
    "se_resnet152": (66.82, 11.33),
    "se_resnext50_32x4d": (27.56, 4.26),
    "se_resnext101_32x4d": (48.96, 8.02),
    "senet154": (115.09, 20.77),
    "xception": (22.86, 8.40),
    "xception41": (26.97, 9.28),
    "xception65": (39.92, 13.96),
    "xception71": (42.34, 18.09),
    "mobilenet_v1": (4.23, 0.58),
    "mobilenet_v1_125": (6.27, 0.89),
    "efficientnet_lite0": (4.65, 0.40),
    "efficientnet_lite1": (5.42, 0.62),
    "efficientnet_lite2": (6.09, 0.89),
    "efficientnet_lite3": (8.20, 1.65),
    "efficientnet_lite4": (13.01, 4.04),
}
PAPERS: dict[str, Figures] = {
    "lenet5": Figures(61_706, None, "from the paper's layers, full C3 (original: 60,000)"),
    "alexnet_2gpu": Figures(60_965_224, None, "from the paper's layers"),
    "zfnet": Figures(62_357_608, None, "from the paper's layers"),
    "resnext101_32x4d": Figures(44.18, None, "timm's network", 2),
    "resnet20": Figures(0.27, None, "paper, table 6, 10 classes", 2),
    "resnet32": Figures(0.46, None, "paper, table 6, 10 classes", 2),
    "resnet44": Figures(0.66, None, "paper, table 6, 10 classes", 2),
    "resnet56": Figures(0.85, None, "paper, table 6, 10 classes", 2),
    "resnet110": Figures(1.7, None, "paper, table 6, 10 classes", 1),
    "resnetv2_50": Figures(25.55, None, "timm's network", 2),
    "resnetv2_101": Figures(44.54, None, "timm's network", 2),
    "resnetv2_152": Figures(60.19, None, "timm's network", 2),
    "densenet40": Figures(1.0, None, "paper, table 2, 10 classes", 1),
    "densenet100_bc": Figures(0.8, None, "paper, table 2, 10 classes", 1),
    "wrn16_8": Figures(11.0, None, "paper, table 4, 10 classes", 1),
    "wrn28_10": Figures(36.5, None, "paper, table 4, 10 classes", 1),
    "wrn40_4": Figures(8.9, None, "paper, table 4, 10 classes", 1),
    "mobilenet_v1_025": Figures(0.5, 0.041, "paper, table 6", 1),
    "mobilenet_v1_050": Figures(1.3, 0.149, "paper, table 6", 1),
    "mobilenet_v1_075": Figures(2.6, 0.325, "paper, table 6", 1),
}
ON_CIFAR10 = (
    *("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "densenet40", "densenet100_bc"),
    *("wrn16_8", "wrn28_10", "wrn40_4"),
)
TAKEN_AT: dict[str, tuple[int, int]] = {"lenet5": (1, 10)} | dict.fromkeys(ON_CIFAR10, (3, 10))
"""Input channels and classes of the published count, if they are not 3 and 1000."""

FIELDS: dict[str, tuple[int, str]] = {
    "alexnet": (195, ""),
    "vgg16": (212, ""),
    "mobilenet_v1": (315, ""),
    "mobilenet_v1_075": (315, ""),
    "resnet50": (483, "its ResNet strides in the last block of a stage, ours, as torchvision's, in the first"),
    "resnet101": (1027, "its ResNet strides in the last block of a stage"),
    "resnet152": (1507, "its ResNet strides in the last block of a stage"),
}
"""Receptive field of the last map, in pixels, and why ours differs where it does."""

SEGMENTERS: list[tuple[str, str, dict[str, Any], bool, int, str]] = [
    # backbone, head, options of the head, with the auxiliary head, published parameters at 21 classes, source
    ("vgg16", "fcn32s", {}, False, 134_346_581, "from the paper's layers, without the deconvolution"),
    ("vgg16", "fcn8s", {}, False, 134_489_759, "from the paper's layers, with full 21x21 deconvolutions"),
    ("resnet50", "fcn", {}, True, 35_322_218, "torchvision, with auxiliary head"),
    ("resnet101", "fcn", {}, True, 54_314_346, "torchvision, with auxiliary head"),
    ("vgg16", "deeplabv1", {}, False, 20_500_000, "paper: 20.5 M"),
    ("resnet50", "deeplabv3", {}, True, 42_004_074, "torchvision, with auxiliary head"),
    ("resnet101", "deeplabv3", {}, True, 60_996_202, "torchvision, with auxiliary head"),
    (
        "mobilenet_v3_large",
        "deeplabv3",
        {},
        False,
        11_025_477,
        "torchvision's 11,029,328 less its auxiliary head, 3,851",
    ),
    ("vgg16", "dilatednet", {"context": "none"}, False, 134_346_581, "front end, from the paper's layers"),
    ("vgg16", "dilatednet", {"context": "basic"}, False, 134_374_973, "front end and the basic context's 28,392"),
    ("vgg16", "dilatednet", {"context": "large"}, False, 141_149_720, "front end and the large context's 6,803,139"),
    ("unet_encoder", "unet", {"up": "transpose", "norm": False}, False, 31_033_045, "from the paper's layers"),
]


def published_figures(name: str) -> Figures:
    """The published figures of a backbone with its classifier."""
    if name in PAPERS:
        return PAPERS[name]
    if name in TIMM:
        return Figures(*TIMM[name], "timm, counting norms too", 2)
    try:
        meta = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].meta
    except (ValueError, KeyError):
        return Figures(None, None, "no figure is published")
    # Its GoogLeNet counts without auxiliary classifiers, as its weights' metadata say.
    return Figures(meta["num_params"], meta["_ops"], "torchvision")
