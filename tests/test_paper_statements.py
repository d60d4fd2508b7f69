"""Statements of the papers that need no training to be checked: initial values, sizes, numbers of weights."""

import math

import pytest
import torch
from torch import nn

from backbones import BACKBONES
from backbones.deformable import Offsets


def weights(layers: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layers.parameters())


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
