"""Receptive fields by arithmetic and by gradient, and the tables that hold networks against published figures."""

import pytest
import torch
from torch import nn

from backbones import BACKBONES
from experiments.analysis import fidelity_report
from experiments.analysis.published_figures import Figures
from experiments.analysis.receptive_field import Linearised, measured, traced
from experiments.fidelity import main
from heads.dilatednet import context_module
from lightning_modules.network import Network

pytestmark = pytest.mark.usefixtures("quick_weights")

# Araujo, Norris, Sim 2019, and by hand: U-Net (Ronneberger et al.) sees 140 pixels at its bottom.
PUBLISHED = {"alexnet": (195, 32), "vgg16": (212, 32), "mobilenet_v1_025": (315, 32), "unet_encoder": (140, 16)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_fields_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        _, field = traced(BACKBONES[name](), (256, 256))
    assert (field.size, field.stride) == PUBLISHED[name]


@pytest.mark.parametrize("name", ["lenet5", "resnet18", "googlenet", "mobilenet_v3_small", "xception", "convnext_tiny"])
def test_arithmetic_and_gradient_agree(name: str) -> None:
    backbone = BACKBONES[name]()
    _, field = traced(backbone, (256, 256))
    found = measured(backbone, field, max(64, backbone.min_size))
    assert (found.size, found.stride) == (field.size, field.stride)


@pytest.mark.parametrize("name", ["vgg11", "densenet121", "googlenet"])
def test_a_dilated_network_sees_as_far_as_the_strided_one(name: str) -> None:
    """Pools that trade their stride are slices and stacks; their arithmetic is followed too."""
    with torch.device("meta"):
        fields = [traced(BACKBONES[name](output_stride=stride), (256, 256))[1] for stride in (8, 32)]
    assert [field.stride for field in fields] == [8, 32]
    assert fields[0].size == fields[1].size


def test_every_kind_of_layer_counts_as_it_should() -> None:
    for layers, size, stride in (
        ([nn.Conv2d(3, 3, 3, 2), nn.Conv2d(3, 3, 5, dilation=3)], 3 + 4 * 3 * 2, 2),
        ([nn.AvgPool2d(2), nn.Conv2d(3, 3, 3)], 2 + 4, 2),
        ([nn.MaxPool2d(3, 2, 1), nn.Upsample(scale_factor=2, mode="nearest")], 3, 1),
        ([nn.Conv2d(3, 3, 2, 2), nn.ConvTranspose2d(3, 3, 2, 2)], 2, 1),
        ([nn.ConstantPad2d(2, 0.0), nn.Conv2d(3, 3, 3)], 3, 1),
    ):
        _, field = traced(nn.Sequential(*layers), (64, 64))
        assert (field.size, field.stride) == (size, stride), layers
    _, field = traced(nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1)), (64, 64))
    assert field.whole


def test_the_context_module_sees_67_pixels() -> None:
    _, field = traced(context_module(3, "basic", 8), (64, 64))
    assert field.size == 67


def test_linearised_networks_pass_everything_on() -> None:
    x = torch.tensor([[[[-1.0, 2.0], [3.0, 10.0]]]], requires_grad=True)
    with Linearised():
        y = nn.functional.max_pool2d(nn.functional.relu6(x), 2)
    assert y.item() == pytest.approx(14 / 4)


def test_segmenters_count_as_published() -> None:
    rows = fidelity_report.segmenter_rows()
    assert len(rows) == 12
    assert not [row[0] for row in rows if any(cell.endswith(" *") for cell in row)]


def test_the_table_marks_what_differs(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert main(["resnet18", "vit_b_32", "resnet50"]) == 0
    printed = capsys.readouterr().out
    assert "11,689,512 " in printed
    assert "11,689,512 *" not in printed
    assert "attention" in printed
    assert "427 *" in printed
    assert "3 networks, 1 with a figure that differs" in printed
    monkeypatch.setattr(fidelity_report, "published_figures", lambda name: Figures(11_689_513, 1.9, "nobody"))
    assert fidelity_report.backbone_row("resnet18")[1:5] == ["11,689,512 *", "11,689,513", "1.814 *", "1.9"]
    assert fidelity_report.params_cell(8_949_210, 8.9, 1)[0] == "8,949,210"
    assert fidelity_report.params_cell(8_951_000, 8.9, 1)[0] == "8,951,000 *"


def test_one_network_layer_by_layer(capsys) -> None:
    assert main(["--pair", "resnet18", "deeplabv3", "--image-size", "65"]) == 0
    printed = capsys.readouterr().out
    assert "3x3 rate 18" in printed
    assert "whole map" in printed
    with torch.device("meta"):
        params = sum(p.numel() for p in Network("resnet18", "deeplabv3", 21).parameters())
    assert f"{params:,} parameters" in printed
    for arguments, message in (
        (["resnet10"], "no backbone 'resnet10'; nearest: resnet"),
        (["--pair", "lenet5", "fcn8s"], "fcn8s needs maps at strides"),
        (["--image-size", "0"], "--image-size: 0 is not a whole number of at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
