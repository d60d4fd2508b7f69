"""Statements of the papers that need no training to be checked: fields of view, weights, initial values, sizes."""

import math

import pytest
import torch
from torch import nn

from backbones import BACKBONES
from backbones.deformable import Offsets


def field(layers: nn.Sequential, side: int = 41) -> int:
    """Pixels of the input along one axis that the central value of the output depends on."""
    for layer in layers.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.ones_(layer.weight)
    x = torch.ones(1, layers[0].in_channels, side, side, requires_grad=True)
    layers(x)[0, 0, side // 2, side // 2].backward()
    return int((x.grad[0, 0].abs().sum(0) > 0).sum())


def convolutions(kernels: list[int], dilations: list[int], channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Conv2d(channels, channels, k, padding=d * (k // 2), dilation=d, bias=False)
            for k, d in zip(kernels, dilations, strict=True)
        )
    )


def weights(layers: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layers.parameters())


def test_three_3x3_convolutions_see_what_one_7x7_sees_with_27_weights_for_49() -> None:
    """Simonyan, Zisserman 2014, section 2.3: and they have three non-linearities instead of one."""
    three, one = convolutions([3, 3, 3], [1, 1, 1]), convolutions([7], [1])
    assert field(three) == field(one) == 7
    assert weights(three) / weights(one) == 27 / 49
    assert field(convolutions([3, 3], [1, 1])) == 5
    third_stage = list(BACKBONES["vgg16"]().features)[10:16]
    assert [type(layer) for layer in third_stage] == 3 * [nn.Conv2d, nn.ReLU]


@pytest.mark.parametrize(("dilations", "expected"), [([1], 3), ([1, 2], 7), ([1, 2, 4], 15)])
def test_fields_grow_exponentially_with_doubled_dilation(dilations: list[int], expected: int) -> None:
    """Yu, Koltun 2015, section 2: the field of F_{i+1} has sides of 2^{i+2} - 1, with weights that grow linearly."""
    layers = convolutions([3] * len(dilations), dilations)
    assert field(layers) == expected == 2 ** (len(dilations) + 1) - 1
    assert weights(layers) == len(dilations) * 4 * 4 * 9


@pytest.mark.parametrize("name", ["resnet50", "resnet20", "wrn16_8", "densenet121", "resnetv2_50"])
def test_convolutions_start_as_he_et_al_have_it(name: str) -> None:
    """He et al. 2015, arXiv:1502.01852: variance 2 / fan-out in the wide layers, whose sample deviation is sharp."""
    backbone = BACKBONES[name]()
    checked = 0
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and not isinstance(module, Offsets) and module.weight.numel() > 20_000:
            fan_out = module.out_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.03)
            assert abs(module.weight.mean().item()) < 0.03 * math.sqrt(2 / fan_out)
            checked += 1
    assert checked > 2


@pytest.mark.parametrize("name", ["alexnet", "alexnet_2gpu", "zfnet"])
def test_only_fc6_and_fc7_drop_out_with_one_half(name: str) -> None:
    """Krizhevsky et al. 2012, section 4.2."""
    with torch.device("meta"):
        backbone = BACKBONES[name]()
        classifier = backbone.classifier(10)
    assert not any(isinstance(module, nn.Dropout) for module in backbone.modules())
    rates = [module.p for module in classifier.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.5, 0.5]


def test_the_front_end_of_dilatednet_turns_512_pixels_into_64() -> None:
    """Yu, Koltun 2015: VGG without its last two pools and strides; conv5 is dilated by 2, fc6 by 4."""
    with torch.device("meta"):
        backbone = BACKBONES["vgg16"](output_stride=8, fully_convolutional=True, remove_pools=True)
        last = backbone(torch.empty(1, 3, 512, 512))[-1]
    assert last.shape == (1, 4096, 64, 64)
    convs = [layer for layer in backbone.features if isinstance(layer, nn.Conv2d)]
    assert [conv.dilation[0] for conv in convs] == 10 * [1] + 3 * [2]
    assert backbone.fully_connected.fc6.dilation == (4, 4)


def test_shortcuts_without_parameters_make_no_difference_in_size() -> None:
    """He et al. 2015, section 3.3: a plain network and its residual form have the same parameters and depth."""
    with torch.device("meta"):
        plain, residual, projected = (BACKBONES["resnet56"](shortcut=one) for one in ("none", "A", "B"))
    assert weights(plain) == weights(residual) < weights(projected)
    assert sum(isinstance(module, nn.Conv2d) for module in plain.modules()) == 55  # and one linear layer


def test_a_bottleneck_costs_less_than_the_block_it_replaces() -> None:
    """He et al. 2015, figure 5: 1x1-3x3-1x1 on 256 channels has about the weights of two 3x3 on 64."""
    with torch.device("meta"):
        narrow, bottleneck = BACKBONES["resnet34"]().layer1[1], BACKBONES["resnet50"]().layer1[1]
    assert weights(bottleneck) / weights(narrow) == pytest.approx(1, abs=0.06)
    assert weights(bottleneck) / (2 * 256 * 256 * 9) < 0.06
