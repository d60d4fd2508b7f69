"""Options that papers vary: the parameters of their tables, exact dilation, a gradient for every parameter."""

from typing import Any

import pytest
import torch
from torch import nn

from backbones import BACKBONES
from backbones.squeeze_excitation import SqueezeExcitation
from lightning_modules.network import Network
from tests.conftest import randomise
from tests.test_backbones import HeldGates, relative

Row = tuple[str, dict[str, Any], int, float]
"""Backbone, its options, classes, and the parameters in millions that the paper states."""

RESNETS: list[Row] = [
    # He et al. 2015, table 6; option A has as many parameters as the plain network
    *((f"resnet{d}", {}, 10, millions) for d, millions in ((20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7))),
    ("resnet110", {"shortcut": "none"}, 10, 1.7),
    # Zagoruyko, Komodakis 2016, tables 3 to 5
    *(
        ("wrn16_8", {"depth": depth, "widening": k}, 10, millions)
        for depth, k, millions in (
            *((40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (40, 8, 35.7), (28, 10, 36.5), (28, 12, 52.5)),
            *((22, 8, 17.2), (22, 10, 26.8), (16, 8, 11.0), (16, 10, 17.1)),
        )
    ),
    # Xie et al. 2016, tables 1 and 3: cardinality at equal cost
    ("resnext50_32x4d", {}, 1000, 25.0),
    ("resnet50", {"groups": 32, "group_width": 4}, 1000, 25.0),
    ("resnext101_32x4d", {}, 1000, 44.2),
    ("resnetv2_200", {}, 1000, 64.7),
    # Hu et al. 2017, table 10: the reduction of SE-ResNet-50 (45.7, 35.7, 30.7, 28.1 and 26.9 there)
    *(("resnet50", {"se_reduction": r}, 1000, m) for r, m in ((2, 45.7), (4, 35.6), (8, 30.6), (16, 28.1), (32, 26.8))),
]

KNOBS: list[tuple[str, dict[str, Any]]] = [
    ("resnet18", {"shortcut": "none", "se_reduction": 4}),
    ("resnet50", {"groups": 2, "group_width": 24, "se_reduction": 8}),
    ("resnet20", {"shortcut": "none"}),
    ("resnet20", {"depth": 14, "width": 8, "shortcut": "B", "se_reduction": 4}),
    ("wrn16_8", {"depth": 10, "widening": 1, "se_reduction": 2}),
    ("resnetv2_50", {"se_reduction": 16}),
]
"""Options that change the graph, on one small network of each family."""


def count(*modules: nn.Module) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


@pytest.mark.parametrize(("name", "options", "classes", "millions"), RESNETS)
def test_parameters_are_those_of_the_papers_tables(
    name: str, options: dict[str, Any], classes: int, millions: float
) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name](**options)
        classifier = backbone.classifier(classes)
    digits = len(str(millions).split(".")[1])
    assert round(count(backbone, classifier) / 1e6, digits) == millions


@pytest.mark.parametrize(("name", "options"), KNOBS)
@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_is_exact_under_options(
    name: str, options: dict[str, Any], output_stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = HeldGates(monkeypatch)
    strided = randomise(BACKBONES[name](**options)).double().eval()
    with torch.device("meta"):
        dense = BACKBONES[name](output_stride=output_stride, **options).double().eval()
    dense.load_state_dict(strided.state_dict(), strict=True, assign=True)
    x = torch.randn(1, 3, 64, 96, dtype=torch.double)
    with torch.inference_mode():
        coarse = strided(x)
        held.replaying = True
        fine = dense(x)
    for one, other, native, reduction in zip(coarse, fine, strided.reductions, dense.reductions, strict=True):
        assert one.shape[1:2] == other.shape[1:2]
        assert tuple(one.shape[2:]) == ((64 - strided.valid_borders) // native, (96 - strided.valid_borders) // native)
        assert relative(other[..., :: native // reduction, :: native // reduction], one) <= 1e-10


@pytest.mark.parametrize(("name", "options"), KNOBS)
def test_every_parameter_gets_a_gradient_under_options(name: str, options: dict[str, Any]) -> None:
    network = Network(name, "classifier", 3, backbone_options=options)
    randomise(network).train()
    for module in network.modules():
        if isinstance(module, SqueezeExcitation):
            nn.init.constant_(module.fc1.bias, 5.0)  # all of its few ReLUs are active
    logits = network(torch.randn(2, 3, 64, 64))
    (logits * torch.randn_like(logits)).sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet20", {"depth": 21}, r"depth is 21; this network has 6 n \+ 2 layers, such as 20 or 26"),
        ("resnet20", {"depth": 2}, "such as 8 or 14"),
        ("resnet20", {"shortcut": "C"}, "resnet20's option shortcut is 'C'; it takes A or B or none"),
        ("resnet20", {"width": 0}, "width is 0"),
        ("wrn16_8", {"widening": 0}, "widening is 0"),
        ("wrn16_8", {"depth": "deep"}, "wrn16_8's option depth is 'deep'; it takes a whole number or null"),
        ("wrn16_8", {"dropout": True}, "option dropout is True; it takes a number"),
        ("resnet18", {"groups": 2}, "resnet18 has no bottlenecks"),
        ("resnet50", {"groups": 0}, "groups is 0"),
        ("resnet50", {"multi_grid": [1, "2", 4]}, "multi_grid is .*; it takes a list in brackets"),
        ("resnet50", {"se_reduction": -1}, "se_reduction is -1"),
        ("resnet50", {"se": 1}, "option se is 1; it takes true or false"),
    ],
)
def test_odd_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network(name, "classifier", 3, backbone_options=options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet50", {"groups": 2}, "with groups=2"),
        ("resnet18", {"shortcut": "none"}, "with shortcut=none"),
    ],
)
def test_published_weights_are_refused_before_they_are_fetched(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"no ImageNet weights are published for {name} {message}; leave that out"):
        BACKBONES[name](weights="imagenet", **options)


def test_plain_networks_have_no_shortcut_and_start_with_scales_of_one() -> None:
    plain = BACKBONES["resnet18"](shortcut="none").eval()
    for stage in (plain.layer1, plain.layer2, plain.layer3, plain.layer4):
        for block in stage:
            assert block.downsample is None
            assert (block.bn2.weight == 1).all()
    block = plain.layer1[0]
    nn.init.zeros_(block.conv2.weight)
    assert (block(torch.rand(1, 64, 4, 4)) == 0).all()  # a block with a shortcut would return its input


def test_gates_of_any_reduction_squeeze_to_that_part() -> None:
    for reduction in (2, 8, 64):
        block = BACKBONES["resnet20"](se_reduction=reduction).layer2[0]
        assert block.se.fc1.out_channels == max(1, 32 // reduction)
    one, other = (BACKBONES["resnet18"](**options).state_dict() for options in ({"se": True}, {"se_reduction": 16}))
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in other.items()}
